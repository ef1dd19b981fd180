// The reference: plain loops, in the order the formulas are written.
#include <cmath>

#include "nets/transformer_table.hpp"

namespace strikeforge::tables {

namespace {

void attend(const RingAttention& ring) {
    for (size_t head = 0; head < ring.heads; ++head) {
        const float* query = ring.query + head * ring.padded_dimensions;
        const float* keys = ring.keys + head * ring.dimensions * ring.slots;
        const float* values = ring.values + head * ring.slots * ring.padded_dimensions;
        const float* bias = ring.bias + head * ring.bias_stride;
        float* out = ring.out + head * ring.padded_dimensions;
        float largest = -INFINITY, total = 0.0f;
        for (size_t slot = 0; slot < ring.slots; ++slot) {
            float dot = 0.0f;
            for (size_t i = 0; i < ring.dimensions; ++i) dot += query[i] * keys[i * ring.slots + slot];
            ring.weight[slot] = ring.scale * dot + bias[slot] + ring.unseen[slot];
            largest = std::fmax(largest, ring.weight[slot]);
        }
        for (size_t slot = 0; slot < ring.slots; ++slot) {
            ring.weight[slot] = std::exp(ring.weight[slot] - largest);
            total += ring.weight[slot];
        }
        for (size_t i = 0; i < ring.padded_dimensions; ++i) {
            float sum = 0.0f;
            for (size_t slot = 0; slot < ring.slots; ++slot)
                sum += ring.weight[slot] * values[slot * ring.padded_dimensions + i];
            out[i] = sum / total;
        }
    }
}

}  // namespace

void portable(TransformerKernels& table) {
    table = {attend};
}

}  // namespace strikeforge::tables
