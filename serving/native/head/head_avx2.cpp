// AVX2 and FMA in single precision: 24 contracts a tile, 4 outputs at a time.
#include <immintrin.h>

#include "head/tile.hpp"

namespace strikeforge {

namespace {

struct Avx2 {
    using F = __m256;
    static constexpr size_t lanes = 8;
    static constexpr size_t block = 4;  // outputs: 4 x 3 sums and 3 inputs fit the 16 registers

    static F set(float x) { return _mm256_set1_ps(x); }
    static F load(const float* from) { return _mm256_loadu_ps(from); }
    static void store(float* to, F x) { _mm256_storeu_ps(to, x); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }

    static __m256i first(size_t count) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count < 8 ? static_cast<int>(count) : 8), lane);
    }
    static F load_some(const float* from, size_t count) { return _mm256_maskload_ps(from, first(count)); }
    static void store_some(float* to, F x, size_t count) { _mm256_maskstore_ps(to, first(count), x); }

    // 2^(n + f), f within half of 0, n whole and within 127 of 0, given as 1.5 * 2^23 + n: relative error 9e-8.
    static F power(F f, F n) {
        F p = fma(set(1.326472731307149e-3f), f, set(9.671512991189957e-3f));
        p = fma(p, f, set(5.550733581185341e-2f));
        p = fma(p, f, set(2.402224242687225e-1f));
        p = fma(p, f, set(6.931470036506653e-1f));
        p = fma(p, f, set(1.0f));
        const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shift));
    }

    // exp(x), |x| <= 87: exactly 1 at 0; NaN stays.
    static F exponential(F x) {
        const F rate = set(1.44269504f), whole = set(12582912.0f);  // 1.5 * 2^23
        const F n = fma(x, rate, whole);
        return power(_mm256_fmsub_ps(x, rate, _mm256_sub_ps(n, whole)), n);
    }

    // `features` columns of 8 contracts (zeros from `count` on) into rows, `wide` floats apart.
    static void turn(const float* contracts, size_t count, size_t stride, size_t features, float* out, size_t wide) {
        for (size_t column = 0; column < features; column += lanes) {
            const size_t left = features - column;
            const __m256i some = first(left);
            __m256 a[8], b[8];
#pragma GCC unroll 8
            for (size_t row = 0; row < 8; ++row)
                a[row] = row < count ? _mm256_maskload_ps(contracts + row * stride + column, some) : set(0.0f);
#pragma GCC unroll 4
            for (size_t i = 0; i < 8; i += 2) {
                b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
                b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
            }
#pragma GCC unroll 2
            for (size_t i = 0; i < 8; i += 4) {
                a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
                a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
                a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
                a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
            }
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; ++i) {
                b[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
                b[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
            }
#pragma GCC unroll 8
            for (size_t k = 0; k < 8; ++k) {
                if (k < left) store(out + (column + k) * wide, b[k]);
            }
        }
    }
};

// x sigmoid(x) = x / (1 + exp(-x)); error below 4e-7 max(|x|, 1).
struct Silu {
    __m256 operator()(__m256 x) const {
        const __m256 bounded = Avx2::max(Avx2::set(-87.0f), Avx2::min(Avx2::set(87.0f), x));
        const __m256 power = Avx2::exponential(_mm256_sub_ps(_mm256_setzero_ps(), bounded));
        return Avx2::div(x, _mm256_add_ps(Avx2::set(1.0f), power));
    }
};

struct FloatDot {
    using Sum = __m256;
    static Sum begin(float start) { return _mm256_set1_ps(start); }
    static Sum add(Sum sum, __m256 x, __m256 weight) { return _mm256_fmadd_ps(x, weight, sum); }
    static __m256 end(Sum sum, const float*, const float*, size_t, const float*) { return sum; }
};

struct Net {
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m256 (&total)[V]) {
        const Silu silu;
        for_blocks<Avx2, FloatDot, V>(head.first, at.start, nullptr, head.width, at.features,
                                      [&](size_t out, const __m256(&y)[4][V]) {
#pragma GCC unroll 4
                                          for (size_t r = 0; r < 4; ++r) {
                                              for (size_t v = 0; v < V; ++v)
                                                  Avx2::store(at.hidden + ((out + r) * V + v) * 8, silu(y[r][v]));
                                          }
                                      });
        for_blocks<Avx2, FloatDot, V>(
            head.second, head.second_bias, nullptr, head.width, at.hidden,
            [&](size_t out, const __m256(&y)[4][V]) { add_block<Avx2, Silu, V>(head.last + out, silu, y, total); });
    }
};

void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    const Places at = places(head);
    context_share<Avx2>(head, context, at.start);
    tiles<Avx2, Net, 3>(head, at, contracts, count, stride, share, add, iv);
}

}  // namespace

namespace heads {
HeadPlan avx2() {
    return {volatility, HeadLayout::blocks, Precision::fp32, Precision::fp32, Avx2::block, 8};
}
}  // namespace heads

}  // namespace strikeforge
