// int8 products by VNNI: four bytes of x times four of the weights added to a 32-bit sum, exact, one instruction.
#include "dense/vector_avx512.hpp"
// clang-format off: the vector comes before what is written over it
#include "dense/gemv.hpp"
// clang-format on

namespace strikeforge {

namespace {

struct DotInt8 {
    using Sums = Whole;
    using Word = __m512i;
    static Word word(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Sums zero() { return {_mm512_setzero_si512()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {_mm512_dpbusd_epi32(sums.all, x, _mm512_load_si512(w))};
    }
};

decltype(DenseKernels::gemv) without = nullptr;  // the level below, for the other precisions

void multiply(const MatrixView& matrix, const VectorView& x, const float* start, float* y) {
    if (matrix.precision != Precision::int8) return without(matrix, x, start, y);
    product<DotInt8>(matrix, 4, x, start, y);
}

}  // namespace

namespace tables {

void vnni(DenseKernels& table) {
    without = table.gemv;
    table.gemv = multiply;
}

}  // namespace tables

}  // namespace strikeforge
