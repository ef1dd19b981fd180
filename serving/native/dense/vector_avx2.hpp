// Sixteen floats in two AVX2 registers. Only for the *_avx2 files: everything is in the unnamed namespace, so that no
// function compiled for this set can end up in another file's hands. The same names as in vector_avx512.hpp.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace strikeforge {
namespace {

using std::size_t;

struct V {
    __m256 low, high;
};

inline V load(const float* x) {
    return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
}
inline __m256i first_eight(size_t count) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), place);
}
inline V load_first(const float* x, size_t count) {  // zeros after `count`
    return {_mm256_maskload_ps(x, first_eight(count)),
            _mm256_maskload_ps(x + 8, first_eight(count > 8 ? count - 8 : 0))};
}
inline void store(float* x, V a) {
    _mm256_storeu_ps(x, a.low);
    _mm256_storeu_ps(x + 8, a.high);
}
inline V keep_first(V a, size_t count) {
    return {_mm256_and_ps(a.low, _mm256_castsi256_ps(first_eight(count))),
            _mm256_and_ps(a.high, _mm256_castsi256_ps(first_eight(count > 8 ? count - 8 : 0)))};
}
inline V set(float a) {
    return {_mm256_set1_ps(a), _mm256_set1_ps(a)};
}
inline V operator+(V a, V b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline V operator-(V a, V b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline V operator*(V a, V b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline V fma(V a, V b, V c) {  // a b + c
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline V fnma(V a, V b, V c) {  // c - a b
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
// x within [low, high]; NaN stays NaN (the second operand is returned where one is NaN).
inline V clamp(V x, V low, V high) {
    return {_mm256_max_ps(low.low, _mm256_min_ps(high.low, x.low)),
            _mm256_max_ps(low.high, _mm256_min_ps(high.high, x.high))};
}
inline V greater(V a, V b) {  // for reductions; b where one is NaN
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline V whole(V a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}
inline __m256 power_of_eight(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline V power_of_two(V n) {  // n whole, -126..127
    return {power_of_eight(n.low), power_of_eight(n.high)};
}
inline V reciprocal(V a) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return {_mm256_div_ps(one, a.low), _mm256_div_ps(one, a.high)};
}
inline float sum(V a) {
    const __m256 both = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(V a) {
    const __m256 both = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float square_root(float a) {
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a)));
}

// The bits of |x| as whole numbers: they sort like the magnitudes, infinity and NaN on top.
struct Bits {
    __m256i all;
};
inline Bits no_bits() {
    return {_mm256_setzero_si256()};
}
inline Bits greater_magnitude(Bits a, V x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(x.low), magnitude);
    const __m256i high = _mm256_and_si256(_mm256_castps_si256(x.high), magnitude);
    return {_mm256_max_epu32(a.all, _mm256_max_epu32(low, high))};
}
inline std::uint32_t largest(Bits a) {
    alignas(32) std::uint32_t each[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(each), a.all);
    std::uint32_t out = 0;
    for (const std::uint32_t one : each) out = one > out ? one : out;
    return out;
}
// Nearest whole number + 128 as bytes; x within -127..127.
inline void store_bytes(std::uint8_t* to, V x) {
    const __m256i offset = _mm256_set1_epi32(128);
    const __m256i low = _mm256_add_epi32(_mm256_cvtps_epi32(x.low), offset);
    const __m256i high = _mm256_add_epi32(_mm256_cvtps_epi32(x.high), offset);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline __m256i rounded_high_half(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    const __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
}
inline void store_bf16(std::uint16_t* to, V x) {
    const __m256i words = _mm256_packus_epi32(rounded_high_half(x.low), rounded_high_half(x.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(words, 0xd8));
}

// What the matrix-vector products need (gemv.hpp): 16 sums, of floats or of whole numbers.
struct Whole {
    __m256i low, high;
};
inline Whole load_whole(const std::int32_t* x) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8))};
}
inline Whole operator+(Whole a, Whole b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline Whole operator-(Whole a, Whole b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
inline V to_float(Whole a) {
    return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}

inline constexpr size_t most_at_once = 4;  // vectors of 16 sums that fit into registers

inline __m256i half(const std::uint8_t* w) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
}

struct Fp32 {
    using Sums = V;
    using Word = __m256;
    static Word word(std::uint32_t x) { return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(x))); }
    static Sums zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {_mm256_fmadd_ps(_mm256_castsi256_ps(half(w)), x, sums.low),
                _mm256_fmadd_ps(_mm256_castsi256_ps(half(w + 32)), x, sums.high)};
    }
};

struct Bf16 {
    using Sums = V;
    struct Word {
        __m256 low, high;
    };
    static Word word(std::uint32_t x) { return {Fp32::word(x << 16), Fp32::word(x & 0xffff0000u)}; }
    static Sums zero() { return Fp32::zero(); }
    static __m256 both(__m256 sums, __m256i pair, Word x) {
        const __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
        const __m256 high =
            _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
        return _mm256_fmadd_ps(high, x.high, _mm256_fmadd_ps(low, x.low, sums));
    }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {both(sums.low, half(w), x), both(sums.high, half(w + 32), x)};
    }
};

// Bytes widened to 16 bits and multiplied in pairs; exact, where vpmaddubsw would saturate.
struct Int8 {
    using Sums = Whole;
    struct Word {
        __m256i even, odd;
    };
    static Word word(std::uint32_t x) {
        return {_mm256_set1_epi32(static_cast<int>(x & 0x00ff00ffu)),
                _mm256_set1_epi32(static_cast<int>((x >> 8) & 0x00ff00ffu))};
    }
    static Sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static __m256i four(__m256i sums, __m256i bytes, Word x) {
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even, x.even), _mm256_madd_epi16(odd, x.odd));
        return _mm256_add_epi32(sums, products);
    }
    static Sums step(Sums sums, const std::uint8_t* w, Word x) {
        return {four(sums.low, half(w), x), four(sums.high, half(w + 32), x)};
    }
};

}  // namespace
}  // namespace strikeforge
