// Prices and Greeks of a Vector of options. Include after one simd_<isa>.hpp.
//
// With a = min(F, K), b = max(F, K), x = ln(a / b) <= 0, s = sigma sqrt(tau), d1 = x/s + s/2, d2 = x/s - s/2, the
// out-of-the-money option of the pair, call or put, is worth a Phi(d1) - b Phi(d2); and as a phi(d1) = b phi(d2) = n,
//     Phi(d1) = phi(d1) M(-d1),   price = n (M(-d1) - M(-d2)),   M: Mills' ratio, Phi(-z) / phi(z),
// which keeps its digits down the wings and takes one exponential. d2 <= 0 always; where d1 > 0, Phi(d1) is 1 less
// the other tail. The option in the money adds b - a. F phi(D1) = n too, D1 being d1 of the forward over the strike.
#pragma once

#include "options/black76.hpp"
#include "options/functions.hpp"

namespace {

using strikeforge::Column;
using strikeforge::Greeks;
using strikeforge::Options;

inline Vector column(const Column& from, size_t place) {
    return from.stride ? load(from.data + place) : set(*from.data);
}

// Where all inputs may be priced; a sum of zero times each is zero unless one is infinite or NaN.
inline Mask good_input(Vector f, Vector k, Vector t, Vector v, Vector d, Vector w) {
    const Vector zero = set(0.0);
    const Vector finite = fma(f, zero, fma(k, zero, fma(t, zero, fma(v, zero, d * zero))));
    return equal(finite, zero) & less(zero, smaller(smaller(f, k), d)) & at_most(zero, smaller(t, v)) &
           equal(w * w, set(1.0));
}

// `width` options from `place` on.
inline void value_block(const Options& options, size_t place, const Greeks& out) {
    const Vector zero = set(0.0), one = set(1.0), half = set(0.5);
    const Vector f = column(options.forward, place), k = column(options.strike, place);
    const Vector t = column(options.tau, place), v = column(options.volatility, place);
    const Vector discount = column(options.discount, place), w = column(options.right, place);
    const Mask good = good_input(f, k, t, v, discount, w);
    const auto put_out = [&](double* to, Vector value) {
        store(to + place, choose(good, value, set(__builtin_nan(""))));
    };

    const Vector root = square_root(t), s = v * root;
    const Mask still = equal(s, zero), lower = at_most(f, k), in_money = less(zero, w * (f - k));
    const Vector a = smaller(f, k), b = larger(f, k);
    const Vector inverse_s = one / choose(still, one, s);
    const Vector x_over_s = log_ratio(a, b) * inverse_s;
    const Vector d1 = smaller(larger(fma(half, s, x_over_s), set(-45.0)), set(45.0));  // phi is 0 beyond
    const Vector d2 = larger(fma(set(-0.5), s, x_over_s), set(-1e100));
    const Mask beyond = less(zero, d1);
    const Vector mills1 = mills(absolute(d1)), mills2 = mills(zero - d2);
    const Vector n = choose(still, zero, a * (set(fits::inverse_sqrt_2pi) * exponential(set(-0.5) * d1 * d1)));

    const Vector near = choose(beyond, zero - mills1, mills1);
    const Vector out_of_money = larger(fma(n, near - mills2, choose(beyond, a, zero)), zero);
    const Vector price = discount * (out_of_money + choose(in_money, b - a, zero));
    if (out.price) put_out(out.price, price);
    if (out.rho) put_out(out.rho, (zero - t) * price);

    const Vector inverse_f = one / f, bell = n * inverse_f;  // bell: phi(D1)
    const Vector vega = discount * n * root;
    if (out.delta) {
        const Vector tail = bell * choose(lower, mills1, mills2);
        const Mask against = less(zero, w) ^ lower;  // the pair's option in the money: 1 less its sister's
        const Mask rest_of_one = (still & in_money) | (~still & (against ^ (lower & beyond)));
        put_out(out.delta, discount * w * choose(rest_of_one, one - tail, tail));
    }
    if (out.gamma) put_out(out.gamma, discount * bell * inverse_s * inverse_f);
    if (out.vega) put_out(out.vega, vega);
    if (out.theta) {
        const Mask now = equal(t, zero);
        const Vector decay = fma(log_ratio(discount, one), price, half * vega * v);
        put_out(out.theta, choose(now, zero, (zero - decay) / choose(now, one, t)));
    }
    const Vector inverse_v = root * inverse_s;
    if (out.vanna) put_out(out.vanna, discount * bell * inverse_v * choose(lower, zero - d2, d1));
    if (out.volga) put_out(out.volga, vega * d1 * d2 * inverse_v);
}

// `count` < width options as a whole block, the first of them repeated.
inline void pad(const Column* const (&columns)[6], size_t place, size_t count, double (&inputs)[6][width]) {
    for (size_t i = 0; i < 6; ++i) {
        for (size_t lane = 0; lane < width; ++lane) {
            const size_t from = place + (lane < count ? lane : 0);
            inputs[i][lane] = columns[i]->data[columns[i]->stride ? from : 0];
        }
    }
}

// The last, incomplete block: the same arithmetic on a padded copy, so that an option's value doesn't depend on its
// place.
inline void value_rest(const Options& options, size_t place, size_t count, const Greeks& out) {
    double inputs[6][width], outputs[8][width];
    const Column* columns[6] = {&options.forward,    &options.strike,   &options.tau,
                                &options.volatility, &options.discount, &options.right};
    pad(columns, place, count, inputs);
    const Options padded_options = {{inputs[0], 1}, {inputs[1], 1}, {inputs[2], 1},
                                    {inputs[3], 1}, {inputs[4], 1}, {inputs[5], 1}};
    double* const wanted[8] = {out.price, out.delta, out.gamma, out.vega, out.theta, out.rho, out.vanna, out.volga};
    double* filled[8];
    for (size_t i = 0; i < 8; ++i) filled[i] = wanted[i] ? outputs[i] : nullptr;
    value_block(padded_options, 0,
                {filled[0], filled[1], filled[2], filled[3], filled[4], filled[5], filled[6], filled[7]});
    for (size_t i = 0; i < 8; ++i) {
        for (size_t lane = 0; wanted[i] && lane < count; ++lane) wanted[i][place + lane] = outputs[i][lane];
    }
}

void value(const Options& options, size_t n, const Greeks& out) {
    const size_t whole = n / width * width;
    for (size_t place = 0; place < whole; place += width) value_block(options, place, out);
    if (whole < n) value_rest(options, whole, n - whole, out);
}

}  // namespace
