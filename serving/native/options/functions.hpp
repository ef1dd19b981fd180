// exp, log, Mills' ratio of a Vector. Include after one simd_<isa>.hpp. Coefficients: coefficients.py.
#pragma once

#include "options/coefficients.hpp"

namespace {

namespace fits = strikeforge::coefficients;

// Coefficients lowest power first (Horner's scheme).
template <size_t count>
inline Vector polynomial(const double (&coefficients)[count], Vector x) {
    Vector sum = set(coefficients[count - 1]);
#pragma GCC unroll 32
    for (size_t i = 1; i < count; ++i) sum = fma(sum, x, set(coefficients[count - 1 - i]));
    return sum;
}

// exp(y) for -1100 < y < 700; relative error about one unit in the last place.
inline Vector exponential(Vector y) {
    const Vector k = round_to_whole(y * set(fits::inverse_ln2));
    const Vector r = fma(k, set(-fits::ln2_low), fma(k, set(-fits::ln2_high), y));
    const Vector beyond_one = fma(r * r, polynomial(fits::exp, r), r);
    return scale(set(1.0) + beyond_one, k);
}

// ln(a / b) for positive a, b; relative error below two units in the last place, also where a is near b: there the
// difference of the mantissas is exact.
inline Vector log_ratio(Vector a, Vector b) {
    Vector top, bottom, up, down;
    split(a, top, up);
    split(b, bottom, down);
    Vector k = up - down;  // a / b = top / bottom 2^k with top / bottom brought into [sqrt(1/2), sqrt(2)]
    const Mask high = less(bottom * set(fits::sqrt2), top), low = less(top * set(fits::sqrt2), bottom);
    top = choose(high, top * set(0.5), choose(low, top + top, top));
    k = choose(high, k + set(1.0), choose(low, k - set(1.0), k));
    const Vector f = quotient(top - bottom, top + bottom), square = f * f;
    const Vector small = fma(f * square, polynomial(fits::atanh, square), f + f);  // 2 atanh(f)
    return fma(k, set(fits::ln2_high), fma(k, set(fits::ln2_low), small));
}

// Mills' ratio Phi(-z) / phi(z) for z >= 0.
inline Vector mills(Vector z) {
    const Vector bounded = smaller(set(1e100), z);  // quotient's bottom; NaN stays
    const Vector u = quotient(set(1.0), bounded + set(fits::mills_centre));
    const Vector t = fma(set(-2.0 * fits::mills_centre), u, set(1.0));
    return u * polynomial(fits::mills, t);
}

}  // namespace
