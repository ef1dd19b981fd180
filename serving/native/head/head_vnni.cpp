// VNNI: the second layer multiplies bytes; the first one stays in single precision.
#include "head/bytes_vnni.hpp"

namespace strikeforge {

namespace heads {
HeadPlan vnni_int8() {
    return {
        blocks_volatility<ByteNet<FloatDot>>, HeadLayout::blocks, Precision::fp32, Precision::int8, Avx512::block, 16};
}
}  // namespace heads

}  // namespace strikeforge
