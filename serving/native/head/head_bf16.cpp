// AVX512-BF16: both layers multiply pairs of bf16 and add in single precision; under int8 the second multiplies bytes.
#include "head/bytes_vnni.hpp"

namespace strikeforge {

namespace {

struct PairDot {
    using Sum = __m512;
    static Sum begin(float start) { return _mm512_set1_ps(start); }
    static Sum add(Sum sum, __m512 x, __m512 weight) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weight); }
    static __m512 end(Sum sum, const float*, const float*, size_t, const float*) { return sum; }
    template <int V>
    static const float* inputs(const HeadView& head, const Places& at) {
        pair_features<V>(head, at);
        return at.words;
    }
};

struct PairNet {
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const QuickSilu<true> silu(head);
        const QuickSilu<false> last_silu(head);
        for_blocks<Avx512, PairDot, V>(
            head.first, at.start, nullptr, head.width, PairDot::inputs<V>(head, at),
            [&](size_t out, const __m512(&y)[8][V]) { hide_pairs<V>(silu, out, y, at.hidden); });
        for_blocks<Avx512, PairDot, V>(head.second, head.second_bias, nullptr, head.width, at.hidden,
                                       [&](size_t out, const __m512(&y)[8][V]) {
                                           add_block<Avx512, QuickSilu<false>, V>(head.last + out, last_silu, y, total);
                                       });
    }
};

}  // namespace

namespace heads {
HeadPlan bf16_bf16() {
    return {blocks_volatility<PairNet>, HeadLayout::blocks, Precision::bf16, Precision::bf16, Avx512::block, 16};
}
HeadPlan bf16_int8() {
    return {
        blocks_volatility<ByteNet<PairDot>>, HeadLayout::blocks, Precision::bf16, Precision::int8, Avx512::block, 16};
}
}  // namespace heads

}  // namespace strikeforge
