// The reference: one contract after the other, in the order the formula is written.
#include <cmath>

#include "head/kernels.hpp"

namespace strikeforge {

namespace {

float silu(float x) {
    return x / (1.0f + std::exp(-x));
}

// out[w] = silu(start[w] + sum over k of W[w, k] in[k])
void layer(const float* weights, size_t width, size_t inputs, const float* start, const float* in, float* out) {
    for (size_t w = 0; w < width; ++w) {
        float sum = start[w];
        for (size_t k = 0; k < inputs; ++k) sum += weights[w * inputs + k] * in[k];
        out[w] = silu(sum);
    }
}

float clamp(float x) {
    return x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;  // NaN stays
}

void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    float *start = head.scratch, *first = start + head.width, *second = first + head.width;
    for (size_t w = 0; w < head.width; ++w) start[w] = head.first_bias[w];
    for (size_t d = 0; d < head.context; ++d) {
        for (size_t w = 0; w < head.width; ++w) start[w] += context[d] * head.context_weights[d * head.width + w];
    }
    for (size_t n = 0; n < count; ++n) {
        const float* contract = contracts + n * stride;
        float correction = head.bias;
        for (size_t k = 0; k < head.features; ++k) correction += head.linear[k] * contract[k];
        layer(static_cast<const float*>(head.first.weights), head.width, head.features, start, contract, first);
        layer(static_cast<const float*>(head.second.weights), head.width, head.width, head.second_bias, first, second);
        for (size_t w = 0; w < head.width; ++w) correction += head.last[w] * second[w];
        const float prior = contract[0];
        const float relative = head.trust * correction * contract[2] * head.unit / prior;
        const float found = share * (prior * std::exp(clamp(relative)));
        iv[n] = add ? iv[n] + found : found;
    }
}

}  // namespace

namespace heads {
HeadPlan portable() {
    return {volatility, HeadLayout::blocks, Precision::fp32, Precision::fp32, 1, 1};
}
}  // namespace heads

}  // namespace strikeforge
