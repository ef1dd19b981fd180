// Prices and four Greeks of 16 options at a time in single precision, for volatilities that are no better themselves.
//
// The formulas are value_kernel.hpp's, in units of the smaller of forward and strike or of the forward, so that floats
// hold ratios and the caller's unit doesn't matter. In double precision are what floats would spoil: the difference of
// strike and forward, that of the discount from 1, the intrinsic value, and every product with the forward; so a call
// less a put is D (F - K) to the last places.
//
// Error, with e = 2^-24, d the larger of |d1| and |d2|, s = sigma sqrt(tau): gamma, vega and delta (of a pair's option
// in the money: of its sister's delta) are right to (32 + 20 d^2) e, relative; the price of the option out of the
// money, which both of a pair share, to that times 1 + (3 + 2 d) / s, and to 16 e D F; theta to what its terms, the
// decay and the interest on the price, are. A volatility that is off by a share v moves gamma and vega by d^2 v: these
// are the errors of a v of 1e-6.
//
// An option outside `ordinary` (a wing beyond 12 deviations, expiry within 30 seconds, zero, negative, infinite, NaN)
// is the double kernel's, in its lane only. So the edges are those of value_kernel.hpp.
#if defined(STRIKEFORGE_X86)

// GCC 12 takes its own _mm512_undefined_ps for a mistake (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "options/simd_avx512.hpp"
// The vector first: the kernels are written in its terms.
#include "options/value_kernel.hpp"

namespace {

using strikeforge::SingleGreeks;
using strikeforge::SingleOptions;

constexpr size_t lanes = 16;
typedef __m512 Floats;

// What floats can do. Everything else is the double kernel's.
constexpr double least_money = 0x1p-64, most_money = 0x1p64;
constexpr float least_tau = 0x1p-20f, most_tau = 0x1p20f;  // half a minute in years
constexpr float least_deviation = 0x1p-10f, most_deviation = 4.0f;
constexpr float least_discount = 0.25f, most_discount = 4.0f;

inline Floats single(float x) {
    return _mm512_set1_ps(x);
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
}

template <size_t count>
inline Floats polynomial(const float (&coefficients)[count], Floats x) {
    Floats sum = single(coefficients[count - 1]);
#pragma GCC unroll 16
    for (size_t i = 1; i < count; ++i) sum = fma(sum, x, single(coefficients[count - 1 - i]));
    return sum;
}

// ln(1 + x) for x > -1: what is lost is relative to it, also near 0.
inline Floats log_of_one_and(Floats x) {
    const Floats whole = single(1.0f) + x;
    const Floats mantissa = _mm512_getmant_ps(whole, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    const __m512i lowest = _mm512_castps_si512(single(0.75f));  // the same split of the bits
    const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_castps_si512(whole), lowest), 23);
    const __mmask16 near = _mm512_testn_epi32_mask(exponent, exponent);
    const Floats r = _mm512_mask_mov_ps(mantissa - single(1.0f), near, x);
    const Floats f = r / (single(2.0f) + r), square = f * f;
    const Floats small = fma(f * square, polynomial(fits::single_atanh, square), f + f);
    return fma(_mm512_cvtepi32_ps(exponent), single(static_cast<float>(1.0 / fits::inverse_ln2)), small);
}

// exp(y) for -87 < y <= 0.
inline Floats exponential_of(Floats y) {
    const Floats power = y * single(static_cast<float>(fits::inverse_ln2));
    const Floats k = power - _mm512_reduce_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats rest = fma(y, single(static_cast<float>(fits::inverse_ln2)), single(0.0f) - k);
    return _mm512_scalef_ps(fma(polynomial(fits::single_exp2, rest), rest, single(1.0f)), k);
}

// Two vectors of doubles as one of floats.
inline Floats rounded(Vector low, Vector high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
inline Vector lower_half(Floats x) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}
inline Vector upper_half(Floats x) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}
inline __mmask16 both(Mask low, Mask high) {
    return _mm512_kunpackb(high, low);
}
inline __mmask16 within(__mmask16 so_far, Floats x, float least, float most) {
    so_far = _mm512_mask_cmp_ps_mask(so_far, single(least), x, _CMP_LE_OQ);
    return _mm512_mask_cmp_ps_mask(so_far, x, single(most), _CMP_LE_OQ);
}

// The lanes of `todo` by the double kernel.
void value_doubles(const SingleOptions& options, __mmask16 todo, const SingleGreeks& out) {
    double volatility[lanes], found[5][lanes];
    const Floats single_volatility = _mm512_loadu_ps(options.volatility);
    store(volatility, lower_half(single_volatility));
    store(volatility + width, upper_half(single_volatility));
    const Options doubles = {{options.forward, 1}, {options.strike, 1},   {options.tau, 1},
                             {volatility, 1},      {options.discount, 1}, {options.right, 1}};
    const Greeks greeks = {found[0], found[1], found[2], found[3], found[4], nullptr, nullptr, nullptr};
    double* const wanted[5] = {out.price, out.delta, out.gamma, out.vega, out.theta};
    value(doubles, lanes, greeks);
    for (size_t i = 0; i < 5; ++i) {
        _mm512_mask_storeu_pd(wanted[i], static_cast<Mask>(todo), load(found[i]));
        _mm512_mask_storeu_pd(wanted[i] + width, static_cast<Mask>(todo >> width), load(found[i] + width));
    }
}

// What the first half of the work hands to the second; in units of a = min(F, K) or of the forward.
struct Halfway {
    Floats z1, z2;                             // -d1, -d2
    Floats root, inverse_s, rate_time;         // sqrt(tau), 1 / s, ln(discount)
    Floats a_over_f, inverse_f, intrinsic, v;  // intrinsic over the forward
    Floats discount;
    __mmask16 lower, calls, ordinary;  // lower: the forward is a
};

inline void begin(const SingleOptions& options, Halfway& to) {
    Vector smaller_of[2], apart[2], growth[2];
    Mask sensible[2], call[2];
#pragma GCC unroll 2
    for (size_t h = 0; h < 2; ++h) {
        const Vector f = load(options.forward + h * width), k = load(options.strike + h * width);
        const Vector w = load(options.right + h * width);
        smaller_of[h] = smaller(f, k);
        apart[h] = k - f;
        growth[h] = load(options.discount + h * width) - set(1.0);
        call[h] = equal(w, set(1.0));
        sensible[h] = static_cast<Mask>((call[h] | equal(w, set(-1.0))) & at_most(set(least_money), smaller_of[h]) &
                                        at_most(larger(f, k), set(most_money)));
    }
    to.calls = both(call[0], call[1]);
    const Floats a = rounded(smaller_of[0], smaller_of[1]), signed_gap = rounded(apart[0], apart[1]);
    const Floats tau = rounded(load(options.tau), load(options.tau + width));
    const Floats less_than_one = rounded(growth[0], growth[1]);  // discount - 1
    to.v = _mm512_loadu_ps(options.volatility);
    to.discount = single(1.0f) + less_than_one;
    to.rate_time = log_of_one_and(less_than_one);

    to.lower = _mm512_cmp_ps_mask(single(0.0f), signed_gap, _CMP_LE_OQ);
    const Floats gap = _mm512_abs_ps(signed_gap);
    to.inverse_f = single(1.0f) / _mm512_mask_blend_ps(to.lower, a + gap, a);
    to.a_over_f = a * to.inverse_f;
    to.intrinsic = _mm512_maskz_mul_ps(to.calls ^ to.lower, gap, to.inverse_f);
    to.root = _mm512_maskz_sqrt_ps(0xffff, tau);
    const Floats s = to.v * to.root;
    to.inverse_s = single(1.0f) / s;
    const Floats x_over_s = log_of_one_and(gap / a) * to.inverse_s;  // -ln(a / b) / s
    to.z1 = fma(single(-0.5f), s, x_over_s);
    to.z2 = fma(single(0.5f), s, x_over_s);

    to.ordinary = both(sensible[0], sensible[1]);
    to.ordinary = within(to.ordinary, tau, least_tau, most_tau);
    to.ordinary = within(to.ordinary, s, least_deviation, most_deviation);
    to.ordinary = within(to.ordinary, to.discount, least_discount, most_discount);
    to.ordinary = _mm512_mask_cmp_ps_mask(to.ordinary, to.z2, single(fits::single_mills_farthest), _CMP_LE_OQ);
}

inline void finish(const SingleOptions& options, const Halfway& from, const SingleGreeks& out) {
    const Floats zero = single(0.0f), one = single(1.0f);
    // Mills' ratios at |d1| and -d2, one division for both.
    const Floats up1 = _mm512_abs_ps(from.z1) + single(fits::single_mills_centre);
    const Floats up2 = from.z2 + single(fits::single_mills_centre), inverse = one / (up1 * up2);
    const Floats u1 = inverse * up2, u2 = inverse * up1, turn = single(-2.0f * fits::single_mills_centre);
    const Floats mills1 = u1 * polynomial(fits::single_mills, fma(turn, u1, one));
    const Floats mills2 = u2 * polynomial(fits::single_mills, fma(turn, u2, one));

    const __mmask16 lower = from.lower, beyond = _mm512_cmp_ps_mask(from.z1, zero, _CMP_LT_OQ);
    const Floats phi =
        single(static_cast<float>(fits::inverse_sqrt_2pi)) * exponential_of(single(-0.5f) * from.z1 * from.z1);
    const Floats near = _mm512_mask_sub_ps(mills1, beyond, zero, mills1);
    const Floats out_of_money = fma(phi, near - mills2, _mm512_maskz_mov_ps(beyond, one));  // in units of a
    const Floats time_value = _mm512_max_ps(out_of_money, zero) * from.a_over_f;

    const Floats bell = phi * from.a_over_f, tail = bell * _mm512_mask_blend_ps(lower, mills2, mills1);
    const auto rest_of_one = static_cast<__mmask16>(from.calls ^ lower ^ (lower & beyond));
    const Floats size = from.discount * _mm512_mask_sub_ps(tail, rest_of_one, one, tail);
    const Floats delta = _mm512_mask_mov_ps(zero - size, from.calls, size);
    const Floats density = from.discount * bell, curvature = density * from.inverse_s, vega = density * from.root;
    const Floats worth = from.discount * (time_value + from.intrinsic), inverse_root = from.v * from.inverse_s;
    const Floats decay = fma(from.rate_time, worth, single(0.5f) * vega * from.v);
    const Floats theta = (zero - decay) * (inverse_root * inverse_root);

#pragma GCC unroll 2
    for (size_t h = 0; h < 2; ++h) {
        const auto widened = [h](Floats x) { return h == 0 ? lower_half(x) : upper_half(x); };
        const size_t place = h * width;
        const Vector f = load(options.forward + place);
        const Vector gain = larger(load(options.right + place) * (f - load(options.strike + place)), set(0.0));
        store(out.price + place, load(options.discount + place) * fma(f, widened(time_value), gain));
        store(out.delta + place, widened(delta));
        store(out.gamma + place, widened(curvature) * widened(from.inverse_f));
        store(out.vega + place, widened(vega) * f);
        store(out.theta + place, widened(theta) * f);
    }
    const auto rest = static_cast<__mmask16>(~from.ordinary);
    if (__builtin_expect(rest != 0, 0)) value_doubles(options, rest, out);
}

inline SingleOptions shifted(const SingleOptions& options, size_t by) {
    return {options.forward + by,    options.strike + by,   options.tau + by,
            options.volatility + by, options.discount + by, options.right + by};
}
inline SingleGreeks shifted(const SingleGreeks& out, size_t by) {
    return {out.price + by, out.delta + by, out.gamma + by, out.vega + by, out.theta + by};
}

// Whole vectors. In two halves over a few vectors each: an option's own chain of operations is so long that a
// processor doesn't look far enough ahead to work on the next one meanwhile.
inline void value_vectors(const SingleOptions& options, size_t vectors, const SingleGreeks& out) {
    constexpr size_t most = 8;
    Halfway halfway[most];
    for (size_t first = 0; first < vectors; first += most) {
        const size_t some = vectors - first < most ? vectors - first : most;
        for (size_t i = 0; i < some; ++i) begin(shifted(options, (first + i) * lanes), halfway[i]);
        for (size_t i = 0; i < some; ++i)
            finish(shifted(options, (first + i) * lanes), halfway[i], shifted(out, (first + i) * lanes));
    }
}

void value_single(const SingleOptions& options, size_t n, const SingleGreeks& out) {
    const size_t place = n / lanes * lanes;
    value_vectors(options, n / lanes, out);
    if (place == n) return;
    // The same arithmetic on a padded copy: an option's value doesn't depend on its place.
    double inputs[5][lanes], outputs[5][lanes];
    float volatility[lanes];
    const double* const columns[5] = {options.forward, options.strike, options.tau, options.discount, options.right};
    for (size_t lane = 0; lane < lanes; ++lane) {
        const size_t from = place + (place + lane < n ? lane : 0);
        for (size_t i = 0; i < 5; ++i) inputs[i][lane] = columns[i][from];
        volatility[lane] = options.volatility[from];
    }
    value_vectors({inputs[0], inputs[1], inputs[2], volatility, inputs[3], inputs[4]}, 1,
                  {outputs[0], outputs[1], outputs[2], outputs[3], outputs[4]});
    double* const wanted[5] = {out.price, out.delta, out.gamma, out.vega, out.theta};
    for (size_t i = 0; i < 5; ++i) {
        for (size_t lane = 0; place + lane < n; ++lane) wanted[i][place + lane] = outputs[i][lane];
    }
}

}  // namespace

namespace strikeforge::tables {

void single_avx512(OptionKernels& table) {
    table.value_single = ::value_single;
}

}  // namespace strikeforge::tables

#endif
