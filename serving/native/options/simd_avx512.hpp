// The vector of AVX-512 (F, DQ): eight doubles; names as in simd_portable.hpp, masks in mask registers.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

// The zero-masked forms with all lanes on: gcc 12 takes the plain ones' undefined operand for a mistake of ours.
constexpr __mmask8 all = 0xff;

constexpr size_t width = 8;
typedef __m512d Vector;
typedef __mmask8 Mask;

inline Vector set(double x) {
    return _mm512_set1_pd(x);
}
inline Vector load(const double* from) {
    return _mm512_loadu_pd(from);
}
inline void store(double* to, Vector x) {
    _mm512_storeu_pd(to, x);
}
inline Vector fma(Vector a, Vector b, Vector c) {
    return _mm512_fmadd_pd(a, b, c);
}
// What rounding took off `product` = a b.
inline Vector product_error(Vector a, Vector b, Vector product) {
    return _mm512_fmsub_pd(a, b, product);
}
inline Vector square_root(Vector x) {
    return _mm512_maskz_sqrt_pd(all, x);
}
// top / bottom for a normal bottom below 2^1000 and a quotient far from under- and overflow: within 1 unit in the last
// place, in a third of vdivpd's time. The estimate's 2^-14 is squared, and squared again by correcting the quotient.
inline Vector quotient(Vector top, Vector bottom) {
    Vector inverse = _mm512_maskz_rcp14_pd(all, bottom);
    inverse = _mm512_fmadd_pd(inverse, _mm512_fnmadd_pd(bottom, inverse, set(1.0)), inverse);
    const Vector found = _mm512_mul_pd(top, inverse);
    return _mm512_fmadd_pd(inverse, _mm512_fnmadd_pd(bottom, found, top), found);
}
inline Vector choose(Mask mask, Vector yes, Vector no) {
    return _mm512_mask_blend_pd(mask, no, yes);
}
inline Mask less(Vector a, Vector b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
}
inline Mask at_most(Vector a, Vector b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ);
}
inline Mask equal(Vector a, Vector b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
}
inline bool any(Mask mask) {
    return mask != 0;
}
inline Vector smaller(Vector a, Vector b) {
    return _mm512_maskz_min_pd(all, a, b);
}
inline Vector larger(Vector a, Vector b) {
    return _mm512_maskz_max_pd(all, a, b);
}
inline Vector absolute(Vector x) {
    return _mm512_abs_pd(x);
}
inline Vector round_to_whole(Vector x) {
    return _mm512_maskz_roundscale_pd(all, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vector scale(Vector x, Vector k) {
    return _mm512_maskz_scalef_pd(all, x, k);
}
inline void split(Vector x, Vector& mantissa, Vector& exponent) {
    mantissa = _mm512_maskz_getmant_pd(all, x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    exponent = _mm512_maskz_getexp_pd(all, x);
}

}  // namespace
