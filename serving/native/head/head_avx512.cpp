// AVX-512 in single precision: 48 contracts a tile, 8 outputs at a time.
#include "head/vectors_avx512.hpp"

namespace strikeforge {

namespace {

struct Net {
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const Silu silu;
        for_blocks<Avx512, FloatDot, V>(
            head.first, at.start, nullptr, head.width, at.features, [&](size_t out, const __m512(&y)[8][V]) {
#pragma GCC unroll 8
                for (size_t r = 0; r < 8; ++r) {
                    for (size_t v = 0; v < V; ++v)
                        _mm512_storeu_ps(at.hidden + ((out + r) * V + v) * 16, silu(y[r][v]));
                }
            });
        for_blocks<Avx512, FloatDot, V>(
            head.second, head.second_bias, nullptr, head.width, at.hidden,
            [&](size_t out, const __m512(&y)[8][V]) { add_block<Avx512, Silu, V>(head.last + out, silu, y, total); });
    }
};

}  // namespace

namespace heads {
HeadPlan avx512() {
    return {blocks_volatility<Net>, HeadLayout::blocks, Precision::fp32, Precision::fp32, Avx512::block, 16};
}
}  // namespace heads

}  // namespace strikeforge
