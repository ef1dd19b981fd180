"""Butterflies and calendars on a dense grid: none in a Black-Scholes world, planted ones to the number, and a slow
reference in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import shape
from pipelines.shape import ButterflyCounts, CalendarCounts, SampledSmile
from serving.errors import DataError
from serving.normal import Array

TAU, FORWARD = 30 / 365, 2900.0


def smile(volatility: float | Array, tau: float = TAU, forward: float = FORWARD, step: float = 0.01) -> SampledSmile:
    """A smile on the grid from -0.4 to 0.3 in ln(K/F)/sqrt(tau)."""
    k = shape.grid(-0.4 * math.sqrt(tau), 0.3 * math.sqrt(tau), tau, step)
    return SampledSmile(tau, forward, k, np.zeros_like(k) + volatility)


def call(forward: float, strike: float, deviation: float) -> float:
    """Undiscounted Black-76 call, from the textbook."""
    d1 = math.log(forward / strike) / deviation + 0.5 * deviation

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    return forward * normal(d1) - strike * normal(d1 - deviation)


@pytest.mark.parametrize("days", [6, 30, 364])
@pytest.mark.parametrize("step", [0.01, 0.002])
@pytest.mark.parametrize("volatility", [0.08, 0.2, 0.9])
def test_black_scholes_has_none(days: int, step: float, volatility: float) -> None:
    flat = smile(volatility, days / 365, step=step)
    counts = shape.butterfly(flat)
    assert counts == ButterflyCounts(1, flat.k.size - 2, 0, 0, 0.0)
    later = SampledSmile((days + 1) / 365, FORWARD, flat.k, flat.volatility)
    assert shape.calendar(flat, later) == CalendarCounts(1, flat.k.size, 0, 0.0)


@pytest.mark.parametrize("step", [0.01, 0.002])
def test_rounding_to_float32_is_no_arbitrage(step: float) -> None:
    skew: Array = 0.17 - 0.25 * smile(0.2, step=step).k / math.sqrt(TAU)
    rounded = skew.astype(np.float32).astype(np.float64)
    assert shape.butterfly(smile(rounded, step=step)).broken == 0
    assert shape.butterfly(smile(rounded, step=step)).durrleman == 0
    same = SampledSmile(2 * TAU, FORWARD, smile(0.2, step=step).k, rounded * math.sqrt(0.5))
    assert shape.calendar(smile(skew, step=step), same).broken == 0


@pytest.mark.parametrize(("bump", "broken"), [(0.002, 1), (-0.002, 2)])
def test_a_planted_butterfly_is_counted(bump: float, broken: int) -> None:
    """A volatility too high at one strike breaks convexity there; one too low, at its two neighbours."""
    volatility = smile(0.15).volatility.copy()
    place = volatility.size // 3
    volatility[place] += bump
    planted = smile(volatility)
    counts = shape.butterfly(planted)
    strike = planted.strike
    price = [call(FORWARD, x, s * math.sqrt(TAU)) for x, s in zip(strike, volatility, strict=True)]
    slope = np.diff(price) / np.diff(strike)
    fall = -np.minimum(np.diff(slope), 0.0).sum()
    assert (counts.broken, counts.durrleman) == (broken, broken)
    assert counts.negative_probability == pytest.approx(fall, rel=1e-6)


def test_negative_probability_of_a_kink_does_not_depend_on_the_grid() -> None:
    """A smile that bends downwards at one strike: the fall of the slope there is vega times the bend."""
    found = []
    for step in (0.004, 0.002, 0.001):
        k = smile(0.15, step=step).k
        found.append(shape.butterfly(smile(0.15 - 0.5 * np.abs(k), step=step)).negative_probability)
    bend = 2.0 * 0.5 / FORWARD  # of the volatility per money at K = F
    vega = FORWARD * math.sqrt(TAU / (2.0 * math.pi)) * math.exp(-(0.15**2) * TAU / 8.0)
    errors = np.abs(np.array(found) - bend * vega)
    assert errors[2] < 0.1 * bend * vega
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]  # first order: the cell's own probability
    shares = [shape.butterfly(smile(0.15 - 0.5 * np.abs(smile(0.15, step=s).k), step=s)) for s in (0.004, 0.001)]
    assert [one.broken for one in shares] == [1, 1]  # while the share falls with the grid


def test_a_planted_calendar_is_counted() -> None:
    earlier = smile(0.2)
    equal = np.full(earlier.k.size, 0.2 * math.sqrt(0.5))
    equal[3:8] -= 0.001
    later = SampledSmile(2 * TAU, 2910.0, earlier.k, equal)
    counts = shape.calendar(earlier, later)
    deviations = [(0.2 * math.sqrt(TAU), float(s) * math.sqrt(2 * TAU)) for s in equal[3:8]]
    money = sum(
        call(2910.0, 2910.0 * math.exp(k), due) - call(2910.0, 2910.0 * math.exp(k), there)
        for k, (due, there) in zip(earlier.k[3:8], deviations, strict=True)
    )
    assert (counts.pairs, counts.nodes, counts.broken) == (1, earlier.k.size, 5)
    assert counts.money == pytest.approx(money, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.08, 0.4), min_size=1, max_size=25),
    st.integers(6, 364),
    st.floats(0.5, 60_000.0),
)
def test_agrees_with_loops(volatilities: list[float], days: int, forward: float) -> None:
    """Any volatilities at all: strike by strike, without NumPy."""
    tau = days / 365
    k: Array = (np.arange(len(volatilities), dtype=np.float64) - 10.0) * 0.01 * math.sqrt(tau)
    one = SampledSmile(tau, forward, k, np.array(volatilities, dtype=np.float64))
    strikes = [forward * math.exp(x) for x in k]
    prices = [call(forward, strike, v * math.sqrt(tau)) for strike, v in zip(strikes, volatilities, strict=True)]
    low = high = 0
    negative = 0.0
    for i in range(1, len(k) - 1):
        left = (prices[i] - prices[i - 1]) / (strikes[i] - strikes[i - 1])
        right = (prices[i + 1] - prices[i]) / (strikes[i + 1] - strikes[i])
        negative += max(left - right, 0.0)
        low += right - left < -1e-3  # surely broken
        high += right - left < 1e-12  # at most these are
    counts = shape.butterfly(one)
    assert counts.nodes == max(len(k) - 2, 0)
    assert low <= counts.broken <= high
    assert counts.negative_probability == pytest.approx(negative, abs=1e-3 * max(len(k), 1))
    later = SampledSmile(tau + 7 / 365, forward, k, np.array(volatilities[::-1]))
    inverted = [
        v * v * tau > u * u * (tau + 7 / 365) * (1 + 1e-5)
        for v, u in zip(volatilities, volatilities[::-1], strict=True)
    ]
    assert (
        sum(inverted)
        <= shape.calendar(one, later).broken
        <= sum(v * v * tau > u * u * (tau + 7 / 365) for v, u in zip(volatilities, volatilities[::-1], strict=True))
    )


def test_durrleman_and_convexity_agree_where_the_grid_is_fine() -> None:
    """g < 0 and a negative density are the same statement (Gatheral & Jacquier 2014, section 2.2)."""
    base = smile(0.15, step=0.002)
    x = base.k / math.sqrt(TAU)
    wavy = shape.butterfly(smile(0.16 - 0.2 * x + 0.004 * np.cos(60.0 * x), step=0.002))
    assert 0 < wavy.broken < wavy.nodes
    assert wavy.durrleman == pytest.approx(wavy.broken, abs=2)


def test_neighbours_are_of_distinct_tenors_in_any_order() -> None:
    """Two roots of one date are no pair; both are compared with both of the next date."""
    assert sorted(shape.neighbours([0.1, 0.1, 0.3, 0.3, 0.2])) == [(0, 4), (1, 4), (4, 2), (4, 3)]
    assert shape.neighbours([0.1, 0.1]) == []
    assert shape.neighbours([]) == []


@given(st.permutations(range(6)))
def test_order_of_smiles_changes_nothing(order: list[int]) -> None:
    generator = np.random.default_rng(3)
    tau = [0.1, 0.1, 0.2, 0.4, 0.4, 0.5]
    k = np.linspace(-0.1, 0.1, 30)
    smiles = [SampledSmile(t, FORWARD, k, generator.uniform(0.1, 0.2, k.size)) for t in tau]

    def figures(chosen: list[SampledSmile]) -> dict[str, float]:
        pairs = shape.neighbours([one.tau for one in chosen])
        return shape.shares(map(shape.butterfly, chosen), (shape.calendar(chosen[a], chosen[b]) for a, b in pairs))

    assert figures([smiles[place] for place in order]) == pytest.approx(figures(smiles), rel=1e-12)


def test_nothing_to_count_is_nan_not_zero() -> None:
    few = SampledSmile(TAU, FORWARD, np.array([0.0, 0.01]), np.array([0.2, 0.3]))
    figures = shape.shares([shape.butterfly(few)], [])
    assert figures["smiles"] == 1
    assert figures["butterfly_nodes"] == figures["pairs"] == 0
    assert all(math.isnan(figures[name]) for name in ("butterfly", "durrleman", "calendar", "calendar_money"))


def test_the_grid_keeps_its_nodes_when_the_range_changes() -> None:
    wide, narrow = shape.grid(-0.3, 0.2, TAU), shape.grid(-0.1, 0.05, TAU)
    assert np.isin(narrow, wide).all()
    assert narrow[0] >= -0.1
    assert narrow[-1] <= 0.05
    assert np.any(narrow == 0.0)


def test_what_cannot_be_judged_is_refused() -> None:
    k = np.array([0.0, 0.01, 0.02])
    with pytest.raises(DataError, match="volatilities are positive"):
        SampledSmile(TAU, FORWARD, k, np.array([0.2, np.nan, 0.2]))
    with pytest.raises(DataError, match="ascending"):
        SampledSmile(TAU, FORWARD, k[::-1], np.full(3, 0.2))
    with pytest.raises(DataError, match="one each"):
        SampledSmile(TAU, FORWARD, k, np.full(2, 0.2))
    one = SampledSmile(TAU, FORWARD, k, np.full(3, 0.2))
    with pytest.raises(DataError, match="aren't ascending"):
        shape.calendar(one, one)
    with pytest.raises(DataError, match="different"):
        shape.calendar(one, SampledSmile(2 * TAU, FORWARD, k + 0.001, np.full(3, 0.2)))
