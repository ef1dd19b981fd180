// AMX in bf16 with AVX512-FP16: contracts as rows, so that nothing is transposed. A row of products comes out of a
// tile, is rounded to fp16 for SiLU (32 lanes at once) and is a row of the next product.
//
// - First layer and linear term: a feature is split into two bf16, its rounding and the rest, [16 of these][16 of
//   those] a row, and the weights stand twice: features aren't rounded but for 2^-17.
// - An fp16 number's bits, shifted by three, are the bf16 of 2^-112 times it: the weights that follow hold 2^112. What
//   is below 2^-14 counts as 0.
// - The last layer and the linear term are products of two columns, the upper and the lower bf16 of each weight.
// Pre-activations beyond fp16's range count as its largest number. NaN and infinity get lost on the way through fp16,
// but the linear term knows all features, and `finite` the context: NaN there is NaN here.
//
// Products of some blocks of contracts are computed between another block's activations, a tile of 16 outputs at a
// time: both keep their units busy only if they alternate within a few hundred instructions.
//
// Tile 0 is sums [16 contracts][16 outputs], 1 contracts, 2 weights; 3 and 4 sums and weights of two columns.
#include "head/vectors_avx512.hpp"

namespace strikeforge {

namespace {

constexpr size_t block = 16;  // contracts
constexpr size_t tile_words = 16 * 16;
constexpr size_t blocks_under_way = 4;

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 8, 8};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16};
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
    float* total;  // [16][2]: the correction but for its constant, in two parts
};

inline size_t first_steps(const HeadView& head) {
    return head.first.groups / 16;
}

// Features in two bf16 each; zeros where there is no contract.
inline void split_features(const HeadView& head, const float* contracts, size_t count, size_t stride, const Block& at) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (size_t step = 0; step < first_steps(head); ++step) {
        const __mmask16 some = Avx512::first(head.features - 16 * step);
        for (size_t row = 0; row < block; ++row) {
            const __m512 x =
                row < count ? _mm512_maskz_loadu_ps(some, contracts + row * stride + 16 * step) : _mm512_setzero_ps();
            const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
            const __m512 rounded = _mm512_castsi512_ps(_mm512_and_si512(bits, upper));
            const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_sub_ps(x, rounded), rounded);
            _mm512_storeu_si512(at.words + (step * block + row) * 16, (__m512i)both);
        }
    }
}

// What a product multiplies with: rows `stride` bytes apart, `step` words from one tile of inputs to the next.
struct Inputs {
    const float* rows;
    size_t stride, step;
};

// Outputs `out` .. `out` + 15 of 16 contracts: sums = start + inputs weights.
inline void multiply(const HeadProduct& product, const float* start, size_t width, size_t out, const Inputs& x,
                     float* sums) {
    const size_t steps = product.groups / 16;
    const float* weights = static_cast<const float*>(product.weights) + out * product.groups;
    _tile_loadd(0, start + out, 0);
    for (size_t k = 0; k < steps; ++k) {
        _tile_loadd(1, x.rows + k * x.step, x.stride);
        _tile_loadd(2, weights + k * tile_words, 64);
        _tile_dpbf16ps(0, 1, 2);
    }
    _tile_stored(0, sums + out, width * sizeof(float));
}

// Tile 3 += inputs columns [steps][16][2].
inline void add_columns(const float* columns, size_t steps, const Inputs& x) {
    for (size_t k = 0; k < steps; ++k) {
        _tile_loadd(1, x.rows + k * x.step, x.stride);
        _tile_loadd(4, columns + k * 32, 8);
        _tile_dpbf16ps(3, 1, 4);
    }
}

inline Inputs features_of(const Block& at) {
    return {at.words, 64, tile_words};
}
inline Inputs activations_of(const HeadView& head, const Block& at) {
    return {at.rows, head.width * 2, 16};
}

inline void add_last_layer(const HeadView& head, const Block& at) {
    _tile_zero(3);
    add_columns(head.linear, first_steps(head), features_of(at));
    add_columns(head.last, head.width / 32, activations_of(head, at));
    _tile_stored(3, at.total, 8);
}

// A block's activations, where there are any; `multiply(out)` is called for each 16 outputs in between.
template <class Multiply>
inline void activate(const HalfSilu& silu, size_t width, const Block& at, bool any, Multiply multiply) {
    size_t out = 0;
    for (size_t row = 0; any && row < block; ++row) {
        for (; out * block < (row + 1) * width && out < width; out += 16) multiply(out);
        for (size_t w = 0; w < width; w += 32)
            _mm512_storeu_si512(at.rows + (row * width + w) / 2, shrunk(silu(halves(at.sums + row * width + w))));
    }
    for (; out < width; out += 16) multiply(out);
}

inline void finish(const HeadView& head, float begin, const Block& at, const float* contracts, size_t count,
                   size_t stride, float share, bool add, float* iv) {
    const __mmask16 some = Avx512::first(count);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride)));
    const __m512 none = _mm512_setzero_ps();
    const __m512 prior = _mm512_mask_i32gather_ps(none, some, rows, contracts, 4);
    const __m512 anchored = _mm512_mask_i32gather_ps(none, some, rows, contracts + 2, 4);
    const __m512i even = _mm512_slli_epi32(lanes, 1), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 low = _mm512_loadu_ps(at.total), high = _mm512_loadu_ps(at.total + 16);
    const __m512 both = _mm512_add_ps(_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high));
    const __m512 total = _mm512_add_ps(_mm512_set1_ps(begin), both);
    store_volatility<Avx512>(head, total, prior, anchored, share, add, count, iv);
}

void volatility(const HeadView& head, const float* context, const float* contracts, size_t count, size_t stride,
                float share, bool add, float* iv) {
    static constexpr TileConfiguration configuration;
    const size_t width = head.width, number = (count + block - 1) / block;
    float* start = head.scratch;
    context_share<Avx512>(head, context, start);
    float begin = head.bias;  // and NaN where the context's share isn't finite
    for (size_t w = 0; w < width; ++w) begin += 0.0f * start[w];
    Block blocks[blocks_under_way];
    float* free = start + width;
    for (Block& at : blocks) {
        at.words = free;
        at.sums = at.words + block * head.first.groups;
        at.rows = at.sums + block * width;
        at.total = at.rows + block * width / 2;
        free = at.total + 2 * block;
    }
    const HalfSilu silu(head);
    _tile_loadconfig(&configuration);
    // At step t block t enters the first layer, t - 1 the second, t - 2 leaves it and t - 3 is done.
    for (size_t t = 0; number > 0 && t < number + 3; ++t) {
        const Block &entering = blocks[t % blocks_under_way], &first = blocks[(t + 3) % blocks_under_way],
                    &second = blocks[(t + 2) % blocks_under_way], &last = blocks[(t + 1) % blocks_under_way];
        const auto there = [&](size_t behind) { return t >= behind && t - behind < number; };
        activate(silu, width, first, there(1), [&](size_t out) {
            if (there(2))
                multiply(head.second, head.second_bias, width, out, activations_of(head, second), second.sums);
        });
        if (there(0)) split_features(head, contracts + t * block * stride, count - t * block, stride, entering);
        if (there(3)) add_last_layer(head, last);
        activate(silu, width, second, there(2), [&](size_t out) {
            if (there(0)) multiply(head.first, start, width, out, features_of(entering), entering.sums);
        });
        if (!there(3)) continue;
        const size_t done = (t - 3) * block;
        finish(head, begin, last, contracts + done * stride, count - done, stride, share, add, iv + done);
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
