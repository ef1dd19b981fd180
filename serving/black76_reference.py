"""Black-76 in NumPy: what `serving.black76` runs without the native core, and what the native core is held to.

In and out as in serving/black76.py, the public module. Source: F. Black, "The pricing of commodity contracts",
J. Financial Economics 3 (1976).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from serving.normal import cdf, density

Array = npt.NDArray[np.float64]

# What rounding F - K and products with D may leave between a bound and a price on it, in units of the price, and more.
BOUND_ROUNDING = 2.0**-51


@dataclass(frozen=True)
class Valuation:
    """Price and Greeks, arrays of one shape.

    `price` money; `delta` derivative in the forward, discounted (times F/S it is the spot delta at constant carry);
    `gamma` second derivative in the forward; `vega` money per 1.00 of volatility; `theta` money per year of calendar
    time at constant forward and rate; `rho` money per 1.00 of the rate r of discount = exp(-r tau) at fixed forward,
    which is -tau price; `vanna` second derivative in forward and volatility (of delta, per 1.00 of volatility);
    `volga` second derivative in volatility. Without time or volatility gamma, vega, vanna and volga are 0.
    """

    price: Array
    delta: Array
    gamma: Array
    vega: Array
    theta: Array
    rho: Array
    vanna: Array
    volga: Array


class VolatilityStatus(IntEnum):
    """Why an implied volatility is, or isn't, there."""

    OK = 0
    BELOW_INTRINSIC = 1
    ABOVE_MAXIMUM = 2
    BAD_INPUT = 3


def _prepare(*values: npt.ArrayLike) -> tuple[Array, ...]:
    return tuple(np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values)))


def _positive(values: Array) -> npt.NDArray[np.bool_]:
    return np.asarray((values > 0) & (values < np.inf))


def value(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    volatility: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Valuation:
    """Price and all Greeks (see `Valuation` for units)."""
    f, k, t, v, df, w = _prepare(forward, strike, tau, volatility, discount, right)
    bad = ~(_positive(f) & _positive(k) & _positive(df) & (t >= 0) & (v >= 0) & np.isfinite(t + v) & (np.abs(w) == 1))
    with np.errstate(all="ignore"):
        root_t = np.sqrt(t)
        deviation = v * root_t
        still = deviation == 0
        log_moneyness = np.log(f / k)
        d1 = np.where(still, np.where(w * (f - k) > 0, w * np.inf, -w * np.inf), 0.0)
        moving = log_moneyness / np.where(still, 1.0, deviation) + 0.5 * deviation
        d1 = np.where(still, d1, moving)
        d2 = np.where(still, d1, d1 - deviation)
        in_money1, in_money2, bell = cdf(w * d1), cdf(w * d2), density(d1)
        price = df * w * (f * in_money1 - k * in_money2)
        delta = df * w * in_money1
        gamma = np.where(still, 0.0, df * bell / (f * np.where(still, 1.0, deviation)))
        vega = np.where(still, 0.0, df * f * bell * root_t)
        decay = np.where(still, 0.0, df * f * bell * v / (2.0 * np.where(t == 0, 1.0, root_t)))
        rate = np.where(t == 0, 0.0, -np.log(df) / np.where(t == 0, 1.0, t))
        theta = rate * price - decay
        bounded1, bounded2 = np.clip(d1, -1e100, 1e100), np.clip(d2, -1e100, 1e100)  # times a bell of 0 is 0
        moving_v = np.where(v == 0, 1.0, v)
        vanna = np.where(still, 0.0, -df * bell * bounded2 / moving_v)
        volga = np.where(still, 0.0, vega * bounded1 * bounded2 / moving_v)
    price = np.maximum(price, 0.0)
    outputs = (price, delta, gamma, vega, theta, -t * price, vanna, volga)
    return Valuation(*(np.where(bad, np.nan, out) for out in outputs))


def price(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    volatility: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> Array:
    """Price in money, discounted."""
    return value(forward, strike, tau, volatility, discount, right).price


def _normalised(x: Array, s: Array) -> tuple[Array, Array]:
    """Out-of-the-money price / sqrt(F K) and its derivative in s = sigma sqrt(tau); x = -|ln(F/K)|."""
    d1 = x / s + 0.5 * s
    half = np.exp(0.5 * x)
    return half * cdf(d1) - cdf(d1 - s) / half, half * density(d1)


def implied_volatility(
    option_price: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    tau: npt.ArrayLike,
    discount: npt.ArrayLike,
    right: npt.ArrayLike,
) -> tuple[Array, npt.NDArray[np.int8]]:
    """Volatility that reprices `option_price` (money, discounted), and a `VolatilityStatus` for each.

    Newton's method on the logarithm of the normalised out-of-the-money price, which is concave in the deviation, so
    the iteration climbs to the root from the left; a bracket guards the first steps. NaN where the status isn't OK.
    """
    p, f, k, t, df, w = (
        np.atleast_1d(a).ravel() for a in _prepare(option_price, forward, strike, tau, discount, right)
    )
    shape = np.broadcast_shapes(*(np.shape(a) for a in (option_price, forward, strike, tau, discount, right)))
    status = np.full(p.shape, VolatilityStatus.OK, dtype=np.int8)
    result = np.full(p.shape, np.nan)
    with np.errstate(all="ignore"):
        fine = _positive(f) & _positive(k) & _positive(t) & _positive(df) & np.isfinite(p) & (np.abs(w) == 1)
        status[~fine] = VolatilityStatus.BAD_INPUT
        time_value = p / df - np.maximum(w * (f - k), 0.0)
        target = time_value / np.sqrt(f * k)
        x = -np.abs(np.log(f / k))
        room = BOUND_ROUNDING * (p / df)
        status[fine & (np.minimum(f, k) - time_value <= room)] = VolatilityStatus.ABOVE_MAXIMUM
        status[fine & ~((time_value > room) & (target > 0))] = VolatilityStatus.BELOW_INTRINSIC
    todo = np.flatnonzero(status == VolatilityStatus.OK)
    if todo.size:
        deviation, solved = _solve(x[todo], target[todo])
        result[todo] = np.where(solved, deviation / np.sqrt(t[todo]), np.nan)
        status[todo[~solved]] = VolatilityStatus.BELOW_INTRINSIC
    return result.reshape(shape), status.reshape(shape)


def _solve(x: Array, target: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Deviation s with normalised price `target`, and whether it was found."""
    log_target = np.log(target)
    low, high = np.zeros_like(x), np.full_like(x, np.inf)
    gap = np.maximum(0.5 * x - log_target, 1e-300)
    s = np.where(x < -1e-8, -x / np.sqrt(2.0 * gap), 0.0)
    s = np.clip(np.maximum(s, target * np.sqrt(2.0 * np.pi)), 1e-9, 60.0)
    active = np.arange(x.size)
    found = np.zeros(x.size, dtype=bool)
    for _ in range(100):
        guess = s[active]
        with np.errstate(all="ignore"):
            value_now, slope = _normalised(x[active], guess)
            error = np.log(value_now) - log_target[active]
            step = -error * value_now / slope
        below = ~(error > 0)  # NaN or -inf (price underflows): the root lies to the right
        low[active] = np.where(below, guess, low[active])
        high[active] = np.where(below, high[active], guess)
        following = guess + step
        upper = np.where(np.isfinite(high[active]), high[active], 4.0 * guess + 1e-3)
        outside = ~((following > low[active]) & (following < upper)) & (error != 0)
        following = np.where(outside, 0.5 * (low[active] + upper), following)
        following = np.where(error == 0, guess, following)
        done = np.abs(following - guess) <= 4e-16 * guess + 1e-17
        done |= (np.abs(step) <= 2e-12 * guess) & ~outside  # one quadratic step away from the last bit
        s[active] = following
        found[active[done]] = True
        active = active[~done]
        if not active.size:
            break
    return s, found
