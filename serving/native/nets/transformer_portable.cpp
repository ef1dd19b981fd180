// The reference: plain loops, in the order the formulas are written.
#include <cmath>

#include "nets/transformer_table.hpp"

namespace strikeforge::tables {

namespace {

void attend(const RingAttention& ring) {
    for (size_t head = 0; head < ring.heads; ++head) {
        const size_t first = head * ring.padded_dimensions;
        const float *query = ring.query + first, *key = ring.key + first, *value = ring.value + first;
        const float* keys = ring.keys + head * ring.dimensions * ring.slots;
        const float* values = ring.values + head * ring.slots * ring.padded_dimensions;
        const float* bias = ring.bias + head * ring.bias_stride;
        float dot = 0.0f;
        for (size_t i = 0; i < ring.dimensions; ++i) dot += query[i] * key[i];
        const float open = ring.scale * dot + ring.open_bias[head];
        float largest = open;
        for (size_t slot = 0; slot < ring.steps; ++slot) {
            dot = 0.0f;
            for (size_t i = 0; i < ring.dimensions; ++i) dot += query[i] * keys[i * ring.slots + slot];
            ring.weight[slot] = ring.scale * dot + bias[slot] + ring.unseen[slot];
            largest = std::fmax(largest, ring.weight[slot]);
        }
        const float open_weight = std::exp(open - largest);
        float total = open_weight;
        for (size_t slot = 0; slot < ring.steps; ++slot) {
            ring.weight[slot] = std::exp(ring.weight[slot] - largest);
            total += ring.weight[slot];
        }
        for (size_t i = 0; i < ring.padded_dimensions; ++i) {
            float sum = open_weight * value[i];
            for (size_t slot = 0; slot < ring.steps; ++slot)
                sum += ring.weight[slot] * values[slot * ring.padded_dimensions + i];
            ring.out[first + i] = sum / total;
        }
    }
}

}  // namespace

void portable(TransformerKernels& table) {
    table = {attend};
}

}  // namespace strikeforge::tables
