// VNNI: the second layer multiplies bytes; the first one stays in single precision.
#include "head/bytes_vnni.hpp"

namespace strikeforge {

namespace {

void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    const Places at = places(head);
    context_share<Avx512>(head, context, at.start);
    tiles<Avx512, ByteNet<FloatDot>, 3>(head, at, contracts, count, stride, share, add, iv);
}

}  // namespace

namespace heads {
HeadPlan vnni_int8() {
    return {volatility, HeadLayout::blocks, Precision::fp32, Precision::int8, Avx512::block, 16};
}
}  // namespace heads

}  // namespace strikeforge
