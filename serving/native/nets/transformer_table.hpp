// Attention of the open step over itself and a ring of closed ones: the one kernel of the transformer that isn't dense.
//
// A ring has `steps` places, in arrays padded to `slots` (a multiple of 16). A closed step's key is one column and its
// value one row:
//     keys    [head][dimension][slot]        16 slots' scores come out of one pass over the dimensions
//     values  [head][slot][padded dimension] 16 dimensions of the mix come out of one pass over the slots
// Nothing is ever shifted. What a slot's distance means for its score moves instead: `bias` is a view into the
// distances written down backwards and twice over, so that its place `slot` is always that slot's own.
// The open step isn't in the ring: the tick's path writes no key that it would have to wait for and read again.
// `transformer_portable.cpp` is the reference. No library type: instruction-set files include this.
#pragma once

#include <cstddef>

namespace strikeforge {

using std::size_t;

struct RingAttention {
    const float *query, *key, *value;  // of the open step, [head][padded dimension], zeros as padding
    const float* open_bias;            // [head]
    const float* keys;                 // aligned to 64 bytes
    const float* values;               // aligned to 64 bytes
    const float* bias;                 // place `head * bias_stride + slot`
    size_t bias_stride;
    const float* unseen;  // [slot]; 0, or -infinity where no step stands
    size_t heads, dimensions, padded_dimensions, steps, slots;
    float scale;
    float* weight;  // scratch [slot], aligned to 64 bytes
    // [head][padded dimension]: the sum of softmax(scale * query . key + bias) * value over the open step and the ring
    float* out;
};

struct TransformerKernels {
    void (*attend)(const RingAttention& ring);
};

namespace tables {
void portable(TransformerKernels& table);
#if defined(STRIKEFORGE_X86)
void avx2(TransformerKernels& table);
void avx512(TransformerKernels& table);
#endif
}  // namespace tables

}  // namespace strikeforge
