// AVX2: 8 slots or 8 dimensions a vector.
#include <immintrin.h>

#include "nets/transformer_table.hpp"

namespace strikeforge::tables {

namespace {

constexpr size_t wide = 8;

// exp(x), x <= 0 or NaN: relative error below 2^-22; 0 below -87. Cephes' polynomial on [-ln 2 / 2, ln 2 / 2].
__m256 exponential(__m256 x) {
    const __m256 gone = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);  // a NaN stays one: the second operand is kept
    const __m256 power =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693359375f), x);
    rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.3981999507e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(8.3334519073e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(4.1665795894e-2f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.6666665459e-1f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(5.0000001201e-1f));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(rest, rest), _mm256_add_ps(rest, _mm256_set1_ps(1.0f)));
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(gone, _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent)));
}

float largest_of(__m256 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Scores of `count` vectors of slots from `slot` on, into `weight`; their largest.
template <int count>
__m256 scores(const RingAttention& ring, size_t head, size_t slot) {
    const float* query = ring.query + head * ring.padded_dimensions;
    const float* keys = ring.keys + head * ring.dimensions * ring.slots + slot;
    const float* bias = ring.bias + head * ring.bias_stride + slot;
    __m256 dot[count];
    for (int at = 0; at < count; ++at) dot[at] = _mm256_setzero_ps();
    for (size_t i = 0; i < ring.dimensions; ++i) {
        const __m256 one = _mm256_set1_ps(query[i]);
        for (int at = 0; at < count; ++at)
            dot[at] = _mm256_fmadd_ps(one, _mm256_load_ps(keys + i * ring.slots + at * wide), dot[at]);
    }
    const __m256 scale = _mm256_set1_ps(ring.scale);
    __m256 largest = _mm256_set1_ps(-__builtin_inff());
    for (int at = 0; at < count; ++at) {
        const __m256 offset =
            _mm256_add_ps(_mm256_loadu_ps(bias + at * wide), _mm256_loadu_ps(ring.unseen + slot + at * wide));
        const __m256 score = _mm256_fmadd_ps(scale, dot[at], offset);
        _mm256_store_ps(ring.weight + slot + at * wide, score);
        largest = _mm256_max_ps(largest, score);
    }
    return largest;
}

void attend(const RingAttention& ring) {
    for (size_t head = 0; head < ring.heads; ++head) {
        __m256 largest = _mm256_set1_ps(-__builtin_inff());
        size_t slot = 0;
        for (; slot + 8 * wide <= ring.slots; slot += 8 * wide)
            largest = _mm256_max_ps(largest, scores<8>(ring, head, slot));
        for (; slot < ring.slots; slot += 2 * wide) largest = _mm256_max_ps(largest, scores<2>(ring, head, slot));
        const __m256 most = _mm256_set1_ps(largest_of(largest));
        __m256 total = _mm256_setzero_ps();
        for (slot = 0; slot < ring.slots; slot += wide) {
            const __m256 weight = exponential(_mm256_sub_ps(_mm256_load_ps(ring.weight + slot), most));
            _mm256_store_ps(ring.weight + slot, weight);
            total = _mm256_add_ps(total, weight);
        }
        const __m256 share = _mm256_set1_ps(1.0f / sum_of(total));
        for (size_t i = 0; i < ring.padded_dimensions; i += 2 * wide) {
            const float* values = ring.values + head * ring.slots * ring.padded_dimensions + i;
            __m256 low[4], high[4];
            for (size_t at = 0; at < 4; ++at) low[at] = high[at] = _mm256_setzero_ps();
            for (slot = 0; slot < ring.slots; slot += 4) {
                for (size_t at = 0; at < 4; ++at) {
                    const __m256 weight = _mm256_set1_ps(ring.weight[slot + at]);
                    const float* value = values + (slot + at) * ring.padded_dimensions;
                    low[at] = _mm256_fmadd_ps(weight, _mm256_load_ps(value), low[at]);
                    high[at] = _mm256_fmadd_ps(weight, _mm256_load_ps(value + wide), high[at]);
                }
            }
            float* out = ring.out + head * ring.padded_dimensions + i;
            const __m256 first = _mm256_add_ps(_mm256_add_ps(low[0], low[1]), _mm256_add_ps(low[2], low[3]));
            const __m256 second = _mm256_add_ps(_mm256_add_ps(high[0], high[1]), _mm256_add_ps(high[2], high[3]));
            _mm256_storeu_ps(out, _mm256_mul_ps(first, share));
            _mm256_storeu_ps(out + wide, _mm256_mul_ps(second, share));
        }
    }
}

}  // namespace

void avx2(TransformerKernels& table) {
    table.attend = attend;
}

}  // namespace strikeforge::tables
