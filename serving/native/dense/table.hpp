// The table of dense kernels and what they see of matrices and vectors: plain pointers, no library type, so that
// instruction-set files may include it.
//
// Kernels trust their arguments: sizes are padded as pack.hpp says, arrays are aligned to 64 bytes (the `x` of `load`
// need not be) and do not overlap unless said. `kernels_portable.cpp` is the reference: plain loops, one kernel a
// function, read it first. Every other table is held to it by tests/serving/native/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace strikeforge {

using std::size_t;

enum class Precision : int { fp32 = 0, bf16 = 1, int8 = 2 };

inline constexpr size_t panel_vectors = 8;
inline constexpr float smallest_scaled = 1e-30f;  // int8: smaller magnitudes are zeros, their scale would underflow

struct MatrixView {
    Precision precision;
    size_t rows;            // padded to 16
    size_t columns;         // as given
    size_t padded_columns;  // multiple of 4
    const void* weights;
    const float* scale;              // int8: [rows]
    const std::int32_t* correction;  // int8: [rows]
};

// A vector in the precision of the matrix it will be multiplied with; `data` has room for padded(n, 16) elements.
struct VectorView {
    void* data;   // fp32: float; bf16: uint16; int8: uint8, round(x / scale) + 128
    float scale;  // int8: the largest magnitude / 127, 1 where that is below 1e-30, NaN where an element isn't finite
};

struct DenseKernels {
    // x [n] into `out` in `precision`, zeros up to the next multiple of 16 (128 for int8, which is its zero).
    void (*load)(Precision precision, const float* x, size_t n, VectorView* out);

    // y[r] = start[r] + sum over c of W[r, c] x[c], r < rows (padded); `start` may be null (0) and may be y.
    // int8: the sum of products is exact; what follows is (sum - correction[r]) * (scale[r] * x.scale) + start[r].
    void (*gemv)(const MatrixView& matrix, const VectorView& x, const float* start, float* y);

    // Sum of a[i] b[i]; n padded.
    float (*dot)(const float* a, const float* b, size_t n);

    // One LSTM cell. `gates`, before activation, in blocks of 16 units: [block][i, f, g, o][16]; n units, padded to 16.
    // c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c'). `cell_out` may be `cell`.
    void (*lstm_cell)(const float* gates, const float* cell, float* cell_out, float* hidden_out, size_t n);

    // out[i] = (x[i] - mean) / sqrt(variance + 1e-5) * gain[i] + shift[i] over n; zeros up to padded(n). May be x.
    void (*layer_norm)(const float* x, const float* gain, const float* shift, size_t n, float* out);

    void (*silu)(float* x, size_t n);     // x sigmoid(x), in place; n padded
    void (*tanh)(float* x, size_t n);     // in place; n padded
    void (*softmax)(float* x, size_t n);  // in place over exactly n >= 1; room for padded(n)
};

// Each instruction set's file takes the table below it and replaces what it has.
namespace tables {
void portable(DenseKernels& table);
#if defined(STRIKEFORGE_X86)
void avx2(DenseKernels& table);
void avx512(DenseKernels& table);
void vnni(DenseKernels& table);
void bf16(DenseKernels& table);
#endif
}  // namespace tables

}  // namespace strikeforge
