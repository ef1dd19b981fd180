#if defined(STRIKEFORGE_X86)

#include "options/simd_avx512.hpp"
// The vector first: the kernels are written in its terms.
#include "options/implied_kernel.hpp"
#include "options/value_kernel.hpp"

namespace strikeforge::tables {

void avx512(OptionKernels& table) {
    table = {::value, ::implied, nullptr};
}

}  // namespace strikeforge::tables

#endif
