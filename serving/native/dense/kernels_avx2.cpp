// The kernels for AVX2: all of them, written over pairs of registers.
#include "dense/vector_avx2.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/activations.hpp"
#include "dense/gemv.hpp"
#include "dense/simd_kernels.hpp"
// clang-format on

namespace strikeforge::tables {

void avx2(DenseKernels& table) {
    table = {load_vector, multiply, dot, lstm_cell, layer_norm, silu, tangent, softmax};
}

}  // namespace strikeforge::tables
