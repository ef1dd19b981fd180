// AMX in int8: products of 16 outputs, 16 contracts and 64 bytes of inputs at a time. The first layer is in bf16 (its
// features share no unit), the second in bytes.
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

// out [width][V * 16] = start [width][16] (the same for all contracts) + weights x.
template <int V>
inline void multiply_pairs(const HeadProduct& product, const float* start, size_t width, const float* x, float* out) {
    const size_t steps = product.groups / 16, step = 16 * V * 16;
    const float* weights = static_cast<const float*>(product.weights);
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

// The same in bytes: whole sums from zero.
template <int V>
inline void multiply_bytes(const HeadProduct& product, size_t width, const float* x, float* out) {
    const size_t steps = product.groups / 16, step = 16 * V * 16;
    const float* weights = static_cast<const float*>(product.weights);
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

struct ByteNet {
    template <int V>
    static void layers(const HeadView& head, const Places& at, __m512 (&total)[V]) {
        const QuickSilu silu(head);
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
            add_block<Avx512, QuickSilu, V>(head.last + out, silu, y, total);
        });
    }
};

template <class Net>
void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    static constexpr TileConfiguration configuration;
    const Places at = places(head);
    float* sums = at.raw;  // free until the first tile
    context_share<Avx512>(head, context, sums);
    for (size_t w = 0; w < head.width; ++w) _mm512_storeu_ps(at.start + w * 16, _mm512_set1_ps(sums[w]));
    _tile_loadconfig(&configuration);
    tiles<Avx512, Net, 2>(head, at, contracts, count, stride, share, add, iv);
    _tile_release();
}

}  // namespace

namespace heads {
HeadPlan amx_int8() {
    return {volatility<ByteNet>, HeadLayout::tiles, Precision::bf16, Precision::int8, 16, 64};
}
}  // namespace heads

}  // namespace strikeforge
