// bf16 products by AVX512-BF16: two products added to a float sum by one instruction (rounded to nearest even,
// subnormal numbers taken for zero).
#include "dense/vector_avx512.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/gemv.hpp"
// clang-format on

namespace strikeforge {

namespace {

struct DotBf16 {
    using Sums = V;
    using Word = __m512i;
    static Word word(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Sums zero() { return {_mm512_setzero_ps()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {_mm512_dpbf16_ps(sums.all, reinterpret_cast<__m512bh>(_mm512_load_si512(w)),
                                 reinterpret_cast<__m512bh>(x))};
    }
};

decltype(DenseKernels::gemv) without = nullptr;  // the level below, for the other precisions

void multiply(const MatrixView& matrix, const VectorView& x, const float* start, float* y) {
    if (matrix.precision != Precision::bf16) return without(matrix, x, start, y);
    product<DotBf16>(matrix, 2, x, start, y);
}

}  // namespace

namespace tables {

void bf16(DenseKernels& table) {
    without = table.gemv;
    table.gemv = multiply;
}

}  // namespace tables

}  // namespace strikeforge
