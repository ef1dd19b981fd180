#include "options/black76.hpp"

namespace strikeforge {

const OptionKernels& option_kernels(Isa) {
    static const OptionKernels none{};
    return none;
}

}  // namespace strikeforge
