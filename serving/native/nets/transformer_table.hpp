// Attention over a ring of keys and values: the one kernel of the transformer that isn't dense.
//
// A ring has `slots` places (a multiple of 16, at least the band). A step's key is one column and its value one row:
//     keys    [head][dimension][slot]        16 slots' scores come out of one pass over the dimensions
//     values  [head][slot][padded dimension] 16 dimensions of the mix come out of one pass over the slots
// Nothing is ever shifted. What a slot's distance means for its score moves instead: `bias` is a view into the
// distances written down backwards and twice over, so that its place `slot` is always that slot's own.
// `transformer_portable.cpp` is the reference. No library type: instruction-set files include this.
#pragma once

#include <cstddef>

namespace strikeforge {

using std::size_t;

struct RingAttention {
    const float* query;   // [head][padded dimension]
    const float* keys;    // [head][dimension][slot], aligned to 64 bytes
    const float* values;  // [head][slot][padded dimension], aligned to 64 bytes
    const float* bias;    // place `head * bias_stride + slot`; -infinity outside the band
    size_t bias_stride;
    const float* unseen;  // [slot]; 0, or -infinity where no step stands yet; at least one slot is seen and in the band
    size_t heads, dimensions, padded_dimensions, slots;
    float scale;
    float* weight;  // scratch [slot], aligned to 64 bytes
    float* out;     // [head][padded dimension]: sum of softmax(scale * query . key + bias + unseen) * value
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
