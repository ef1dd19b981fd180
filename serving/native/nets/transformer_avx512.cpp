// The transformer's kernels for AVX-512.
#include "dense/vector_avx512.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/activations.hpp"
#include "nets/transformer_attend.hpp"
// clang-format on

namespace strikeforge::tables {

void avx512(TransformerKernels& table) {
    table.attend = attend;
}

}  // namespace strikeforge::tables
