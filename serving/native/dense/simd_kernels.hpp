// The kernels of table.hpp other than gemv, written once over sixteen floats; included after vector_<isa>.hpp and
// activations.hpp, in files of that set only.
#pragma once

#include "dense/table.hpp"

namespace strikeforge {
namespace {

inline size_t sixteens(size_t n) {
    return (n + 15) / 16;
}

inline V part(const float* x, size_t n, size_t block) {  // block of x [n], zeros after the end
    return (block + 1) * 16 <= n ? load(x + block * 16) : load_first(x + block * 16, n - block * 16);
}

void load_bytes(const float* x, size_t n, VectorView* out) {
    auto* values = static_cast<std::uint8_t*>(out->data);
    Bits magnitudes = no_bits();
    for (size_t block = 0; block < sixteens(n); ++block) magnitudes = greater_magnitude(magnitudes, part(x, n, block));
    const std::uint32_t bits = largest(magnitudes);
    float greatest;
    __builtin_memcpy(&greatest, &bits, 4);
    if (bits >= 0x7f800000u) {  // infinity or NaN
        out->scale = __builtin_nanf("");
        for (size_t i = 0; i < sixteens(n) * 16; ++i) values[i] = 128;
        return;
    }
    out->scale = greatest > smallest_scaled ? greatest / 127.0f : 1.0f;
    const V inverse = set(1.0f / out->scale);
    for (size_t block = 0; block < sixteens(n); ++block) store_bytes(values + block * 16, part(x, n, block) * inverse);
}

void load_vector(Precision precision, const float* x, size_t n, VectorView* out) {
    out->scale = 1.0f;
    if (precision == Precision::fp32) {
        auto* values = static_cast<float*>(out->data);
        for (size_t block = 0; block < sixteens(n); ++block) store(values + block * 16, part(x, n, block));
    } else if (precision == Precision::bf16) {
        auto* values = static_cast<std::uint16_t*>(out->data);
        for (size_t block = 0; block < sixteens(n); ++block) store_bf16(values + block * 16, part(x, n, block));
    } else {
        load_bytes(x, n, out);
    }
}

float dot(const float* a, const float* b, size_t n) {
    V even = set(0.0f), odd = set(0.0f);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        even = fma(load(a + i), load(b + i), even);
        odd = fma(load(a + i + 16), load(b + i + 16), odd);
    }
    if (i < n) even = fma(load(a + i), load(b + i), even);
    return sum(even + odd);
}

void lstm_cell(const float* gates, const float* cell, float* cell_out, float* hidden_out, size_t n) {
    for (size_t unit = 0; unit < n; unit += 16, gates += 64) {
        const V keep = sigmoid(load(gates + 16)) * load(cell + unit);
        const V next = fma(sigmoid(load(gates)), hyperbolic_tangent(load(gates + 32)), keep);
        store(cell_out + unit, next);
        store(hidden_out + unit, sigmoid(load(gates + 48)) * hyperbolic_tangent(next));
    }
}

void softmax(float* x, size_t n) {
    const size_t whole_blocks = n / 16, rest = n % 16;
    V most = set(x[0]);
    for (size_t block = 0; block < whole_blocks; ++block) most = greater(most, load(x + block * 16));
    float top = largest(most);
    for (size_t i = whole_blocks * 16; i < n; ++i) top = x[i] > top ? x[i] : top;
    V total = set(0.0f);
    for (size_t block = 0; block < whole_blocks; ++block) {
        const V value = exponential(load(x + block * 16) - set(top));
        store(x + block * 16, value);
        total = total + value;
    }
    if (rest) {
        const V value = keep_first(exponential(load_first(x + whole_blocks * 16, rest) - set(top)), rest);
        store(x + whole_blocks * 16, value);
        total = total + value;
    }
    const V share = set(1.0f / sum(total));
    for (size_t block = 0; block < sixteens(n); ++block) store(x + block * 16, load(x + block * 16) * share);
}

void layer_norm(const float* x, const float* gain, const float* shift, size_t n, float* out) {
    const size_t blocks = sixteens(n);
    V total = set(0.0f), squares = set(0.0f);
    for (size_t block = 0; block < blocks; ++block) total = total + part(x, n, block);
    const V mean = set(sum(total) / static_cast<float>(n));
    for (size_t block = 0; block < blocks; ++block) {
        const V off = keep_first(part(x, n, block) - mean, n - block * 16);
        squares = fma(off, off, squares);
    }
    const V unit = set(1.0f / square_root(sum(squares) / static_cast<float>(n) + 1e-5f));
    for (size_t block = 0; block < blocks; ++block) {
        const V value = fma((part(x, n, block) - mean) * unit, part(gain, n, block), part(shift, n, block));
        store(out + block * 16, keep_first(value, n - block * 16));
    }
}

void silu(float* x, size_t n) {
    for (size_t i = 0; i < n; i += 16) store(x + i, load(x + i) * sigmoid(load(x + i)));
}

void tangent(float* x, size_t n) {
    for (size_t i = 0; i < n; i += 16) store(x + i, hyperbolic_tangent(load(x + i)));
}

void multiply(const MatrixView& matrix, const VectorView& x, const float* start, float* y) {
    switch (matrix.precision) {
        case Precision::fp32:
            product<Fp32>(matrix, 1, x, start, y);
            break;
        case Precision::bf16:
            product<Bf16>(matrix, 2, x, start, y);
            break;
        case Precision::int8:
            product<Int8>(matrix, 4, x, start, y);
            break;
    }
}

}  // namespace
}  // namespace strikeforge
