"""A surface gives back the carries and volatilities its quotes were made from, and flags arbitrage only where planted.

`chain` makes the synthetic snapshots that the tests of last_seen, of features and of leaks share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import black76
from serving.surface import (
    BROKEN_CALENDAR,
    BROKEN_CONVEX,
    BROKEN_MONOTONE,
    ExpiryKey,
    Quotes,
    Smile,
    Surface,
    arbitrage_flags,
    build_surface,
    fit_parity,
    group_rows,
    tau_years,
)

TS = np.datetime64("2018-03-01T20:45", "ns")
SPOT, RATE, YIELD = 100.0, 0.04, 0.015
STRIKES = np.arange(80.0, 121.0, 2.0)
EXPIRIES = (("SPX", 22), ("SPXW", 22), ("SPX", 50), ("SPX", 113), ("SPXW", 170))
CLOSE = {"SPX": np.timedelta64(13 * 60 + 30, "m"), "SPXW": np.timedelta64(20, "h")}  # settlement, UTC
Volatility = Callable[[np.ndarray, float], np.ndarray]


def flat(strike: np.ndarray, tau: float) -> np.ndarray:
    return np.full_like(strike, 0.2)


def skewed(strike: np.ndarray, tau: float) -> np.ndarray:
    x = np.log(strike / SPOT) / np.sqrt(tau)
    return 0.2 - 0.1 * x + 0.08 * x**2


def svi(strike: np.ndarray, tau: float) -> np.ndarray:
    """Gatheral's SVI in ln(K/F), its variance proportional to tau: no butterfly and no calendar arbitrage."""
    k = np.log(strike / (SPOT * np.exp((RATE - YIELD) * tau)))
    return np.sqrt(0.02 + 0.06 * (-0.4 * (k - 0.02) + np.sqrt((k - 0.02) ** 2 + 0.15**2)))


def expiry_of(root: str, days: int, ts: np.datetime64 = TS) -> np.datetime64:
    return (ts.astype("datetime64[D]") + days).astype("datetime64[ns]") + CLOSE[root]


def key_of(root: str, days: int, ts: np.datetime64 = TS) -> ExpiryKey:
    return ExpiryKey(root, expiry_of(root, days, ts))


def chain(
    *,
    ts: np.datetime64 = TS,
    spot: float = SPOT,
    expiries: Sequence[tuple[str, np.datetime64]] | None = None,
    strikes: np.ndarray = STRIKES,
    volatility: Volatility = skewed,
    spread: float = 0.01,
) -> Quotes:
    """Calls and puts of every expiry at Black-76 prices, `spread` wide as a share of the price."""
    listed = [(root, expiry_of(root, days)) for root, days in EXPIRIES] if expiries is None else expiries
    parts: list[tuple[np.ndarray, ...]] = []
    for root, expiry in listed:
        tau = tau_years(ts, expiry)
        if tau <= 0:
            continue
        forward, discount = spot * np.exp((RATE - YIELD) * tau), np.exp(-RATE * tau)
        for right in (1.0, -1.0):
            mid = black76.price(forward, strikes, tau, volatility(strikes, tau), discount, right)
            one = np.ones_like(strikes)
            parts.append((np.full(one.size, root), np.full(one.size, expiry), strikes, right * one,
                          mid * (1.0 - 0.5 * spread), mid * (1.0 + 0.5 * spread)))  # fmt: skip
    return Quotes(ts, spot, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def rows_of(quotes: Quotes, root: str, days: int) -> np.ndarray:
    return np.asarray((quotes.root == root) & (quotes.expiry == expiry_of(root, days)))


def moved(quotes: Quotes, rows: np.ndarray, factor: float) -> Quotes:
    """The same quotes, some at `factor` times their prices."""
    scale = np.where(rows, factor, 1.0)
    return dataclasses.replace(quotes, bid=quotes.bid * scale, ask=quotes.ask * scale)


def same_surface(first: Surface, second: Surface) -> bool:
    return list(first.smiles) == list(second.smiles) and all(
        all(np.array_equal(getattr(one, field.name), getattr(second.smiles[key], field.name))
            for field in dataclasses.fields(Smile) if field.name != "key")
        for key, one in first.smiles.items()
    )  # fmt: skip


# --- parity


@settings(deadline=None, max_examples=100)
@given(st.floats(50.0, 5000.0), st.floats(0.55, 1.15), st.integers(3, 40), st.floats(0.005, 0.1), st.integers(0, 2**31))
def test_parity_line_is_recovered(forward: float, discount: float, count: int, width: float, seed: int) -> None:
    strike = forward * np.linspace(1.0 - width, 1.0 + width, count)
    found = fit_parity(strike, discount * (forward - strike))
    assert found is not None
    assert found == pytest.approx((forward, discount), rel=1e-9)
    # a few pairs off by money that matters are thrown out; the rest lie on the line exactly
    outliers = np.random.default_rng(seed).choice(count, count // 12, replace=False)
    off = discount * (forward - strike)
    off[outliers] += forward * 0.05
    found = fit_parity(strike, off)
    assert found == pytest.approx((forward, discount), rel=1e-9)


def test_parity_refuses_what_is_no_line() -> None:
    strike = np.linspace(95.0, 105.0, 9)
    assert fit_parity(strike[:2], 100.0 - strike[:2]) is None
    assert fit_parity(np.full(5, 100.0), np.zeros(5)) is None
    assert fit_parity(strike, np.where(np.arange(9) < 7, np.nan, 100.0 - strike)) is None
    for slope in (0.4, 1.3, -1.0):  # no discount factor
        assert fit_parity(strike, slope * (100.0 - strike)) is None
    assert fit_parity(strike, 0.9 * (-50.0 - strike)) is None  # a line through a forward that isn't positive


def test_missing_pairs_are_passed_over() -> None:
    strike = np.linspace(95.0, 105.0, 9)
    difference = 0.97 * (101.0 - strike)
    difference[[0, 4]] = np.nan
    assert fit_parity(strike, difference) == pytest.approx((101.0, 0.97), rel=1e-10)


def test_surface_recovers_carries_and_volatilities() -> None:
    surface = build_surface(chain())
    assert list(surface.smiles) == sorted((key_of(*one) for one in EXPIRIES), key=lambda key: (key.expiry, key.root))
    for key, smile in surface.smiles.items():
        tau = tau_years(TS, key.expiry)
        assert smile.from_parity
        assert smile.tau == tau
        assert smile.forward == pytest.approx(SPOT * np.exp((RATE - YIELD) * tau), rel=1e-10)
        assert smile.discount == pytest.approx(np.exp(-RATE * tau), rel=1e-10)
        assert np.allclose(smile.volatility, skewed(smile.strike, tau), rtol=0, atol=1e-7)
        assert np.array_equal(smile.right, np.where(smile.strike >= smile.forward, 1.0, -1.0))
        assert np.isin(smile.strike, STRIKES).all()
        assert (np.diff(smile.strike) > 0).all()
        assert not smile.flags.any()
    assert surface.smiles[key_of("SPX", 113)].strike.size == STRIKES.size  # far out, every strike has a price


def test_tau_counts_whole_calendar_days() -> None:
    late, early = np.datetime64("2018-03-01T23:59", "ns"), np.datetime64("2018-03-11T00:01", "ns")
    assert tau_years(late, early) == 10.0 / 365.0
    assert tau_years(early, late) == -10.0 / 365.0


def test_outlying_pairs_move_nothing_but_themselves() -> None:
    """Two strikes of nineteen; the fit starts from least squares, so it needs the outliers to be few."""
    clean = chain(strikes=np.arange(90.0, 110.5, 0.5))
    key = key_of("SPX", 50)
    wrong = (
        rows_of(clean, "SPX", 50) & np.isin(clean.strike, [98.0, 99.5]) & (clean.right > 0)
    )  # in the money: not in the smile
    surface, dirty = build_surface(clean), build_surface(moved(clean, wrong, 1.6))
    assert dirty.smiles[key].forward == pytest.approx(surface.smiles[key].forward, rel=1e-10)
    assert dirty.smiles[key].discount == pytest.approx(surface.smiles[key].discount, rel=1e-9)
    assert np.allclose(dirty.smiles[key].volatility, surface.smiles[key].volatility, rtol=0, atol=1e-7)


def test_too_few_pairs_borrow_the_carry_of_the_neighbours() -> None:
    """Rates and growth of the synthetic market are constant, so the borrowed carry is the true one."""
    quotes = chain()
    lonely = rows_of(quotes, "SPX", 50) & (quotes.right < 0) & (quotes.strike > 96.0)
    surface = build_surface(quotes.take(~lonely))
    for key, smile in surface.smiles.items():
        assert smile.from_parity == (key != key_of("SPX", 50))
        assert smile.forward == pytest.approx(SPOT * np.exp((RATE - YIELD) * smile.tau), rel=1e-9)
        assert smile.discount == pytest.approx(np.exp(-RATE * smile.tau), rel=1e-9)
    borrowed = surface.smiles[key_of("SPX", 50)]
    assert np.allclose(borrowed.volatility, skewed(borrowed.strike, borrowed.tau), rtol=0, atol=1e-7)


def test_pairs_far_from_spot_dont_count() -> None:
    quotes = chain()
    near = np.abs(quotes.strike / SPOT - 1.0) < 0.05
    far_ones_wrong = moved(quotes, ~near & (quotes.right > 0) & (quotes.strike < SPOT), 1.3)
    for key, smile in build_surface(far_ones_wrong).smiles.items():
        assert smile.forward == pytest.approx(SPOT * np.exp((RATE - YIELD) * smile.tau), rel=1e-10), key
    assert not build_surface(quotes.take(~near)).smiles


def test_nothing_to_pair_gives_an_empty_surface() -> None:
    quotes = chain()
    for rows in (quotes.right > 0, np.zeros(len(quotes), dtype=bool)):
        surface = build_surface(quotes.take(rows))
        assert (surface.smiles, surface.ts, surface.spot) == ({}, TS, SPOT)
    one_sided = dataclasses.replace(quotes, bid=np.zeros(len(quotes)))
    crossed = dataclasses.replace(quotes, bid=quotes.ask, ask=quotes.bid)
    over = dataclasses.replace(quotes, ts=TS + np.timedelta64(400, "D"))
    assert not any(build_surface(one).smiles for one in (one_sided, crossed, over))


def test_a_mid_counts_only_where_two_sided() -> None:
    quotes = chain().take(np.arange(5))
    quotes = dataclasses.replace(
        quotes, bid=np.array([2e-3, 2.1e-3, 1.0, 1.0, np.nan]), ask=np.array([1.0, 1.0, 1.0, 0.9, 1.0])
    )
    assert np.array_equal(np.isfinite(quotes.mid), [False, True, False, False, False])
    assert quotes.mid[1] == 0.5 * (2.1e-3 + 1.0)


def test_morning_and_afternoon_roots_of_a_date_are_two_smiles() -> None:
    quotes = chain()
    richer = rows_of(quotes, "SPXW", 22)
    surface = build_surface(moved(quotes, richer & (quotes.strike < 96.0) & (quotes.right < 0), 1.2))
    morning, afternoon = surface.smiles[key_of("SPX", 22)], surface.smiles[key_of("SPXW", 22)]
    assert morning.tau == afternoon.tau
    assert morning.key.expiry != afternoon.key.expiry
    shared = morning.strike < 95.0
    assert (afternoon.volatility[: shared.sum()] > morning.volatility[shared] + 0.002).all()
    assert np.allclose(morning.volatility, skewed(morning.strike, morning.tau), atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_of_rows_does_not_matter(random: object, dropped: int) -> None:
    quotes = chain()
    rows = np.arange(len(quotes))[dropped:]
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same_surface(build_surface(quotes.take(rows)), build_surface(quotes.take(shuffled)))


def test_a_smile_with_its_own_parity_doesnt_look_at_the_others() -> None:
    quotes = chain()
    whole = build_surface(quotes)
    for key in (key_of("SPX", 22), key_of("SPXW", 170)):
        alone = build_surface(quotes.take((quotes.root == key.root) & (quotes.expiry == key.expiry)))
        assert same_surface(dataclasses.replace(whole, smiles={key: whole.smiles[key]}), alone)


def test_groups_hold_every_row_once() -> None:
    quotes = chain()
    shuffled = quotes.take(np.random.default_rng(0).permutation(len(quotes)))
    groups = group_rows(shuffled.root, shuffled.expiry, shuffled.strike)
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(len(quotes)))
    for key, rows in groups.items():
        assert set(shuffled.root[rows]) == {key.root}
        assert set(shuffled.expiry[rows].tolist()) == {key.expiry.astype(object)}
        assert (np.diff(shuffled.strike[rows]) >= 0).all()
    assert group_rows(quotes.root[:0], quotes.expiry[:0], quotes.strike[:0]) == {}


# --- arbitrage


@pytest.mark.parametrize("volatility", [flat, svi], ids=["flat", "svi"])
def test_clean_surfaces_are_not_flagged(volatility: Volatility) -> None:
    surface = build_surface(chain(volatility=volatility, strikes=np.arange(70.0, 131.0, 1.0)))
    assert len(surface.smiles) == len(EXPIRIES)
    assert not any(smile.flags.any() for smile in surface.smiles.values())


def flagged(surface: Surface, key: ExpiryKey, bit: int) -> list[float]:
    smile = surface.smiles[key]
    return smile.strike[(smile.flags & bit) != 0].tolist()


def test_a_call_dearer_than_the_one_below_is_flagged() -> None:
    quotes = chain()
    key = key_of("SPX", 113)
    dear = rows_of(quotes, "SPX", 113) & (quotes.strike == 110.0) & (quotes.right > 0)
    surface = build_surface(moved(quotes, dear, 1.5))
    smile = surface.smiles[key]
    # slow reference: every pair of neighbours whose call price rises
    rising = [
        (a, b)
        for a, b, low, high in zip(smile.strike, smile.strike[1:], smile.mid, smile.mid[1:], strict=False)
        if smile.forward < a and high > low
    ]
    assert rising == [(108.0, 110.0)]
    assert flagged(surface, key, BROKEN_MONOTONE)[:2] == [108.0, 110.0]
    assert 110.0 in flagged(surface, key, BROKEN_CONVEX)
    others = [other for other in surface.smiles.values() if other.key != key]
    assert not any((other.flags & (BROKEN_MONOTONE | BROKEN_CONVEX)).any() for other in others)


def test_a_bump_above_the_chord_is_flagged_as_not_convex_alone() -> None:
    quotes = chain(volatility=flat)
    key = key_of("SPX", 113)
    bump = rows_of(quotes, "SPX", 113) & (quotes.strike == 110.0) & (quotes.right > 0)
    surface = build_surface(moved(quotes, bump, 1.06))
    smile = surface.smiles[key]
    calls = dict(zip(smile.strike.tolist(), smile.mid.tolist(), strict=True))
    assert calls[110.0] > 0.5 * (calls[108.0] + calls[112.0])
    assert calls[108.0] > calls[110.0] > calls[112.0]
    assert flagged(surface, key, BROKEN_CONVEX) == [110.0]
    assert flagged(surface, key, BROKEN_MONOTONE) == []


def test_total_variance_that_falls_is_flagged_at_the_later_expiry() -> None:
    def inverted(strike: np.ndarray, tau: float) -> np.ndarray:
        return np.full_like(strike, 0.2 if tau < 0.4 else 0.12)

    surface = build_surface(chain(volatility=inverted))
    assert 0.12**2 * 170 < 0.2**2 * 113
    later = surface.smiles[key_of("SPXW", 170)]
    assert flagged(surface, later.key, BROKEN_CALENDAR) == later.strike[1:].tolist()  # the lowest has nothing before it
    assert not any(smile.flags.any() for key, smile in surface.smiles.items() if key != later.key)


def test_strikes_outside_the_earlier_smile_have_no_calendar_to_break() -> None:
    def inverted(strike: np.ndarray, tau: float) -> np.ndarray:
        return np.full_like(strike, 0.2 if tau < 0.4 else 0.12)

    quotes = chain(volatility=inverted)
    narrow = rows_of(quotes, "SPX", 113) & (np.abs(quotes.strike - 101.0) > 8.0)
    surface = build_surface(quotes.take(~narrow))
    later, earlier = surface.smiles[key_of("SPXW", 170)], surface.smiles[key_of("SPX", 113)]
    position = later.strike / later.forward
    inside = (position >= earlier.strike[0] / earlier.forward) & (position <= earlier.strike[-1] / earlier.forward)
    assert 0 < inside.sum() < later.strike.size
    assert np.array_equal((later.flags & BROKEN_CALENDAR) != 0, inside)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=12), st.floats(0.6, 1.0))
def test_flags_equal_a_slow_reference(calls: list[float], discount: float) -> None:
    strike = 90.0 + 2.0 * np.arange(len(calls))
    flags = arbitrage_flags(strike, np.array(calls), discount)
    for place in range(len(calls)):
        slopes = [(calls[k + 1] - calls[k]) / 2.0 for k in range(len(calls) - 1)]
        touching = slopes[max(place - 1, 0) : place + 1]
        broken = any(slope > 1e-9 or slope < -discount - 1e-9 for slope in touching)
        bent = 0 < place < len(calls) - 1 and slopes[place] - slopes[place - 1] < -1e-9
        assert flags[place] == BROKEN_MONOTONE * broken + BROKEN_CONVEX * bent
