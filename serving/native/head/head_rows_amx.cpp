// AMX in bf16 with AVX512-FP16: contracts as rows, so that nothing is transposed. A row of products comes out of a
// tile, is rounded to fp16 for SiLU (32 lanes at once) and is a row of the next product.
//
// - First layer and linear term: a feature is split into two bf16, its rounding and the rest, [16 of these][16 of
//   those] a row, and the weights stand twice: features aren't rounded but for 2^-17.
// - An fp16 number's bits, shifted by three, are the bf16 of 2^-112 times it: the weights that follow hold 2^112. What
//   is below 2^-14 counts as 0.
// - The last layer and the linear term are products of one column, whose weights are two bf16 each.
// Pre-activations beyond fp16's range count as its largest number. NaN and infinity get lost on the way through fp16,
// but the linear term knows all features, and `finite` the context: NaN there is NaN here.
//
// Tiles 0 and 1 are sums [16 contracts][16 outputs], 2 contracts, 3 and 4 weights; 5 and 6 sums and weights of one
// column.
#include "head/vectors_avx512.hpp"

namespace strikeforge {

namespace {

constexpr size_t block = 16;  // contracts
constexpr size_t tile_words = 16 * 16;

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 4, 4};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16};
};

// 32 floats in fp16; truncated, so that what is too large becomes the largest number.
inline __m512i halves(const float* from) {
    constexpr int truncate = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    const __m256i low = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from), truncate);
    const __m256i high = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + 16), truncate);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// SiLU of 32 fp16 numbers by parabolas (half_silu_table): error below 6e-4 + 2^-10 |x|.
struct HalfSilu {
    __m512i table[3];

    explicit HalfSilu(const HeadView& head) {
        for (size_t power = 0; power < 3; ++power) table[power] = halves(head.silu_table + 32 * power);
    }

    __m512i operator()(__m512i bits) const {
        const __m512h x = _mm512_castsi512_ph(bits);
        const __m512h low = set(-16.0f * half_silu_step), high = set(15.0f * half_silu_step);
        const __m512h bounded = _mm512_min_ph(_mm512_max_ph(x, low), high);
        // 1.5 * 2^10 leaves the nearest whole number in the low bits
        const __m512h place = _mm512_fmadd_ph(bounded, set(1.0f / half_silu_step), set(1536.0f + 16.0f));
        const __m512i piece = _mm512_castph_si512(place);
        const __m512h slope = _mm512_fmadd_ph(look(2, piece), x, look(1, piece));
        return _mm512_castph_si512(_mm512_fmadd_ph(slope, x, look(0, piece)));
    }

    __m512h look(int power, __m512i piece) const {
        return _mm512_castsi512_ph(_mm512_permutexvar_epi16(piece, table[power]));
    }
    static __m512h set(float x) { return _mm512_set1_ph(static_cast<_Float16>(x)); }
};

// The bf16 of 2^-112 x for fp16 x: an eighth of the bits, rounded, which doesn't reach the sign's new copies.
inline __m512i shrunk(__m512i x) {
    const __m512i eighth = _mm512_mulhrs_epi16(x, _mm512_set1_epi16(0x1000));
    return _mm512_and_si512(eighth, _mm512_set1_epi16(static_cast<short>(0x8fff)));
}

// What one block of contracts is worked on in; tiles read and write it.
struct Block {
    float* words;  // [steps][16][16]: features as the first layer multiplies them
    float* sums;   // [16][W]
    float* rows;   // [16][W / 2]: activations as the next layer multiplies them
    float* total;  // [16]
};

inline size_t first_steps(const HeadView& head) {
    return head.first.groups / 16;
}

// Features in two bf16 each; zeros where there is no contract.
inline void split_features(const HeadView& head, const float* contracts, size_t count, size_t stride,
                           const Block& at) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (size_t step = 0; step < first_steps(head); ++step) {
        const __mmask16 some = Avx512::first(head.features - 16 * step);
        for (size_t row = 0; row < block; ++row) {
            const __m512 x = row < count ? _mm512_maskz_loadu_ps(some, contracts + row * stride + 16 * step)
                                         : _mm512_setzero_ps();
            const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
            const __m512 rounded = _mm512_castsi512_ps(_mm512_and_si512(bits, upper));
            const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_sub_ps(x, rounded), rounded);
            _mm512_storeu_si512(at.words + (step * block + row) * 16, (__m512i)both);
        }
    }
}

// sums [16][width] = start [width] + x weights, where x [16] is of rows `x_stride` bytes apart, `x_step` a step.
inline void multiply(const HeadProduct& product, const float* start, size_t width, const float* x, size_t x_stride,
                     size_t x_step, float* sums) {
    const size_t steps = product.groups / 16, sum_stride = width * sizeof(float);
    const float* weights = static_cast<const float*>(product.weights);
    for (size_t out = 0; out < width; out += 32, weights += 2 * steps * tile_words) {
        _tile_loadd(0, start + out, 0);
        _tile_loadd(1, start + out + 16, 0);
        for (size_t k = 0; k < steps; ++k) {
            _tile_loadd(2, x + k * x_step, x_stride);
            _tile_loadd(3, weights + k * tile_words, 64);
            _tile_dpbf16ps(0, 2, 3);
            _tile_loadd(4, weights + (steps + k) * tile_words, 64);
            _tile_dpbf16ps(1, 2, 4);
        }
        _tile_stored(0, sums + out, sum_stride);
        _tile_stored(1, sums + out + 16, sum_stride);
    }
}

// total [16] += x column, the column's weights [steps][2][16] being words of their upper and lower parts.
inline void multiply_column(const float* column, size_t steps, const float* x, size_t x_stride, size_t x_step,
                            float* total) {
    _tile_loadd(5, total, sizeof(float));
    for (size_t k = 0; k < steps; ++k) {
        _tile_loadd(2, x + k * x_step, x_stride);
        for (size_t part = 0; part < 2; ++part) {
            _tile_loadd(6, column + (2 * k + part) * 16, sizeof(float));
            _tile_dpbf16ps(5, 2, 6);
        }
    }
    _tile_stored(5, total, sizeof(float));
}

inline void activate(const HalfSilu& silu, size_t width, const Block& at) {
    const size_t vectors = block * width / 32;
    for (size_t i = 0; i < vectors; ++i)
        _mm512_storeu_si512(at.rows + i * 16, shrunk(silu(halves(at.sums + i * 32))));
}

inline void first_layer(const HeadView& head, const float* start, const float* contracts, size_t count, size_t stride,
                        const Block& at) {
    split_features(head, contracts, count, stride, at);
    multiply(head.first, start, head.width, at.words, 64, tile_words, at.sums);
    multiply_column(head.linear, first_steps(head), at.words, 64, tile_words, at.total);
}

// Rows of activations are W bf16, a step is 32 of them.
inline void second_layer(const HeadView& head, const Block& at) {
    multiply(head.second, head.second_bias, head.width, at.rows, head.width * 2, 16, at.sums);
}

inline void last_layer(const HeadView& head, const Block& at) {
    multiply_column(head.last, head.width / 32, at.rows, head.width * 2, 16, at.total);
}

inline void finish(const HeadView& head, const Block& at, const float* contracts, size_t count, size_t stride,
                   float share, bool add, float* iv) {
    const __mmask16 some = Avx512::first(count);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride)));
    const __m512 none = _mm512_setzero_ps();
    const __m512 prior = _mm512_mask_i32gather_ps(none, some, rows, contracts, 4);
    const __m512 anchored = _mm512_mask_i32gather_ps(none, some, rows, contracts + 2, 4);
    store_volatility<Avx512>(head, _mm512_loadu_ps(at.total), prior, anchored, share, add, count, iv);
}

void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    static constexpr TileConfiguration configuration;
    float* start = head.scratch;
    context_share<Avx512>(head, context, start);
    float begin = head.bias;  // and NaN where the context's share isn't finite
    for (size_t w = 0; w < head.width; ++w) begin += 0.0f * start[w];
    Block blocks[2];
    float* free = start + head.width;
    for (Block& at : blocks) {
        at.words = free;
        at.sums = at.words + block * head.first.groups;
        at.rows = at.sums + block * head.width;
        at.total = at.rows + block * head.width / 2;
        free = at.total + block;
    }
    const HalfSilu silu(head);
    _tile_loadconfig(&configuration);
    // Two blocks in turn: one's products are under way while the other's activations are computed.
    while (count > 0) {
        const size_t pairs = count > block ? 2 : 1;
        const size_t counts[2] = {count < block ? count : block,
                                  count <= block ? 0 : count < 2 * block ? count - block : block};
        const float* rows[2] = {contracts, contracts + block * stride};
        for (size_t i = 0; i < pairs; ++i) {
            _mm512_storeu_ps(blocks[i].total, _mm512_set1_ps(begin));
            first_layer(head, start, rows[i], counts[i], stride, blocks[i]);
        }
        for (size_t i = 0; i < pairs; ++i) {
            activate(silu, head.width, blocks[i]);
            second_layer(head, blocks[i]);
        }
        for (size_t i = 0; i < pairs; ++i) {
            activate(silu, head.width, blocks[i]);
            last_layer(head, blocks[i]);
        }
        for (size_t i = 0; i < pairs; ++i)
            finish(head, blocks[i], rows[i], counts[i], stride, share, add, iv + i * block);
        const size_t done = counts[0] + counts[1];
        contracts += done * stride, iv += done, count -= done;
    }
    _tile_release();
}

}  // namespace

namespace heads {
HeadPlan amx_bf16() {
    return {volatility, HeadLayout::rows, Precision::bf16, Precision::bf16, 16, 32};
}
}  // namespace heads

}  // namespace strikeforge
