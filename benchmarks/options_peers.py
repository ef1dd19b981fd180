"""The peers of `bench-options`, each as its users would write it well, on one thread.

A subject is a pair of functions over a chain's columns (forward, strike, tau, volatility or price, discount, right;
float64 [N]): `greeks` returns [5, N] price, delta, gamma, vega, theta, `implied` returns volatilities [N]. NumPy and
Numba take whole arrays; QuantLib and vollib have no array form, so theirs are loops over options, the arguments turned
into Python numbers beforehand. What vollib calls vega and theta, per point and per day, is left so: the timing is its
own. `Subject.scales` turn it into our units where errors are measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from serving import black76_reference

Array = npt.NDArray[np.float64]
Function = Callable[..., Any]

INVERSE_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Subject:
    """`options`: how many of the chain one call is timed on; `scales`: of the five outputs into our units."""

    name: str
    greeks: Function | None
    implied: Function | None
    options: int
    scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    in_python_numbers: bool = False


def numpy_greeks(f: Array, k: Array, t: Array, v: Array, d: Array, w: Array) -> tuple[Array, ...]:
    """NumPy and SciPy's ndtr, without masks: fine inputs only."""
    root = np.sqrt(t)
    s = v * root
    d1 = np.log(f / k) / s + 0.5 * s
    in_money1, in_money2 = ndtr(w * d1), ndtr(w * (d1 - s))
    bell = INVERSE_SQRT_2PI * np.exp(-0.5 * d1 * d1)
    dw = d * w
    price = dw * (f * in_money1 - k * in_money2)
    vega = d * f * bell * root
    return price, dw * in_money1, d * bell / (f * s), vega, -(np.log(d) * price + 0.5 * vega * v) / t


def _numba_greeks(f: Array, k: Array, t: Array, v: Array, d: Array, w: Array, out: Array) -> None:
    for i in range(f.size):
        root = math.sqrt(t[i])
        s = v[i] * root
        d1 = math.log(f[i] / k[i]) / s + 0.5 * s
        in_money1 = 0.5 * math.erfc(-w[i] * d1 * SQRT_HALF)
        in_money2 = 0.5 * math.erfc(-w[i] * (d1 - s) * SQRT_HALF)
        bell = INVERSE_SQRT_2PI * math.exp(-0.5 * d1 * d1)
        price = d[i] * w[i] * (f[i] * in_money1 - k[i] * in_money2)
        vega = d[i] * f[i] * bell * root
        out[0, i] = price
        out[1, i] = d[i] * w[i] * in_money1
        out[2, i] = d[i] * bell / (f[i] * s)
        out[3, i] = vega
        out[4, i] = -(math.log(d[i]) * price + 0.5 * vega * v[i]) / t[i]


def _numba_implied(p: Array, f: Array, k: Array, t: Array, d: Array, w: Array, out: Array) -> None:
    """Halley's method on the logarithm of the out-of-the-money price over sqrt(F K); a bracket guards it."""
    for i in range(f.size):
        scale = math.sqrt(f[i] * k[i])
        target = (p[i] / d[i] - max(w[i] * (f[i] - k[i]), 0.0)) / scale
        x = -abs(math.log(f[i] / k[i]))
        half = math.exp(0.5 * x)
        if not 0.0 < target < half:
            out[i] = math.nan
            continue
        log_target = math.log(target)
        s = max(-x / math.sqrt(2.0 * max(0.5 * x - log_target, 1e-300)), target / INVERSE_SQRT_2PI)
        low, high = 0.0, math.inf
        for _ in range(60):
            d1 = x / s + 0.5 * s
            value = 0.5 * (half * math.erfc(-d1 * SQRT_HALF) - math.erfc((s - d1) * SQRT_HALF) / half)
            slope = half * INVERSE_SQRT_2PI * math.exp(-0.5 * d1 * d1)
            if value <= 0.0 or slope <= 0.0:
                low = s
                s = 2.0 * s if high == math.inf else 0.5 * (s + high)
                continue
            error = math.log(value) - log_target
            if error < 0.0:
                low = s
            else:
                high = s
            ratio = slope / value
            newton = error / ratio
            change = newton / (1.0 - 0.5 * newton * (d1 * (d1 - s) / s - ratio))
            following = s - change
            if not low <= following <= high:
                following = 0.5 * (low + high) if high < math.inf else 2.0 * s
            moved = abs(following - s)
            s = following
            if moved <= 1e-6 * s:  # the next error is its cube
                break
        out[i] = s / math.sqrt(t[i])


def _numba() -> Subject:
    numba = importlib.import_module("numba")
    greeks_loop, implied_loop = (numba.njit(loop, fastmath=False) for loop in (_numba_greeks, _numba_implied))

    def greeks(*columns: Array) -> Array:
        out = np.empty((5, columns[0].size))
        greeks_loop(*columns, out)
        return out

    def implied(*columns: Array) -> Array:
        out = np.empty(columns[0].size)
        implied_loop(*columns, out)
        return out

    return Subject("numba", greeks, implied, 5000)


def _vollib() -> Subject:
    black = importlib.import_module("vollib.black")
    analytical = importlib.import_module("vollib.black.greeks.analytical")
    inverse = importlib.import_module("vollib.black.implied_volatility")

    def greeks(*rows: Any) -> list[tuple[float, ...]]:
        found: list[tuple[float, ...]] = []
        for f, k, t, v, d, w in zip(*rows, strict=True):
            arguments = "c" if w > 0 else "p", f, k, t, -math.log(d) / t, v
            found.append((
                black.black(*arguments), analytical.delta(*arguments), analytical.gamma(*arguments),
                analytical.vega(*arguments), analytical.theta(*arguments),
            ))  # fmt: skip
        return found

    def implied(*rows: Any) -> list[float]:
        return [
            inverse.implied_volatility(p, f, k, -math.log(d) / t, t, "c" if w > 0 else "p")
            for p, f, k, t, d, w in zip(*rows, strict=True)
        ]

    return Subject("vollib", greeks, implied, 200, (1.0, 1.0, 1.0, 100.0, 365.0), in_python_numbers=True)


def _quantlib() -> Subject:
    ql = importlib.import_module("QuantLib")
    sides = {1.0: ql.Option.Call, -1.0: ql.Option.Put}
    nothing = ql.nullDouble()

    def greeks(*rows: Any) -> list[tuple[float, ...]]:
        found: list[tuple[float, ...]] = []
        for f, k, t, v, d, w in zip(*rows, strict=True):
            one = ql.BlackCalculator(ql.PlainVanillaPayoff(sides[w], k), f, v * math.sqrt(t), d)
            price, vega = one.value(), one.vega(t)
            theta = -(math.log(d) * price + 0.5 * vega * v) / t  # its own is at constant spot, not forward
            found.append((price, one.deltaForward(), one.gammaForward(), vega, theta))
        return found

    def implied(*rows: Any) -> list[float]:
        return [
            ql.blackFormulaImpliedStdDevLiRS(sides[w], k, f, p, d, 0.0, nothing, 1.0, 1e-12, 100) / math.sqrt(t)
            for p, f, k, t, d, w in zip(*rows, strict=True)
        ]

    return Subject("quantlib", greeks, implied, 500, in_python_numbers=True)


def _lets_be_rational() -> Subject:
    inverse = importlib.import_module("py_lets_be_rational").implied_volatility_from_a_transformed_rational_guess

    def implied(*rows: Any) -> list[float]:
        return [inverse(p / d, f, k, t, w) for p, f, k, t, d, w in zip(*rows, strict=True)]

    return Subject("py_lets_be_rational", None, implied, 200, in_python_numbers=True)


def peers() -> tuple[list[Subject], list[str]]:
    """Those installed, and a line for each that isn't."""
    found = [Subject("numpy", numpy_greeks, lambda *columns: black76_reference.implied_volatility(*columns)[0], 5000)]
    absent = []
    for module, make in (("numba", _numba), ("vollib", _vollib), ("QuantLib", _quantlib),
                         ("py_lets_be_rational", _lets_be_rational)):  # fmt: skip
        if importlib.util.find_spec(module) is None:
            absent.append(f"{module} isn't installed (extra bench), so it has no rows.")
        else:
            found.append(make())
    return found, absent
