// Bytes for the second layer, by VNNI; included by files compiled for it. `First` multiplies the first layer, whose
// features share no unit.
#pragma once

#include "head/vectors_avx512.hpp"

namespace strikeforge {

namespace {

struct ByteDot {
    using Sum = __m512i;
    static Sum begin(float) { return _mm512_setzero_si512(); }
    static Sum add(Sum sum, __m512 x, __m512 weight) {
        return _mm512_dpbusd_epi32(sum, _mm512_castps_si512(x), _mm512_castps_si512(weight));
    }
    static __m512 end(Sum sum, const float* start, const float* scale, size_t out, const float* unit) {
        const __m512 step = _mm512_mul_ps(_mm512_set1_ps(scale[out]), _mm512_loadu_ps(unit));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, _mm512_set1_ps(start[out]));
    }
};

template <class First>
struct ByteNet {
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const QuickSilu<false> silu(head);
        __m512 largest[V];
        alignas(64) float unit[V * 16];
        for (size_t v = 0; v < V; ++v) largest[v] = _mm512_setzero_ps();
        for_blocks<Avx512, First, V>(
            head.first, at.start, nullptr, head.width, First::template inputs<V>(head, at),
            [&](size_t out, const __m512(&y)[8][V]) { hide_floats<V>(silu, out, y, at.raw, largest); });
        quantise<V>(head.width, at.raw, largest, at.hidden, unit);
        for_blocks<Avx512, ByteDot, V>(head.second, head.second_bias, unit, head.width, at.hidden,
                                       [&](size_t out, const __m512(&y)[8][V]) {
                                           add_block<Avx512, QuickSilu<false>, V>(head.last + out, silu, y, total);
                                       });
    }
};

}  // namespace

}  // namespace strikeforge
