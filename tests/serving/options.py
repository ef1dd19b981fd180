"""Options for the tests of Black-76: domains to draw from, a grid, exact values, and every implementation in turn.

`implementation` asks everything of NumPy and of the native core in each instruction set with kernels of its own that
this CPU has. `EPSILON` times `condition` is what rounding the inputs alone costs a price; tolerances are small
multiples of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from serving import black76, native
from serving.normal import cdf

CHOOSE = black76._core.__wrapped__  # not the cache: it holds the core until the interpreter ends
WHY_NOT = native.why_unavailable()
EPSILON = float(np.finfo(np.float64).eps)
NATIVE = [isa for isa in native.core().isas() if isa in ("portable", "avx2", "avx512")] if not WHY_NOT else []
IMPLEMENTATIONS = ["numpy", *NATIVE]

FORWARD = st.floats(0.01, 1e5)
LOG_MONEYNESS = st.floats(-1.5, 1.5)
TAU = st.floats(1.0 / 365.0, 5.0)
VOLATILITY = st.floats(0.02, 2.0)
DISCOUNT = st.floats(0.6, 1.1)
RIGHT = st.sampled_from([1.0, -1.0])
OPTION = st.tuples(FORWARD, LOG_MONEYNESS, TAU, VOLATILITY, DISCOUNT, RIGHT)
many = settings(deadline=None, max_examples=150)


@pytest.fixture(autouse=True, scope="module", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs with each of them."""
    with pytest.MonkeyPatch.context() as patch:
        core = None if request.param == "numpy" else native.core().Options(request.param)
        patch.setattr(black76, "_core", lambda: core)
        yield request.param


def unpack(option: tuple[float, ...]) -> tuple[float, ...]:
    """Forward, strike, tau, volatility, discount, right."""
    forward, log_moneyness, *others = option
    return (forward, forward * float(np.exp(log_moneyness)), *others)


def grid() -> np.ndarray:
    """[6, N]: forward, strike, tau, volatility, discount, right; out of the money by up to 20 deviations."""
    rows = product([0.5, 4000.0], [-1.0, -0.2, -0.01, 0.0, 0.03, 0.4], [2.0 / 365.0, 0.5, 3.0], [0.05, 0.3, 1.2])
    found = [
        (forward, forward * float(np.exp(x)), tau, volatility, discount, right)
        for forward, x, tau, volatility in rows
        if abs(x) <= 20.0 * volatility * np.sqrt(tau)
        for discount, right in ((0.93, 1.0), (1.01, -1.0))
    ]
    return np.array(found).T


def condition(f: Any, k: Any, t: Any, v: Any, d: Any, w: Any) -> Any:
    """Sensitivity of the price to relative rounding of its inputs and terms, money."""
    deviation = v * np.sqrt(t)
    d1 = np.log(f / k) / deviation + 0.5 * deviation
    d2 = d1 - deviation
    subnormal = 1e-291  # below it float64 loses digits
    return d * (f * cdf(w * d1) * (2.0 + d1**2) + k * cdf(w * d2) * (2.0 + d2**2)) + subnormal


def bell_error(f: Any, k: Any, t: Any, v: Any) -> Any:
    """Relative error of the density at d1, which carries the rounding of f/k (eps/deviation) and a relative one."""
    deviation = v * np.sqrt(t)
    d1 = np.log(f / k) / deviation + 0.5 * deviation
    size = np.abs(np.log(f / k)) / deviation + 0.5 * deviation  # of d1's two terms
    return 4 * EPSILON * (2.0 + np.abs(d1) * (1.0 / deviation + size))


def exact_price(f: Any, k: Any, t: Any, v: Any, d: Any, w: Any) -> Any:
    deviation = v * mpmath.sqrt(t)
    d1 = mpmath.log(f / k) / deviation + deviation / 2
    return d * w * (f * mpmath.ncdf(w * d1) - k * mpmath.ncdf(w * (d1 - deviation)))


@functools.cache
def exact_grid() -> list[dict[str, float]]:
    with mpmath.workdps(160):
        return [exact_greeks(*(mpmath.mpf(float(number)) for number in option)) for option in grid().T]


def exact_greeks(f: Any, k: Any, t: Any, v: Any, d: Any, w: Any) -> dict[str, float]:
    """Central differences of the exact price with 160 digits, h = 1e-20 (relative): relative errors below 1e-30."""
    rate = -mpmath.log(d) / t
    h = mpmath.mpf(10) ** -20

    def moved(df: int = 0, dt: int = 0, dv: int = 0, dr: int = 0) -> Any:
        tau = t * (1 + dt * h)
        return exact_price(f * (1 + df * h), k, tau, v * (1 + dv * h), mpmath.exp(-(rate + dr * h) * tau), w)

    def central(name: str, unit: Any) -> Any:
        return (moved(**{name: 1}) - moved(**{name: -1})) / (2 * h * unit)

    here = moved()
    gamma = (moved(df=1) - 2 * here + moved(df=-1)) / (h * f) ** 2
    volga = (moved(dv=1) - 2 * here + moved(dv=-1)) / (h * v) ** 2
    corners = sum(one * other * moved(df=one, dv=other) for one in (1, -1) for other in (1, -1))
    values = {
        "price": here, "delta": central("df", f), "gamma": gamma, "vega": central("dv", v), "theta": -central("dt", t),
        "rho": central("dr", 1), "vanna": corners / (4 * h**2 * f * v), "volga": volga,
    }  # fmt: skip
    return {name: float(number) for name, number in values.items()}
