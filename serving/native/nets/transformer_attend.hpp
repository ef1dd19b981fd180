// Attention over the ring, sixteen slots or sixteen dimensions at once; included after dense/vector_<isa>.hpp and
// dense/activations.hpp, in files of that set only. What it computes: transformer_portable.cpp.
#pragma once

#include "nets/transformer_table.hpp"

namespace strikeforge {
namespace {

inline constexpr size_t wide = 16;

// Scores of `count` vectors of slots from `slot` on, into `weight`; their largest.
template <int count>
inline V scores(const RingAttention& ring, size_t head, size_t slot) {
    const float* query = ring.query + head * ring.padded_dimensions;
    const float* keys = ring.keys + head * ring.dimensions * ring.slots + slot;
    const float* bias = ring.bias + head * ring.bias_stride + slot;
    V dot[count];
    for (int at = 0; at < count; ++at) dot[at] = set(0.0f);
    for (size_t i = 0; i < ring.dimensions; ++i) {
        const V one = set(query[i]);
        for (int at = 0; at < count; ++at) dot[at] = fma(one, load(keys + i * ring.slots + at * wide), dot[at]);
    }
    V most = set(-__builtin_inff());
    for (int at = 0; at < count; ++at) {
        const V offset = load(bias + at * wide) + load(ring.unseen + slot + at * wide);
        const V score = fma(set(ring.scale), dot[at], offset);
        store(ring.weight + slot + at * wide, score);
        most = greater(most, score);
    }
    return most;
}

inline float open_score(const RingAttention& ring, size_t head) {
    V dot = set(0.0f);
    for (size_t i = 0; i < ring.padded_dimensions; i += wide) {
        const size_t at = head * ring.padded_dimensions + i;
        dot = fma(load(ring.query + at), load(ring.key + at), dot);
    }
    return ring.scale * sum(dot) + ring.open_bias[head];
}

// Sixteen dimensions of the mix, before division by the weights' sum. Values of slots that no step fills are zeros.
inline V mixed(const RingAttention& ring, size_t head, size_t dimension, V open_weight) {
    const float* values = ring.values + head * ring.slots * ring.padded_dimensions + dimension;
    const size_t stride = ring.padded_dimensions;
    V part[4] = {open_weight * load(ring.value + head * stride + dimension), set(0.0f), set(0.0f), set(0.0f)};
    for (size_t slot = 0; slot < ring.steps; slot += 4) {
        for (size_t at = 0; at < 4; ++at)
            part[at] = fma(set(ring.weight[slot + at]), load(values + (slot + at) * stride), part[at]);
    }
    return (part[0] + part[1]) + (part[2] + part[3]);
}

void attend(const RingAttention& ring) {
    for (size_t head = 0; head < ring.heads; ++head) {
        const V open = set(open_score(ring, head));
        V most = open;
        size_t slot = 0;
        for (; slot + 4 * wide <= ring.slots; slot += 4 * wide) most = greater(most, scores<4>(ring, head, slot));
        for (; slot < ring.slots; slot += wide) most = greater(most, scores<1>(ring, head, slot));
        most = set(largest(most));
        const V open_weight = exponential(open - most);
        V total = set(0.0f);
        for (slot = 0; slot < ring.slots; slot += wide) {
            const V weight = exponential(load(ring.weight + slot) - most);
            store(ring.weight + slot, weight);
            total = total + weight;
        }
        const V share = reciprocal(set(sum(total)) + open_weight);
        for (size_t i = 0; i < ring.padded_dimensions; i += wide)
            store(ring.out + head * ring.padded_dimensions + i, mixed(ring, head, i, open_weight) * share);
    }
}

}  // namespace
}  // namespace strikeforge
