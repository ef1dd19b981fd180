// AMX: products of 16 outputs, 16 contracts and 64 bytes of inputs at a time.
//     fp32  weights and inputs as three bf16 each whose sum they are, exactly; of their nine products the six that
//           matter to a float: what is left out is below 2^-22 of a product, mostly far below
//     bf16  both layers in bf16
//     int8  the first layer in bf16 (its features share no unit), the second in bytes
//
// One after the other, products, then SiLUs: while tiles are in use, this CPU's second 512-bit multiplier rests, so
// that products between the SiLUs slow those down by as much as they would save.
//
// Tiles 0..3 are sums [2 x 16 outputs][V x 16 contracts], 4 and 5 weights, 6 and 7 contracts. All are 16 rows of 64
// bytes, so one configuration serves both layers; the calling thread's tiles are released before the call returns.
#include "head/vectors_avx512.hpp"

namespace strikeforge {

namespace {

constexpr size_t tile_floats = 16 * 16;  // a tile is as large as so many floats
constexpr size_t row_bytes = 64;

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The compiler isn't told that tiles read memory (GCC 12): what was written before must be there.
inline void memory_is_read() {
    asm volatile("" ::: "memory");
}

// out [width][V * 16] = start [width][16] (the same for all contracts) + weights x.
template <int V>
inline void multiply_pairs(const HeadProduct& product, const float* start, size_t width, const float* x, float* out) {
    const size_t steps = product.groups / 16, step = 16 * V * 16;
    const float* weights = static_cast<const float*>(product.weights);
    memory_is_read();
    for (size_t row = 0; row < width; row += 32, weights += 2 * steps * tile_floats, out += 2 * step) {
        _tile_loadd(0, start + row * 16, row_bytes);
        _tile_loadd(1, start + (row + 16) * 16, row_bytes);
        if (V == 2) _tile_loadd(2, start + row * 16, row_bytes);
        if (V == 2) _tile_loadd(3, start + (row + 16) * 16, row_bytes);
        for (size_t k = 0; k < steps; ++k) {
            _tile_loadd(4, weights + k * tile_floats, row_bytes);
            _tile_loadd(5, weights + (steps + k) * tile_floats, row_bytes);
            _tile_loadd(6, x + k * step, V * row_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (V == 2) {
                _tile_loadd(7, x + k * step + 16, V * row_bytes);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, V * row_bytes);
        _tile_stored(1, out + step, V * row_bytes);
        if (V == 2) _tile_stored(2, out + 16, V * row_bytes);
        if (V == 2) _tile_stored(3, out + step + 16, V * row_bytes);
    }
}

// The same in floats: x [3 pieces][groups][V * 16], the smallest piece, the largest and the middle one. Each product
// shares one side with the one before it, which stays in its tiles.
template <int V>
inline void multiply_floats(const HeadProduct& product, const float* start, size_t width, const float* x, float* out) {
    constexpr size_t pairs = 6;
    constexpr std::uint8_t of_weights[pairs] = {2, 1, 1, 0, 0, 0}, of_inputs[pairs] = {0, 0, 1, 1, 2, 0};
    const size_t steps = product.groups / 16, step = 16 * V * 16;
    const float* first = static_cast<const float*>(product.weights);
    memory_is_read();
    for (size_t row = 0; row < width; row += 32, first += 2 * steps * tile_floats, out += 2 * step) {
        _tile_loadd(0, start + row * 16, row_bytes);
        _tile_loadd(1, start + (row + 16) * 16, row_bytes);
        if (V == 2) _tile_loadd(2, start + row * 16, row_bytes);
        if (V == 2) _tile_loadd(3, start + (row + 16) * 16, row_bytes);
        for (size_t k = 0; k < steps; ++k) {
#pragma GCC unroll 6
            for (size_t pair = 0; pair < pairs; ++pair) {
                if (pair == 0 || of_weights[pair] != of_weights[pair - 1]) {
                    const float* weights = first + of_weights[pair] * width * product.groups + k * tile_floats;
                    _tile_loadd(4, weights, row_bytes);
                    _tile_loadd(5, weights + steps * tile_floats, row_bytes);
                }
                if (pair == 0 || of_inputs[pair] != of_inputs[pair - 1]) {
                    const float* inputs = x + ((of_inputs[pair] + 1) % 3 * steps + k) * step;
                    _tile_loadd(6, inputs, V * row_bytes);
                    if (V == 2) _tile_loadd(7, inputs + 16, V * row_bytes);
                }
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                if (V == 2) _tile_dpbf16ps(2, 4, 7);
                if (V == 2) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, V * row_bytes);
        _tile_stored(1, out + step, V * row_bytes);
        if (V == 2) _tile_stored(2, out + 16, V * row_bytes);
        if (V == 2) _tile_stored(3, out + step + 16, V * row_bytes);
    }
}

// The same where two pieces fit a tile: x [3 pieces][8][V * 16], so that small and large lie together, large and
// middle.
template <int V>
inline void multiply_halves(const HeadProduct& product, const float* start, size_t width, const float* x, float* out) {
    const size_t step = 16 * V * 16;
    const float* first = static_cast<const float*>(product.weights);
    memory_is_read();
    for (size_t row = 0; row < width; row += 32, first += 2 * tile_floats, out += 2 * step) {
        _tile_loadd(0, start + row * 16, row_bytes);
        _tile_loadd(1, start + (row + 16) * 16, row_bytes);
        if (V == 2) _tile_loadd(2, start + row * 16, row_bytes);
        if (V == 2) _tile_loadd(3, start + (row + 16) * 16, row_bytes);
#pragma GCC unroll 3
        for (size_t i = 0; i < 3; ++i) {
            const size_t pair = 2 - i;  // the largest last
            const float* weights = first + pair * width * 16;
            _tile_loadd(4, weights, row_bytes);
            _tile_loadd(5, weights + tile_floats, row_bytes);
            if (pair != 1) {
                const float* inputs = pair == 0 ? x : x + step / 2;
                _tile_loadd(6, inputs, V * row_bytes);
                if (V == 2) _tile_loadd(7, inputs + 16, V * row_bytes);
            }
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (V == 2) _tile_dpbf16ps(2, 4, 7);
            if (V == 2) _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out, V * row_bytes);
        _tile_stored(1, out + step, V * row_bytes);
        if (V == 2) _tile_stored(2, out + 16, V * row_bytes);
        if (V == 2) _tile_stored(3, out + step + 16, V * row_bytes);
    }
}

// The same in bytes: whole sums from zero.
template <int V>
inline void multiply_bytes(const HeadProduct& product, size_t width, const float* x, float* out) {
    const size_t steps = product.groups / 16, step = 16 * V * 16;
    const float* weights = static_cast<const float*>(product.weights);
    memory_is_read();
    for (size_t row = 0; row < width; row += 32, weights += 2 * steps * tile_floats, out += 2 * step) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (size_t k = 0; k < steps; ++k) {
            _tile_loadd(4, weights + k * tile_floats, row_bytes);
            _tile_loadd(5, weights + (steps + k) * tile_floats, row_bytes);
            _tile_loadd(6, x + k * step, V * row_bytes);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 5, 6);
            if (V == 2) {
                _tile_loadd(7, x + k * step + 16, V * row_bytes);
                _tile_dpbsud(2, 4, 7);
                _tile_dpbsud(3, 5, 7);
            }
        }
        _tile_stored(0, out, V * row_bytes);
        _tile_stored(1, out + step, V * row_bytes);
        if (V == 2) _tile_stored(2, out + 16, V * row_bytes);
        if (V == 2) _tile_stored(3, out + step + 16, V * row_bytes);
    }
}

// `finish` for each block of 8 outputs, as for_blocks calls it.
template <int V, class Finish>
inline void for_sums(size_t width, const float* sums, Finish finish) {
    for (size_t out = 0; out < width; out += 8) {
        __m512 y[8][V];
#pragma GCC unroll 8
        for (size_t r = 0; r < 8; ++r) {
            for (size_t v = 0; v < V; ++v) y[r][v] = _mm512_loadu_ps(sums + ((out + r) * V + v) * 16);
        }
        finish(out, y);
    }
}

// Floats as the sum of three bf16 each, cut off from the top: eight, eight and the last eight bits of their mantissas.
// Two of them are a word; pieces in multiply_floats' order, `apart` floats from one piece's to the next one's.
inline void store_pieces(__m512 even, __m512 odd, float* word, size_t apart) {
    const __m512 upper = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xffff0000u)));
#pragma GCC unroll 3
    for (size_t piece = 0; piece < 3; ++piece) {
        _mm512_storeu_ps(word + (piece + 1) % 3 * apart, cut_pair(even, odd));
        even = _mm512_sub_ps(even, _mm512_and_ps(even, upper));
        odd = _mm512_sub_ps(odd, _mm512_and_ps(odd, upper));
    }
}

struct FloatNet {
    static constexpr size_t pieces = 3;
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        constexpr size_t wide = V * 16;
        const Silu silu;
        for (size_t group = 0; group < head.first.groups; ++group) {
            const size_t even = 2 * group, odd = even + 1;
            const __m512 zero = _mm512_setzero_ps();
            for (size_t v = 0; v < wide; v += 16) {
                const __m512 low = even < head.features ? _mm512_loadu_ps(at.features + even * wide + v) : zero;
                const __m512 high = odd < head.features ? _mm512_loadu_ps(at.features + odd * wide + v) : zero;
                store_pieces(low, high, at.words + group * wide + v, head.first.groups * wide);
            }
        }
        const auto multiply_features = head.first.groups == 8 ? multiply_halves<V> : multiply_floats<V>;
        multiply_features(head.first, at.start, head.width, at.words, at.raw);
        for_sums<V>(head.width, at.raw, [&](size_t out, const __m512(&y)[8][V]) {
#pragma GCC unroll 4
            for (size_t r = 0; r < 8; r += 2) {
                for (size_t v = 0; v < V; ++v)
                    store_pieces(silu(y[r][v]), silu(y[r + 1][v]), at.hidden + (out + r) / 2 * wide + v * 16,
                                 head.second.groups * wide);
            }
        });
        multiply_floats<V>(head.second, head.second_bias, head.width, at.hidden, at.raw);
        for_sums<V>(head.width, at.raw, [&](size_t out, const __m512(&y)[8][V]) {
            add_block<Avx512, Silu, V>(head.last + out, silu, y, total);
        });
    }
};

struct PairNet {
    static constexpr size_t pieces = 1;
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const QuickSilu<true> silu(head);
        const QuickSilu<false> last_silu(head);
        pair_features<V>(head, at);
        multiply_pairs<V>(head.first, at.start, head.width, at.words, at.raw);
        for_sums<V>(head.width, at.raw,
                    [&](size_t out, const __m512(&y)[8][V]) { hide_pairs<V>(silu, out, y, at.hidden); });
        multiply_pairs<V>(head.second, head.second_bias, head.width, at.hidden, at.raw);
        for_sums<V>(head.width, at.raw, [&](size_t out, const __m512(&y)[8][V]) {
            add_block<Avx512, QuickSilu<false>, V>(head.last + out, last_silu, y, total);
        });
    }
};

struct ByteNet {
    static constexpr size_t pieces = 1;
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const QuickSilu<false> silu(head);
        __m512 largest[V];
        alignas(64) float unit[V * 16];
        for (size_t v = 0; v < V; ++v) largest[v] = _mm512_setzero_ps();
        pair_features<V>(head, at);
        multiply_pairs<V>(head.first, at.start, head.width, at.words, at.raw);
        for_sums<V>(head.width, at.raw,
                    [&](size_t out, const __m512(&y)[8][V]) { hide_floats<V>(silu, out, y, at.raw, largest); });
        quantise<V>(head.width, at.raw, largest, at.hidden, unit);
        multiply_bytes<V>(head.second, head.width, at.hidden, at.raw);
        for_sums<V>(head.width, at.raw, [&](size_t out, const __m512(&sums)[8][V]) {
            __m512 y[8][V];
#pragma GCC unroll 8
            for (size_t r = 0; r < 8; ++r) {
                const __m512 scale = _mm512_set1_ps(head.second.scale[out + r]);
                const __m512 bias = _mm512_set1_ps(head.second_bias[(out + r) * 16]);
                for (size_t v = 0; v < V; ++v) {
                    const __m512 whole = _mm512_cvtepi32_ps(_mm512_castps_si512(sums[r][v]));
                    y[r][v] = _mm512_fmadd_ps(whole, _mm512_mul_ps(scale, _mm512_loadu_ps(unit + v * 16)), bias);
                }
            }
            add_block<Avx512, QuickSilu<false>, V>(head.last + out, silu, y, total);
        });
    }
};

template <class Net>
void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    static constexpr TileConfiguration configuration;
    const Places at = places(head, Net::pieces);
    float* sums = at.raw;  // free until the first tile
    context_share<Avx512>(head, context, sums);
    for (size_t w = 0; w < head.width; ++w) _mm512_storeu_ps(at.start + w * 16, _mm512_set1_ps(sums[w]));
    _tile_loadconfig(&configuration);
    tiles<Avx512, Net, 2>(head, at, contracts, count, stride, share, add, iv);
    _tile_release();
}

}  // namespace

namespace heads {
HeadPlan amx_fp32() {
    return {volatility<FloatNet>, HeadLayout::tiles, Precision::bf16, Precision::bf16, 16, 32, 3};
}
HeadPlan amx_bf16() {
    return {volatility<PairNet>, HeadLayout::tiles, Precision::bf16, Precision::bf16, 16, 32};
}
HeadPlan amx_int8() {
    return {volatility<ByteNet>, HeadLayout::tiles, Precision::bf16, Precision::int8, 16, 64};
}
}  // namespace heads

}  // namespace strikeforge
