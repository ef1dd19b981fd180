#if defined(STRIKEFORGE_X86)

#include "options/simd_avx2.hpp"
// The vector first: the kernels are written in its terms.
#include "options/implied_kernel.hpp"
#include "options/value_kernel.hpp"

namespace strikeforge::tables {

void avx2(OptionKernels& table) {
    table = {::value, ::implied, nullptr};
}

}  // namespace strikeforge::tables

#endif
