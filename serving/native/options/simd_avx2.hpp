// The vector of AVX2 with FMA: four doubles; names as in simd_portable.hpp.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t width = 4;
typedef __m256d Vector;
typedef std::int64_t Mask __attribute__((vector_size(32)));

inline Vector set(double x) {
    return _mm256_set1_pd(x);
}
inline Vector load(const double* from) {
    return _mm256_loadu_pd(from);
}
inline void store(double* to, Vector x) {
    _mm256_storeu_pd(to, x);
}
inline Vector fma(Vector a, Vector b, Vector c) {
    return _mm256_fmadd_pd(a, b, c);
}
// What rounding took off `product` = a b.
inline Vector product_error(Vector a, Vector b, Vector product) {
    return _mm256_fmsub_pd(a, b, product);
}
inline Vector square_root(Vector x) {
    return _mm256_sqrt_pd(x);
}
// top / bottom; where a set has a faster way, only for a normal bottom below 2^1000.
inline Vector quotient(Vector top, Vector bottom) {
    return top / bottom;
}
inline Vector choose(Mask mask, Vector yes, Vector no) {
    return _mm256_blendv_pd(no, yes, (__m256d)mask);
}
inline Mask less(Vector a, Vector b) {
    return (Mask)_mm256_cmp_pd(a, b, _CMP_LT_OQ);
}
inline Mask at_most(Vector a, Vector b) {
    return (Mask)_mm256_cmp_pd(a, b, _CMP_LE_OQ);
}
inline Mask equal(Vector a, Vector b) {
    return (Mask)_mm256_cmp_pd(a, b, _CMP_EQ_OQ);
}
inline bool any(Mask mask) {
    return _mm256_movemask_pd((__m256d)mask) != 0;
}
inline Vector smaller(Vector a, Vector b) {
    return _mm256_min_pd(a, b);
}
inline Vector larger(Vector a, Vector b) {
    return _mm256_max_pd(a, b);
}
inline Mask bits(Vector x) {
    return (Mask)x;
}
inline Vector from_bits(Mask x) {
    return (Vector)x;
}

}  // namespace

#include "options/simd_bits.hpp"
