// Exponents and mantissas by integer arithmetic, for sets without instructions of their own for them.
#pragma once

namespace {

constexpr double magic = 0x1.8p52;  // adding it rounds to a whole number, kept in the low bits

inline Vector absolute(Vector x) {
    return from_bits(bits(x) & 0x7fffffffffffffff);
}

inline Vector round_to_whole(Vector x) {
    return (x + set(magic)) - set(magic);
}

// 2^k for whole k in -1022..1023.
inline Vector power_of_two(Vector k) {
    return from_bits((bits(k + set(magic)) + 1023) << 52);
}

// x 2^k for whole k in -2044..2046, down to subnormal results.
inline Vector scale(Vector x, Vector k) {
    const Vector first = round_to_whole(k * set(0.5));
    return x * power_of_two(first) * power_of_two(k - first);
}

// Positive x = mantissa 2^exponent, mantissa in [1, 2).
inline void split(Vector x, Vector& mantissa, Vector& exponent) {
    const Mask tiny = less(x, set(0x1p-1022));
    const Mask whole = bits(choose(tiny, x * set(0x1p54), x));
    const Mask lifted = (whole >> 52) | 0x4330000000000000;  // 2^52 + the biased exponent
    exponent = from_bits(lifted) - choose(tiny, set(0x1p52 + 1077.0), set(0x1p52 + 1023.0));
    mantissa = from_bits((whole & 0x000fffffffffffff) | 0x3ff0000000000000);
}

}  // namespace
