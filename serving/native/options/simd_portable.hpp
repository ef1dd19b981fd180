// The vector of the portable set: two doubles, by the compiler's vector extension, without any intrinsic.
//
// Every simd_<isa>.hpp defines the same names: Vector, Mask, width and the functions below. Included by one source file
// each; all is in an anonymous namespace, so that no two instruction sets ever share a symbol.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t width = 2;
typedef double Vector __attribute__((vector_size(16)));
typedef std::int64_t Mask __attribute__((vector_size(16)));

inline Vector set(double x) {
    return Vector{x, x};
}
inline Vector load(const double* from) {
    return Vector{from[0], from[1]};
}
inline void store(double* to, Vector x) {
    to[0] = x[0];
    to[1] = x[1];
}
// a b + c, fused or not.
inline Vector fma(Vector a, Vector b, Vector c) {
    return a * b + c;
}
// What rounding took off `product` = a b, by Dekker's splitting into halves.
inline Vector product_error(Vector a, Vector b, Vector product) {
    const Vector factor = set(0x1p27 + 1.0);
    const Vector ca = factor * a, cb = factor * b;
    const Vector a1 = ca - (ca - a), b1 = cb - (cb - b), a2 = a - a1, b2 = b - b1;
    return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
}
inline Vector square_root(Vector x) {
    return Vector{__builtin_sqrt(x[0]), __builtin_sqrt(x[1])};
}
// top / bottom; where a set has a faster way, only for a normal bottom below 2^1000.
inline Vector quotient(Vector top, Vector bottom) {
    return top / bottom;
}
inline Vector choose(Mask mask, Vector yes, Vector no) {
    return mask ? yes : no;
}
inline Mask less(Vector a, Vector b) {
    return a < b;
}
inline Mask at_most(Vector a, Vector b) {
    return a <= b;
}
inline Mask equal(Vector a, Vector b) {
    return a == b;
}
inline bool any(Mask mask) {
    return (mask[0] | mask[1]) != 0;
}
inline Vector smaller(Vector a, Vector b) {
    return a < b ? a : b;
}
inline Vector larger(Vector a, Vector b) {
    return a > b ? a : b;
}
inline Mask bits(Vector x) {
    return (Mask)x;
}
inline Vector from_bits(Mask x) {
    return (Vector)x;
}

}  // namespace

#include "options/simd_bits.hpp"
