"""Black-76 in single precision against the double kernel, which test_options.py holds to mpmath.

Promised (serving/native/options/single_avx512.cpp): with e = 2^-24, d = max(|d1|, |d2|), s = sigma sqrt(tau), relative
errors of (32 + 20 d^2) e, times 1 + (3 + 2 d) / s for the price out of the money, which is also within 16 e F; what
single precision can't do is the double kernel's to the bit. The counts of roundings: ln, 1/s and their product give
d about 6 relative ones, its square and the exponent's own as many again, and |ln| / s can be twice d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving import native

WHY_NOT = native.why_unavailable()
ISAS = native.core().isas() if WHY_NOT is None else []
SINGLE = [isa for isa in ISAS if isa not in ("portable", "avx2")]
pytestmark = pytest.mark.skipif(not SINGLE, reason=str(WHY_NOT or "this CPU has no AVX-512"))
E = 2.0**-24
PRICE, DELTA, GAMMA, VEGA, THETA = range(5)
MOST_DEVIATIONS = 12.0  # further out the double kernel answers
Columns = list[NDArray[Any]]  # forward, strike, tau, volatility (float32), discount, right

finite = st.floats(1e-300, 1e300)
awkward = st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 5e-324, 1e-310, 1e-40, 1e-12, 1.0, 1e12, 1e40, 1e308])


def singles(columns: Columns, isa: str = "avx512") -> NDArray[np.float64]:
    """[5, N]; memory that stays NaN was not written."""
    out = np.full((5, len(columns[0])), np.nan)
    native.core().Options(isa).value_single(*columns, *out)
    return out


def doubles(columns: Columns, isa: str = "avx512") -> NDArray[np.float64]:
    forward, strike, tau, volatility, discount, right = columns
    out = np.full((5, len(forward)), np.nan)
    native.core().Options(isa).value(
        len(forward), forward, strike, tau, volatility.astype(np.float64), discount, right, *out, None, None, None
    )
    return out


def drawn(count: int, seed: int, least: float = 0.002, most: float = 3.9, deviations: float = 11.0) -> Columns:
    """Options whose forwards are of any unit."""
    rng = np.random.default_rng(seed)
    s = np.exp(rng.uniform(np.log(least), np.log(most), count))
    tau = np.exp(rng.uniform(np.log(1 / 365), np.log(10), count))
    forward = 10.0 ** rng.uniform(-15, 15, count)
    strike = forward * np.exp(rng.uniform(-1, 1, count) * deviations * s)
    volatility = (s / np.sqrt(tau)).astype(np.float32)
    return [forward, strike, tau, volatility, np.exp(-rng.uniform(-0.05, 0.1, count) * tau),
            rng.choice([-1.0, 1.0], count)]  # fmt: skip


def deviations_of(columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    forward, strike, tau, volatility = columns[:4]
    s = volatility.astype(np.float64) * np.sqrt(tau)
    middle = np.log(forward / strike) / s
    return s, np.maximum(np.abs(middle + s / 2), np.abs(middle - s / 2))


@pytest.mark.parametrize("isa", SINGLE)
@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_promised(isa: str, seed: int) -> None:
    columns = drawn(100_000, seed)
    forward, strike, tau, volatility, discount, right = columns
    found, exact = singles(columns, isa), doubles(columns)
    s, d = deviations_of(columns)
    relative = (32 + 20 * d**2) * E
    for place in (GAMMA, VEGA):
        assert np.all(np.abs(found[place] - exact[place]) <= relative * exact[place]), place
    sister = np.abs(exact[DELTA])
    sister = np.where(right * (forward - strike) > 0, discount - sister, sister)
    assert np.all(np.abs(found[DELTA] - exact[DELTA]) <= relative * np.abs(sister) + 4 * E * np.abs(exact[DELTA]))
    intrinsic = discount * np.maximum(right * (forward - strike), 0.0)
    of_price = np.minimum(relative * (1 + (3 + 2 * d) / s) * (exact[PRICE] - intrinsic), 16 * E * discount * forward)
    last_places = 4e-16 * (exact[PRICE] + intrinsic)
    assert np.all(np.abs(found[PRICE] - exact[PRICE]) <= of_price + last_places)
    rate, decay = np.abs(np.log(discount) / tau), exact[VEGA] * volatility / (2 * tau)
    of_theta = relative * decay + rate * (of_price + relative * exact[PRICE])
    assert np.all(np.abs(found[THETA] - exact[THETA]) <= of_theta)


@pytest.mark.parametrize("isa", SINGLE)
def test_calls_less_puts_keep_parity_as_doubles_do(isa: str) -> None:
    columns = drawn(20_000, 7, deviations=3.0)
    forward, strike, _, _, discount, right = columns
    calls, puts = (singles([*columns[:5], np.full_like(right, sign)], isa)[PRICE] for sign in (1.0, -1.0))
    assert np.all(np.abs(calls - puts - discount * (forward - strike)) <= 1e-15 * np.maximum(calls, puts))


@pytest.mark.parametrize("factor", [1e-9, 3.0, 1e11])
def test_the_unit_of_money_does_not_matter(factor: float) -> None:
    columns = drawn(5000, 8)
    here = singles(columns)
    there = singles([columns[0] * factor, columns[1] * factor, *columns[2:]])
    _, d = deviations_of(columns)
    room = 2 * (32 + 20 * d**2) * E
    assert np.all(np.abs(there[VEGA] - factor * here[VEGA]) <= room * there[VEGA])
    assert np.all(np.abs(there[GAMMA] * factor - here[GAMMA]) <= room * here[GAMMA])
    assert np.all(np.abs(there[DELTA] - here[DELTA]) <= room)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[finite | awkward] * 3, st.floats(0, 2.0**126, width=32) | awkward, finite | awkward,
                  st.sampled_from([1.0, -1.0, 0.0, 1.0 + 1e-12, 2.0, np.nan])), min_size=1, max_size=40,
    )
)  # fmt: skip
def test_what_is_out_of_the_ordinary_is_the_double_kernels(options: list[tuple[float, ...]]) -> None:
    """Nothing finite becomes NaN or infinite, nothing that isn't a number gets a price."""
    with np.errstate(over="ignore"):
        columns: Columns = [np.array(column, np.float32 if i == 3 else np.float64)
                            for i, column in enumerate(zip(*options, strict=True))]  # fmt: skip
    found, exact = singles(columns), doubles(columns)
    assert np.array_equal(np.isfinite(found), np.isfinite(exact))
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    with np.errstate(all="ignore"):
        s, d = deviations_of(columns)
        same = ~((s >= 0.0009) & (s <= 4.01) & (d <= MOST_DEVIATIONS + 0.01))
    assert np.array_equal(found[:, same], exact[:, same], equal_nan=True)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, -1.0), (0, np.nan), (0, 1e-30), (0, 1e30), (1, 0.0), (1, np.inf), (2, 0.0), (2, -1.0), (2, 1e-9), (3, 0.0),
     (3, np.nan), (3, 1e-6), (3, -0.2), (3, 3e3), (4, 0.0), (4, 1e-3), (4, np.nan), (5, 0.5), (5, np.nan)],
)  # fmt: skip
def test_an_odd_option_is_alone(column: int, value: float) -> None:
    """Its answer is the double kernel's; its neighbours keep theirs."""
    columns = drawn(48, 9, deviations=3.0)
    before = singles(columns)
    columns[column][21] = value
    after, exact = singles(columns), doubles(columns)
    assert np.array_equal(after[:, 21], exact[:, 21], equal_nan=True)
    assert np.array_equal(np.delete(after, 21, axis=1), np.delete(before, 21, axis=1))


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 200))
def test_an_option_is_worth_the_same_at_every_place_of_any_length(data: st.DataObject, count: int) -> None:
    columns = drawn(300, 10, deviations=14.0)  # some of them beyond
    whole = singles(columns)
    order = np.array(data.draw(st.permutations(range(300))))[:count]
    assert np.array_equal(singles([np.ascontiguousarray(column[order]) for column in columns]), whole[:, order])


def test_sets_without_it_say_so() -> None:
    columns = drawn(16, 11)
    for isa in ISAS:
        assert native.core().Options(isa).has_single == (isa in SINGLE)
    with pytest.raises(ValueError, match="portable has no single-precision kernel; avx512 has"):
        singles(columns, "portable")
