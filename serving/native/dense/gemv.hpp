// The matrix-vector product over packed weights, for any instruction set: included after vector_<isa>.hpp, in files of
// that set only.
//
// A vector of weights is 64 bytes in every precision and meets one 4-byte word of x. Up to `most_at_once` sums run side
// by side, so that neither the multiplier's latency nor x's broadcast counts; narrow panels run several columns at
// once.
#pragma once

#include "dense/table.hpp"

namespace strikeforge {
namespace {

// Sums of N vectors of rows whose first weights are at `w`, `stride` bytes between column groups.
template <class Product, size_t N>
inline void sums_of(const std::uint8_t* w, size_t stride, const std::uint32_t* x, size_t groups,
                    typename Product::Sums* out) {
    constexpr size_t at_once = N >= 4 ? 1 : N == 3 ? 2 : N == 2 ? 3 : 4;
    typename Product::Sums sums[at_once][N];
    for (size_t k = 0; k < at_once; ++k)
        for (size_t n = 0; n < N; ++n) sums[k][n] = Product::zero();
    size_t group = 0;
    for (; group + at_once <= groups; group += at_once) {
        for (size_t k = 0; k < at_once; ++k) {
            const auto word = Product::word(x[group + k]);
            const std::uint8_t* column = w + (group + k) * stride;
            for (size_t n = 0; n < N; ++n) sums[k][n] = Product::step(sums[k][n], column + n * 64, word);
        }
    }
    for (; group < groups; ++group) {
        const auto word = Product::word(x[group]);
        for (size_t n = 0; n < N; ++n) sums[0][n] = Product::step(sums[0][n], w + group * stride + n * 64, word);
    }
    for (size_t n = 0; n < N; ++n) {
        for (size_t k = 1; k < at_once; ++k) sums[0][n] = sums[0][n] + sums[k][n];
        out[n] = sums[0][n];
    }
}

inline V finished(V sums, const MatrixView&, float, size_t) {
    return sums;
}

inline V finished(Whole sums, const MatrixView& matrix, float scale, size_t row) {
    return to_float(sums - load_whole(matrix.correction + row)) * (load(matrix.scale + row) * set(scale));
}

template <class Product, size_t N>
inline void rows_of(const MatrixView& matrix, const VectorView& x, const std::uint8_t* w, size_t stride, size_t groups,
                    size_t row, const float* start, float* y) {
    typename Product::Sums sums[N];
    sums_of<Product, N>(w, stride, static_cast<const std::uint32_t*>(x.data), groups, sums);
    for (size_t n = 0; n < N; ++n) {
        const V value = finished(sums[n], matrix, x.scale, row + n * 16);
        store(y + row + n * 16, start == nullptr ? value : load(start + row + n * 16) + value);
    }
}

template <class Product>
inline void product(const MatrixView& matrix, size_t group_columns, const VectorView& x, const float* start, float* y) {
    const size_t vectors = matrix.rows / 16, groups = matrix.padded_columns / group_columns;
    const auto* w = static_cast<const std::uint8_t*>(matrix.weights);
    for (size_t vector = 0; vector < vectors;) {
        const size_t left = vectors - vector, in_panel = left < panel_vectors ? left : panel_vectors;
        for (size_t done = 0; done < in_panel;) {
            const size_t rest = in_panel - done, count = rest < most_at_once ? rest : most_at_once;
            const std::uint8_t* begin = w + done * 64;
            const size_t stride = in_panel * 64, row = (vector + done) * 16;
            switch (count) {
                case 1:
                    rows_of<Product, 1>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 2:
                    rows_of<Product, 2>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 3:
                    rows_of<Product, 3>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 4:
                    rows_of<Product, 4>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 5:
                    rows_of<Product, 5>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 6:
                    rows_of<Product, 6>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                case 7:
                    rows_of<Product, 7>(matrix, x, begin, stride, groups, row, start, y);
                    break;
                default:
                    rows_of<Product, 8>(matrix, x, begin, stride, groups, row, start, y);
                    break;
            }
            done += count;
        }
        w += in_panel * 64 * groups;
        vector += in_panel;
    }
}

}  // namespace
}  // namespace strikeforge
