// A tile of contracts from features to volatilities, for any vector type. Included by each instruction set's file, all
// of it in that file's anonymous namespace: the linker must not mix what was compiled for different sets.
//
// `Simd` is a set's vectors (vectors_avx2.hpp, vectors_avx512.hpp), `Net` how its two layers are multiplied; V vectors
// a tile. Every lane sees the same operations in the same order whatever V is.
#pragma once

#include "head/kernels.hpp"

namespace strikeforge {

namespace {

// Where things lie in the head's scratch memory.
struct Places {
    float* start;     // [W], tiles [W][16]: the first layer's sum before a contract is seen
    float* features;  // [K][T]: contracts side by side
    float* words;     // [pieces][groups][T]: the same as the first layer multiplies them
    float* hidden;    // [pieces][groups][T]: the first layer's activations as the second multiplies them
    float* raw;       // [W][T]: activations before they are rounded; sums of tiles
};

inline Places places(const HeadView& head, size_t pieces = 1) {
    Places at{};
    at.start = head.scratch;
    at.features = at.start + 16 * head.width;
    at.words = at.features + most_tile_contracts * head.features;
    at.hidden = at.words + most_tile_contracts * pieces * head.first.groups;
    at.raw = at.hidden + most_tile_contracts * pieces * head.second.groups;
    return at;
}

// start[w] = bias[w] + sum over d of context[d] weights[d, w]
template <class Simd, int vectors>
inline void context_share_of(const HeadView& head, const float* context, size_t w, float* start) {
    typename Simd::F sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = Simd::load(head.first_bias + w + v * Simd::lanes);
    for (size_t d = 0; d < head.context; ++d) {
        const typename Simd::F x = Simd::set(context[d]);
        const float* weights = head.context_weights + d * head.width + w;
        for (int v = 0; v < vectors; ++v) sum[v] = Simd::fma(x, Simd::load(weights + v * Simd::lanes), sum[v]);
    }
    for (int v = 0; v < vectors; ++v) Simd::store(start + w + v * Simd::lanes, sum[v]);
}

template <class Simd>
inline void context_share(const HeadView& head, const float* context, float* start) {
    size_t w = 0;
    for (; w + 4 * Simd::lanes <= head.width; w += 4 * Simd::lanes) context_share_of<Simd, 4>(head, context, w, start);
    for (; w < head.width; w += Simd::lanes) context_share_of<Simd, 1>(head, context, w, start);
}

// Layers whose weights are in blocks: a word of one output times a vector of contracts. `finish` gets the number of
// the first output and its sums, [Simd::block][V].
template <class Simd, class Dot, int V, class Finish>
inline void for_blocks(const HeadProduct& product, const float* start, const float* unit, size_t width, const float* x,
                       Finish finish) {
    constexpr size_t block = Simd::block;
    const float* weights = static_cast<const float*>(product.weights);
    for (size_t out = 0; out < width; out += block, weights += product.groups * block) {
        typename Dot::Sum sum[block][V];
        for (size_t r = 0; r < block; ++r) {
            for (int v = 0; v < V; ++v) sum[r][v] = Dot::begin(start[out + r]);
        }
        for (size_t group = 0; group < product.groups; ++group) {
            typename Simd::F in[V];
            for (int v = 0; v < V; ++v) in[v] = Simd::load(x + (group * V + v) * Simd::lanes);
#pragma GCC unroll 8
            for (size_t r = 0; r < block; ++r) {
                const typename Simd::F weight = Simd::set(weights[group * block + r]);
                for (int v = 0; v < V; ++v) sum[r][v] = Dot::add(sum[r][v], in[v], weight);
            }
        }
        typename Simd::F y[block][V];
#pragma GCC unroll 8
        for (size_t r = 0; r < block; ++r) {
            for (int v = 0; v < V; ++v)
                y[r][v] = Dot::end(sum[r][v], start, product.scale, out + r, unit + v * Simd::lanes);
        }
        finish(out, y);
    }
}

// What a block of the last hidden layer adds to the correction.
template <class Simd, class Silu, int V>
inline void add_block(const float* last, const Silu& silu, const typename Simd::F (&y)[Simd::block][V],
                      typename Simd::F (&total)[V]) {
#pragma GCC unroll 8
    for (size_t r = 0; r < Simd::block; ++r) {
        const typename Simd::F weight = Simd::set(last[r]);
        for (int v = 0; v < V; ++v) total[v] = Simd::fma(weight, silu(y[r][v]), total[v]);
    }
}

template <class Simd, class Net, int V>
inline void tile(const HeadView& head, const Places& at, const float* contracts, size_t count, size_t stride,
                 float share, bool add, float* iv) {
    using F = typename Simd::F;
    constexpr size_t lanes = Simd::lanes, wide = V * lanes;
    F total[V];
    for (int v = 0; v < V; ++v) {
        Simd::turn(contracts + v * lanes * stride, count - v * lanes, stride, head.features, at.features + v * lanes,
                   wide);
        total[v] = Simd::set(head.bias);
    }
    for (size_t k = 0; k < head.features; ++k) {
        const F weight = Simd::set(head.linear[k]);
        for (int v = 0; v < V; ++v)
            total[v] = Simd::fma(weight, Simd::load(at.features + k * wide + v * lanes), total[v]);
    }
    Net::template layers<V>(head, at, total);
    for (int v = 0; v < V; ++v) {
        const F prior = Simd::load(at.features + v * lanes), anchored = Simd::load(at.features + 2 * wide + v * lanes);
        F relative = Simd::mul(Simd::mul(Simd::set(head.trust), total[v]), anchored);
        relative = Simd::div(Simd::mul(relative, Simd::set(head.unit)), prior);
        // min and max give their second operand where one is NaN
        relative = Simd::max(Simd::set(-1.0f), Simd::min(Simd::set(1.0f), relative));
        const F found = Simd::mul(prior, Simd::exponential(relative));
        float* out = iv + v * lanes;
        const size_t some = count - v * lanes;
        const F before = add ? Simd::load_some(out, some) : Simd::set(0.0f);
        Simd::store_some(out, Simd::fma(Simd::set(share), found, before), some);
    }
}

// All contracts, in tiles of up to `most` vectors; the last ones in a tile that just holds them.
template <class Simd, class Net, int most>
inline void tiles(const HeadView& head, const Places& at, const float* contracts, size_t count, size_t stride,
                  float share, bool add, float* iv) {
    constexpr size_t lanes = Simd::lanes;
    while (count > 0) {
        size_t done = most * lanes;
        if (count > (most - 1) * lanes) {
            tile<Simd, Net, most>(head, at, contracts, count, stride, share, add, iv);
        } else if (most == 3 && count > lanes) {
            tile<Simd, Net, 2>(head, at, contracts, count, stride, share, add, iv);
        } else {
            tile<Simd, Net, 1>(head, at, contracts, count, stride, share, add, iv);
        }
        if (done > count) done = count;
        contracts += done * stride, iv += done, count -= done;
    }
}

}  // namespace

}  // namespace strikeforge
