// Sixteen floats in one AVX-512 register. Only for files of that set or above: everything is in the unnamed
// namespace, so that no function compiled for this set can end up in another file's hands.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 says both of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace strikeforge {
namespace {

using std::size_t;

struct V {
    __m512 all;
};

inline __mmask16 first(size_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
}
inline V load(const float* x) {
    return {_mm512_loadu_ps(x)};
}
inline V load_first(const float* x, size_t count) {  // zeros after `count`
    return {_mm512_maskz_loadu_ps(first(count), x)};
}
inline void store(float* x, V a) {
    _mm512_storeu_ps(x, a.all);
}
inline V keep_first(V a, size_t count) {
    return {_mm512_maskz_mov_ps(first(count), a.all)};
}
inline V set(float a) {
    return {_mm512_set1_ps(a)};
}
inline V operator+(V a, V b) {
    return {_mm512_add_ps(a.all, b.all)};
}
inline V operator-(V a, V b) {
    return {_mm512_sub_ps(a.all, b.all)};
}
inline V operator*(V a, V b) {
    return {_mm512_mul_ps(a.all, b.all)};
}
inline V fma(V a, V b, V c) {  // a b + c
    return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}
inline V fnma(V a, V b, V c) {  // c - a b
    return {_mm512_fnmadd_ps(a.all, b.all, c.all)};
}
// x within [low, high]; NaN stays NaN (the second operand is returned where one is NaN).
inline V clamp(V x, V low, V high) {
    return {_mm512_max_ps(low.all, _mm512_min_ps(high.all, x.all))};
}
inline V greater(V a, V b) {  // for reductions; b where one is NaN
    return {_mm512_max_ps(a.all, b.all)};
}
inline V whole(V a) {
    return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline V power_of_two(V n) {  // n whole, -126..127
    return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.all)};
}
// 1 / a for 2^-126 <= |a| < 2^126: an estimate good to 2^-14 and one step of Newton's; error below 2 units in the last
// place.
inline V reciprocal(V a) {
    const __m512 estimate = _mm512_rcp14_ps(a.all);
    const __m512 rest = _mm512_fnmadd_ps(a.all, estimate, _mm512_set1_ps(1.0f));
    return {_mm512_fmadd_ps(estimate, rest, estimate)};
}
inline float sum(V a) {
    return _mm512_reduce_add_ps(a.all);
}
inline float largest(V a) {
    return _mm512_reduce_max_ps(a.all);
}
inline float square_root(float a) {
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a)));
}

// The bits of |x| as whole numbers: they sort like the magnitudes, infinity and NaN on top.
struct Bits {
    __m512i all;
};
inline Bits no_bits() {
    return {_mm512_setzero_si512()};
}
inline Bits greater_magnitude(Bits a, V x) {
    return {_mm512_max_epu32(a.all, _mm512_and_si512(_mm512_castps_si512(x.all), _mm512_set1_epi32(0x7fffffff)))};
}
inline std::uint32_t largest(Bits a) {
    return _mm512_reduce_max_epu32(a.all);
}
// Nearest whole number + 128 as bytes; x within -127..127.
inline void store_bytes(std::uint8_t* to, V x) {
    const __m512i value = _mm512_add_epi32(_mm512_cvtps_epi32(x.all), _mm512_set1_epi32(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(value));
}
inline void store_bf16(std::uint16_t* to, V x) {
    const __m512i bits = _mm512_castps_si512(x.all), high = _mm512_srli_epi32(bits, 16);
    const __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x.all, x.all, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(out));
}

// What the matrix-vector products need (gemv.hpp): 16 sums, of floats or of whole numbers.
struct Whole {
    __m512i all;
};
inline Whole load_whole(const std::int32_t* x) {
    return {_mm512_loadu_si512(x)};
}
inline Whole operator+(Whole a, Whole b) {
    return {_mm512_add_epi32(a.all, b.all)};
}
inline Whole operator-(Whole a, Whole b) {
    return {_mm512_sub_epi32(a.all, b.all)};
}
inline V to_float(Whole a) {
    return {_mm512_cvtepi32_ps(a.all)};
}

inline constexpr size_t most_at_once = 8;  // vectors of 16 sums that fit into registers

struct Fp32 {
    using Sums = V;
    using Word = __m512;
    static Word word(std::uint32_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x))); }
    static Sums zero() { return {_mm512_setzero_ps()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {_mm512_fmadd_ps(_mm512_load_ps(w), x, sums.all)};
    }
};

// Without BF16 dot products: both halves widened to floats.
struct Bf16 {
    using Sums = V;
    struct Word {
        __m512 low, high;
    };
    static Word word(std::uint32_t x) { return {Fp32::word(x << 16), Fp32::word(x & 0xffff0000u)}; }
    static Sums zero() { return {_mm512_setzero_ps()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        const __m512i pair = _mm512_load_si512(w);
        const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const __m512 high =
            _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
        return {_mm512_fmadd_ps(high, x.high, _mm512_fmadd_ps(low, x.low, sums.all))};
    }
};

// Without VNNI: bytes widened to 16 bits and multiplied in pairs; exact, where vpmaddubsw would saturate.
struct Int8 {
    using Sums = Whole;
    struct Word {
        __m512i even, odd;
    };
    static Word word(std::uint32_t x) {
        return {_mm512_set1_epi32(static_cast<int>(x & 0x00ff00ffu)),
                _mm512_set1_epi32(static_cast<int>((x >> 8) & 0x00ff00ffu))};
    }
    static Sums zero() { return {_mm512_setzero_si512()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        const __m512i four = _mm512_load_si512(w);
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), odd = _mm512_srai_epi16(four, 8);
        const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(even, x.even), _mm512_madd_epi16(odd, x.odd));
        return {_mm512_add_epi32(sums.all, products)};
    }
};

}  // namespace
}  // namespace strikeforge
