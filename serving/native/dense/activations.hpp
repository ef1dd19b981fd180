// exp, sigmoid and tanh of sixteen floats; included after vector_<isa>.hpp, in files of that set only.
//
// exp(r) - 1 for |r| <= ln(2)/2 is its Taylor series up to r^7/7! (what is left out is below 2^-26 of it); the rest is
// exact scaling. Largest errors in units in the last place: exp 2, sigmoid 4, tanh 4 (the latter two are held by
// tests/serving/native/test_activations.py, exp only through them); arguments are clamped to +-87, so results saturate
// at exp(+-87) and NaN stays NaN.
#pragma once

namespace strikeforge {
namespace {

struct Split {
    V small, power;  // exp(x) = (small + 1) * power
};

inline Split split_exponential(V x) {
    const V clamped = clamp(x, set(-87.0f), set(87.0f));
    const V n = whole(clamped * set(1.44269504f));                                   // log2(e)
    const V r = fnma(n, set(-2.12194440e-4f), fnma(n, set(0.693359375f), clamped));  // ln(2) in two parts
    V p = set(1.0f / 5040.0f);
    p = fma(p, r, set(1.0f / 720.0f));
    p = fma(p, r, set(1.0f / 120.0f));
    p = fma(p, r, set(1.0f / 24.0f));
    p = fma(p, r, set(1.0f / 6.0f));
    p = fma(p, r, set(0.5f));
    return {fma(p, r * r, r), power_of_two(n)};
}

inline V exponential(V x) {
    const Split e = split_exponential(x);
    return fma(e.small, e.power, e.power);
}

inline V sigmoid(V x) {
    return reciprocal(set(1.0f) + exponential(set(0.0f) - x));
}

// (e^2x - 1) / (e^2x + 1), with e^2x - 1 computed as such: accurate near zero too. From |x| = 9.1 on it is +-1.
inline V hyperbolic_tangent(V x) {
    const Split e = split_exponential(clamp(x, set(-10.0f), set(10.0f)) * set(2.0f));
    const V less_one = fma(e.small, e.power, e.power - set(1.0f));
    return less_one * reciprocal(less_one + set(2.0f));
}

}  // namespace
}  // namespace strikeforge
