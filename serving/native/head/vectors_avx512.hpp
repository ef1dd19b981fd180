// AVX-512 vectors for tile.hpp; included by files compiled for AVX-512, in their anonymous namespaces.
#pragma once

// GCC 12 takes its own _mm512_undefined_ps for a mistake (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "head/tile.hpp"

namespace strikeforge {

namespace {

struct Avx512 {
    using F = __m512;
    static constexpr size_t lanes = 16;
    static constexpr size_t block = 8;  // outputs: 8 x 3 sums and 3 inputs fit the 32 registers

    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, F x) { _mm512_storeu_ps(to, x); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }

    static __mmask16 first(size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u); }
    static F load_some(const float* from, size_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
    static void store_some(float* to, F x, size_t count) { _mm512_mask_storeu_ps(to, first(count), x); }

    // 2^x in two factors, n whole: 2^x = fraction 2^n. |x| < 2^22.
    static F fraction(F x, F n) {  // 9e-8 relative
        const F f = _mm512_sub_ps(x, n);
        F p = _mm512_fmadd_ps(set(1.326472731307149e-3f), f, set(9.671512991189957e-3f));
        p = _mm512_fmadd_ps(p, f, set(5.550733581185341e-2f));
        p = _mm512_fmadd_ps(p, f, set(2.402224242687225e-1f));
        p = _mm512_fmadd_ps(p, f, set(6.931470036506653e-1f));
        return _mm512_fmadd_ps(p, f, set(1.0f));
    }

    // exp(x), |x| <= 1: relative error below 3e-7, exactly 1 at 0.
    static F exponential(F x) {
        const F powers = _mm512_mul_ps(x, set(1.44269504f));
        const F n = _mm512_roundscale_ps(powers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm512_scalef_ps(fraction(powers, n), n);
    }

    // `features` columns of 16 contracts (zeros from `count` on) into rows, `wide` floats apart.
    static void turn(const float* contracts, size_t count, size_t stride, size_t features, float* out, size_t wide) {
        for (size_t column = 0; column < features; column += lanes) {
            const size_t left = features - column;
            const __mmask16 some = first(left);
            __m512 a[16], b[16];
#pragma GCC unroll 16
            for (size_t row = 0; row < 16; ++row)
                a[row] = row < count ? _mm512_maskz_loadu_ps(some, contracts + row * stride + column) : set(0.0f);
            transpose(a, b);
#pragma GCC unroll 16
            for (size_t k = 0; k < 16; ++k) {
                if (k < left) store(out + (column + k) * wide, a[k]);
            }
        }
    }

    // a[i][j] = a[j][i]; b is scratch.
    static void transpose(__m512 (&a)[16], __m512 (&b)[16]) {
#pragma GCC unroll 8
        for (size_t i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < 16; i += 4) {
            for (size_t h = 0; h < 2; ++h) {
                const __m512d low = _mm512_castps_pd(b[i + h]), high = _mm512_castps_pd(b[i + 2 + h]);
                a[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                a[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            }
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
            b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
            b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
            b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
            b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
            a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
            a[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
            a[i + 4] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88);
            a[i + 12] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd);
        }
    }
};

// x sigmoid(x) = x / (1 + 2^(-x log2 e)). Error below 4e-7 max(|x|, 1): the exponent is a single rounding off, below 87
// its power can't overflow.
struct Silu {
    __m512 operator()(__m512 x) const {
        const __m512 rate = _mm512_set1_ps(-1.44269504f), whole = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23
        const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);
        const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(bounded, rate, whole), whole);
        const __m512 f = _mm512_fmsub_ps(bounded, rate, n);
        const __m512 power = _mm512_scalef_ps(Avx512::fraction(f, _mm512_setzero_ps()), n);
        const __m512 below = _mm512_add_ps(power, _mm512_set1_ps(1.0f));
        __m512 inverse = _mm512_rcp14_ps(below);
        inverse = _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(1.0f)), inverse);
        return _mm512_mul_ps(x, inverse);
    }
};

// A parabola from a table of 31 pieces: error below 5e-4, that of rounding 0.2 to bf16. `Cut`: larger by what cutting
// the result down to bf16 will take (head.cpp's silu_table).
template <bool cut>
struct QuickSilu {
    __m512 table[3][2];
    explicit QuickSilu(const HeadView& head) {
        for (int i = 0; i < 6; ++i) table[i / 2][i % 2] = _mm512_loadu_ps(head.silu_table + (cut ? 96 : 0) + 16 * i);
    }
    __m512 operator()(__m512 x) const {
        constexpr int smaller_magnitude = 0b0010;  // with x's sign
        const __m512 end = _mm512_set1_ps((silu_last_piece + 0.49f) * silu_piece);
        const __m512 bounded = _mm512_range_ps(x, end, smaller_magnitude);
        const __m512 place = _mm512_fmadd_ps(bounded, _mm512_set1_ps(1.0f / silu_piece), _mm512_set1_ps(12582912.0f));
        const __m512i piece = _mm512_castps_si512(place);  // its low five bits
        __m512 y = _mm512_permutex2var_ps(table[2][0], piece, table[2][1]);
        y = _mm512_fmadd_ps(y, x, _mm512_permutex2var_ps(table[1][0], piece, table[1][1]));
        return _mm512_fmadd_ps(y, x, _mm512_permutex2var_ps(table[0][0], piece, table[0][1]));
    }
};

struct FloatDot {
    using Sum = __m512;
    static Sum begin(float start) { return _mm512_set1_ps(start); }
    static Sum add(Sum sum, __m512 x, __m512 weight) { return _mm512_fmadd_ps(x, weight, sum); }
    static __m512 end(Sum sum, const float*, const float*, size_t, const float*) { return sum; }
    template <int V>
    static const float* inputs(const HeadView&, const Places& at) {
        return at.features;
    }
};

// Two floats' upper halves, rounded, in one word: `even` in the lower half.
inline __m512 pair(__m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaau, low, high));
}

// Two floats' upper halves, cut down, in one word: `even` in the lower half.
inline __m512 cut_pair(__m512 even, __m512 odd) {
    const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));
    constexpr __mmask64 low_halves = 0x3333333333333333;
    return _mm512_castsi512_ps(
        _mm512_mask_shuffle_epi8(_mm512_castps_si512(odd), low_halves, _mm512_castps_si512(even), upper));
}

// Features in pairs, zeros up to the groups there are.
template <int V>
inline void pair_features(const HeadView& head, const Places& at) {
    constexpr size_t wide = V * 16;
    const __m512 zero = _mm512_setzero_ps();
    for (size_t group = 0; group < head.first.groups; ++group) {
        for (size_t v = 0; v < wide; v += 16) {
            const size_t even = 2 * group;
            if (even >= head.features) {
                _mm512_storeu_ps(at.words + group * wide + v, zero);
                continue;
            }
            const __m512 low = _mm512_loadu_ps(at.features + even * wide + v);
            const __m512 high = even + 1 < head.features ? _mm512_loadu_ps(at.features + (even + 1) * wide + v) : zero;
            _mm512_storeu_ps(at.words + group * wide + v, pair(low, high));
        }
    }
}

// A block of activations into pairs.
template <int V>
inline void hide_pairs(const QuickSilu<true>& silu, size_t out, const __m512 (&y)[8][V], float* hidden) {
#pragma GCC unroll 4
    for (size_t r = 0; r < 8; r += 2) {
        for (size_t v = 0; v < V; ++v)
            _mm512_storeu_ps(hidden + ((out + r) / 2 * V + v) * 16, cut_pair(silu(y[r][v]), silu(y[r + 1][v])));
    }
}

// A block of activations as floats, and the largest of each contract so far.
template <int V>
inline void hide_floats(const QuickSilu<false>& silu, size_t out, const __m512 (&y)[8][V], float* raw,
                        __m512 (&largest)[V]) {
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; ++r) {
        for (size_t v = 0; v < V; ++v) {
            const __m512 activation = silu(y[r][v]);
            largest[v] = _mm512_max_ps(activation, largest[v]);
            _mm512_storeu_ps(raw + ((out + r) * V + v) * 16, activation);
        }
    }
}

// Activations into bytes, four outputs a word: round((activation + offset) / unit); `unit` [V][16] is made here. Bytes
// have no NaN, so it goes into the unit: converted, it is the one whole number here that is negative.
template <int V>
inline void quantise(size_t width, const float* raw, const __m512 (&largest)[V], float* hidden, float* unit) {
    const __m512i turned = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (size_t v = 0; v < V; ++v) {
        const __m512 range = _mm512_add_ps(largest[v], _mm512_set1_ps(silu_offset));
        const __m512 steps = _mm512_div_ps(_mm512_set1_ps(255.0f), range);
        const __m512 offset = _mm512_mul_ps(steps, _mm512_set1_ps(silu_offset));
        __m512i any = _mm512_setzero_si512();
        for (size_t out = 0; out < width; out += 4) {
            __m512i q[4];
            for (size_t r = 0; r < 4; ++r)
                q[r] =
                    _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(raw + ((out + r) * V + v) * 16), steps, offset));
            constexpr int or_of_three = 0xfe;
            any = _mm512_ternarylogic_epi32(any, q[0], q[1], or_of_three);
            any = _mm512_ternarylogic_epi32(any, q[2], q[3], or_of_three);
            const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(q[0], q[1]), _mm512_packus_epi32(q[2], q[3]));
            _mm512_storeu_si512(hidden + (out / 4 * V + v) * 16, _mm512_shuffle_epi8(bytes, turned));
        }
        const __m512 each = _mm512_mul_ps(range, _mm512_set1_ps(1.0f / 255.0f));
        const __m512 nan = _mm512_set1_ps(__builtin_nanf(""));
        _mm512_storeu_ps(unit + v * 16, _mm512_mask_mov_ps(each, _mm512_movepi32_mask(any), nan));
    }
}

// A head's kernel, whose layers are multiplied in blocks.
template <class Net>
void blocks_volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                       float share, bool add, float* iv) {
    const Places at = places(head);
    context_share<Avx512>(head, context, at.start);
    tiles<Avx512, Net, 3>(head, at, contracts, count, stride, share, add, iv);
}

}  // namespace

}  // namespace strikeforge
