// Implied volatilities of a Vector of prices. Include after one simd_<isa>.hpp.
//
// After P. Jaeckel, "Let's be rational", Wilmott (2015): the out-of-the-money price, normalised, is inverted in
// s = sigma sqrt(tau) by Householder's third-order method on a transformed price that is nearly linear in s. Written
// anew: here q = price / a (a, b, x, d1, d2, M as in value_kernel.hpp), and q has its one inflection at
// s_c = sqrt(2 |x|), where d1 = 0 and q_c = phi(0) (M(0) - M(s_c)).
// - low (q < q_c, so s < s_c): solve 1 / ln(q), which behaves as -2 s^2 / x^2 for small s. Start: that law, bent
//   to meet q_c at s_c.
// - high: solve ln(1 - q). Start: M. Tehranchi's bound s <= -2 Phi^-1((1 - q) / (1 + b/a)), "Uniform bounds for
//   Black-Scholes implied volatility", SIAM J. Financial Math. 7 (2016), exact where x = 0 and for large s.
// All quantities of a step are relative to s, so that nothing over- or underflows. A bracket holds the root: q rises
// with s; a step that leaves it is replaced by halving. A solved lane is left alone, whatever its neighbours still do.
#pragma once

#include "options/black76.hpp"
#include "options/functions.hpp"
#include "options/value_kernel.hpp"

namespace {

using strikeforge::Prices;

constexpr int most_steps = 100;
// The method's error goes with the fourth power of the last step.
constexpr double last_step = 1e-4;

// Phi^-1(1 - p) for p <= 1/2, within 4.5e-4: M. Abramowitz, I. Stegun, Handbook of Mathematical Functions, 26.2.23.
inline Vector rough_quantile(Vector minus_log_p) {
    const Vector t = square_root(minus_log_p + minus_log_p);
    const Vector top = fma(fma(set(0.010328), t, set(0.802853)), t, set(2.515517));
    const Vector bottom = fma(fma(fma(set(0.001308), t, set(0.189269)), t, set(1.432788)), t, set(1.0));
    return t - top / bottom;
}

struct Problem {
    Vector x;      // <= 0
    Vector s_c;    // sqrt(2 |x|)
    Mask low;      // q < q_c
    Vector log_y;  // of the target, y = q where low, 1 - q where high
};

// q (low) or 1 - q (high) at s, and phi(d1) = dq/ds.
inline Vector normalised(const Problem& problem, Vector s, Vector x_over_s, Vector& slope) {
    const Vector d1 = smaller(larger(fma(set(0.5), s, x_over_s), set(-45.0)), set(45.0));
    const Vector d2 = larger(fma(set(-0.5), s, x_over_s), set(-1e100));
    slope = set(fits::inverse_sqrt_2pi) * exponential(set(-0.5) * d1 * d1);
    const Vector mills1 = mills(absolute(d1)), mills2 = mills(set(0.0) - d2);
    return slope * choose(problem.low, mills1 - mills2, mills1 + mills2);
}

// s with the target's price; `solved` says where it was found.
inline Vector solve(const Problem& problem, Vector s, Mask active, Mask& solved) {
    const Vector zero = set(0.0), one = set(1.0);
    Vector low_end = choose(problem.low, zero, problem.s_c);
    Vector high_end = choose(problem.low, problem.s_c, problem.s_c + set(40.0));  // there 1 - q < 1e-80
    solved = active & ~active;
    for (int step = 0; step < most_steps && any(active); ++step) {
        const Vector x_over_s = problem.x / s;
        Vector slope;
        const Vector y = normalised(problem, s, x_over_s, slope);
        const Vector log_y = log_ratio(y, one);
        const Vector w = s * slope / y;
        const Vector square = x_over_s * x_over_s, quarter = set(0.25) * s * s;
        const Vector h2 = square - quarter, h3 = fma(h2, h2, fma(set(-3.0), square, zero - quarter));
        const Vector inverse_log = one / log_y;
        const Vector curve = choose(problem.low, fma(set(-2.0), inverse_log, set(-1.0)), one);
        const Vector bend = choose(problem.low, fma(set(6.0) * inverse_log, one + inverse_log, set(2.0)), set(2.0));
        const Vector gap = problem.log_y - log_y;
        const Vector newton = choose(problem.low, gap * log_y / problem.log_y, zero - gap) / w;
        const Vector e2 = fma(curve, w, h2);
        const Vector e3 = fma(bend * w, w, fma(set(3.0) * h2 * curve, w, h3));
        const Vector change =
            newton * fma(set(0.5) * e2, newton, one) / fma(newton, fma(set(1.0 / 6.0) * e3, newton, e2), one);

        // Where y underflowed to 0 (only where low) its logarithm is beneath any other: the root lies above.
        const Mask underflow = at_most(y, zero);
        const Mask root_above = (problem.low & (less(zero, gap) | underflow)) | (~problem.low & less(gap, zero));
        low_end = choose(root_above, s, low_end);
        high_end = choose(root_above, high_end, s);
        const Vector next = fma(s, change, s);
        const Mask inside = at_most(low_end, next) & at_most(next, high_end) & ~underflow;
        const Vector moved = choose(inside, next, set(0.5) * (low_end + high_end));
        s = choose(active, moved, s);
        const Mask done = active & ((inside & at_most(absolute(change), set(last_step))) |
                                    at_most(high_end - low_end, set(1e-16) * high_end));
        solved = solved | done;
        active = active & ~done;
    }
    return s;
}

// p / D - (b - a) to the last bit of what the in-the-money price p tells.
inline Vector time_value(Vector p, Vector discount, Vector a, Vector b) {
    const Vector intrinsic = b - a, its_error = (b - intrinsic) - a;
    const Vector money = discount * intrinsic, money_error = product_error(discount, intrinsic, money);
    return (((p - money) - money_error) - discount * its_error) / discount;
}

// More than rounding F - K and a product with D leaves between a bound and a price on it, in units of the price.
constexpr double bound_rounding = 0x1.8p-52;
constexpr double smallest_normal = 0x1p-1022;

constexpr double ok = 0.0, below_intrinsic = 1.0, above_maximum = 2.0, bad_input = 3.0;

// `width` prices from `place` on.
inline void implied_block(const Prices& prices, size_t place, double* volatility, double* status) {
    const Vector zero = set(0.0), one = set(1.0);
    const Vector p = column(prices.price, place), f = column(prices.forward, place);
    const Vector k = column(prices.strike, place), t = column(prices.tau, place);
    const Vector discount = column(prices.discount, place), w = column(prices.right, place);
    const Mask good = good_input(f, k, t, p * zero, discount, w) & less(zero, t);

    const Vector a = smaller(f, k), b = larger(f, k);
    const Mask in_money = less(zero, w * (f - k));
    const Vector worth = p / discount, rough = worth - choose(in_money, b - a, zero);
    const Vector c = choose(in_money, time_value(p, discount, a, b), rough);  // of the pair's out-of-the-money option
    const Vector room = set(bound_rounding) * worth;
    const Mask positive = less(zero, rough) & less(room, c) & at_most(set(smallest_normal), c / a);
    const Mask short_of_maximum = less(rough, a) & less(room, a - c);
    const Mask todo = good & positive & short_of_maximum;

    const Vector q = choose(todo, c / a, set(0.5));
    Problem problem;
    problem.x = log_ratio(a, b);
    problem.s_c = square_root(set(-2.0) * problem.x);
    const Vector q_c = set(fits::inverse_sqrt_2pi) * (mills(zero) - mills(problem.s_c));
    problem.low = less(q, q_c);
    problem.log_y = log_ratio(choose(problem.low, q, one - q), one);

    // Low: s^2 / s_c^2 = v with 1 / -ln(q) = 4 v / |x| / (1 + bend v).
    const Vector bend = fma(set(-4.0), log_ratio(q_c, one), problem.x) / (zero - problem.x);
    const Vector ratio = problem.x * set(0.25) / problem.log_y;
    const Vector low_start = problem.s_c * square_root(ratio / fma(zero - bend, ratio, one));
    const Vector tail = choose(todo, a - c, a) / (a + b);
    const Vector high_start = larger(set(2.0) * rough_quantile(zero - log_ratio(tail, one)), problem.s_c);
    // At least the root at the money, where q is highest, and there at most s / sqrt(2 pi).
    const Vector start = larger(choose(problem.low, low_start, high_start), q * set(1.0 / fits::inverse_sqrt_2pi));
    Mask solved;
    const Vector s = solve(problem, start, todo, solved);

    store(volatility, choose(solved, s / square_root(t), set(__builtin_nan(""))));
    const Vector wrong =
        choose(positive, choose(short_of_maximum, set(below_intrinsic), set(above_maximum)), set(below_intrinsic));
    store(status, choose(good, choose(solved, set(ok), wrong), set(bad_input)));
}

void implied(const Prices& prices, size_t n, double* volatility, signed char* status) {
    double found[width], why[width], inputs[6][width];
    const Column* columns[6] = {&prices.price, &prices.forward,  &prices.strike,
                                &prices.tau,   &prices.discount, &prices.right};
    for (size_t place = 0; place < n; place += width) {
        const size_t count = n - place < width ? n - place : width;
        if (count == width) {
            implied_block(prices, place, found, why);
        } else {
            pad(columns, place, count, inputs);
            implied_block(
                {{inputs[0], 1}, {inputs[1], 1}, {inputs[2], 1}, {inputs[3], 1}, {inputs[4], 1}, {inputs[5], 1}}, 0,
                found, why);
        }
        for (size_t lane = 0; lane < count; ++lane) {
            volatility[place + lane] = found[lane];
            status[place + lane] = static_cast<signed char>(why[lane]);
        }
    }
}

}  // namespace
