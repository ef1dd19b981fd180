// The transformer's kernels for AVX2.
#include "dense/vector_avx2.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/activations.hpp"
#include "nets/transformer_attend.hpp"
// clang-format on

namespace strikeforge::tables {

void avx2(TransformerKernels& table) {
    table.attend = attend;
}

}  // namespace strikeforge::tables
