#include "options/simd_portable.hpp"
// The vector first: the kernels are written in its terms.
#include "options/implied_kernel.hpp"
#include "options/value_kernel.hpp"

namespace strikeforge::tables {

void portable(OptionKernels& table) {
    table = {::value, ::implied, nullptr};
}

}  // namespace strikeforge::tables
