// What the head's kernels see, and which one an instruction set and a precision get. Plain pointers, no library type.
//
// Kernels work on tiles of contracts side by side: a lane is a contract, so nothing is summed across lanes, a row of
// NaN stays in its lane, and a contract's answer depends neither on its neighbours nor on where in a tile it stands.
// 16 (AVX2: 8) contracts are a vector, one to three vectors a tile.
//
// A product's inputs are grouped into words of 4 bytes: 1 float, 2 bf16 or 4 int8. Packed weights are
//     blocks   [outputs / block][groups][block]       words; a kernel broadcasts one and multiplies a vector of
//     contracts tiles    [outputs / 16][groups / 16][16][16]    words: [output][group] of one AMX tile
// with zeros where there is no such input or output.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu.hpp"
#include "dense/pack.hpp"

namespace strikeforge {

struct HeadProduct {
    size_t groups;  // words a contract's inputs take, padded
    // Packed. In three pieces [3], the largest first; but the first layer's, where a piece's words fill half a tile at
    // most (8 groups), as tiles [3][outputs / 16] with two pieces side by side: large and large, middle and large,
    // small and middle.
    const void* weights;
    const float* scale;  // int8: [width], a weight is scale * q; null elsewhere
};

struct HeadView {
    size_t features, context, width;  // K, D, and W padded
    HeadProduct first, second;
    const float* context_weights;  // [D][W]: the context's columns of the first layer
    const float* first_bias;       // [W]
    const float* second_bias;      // [W]; int8: less what the activations' offset adds
    const float* last;             // [W]
    const float* linear;           // [K]
    const float* silu_table;       // [2][3][32]: see silu_table() in head.cpp
    float bias;                    // of the linear term and of the last layer
    float trust, unit;
    float* scratch;  // aligned; what lies where: `places` in tile.hpp
};

using HeadKernel = void (*)(const HeadView& head, const float* context, const float* contracts, size_t count,
                            size_t stride, float share, bool add, float* iv);

inline constexpr size_t most_tile_contracts = 48;

// Activations of the second layer in int8 are 0..255: SiLU plus this (its minimum is -0.27846), in 255ths of the
// contract's own largest.
inline constexpr float silu_offset = 0.2785f;

// Quick SiLUs are parabolas in pieces of this width around whole multiples -14..14 of it; beyond, to 4.3e-4, 0 and x.
inline constexpr float silu_piece = 0.65f;
inline constexpr int silu_last_piece = 15;

enum class HeadLayout { blocks, tiles };

struct HeadPlan {
    HeadKernel kernel;
    HeadLayout layout;
    Precision first, second;  // as multiplied: weights are rounded to the precision asked for in any case
    size_t block;             // outputs of a block
    size_t width_multiple;    // W is padded to a multiple
    size_t pieces = 1;        // bf16 whose sum is a weight or an input: three hold a float
};

namespace heads {
HeadPlan portable();
#if defined(STRIKEFORGE_X86)
HeadPlan avx2();
HeadPlan avx512();
HeadPlan vnni_int8();
HeadPlan bf16_bf16();
HeadPlan bf16_int8();
HeadPlan amx_fp32();
HeadPlan amx_bf16();
HeadPlan amx_int8();
#endif
}  // namespace heads

}  // namespace strikeforge
