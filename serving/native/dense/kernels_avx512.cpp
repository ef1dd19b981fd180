// The kernels for AVX512: all of them; int8 and bf16 products without their own instructions.
#include "dense/vector_avx512.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/activations.hpp"
#include "dense/gemv.hpp"
#include "dense/simd_kernels.hpp"
// clang-format on

namespace strikeforge::tables {

void avx512(DenseKernels& table) {
    table = {load_vector, multiply, dot, lstm_cell, layer_norm, silu, tangent, softmax};
}

}  // namespace strikeforge::tables
