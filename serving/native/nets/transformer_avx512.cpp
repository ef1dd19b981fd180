// AVX-512: 16 slots or 16 dimensions a vector.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own header makes its undefined vectors so
#endif
#include <immintrin.h>

#include "nets/transformer_table.hpp"

namespace strikeforge::tables {

namespace {

constexpr size_t wide = 16;

// exp(x), x <= 0 or NaN: relative error below 2^-22; 0 below -120. Cephes' polynomial on [-ln 2 / 2, ln 2 / 2].
__m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-120.0f), x);  // a NaN stays one: the second operand is kept
    const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3981999507e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(8.3334519073e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(4.1665795894e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.6666665459e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.0000001201e-1f));
    sum = _mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(sum, power);
}

// Scores of `count` vectors of slots from `slot` on, into `weight`; their largest.
template <int count>
__m512 scores(const RingAttention& ring, size_t head, size_t slot) {
    const float* query = ring.query + head * ring.padded_dimensions;
    const float* keys = ring.keys + head * ring.dimensions * ring.slots + slot;
    const float* bias = ring.bias + head * ring.bias_stride + slot;
    __m512 dot[count];
    for (int at = 0; at < count; ++at) dot[at] = _mm512_setzero_ps();
    for (size_t i = 0; i < ring.dimensions; ++i) {
        const __m512 one = _mm512_set1_ps(query[i]);
        for (int at = 0; at < count; ++at)
            dot[at] = _mm512_fmadd_ps(one, _mm512_load_ps(keys + i * ring.slots + at * wide), dot[at]);
    }
    const __m512 scale = _mm512_set1_ps(ring.scale);
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (int at = 0; at < count; ++at) {
        const __m512 offset =
            _mm512_add_ps(_mm512_loadu_ps(bias + at * wide), _mm512_loadu_ps(ring.unseen + slot + at * wide));
        const __m512 score = _mm512_fmadd_ps(scale, dot[at], offset);
        _mm512_store_ps(ring.weight + slot + at * wide, score);
        largest = _mm512_max_ps(largest, score);
    }
    return largest;
}

void attend(const RingAttention& ring) {
    for (size_t head = 0; head < ring.heads; ++head) {
        __m512 largest = _mm512_set1_ps(-__builtin_inff());
        size_t slot = 0;
        for (; slot + 4 * wide <= ring.slots; slot += 4 * wide)
            largest = _mm512_max_ps(largest, scores<4>(ring, head, slot));
        for (; slot < ring.slots; slot += wide) largest = _mm512_max_ps(largest, scores<1>(ring, head, slot));
        const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
        __m512 total = _mm512_setzero_ps();
        for (slot = 0; slot < ring.slots; slot += wide) {
            const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(ring.weight + slot), most));
            _mm512_store_ps(ring.weight + slot, weight);
            total = _mm512_add_ps(total, weight);
        }
        const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
        for (size_t i = 0; i < ring.padded_dimensions; i += wide) {
            const float* values = ring.values + head * ring.slots * ring.padded_dimensions + i;
            __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            for (slot = 0; slot < ring.slots; slot += 4) {
                for (size_t at = 0; at < 4; ++at)
                    sum[at] = _mm512_fmadd_ps(_mm512_set1_ps(ring.weight[slot + at]),
                                              _mm512_load_ps(values + (slot + at) * ring.padded_dimensions), sum[at]);
            }
            const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
            _mm512_storeu_ps(ring.out + head * ring.padded_dimensions + i, _mm512_mul_ps(all, share));
        }
    }
}

}  // namespace

void avx512(TransformerKernels& table) {
    table.attend = attend;
}

}  // namespace strikeforge::tables
