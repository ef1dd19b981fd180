"""Early exercise: identities and limits, then a fine tree of another kind, then whole snapshots of American quotes.

`crr_premium` is the slow reference: the tree of Cox, Ross and Rubinstein (1979) around the forward, over a thousand
steps, American minus European on the same tree, averaged over an odd and an even number of steps.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import black76
from serving.american import american_volatility, european_mids, european_quotes, exercise_premium
from serving.last_seen import AnchorTarget, find_anchors, last_seen
from serving.normal import Array
from serving.surface import Quotes, build_surface, tau_years
from tests.serving.test_surface import chain, same_surface

TS = np.datetime64("2018-03-01T20:45", "ns")
POINT = 0.01  # of volatility


def crr_premium(
    spot: Array, forward: Array, strike: Array, tau: Array, volatility: Array, rate: Array, right: Array, steps: int
) -> Array:
    return 0.5 * sum(
        _crr(*np.broadcast_arrays(spot, forward, strike, tau, volatility, rate, right), steps + more) for more in (0, 1)
    )  # type: ignore[return-value]


def _crr(s: Array, f: Array, k: Array, t: Array, v: Array, r: Array, w: Array, steps: int) -> Array:
    up, drift, discount = np.exp(v * np.sqrt(t / steps)), (f / s) ** (1.0 / steps), np.exp(-r * t / steps)
    share = (1.0 - 1.0 / up) / (up - 1.0 / up)
    places = np.arange(steps + 1)[:, np.newaxis]
    node = s * drift**steps * up ** (2.0 * places - steps)
    american = np.maximum(w * (node - k), 0.0)
    european = american.copy()
    for count in range(steps, 0, -1):
        node = node[:count] * up / drift
        european = discount * (share * european[1:] + (1.0 - share) * european[:-1])
        american = discount * (share * american[1:] + (1.0 - share) * american[:-1])
        american = np.maximum(american, w * (node - k))
    return american[0] - european[0]


def grid(rates: tuple[float, ...], yields: tuple[float, ...]) -> tuple[Array, ...]:
    """spot, forward, strike, tau, volatility, rate, right: moneyness up to 0.6, a week to a year, 10 to 60 %."""
    points = itertools.product((-0.6, -0.3, -0.1, 0.0, 0.1, 0.3, 0.6), (7 / 365, 0.1, 0.5, 1.0), (0.1, 0.25, 0.6),
                               rates, yields, (1.0, -1.0))  # fmt: skip
    x, tau, volatility, rate, share, right = np.array(list(points)).T
    spot = np.full_like(x, 100.0)
    forward = spot * np.exp((rate - share) * tau)
    return spot, forward, forward * np.exp(x * np.sqrt(tau)), tau, volatility, rate, right


# --- identities and limits


def test_no_yield_no_premium_for_calls_and_no_rate_none_for_puts() -> None:
    spot, forward, strike, tau, volatility, rate, right = grid((0.0, 0.05), (0.0, 0.03))
    premium = exercise_premium(spot, forward, strike, tau, volatility, rate, right)
    share = np.round(rate - np.log(forward / spot) / tau, 12)
    free = np.where(right > 0, share == 0.0, rate == 0.0)
    exact = exercise_premium(100.0, 100.0 * np.exp(0.05), strike, 1.0, volatility, 0.05, 1.0)
    assert (exact == 0.0).all()
    assert (exercise_premium(100.0, 97.0, strike, tau, volatility, 0.0, -1.0) == 0.0).all()
    assert free.any()
    assert np.max(premium[free]) < 1e-12
    paid = premium[(right < 0) & (rate > 0) & (np.abs(np.log(strike / forward)) < 0.1) & (tau >= 0.5)]
    assert paid.size > 10
    assert (paid > 0.01).all()
    assert (exercise_premium(100.0, 100.0, strike, 0.0, volatility, 0.1, right) == 0.0).all()


@settings(deadline=None, max_examples=150)
@given(
    st.floats(-0.6, 0.6), st.floats(0.01, 2.0), st.floats(0.05, 1.0), st.floats(-0.01, 0.15), st.floats(-0.01, 0.15),
    st.sampled_from((1.0, -1.0)), st.floats(1.0, 5000.0),
)  # fmt: skip
def test_bounds_symmetry_and_scale(
    x: float, tau: float, volatility: float, rate: float, share: float, right: float, scale: float
) -> None:
    spot, forward = 100.0, 100.0 * np.exp((rate - share) * tau)
    strike = forward * np.exp(x * np.sqrt(tau))
    premium = float(exercise_premium(spot, forward, strike, tau, volatility, rate, right))
    european = float(black76.price(forward, strike, tau, volatility, np.exp(-rate * tau), right))
    assert premium >= 0.0
    assert european + premium >= right * (spot - strike) - 2e-3 * spot, "never below exercise, but for the tree's error"
    scaled = exercise_premium(spot * scale, forward * scale, strike * scale, tau, volatility, rate, right)
    assert float(scaled) == pytest.approx(premium * scale, rel=1e-6, abs=1e-9 * scale)
    # McDonald and Schroder: a call is a put with spot and strike, rate and yield exchanged
    mirrored = exercise_premium(strike, strike * spot / forward, spot, tau, volatility, share, -right)
    assert float(mirrored) == pytest.approx(premium, rel=5e-3, abs=2e-3 * spot)


def test_far_from_the_strike_exercise_is_now_or_never() -> None:
    forward = 100.0 * np.exp(0.05)
    deep_put = exercise_premium(100.0, forward, np.array([300.0, 500.0, 1e4]), 1.0, 0.05, 0.05, -1.0)
    european = black76.price(forward, np.array([300.0, 500.0, 1e4]), 1.0, 0.05, np.exp(-0.05), -1.0)
    np.testing.assert_allclose(european + deep_put, [200.0, 400.0, 9900.0], rtol=1e-9)
    assert exercise_premium(100.0, forward, 20.0, 1.0, 0.05, 0.05, -1.0) == 0.0
    near, far = exercise_premium(100.0, forward, forward * np.exp(0.05 * np.array([14.9, 15.2])), 1.0, 0.05, 0.05, -1.0)
    assert far == pytest.approx(near, rel=0.1)


@pytest.mark.parametrize("place", range(7))
def test_bad_input_gives_nan(place: int) -> None:
    good = [100.0, 101.0, 100.0, 0.5, 0.2, 0.05, -1.0]
    assert np.isfinite(exercise_premium(*good))
    for wrong in (np.nan, np.inf, *(() if place == 5 else (-0.5,))):
        bad = [wrong if index == place else value for index, value in enumerate(good)]
        assert np.isnan(exercise_premium(*bad))


def test_one_contract_equals_the_same_among_many() -> None:
    columns = grid((0.05,), (0.0, 0.03))
    together = exercise_premium(*columns)
    alone = [float(exercise_premium(*(column[place] for column in columns))) for place in range(0, len(together), 37)]
    np.testing.assert_array_equal(together[::37], alone)


# --- against the fine tree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "yields", "largest", "typical"),
    [((0.0, 0.02, 0.06), (0.0, 0.02, 0.06), 0.1, 0.01), ((0.12,), (0.0, 0.06), 0.2, 0.02)],
)
def test_volatility_error_against_a_thousand_steps(
    rates: tuple[float, ...], yields: tuple[float, ...], largest: float, typical: float
) -> None:
    """In vol points: the premium's error over vega, where a vol point is worth more than 1e-5 of spot."""
    columns = grid(rates, yields)
    reference = crr_premium(*columns, steps=1001)
    _, forward, strike, tau, volatility, rate, right = columns
    vega = black76.value(forward, strike, tau, volatility, np.exp(-rate * tau), right).vega
    error = ((exercise_premium(*columns) - reference) / vega / POINT)[vega * POINT > 1e-5 * 100.0]
    assert np.abs(error).max() < largest
    assert float(np.sqrt(np.mean(error**2))) < typical


def test_volatility_is_recovered() -> None:
    spot, forward, strike, tau, volatility, rate, right = grid((0.0, 0.05), (0.0, 0.03))
    price = black76.price(forward, strike, tau, volatility, np.exp(-rate * tau), right)
    price += exercise_premium(spot, forward, strike, tau, volatility, rate, right)
    found, premium = american_volatility(price, spot, forward, strike, tau, rate, right)
    outside = right * (forward - strike) <= 0
    assert np.abs(found - volatility)[outside].max() < 1e-6
    repriced = black76.price(forward, strike, tau, found, np.exp(-rate * tau), right) + premium
    known = np.isfinite(found)
    assert np.abs(repriced - price)[known].max() < 1e-5
    exercised = price <= np.maximum(right * (spot - strike), 0.0)
    assert np.isnan(found[exercised]).all(), "at the value of exercise no volatility can be told"
    assert known.mean() > 0.9


# --- snapshots


def american_chain(
    rate: float, share: float, *, days: tuple[int, ...] = (21, 50, 110, 200), level: float = 0.22, spot: float = 100.0,
    ts: np.datetime64 = TS,
) -> tuple[Quotes, Array]:  # fmt: skip
    """American quotes by the slow tree, half a per cent wide, and the volatilities they were made from."""
    parts: list[tuple[Array, ...]] = []
    for count in days:
        expiry = (TS.astype("datetime64[D]") + count).astype("datetime64[ns]") + np.timedelta64(20, "h")
        tau = tau_years(ts, expiry)
        forward = spot * np.exp((rate - share) * tau)
        strike = np.arange(70.0, 135.0, 2.5 if tau > 0.1 else 1.0)
        strike = strike[np.abs(np.log(strike / forward)) < 0.7 * np.sqrt(tau)]
        x = np.log(strike / forward) / np.sqrt(tau)
        volatility = level - 0.1 * x + 0.05 * x**2
        for right in (1.0, -1.0):
            one = np.ones_like(strike)
            price = black76.price(forward, strike, tau, volatility, np.exp(-rate * tau), right)
            price += crr_premium(spot, forward, strike, tau, volatility, rate, right * one, steps=300)  # type: ignore[arg-type]
            parts.append((np.full(one.size, expiry), strike, right * one, 0.9975 * price, 1.0025 * price, volatility))
    expiry, strike, rights, bid, ask, volatility = (np.concatenate(column) for column in zip(*parts, strict=True))
    root, american = np.full(len(strike), "XYZ"), np.ones(len(strike), dtype=bool)
    return Quotes(ts, spot, root, expiry, strike, rights, bid, ask, american=american), volatility


def largest_error(quotes: Quotes, volatility: Array) -> float:
    """Of a surface's volatilities in the range that is scored, vol points."""
    made = {
        (key, strike): one for key, strike, one in zip(quotes.expiry, quotes.strike, volatility, strict=True)
    }  # fmt: skip
    return max(
        abs(found - made[key.expiry, strike]) / POINT
        for key, smile in build_surface(quotes).smiles.items()
        for strike, found, x in zip(smile.strike, smile.volatility, smile.moneyness, strict=True)
        if abs(x) < 0.6
    )


@pytest.mark.parametrize(("rate", "share"), [(0.05, 0.015), (0.05, 0.0), (0.0, 0.03), (0.03, 0.03)])
def test_surface_of_american_quotes(rate: float, share: float) -> None:
    """Forwards, rates and volatilities come back; taken for European, the same quotes give a worse surface."""
    quotes, volatility = american_chain(rate, share)
    surface = build_surface(quotes)
    assert len(surface.smiles) == 4
    for smile in surface.smiles.values():
        assert smile.forward == pytest.approx(100.0 * np.exp((rate - share) * smile.tau), rel=5e-5)
        assert smile.exercise_rate == pytest.approx(rate, abs=0.001)
    error = largest_error(quotes, volatility)
    assert error < 0.03
    assert largest_error(dataclasses.replace(quotes, american=None), volatility) > 3.0 * error


def test_european_quotes_are_left_as_they_are() -> None:
    quotes = chain()
    marked = dataclasses.replace(quotes, american=np.zeros(len(quotes), dtype=bool))
    for one in (quotes, marked):
        same, rates = european_quotes(one)
        assert same is one
        assert rates == {}
    assert same_surface(build_surface(quotes), build_surface(marked))
    half = np.arange(len(quotes)) % 2 == 0
    mixed, _ = european_quotes(dataclasses.replace(quotes, american=half))
    np.testing.assert_array_equal(mixed.bid[~half], quotes.bid[~half])
    assert (np.isnan(mixed.bid[half]) | (mixed.bid[half] <= quotes.bid[half])).all()


def test_quotes_at_the_value_of_exercise_do_not_count() -> None:
    quotes, _ = american_chain(0.05, 0.0, days=(50,))
    lone = int(np.flatnonzero((quotes.right < 0) & (quotes.strike == quotes.strike.max()))[0])
    worth = quotes.strike[lone] - quotes.spot
    bid, ask = quotes.bid.copy(), quotes.ask.copy()
    bid[lone], ask[lone] = worth - 0.05, worth + 0.04
    partner = (quotes.right > 0) & (quotes.strike == quotes.strike[lone])
    changed = dataclasses.replace(quotes, bid=bid, ask=ask).take(~partner)
    found, _ = european_quotes(changed)
    place = int(np.flatnonzero((changed.right < 0) & (changed.strike == quotes.strike[lone]))[0])
    assert np.isnan(found.bid[place])
    assert np.isfinite(np.delete(found.bid, place)).all()


def test_no_forward_no_change() -> None:
    quotes, _ = american_chain(0.05, 0.0, days=(50,))
    calls = quotes.take(quotes.right > 0)
    same, rates = european_quotes(calls)
    assert same is calls
    assert rates == {}
    assert build_surface(calls).smiles == {}


def test_anchors_of_american_quotes_use_their_own_strike_alone() -> None:
    """The anchor's volatility is the true one, and stays whatever else of t is changed."""
    before, _ = american_chain(0.05, 0.015)
    now, _ = american_chain(0.05, 0.015, level=0.24, ts=TS + np.timedelta64(1, "D"), spot=101.0)
    last = last_seen(build_surface(before))
    targets = (AnchorTarget(20), AnchorTarget(110))
    anchors = find_anchors(now, last, targets)
    assert len(anchors) == 2
    for anchor in anchors:
        forward = 101.0 * np.exp(0.035 * anchor.tau)
        x = np.log(anchor.strike / forward) / np.sqrt(anchor.tau)
        assert anchor.volatility == pytest.approx(0.24 - 0.1 * x + 0.05 * x**2, abs=5e-4)
        assert abs(anchor.forward_deviation) < 5e-4
    keep = np.zeros(len(now), dtype=bool)
    for anchor in anchors:
        keep |= (now.expiry == anchor.key.expiry) & (now.strike == anchor.strike)
    factor = np.where(keep, 1.0, np.random.default_rng(3).uniform(0.5, 2.0, len(now)))
    other = dataclasses.replace(now, bid=now.bid * factor, ask=now.ask * factor)
    assert find_anchors(other, last, targets) == anchors


def test_european_mids_of_one_strike() -> None:
    forward, tau, rate = 100.0 * np.exp(0.04 * 0.5), 0.5, 0.05
    terms = (100.0, forward, 100.0, tau)
    european = {right: float(black76.price(forward, 100.0, tau, 0.2, np.exp(-rate * tau), right))
                for right in (1.0, -1.0)}  # fmt: skip
    quoted = {right: european[right] + float(exercise_premium(*terms, 0.2, rate, right)) for right in (1.0, -1.0)}
    both = european_mids(quoted, {1.0: True, -1.0: True}, *terms, rate)
    assert both == pytest.approx(european, abs=1e-5)
    put = european_mids({-1.0: quoted[-1.0]}, {-1.0: True}, *terms, rate)
    assert put == pytest.approx({-1.0: european[-1.0]}, abs=1e-5)
    mixed = european_mids({1.0: european[1.0], -1.0: quoted[-1.0]}, {1.0: False, -1.0: True}, *terms, rate)
    assert mixed == pytest.approx(european, abs=1e-5)
    assert european_mids(quoted, {1.0: False, -1.0: False}, *terms, rate) == quoted
    assert european_mids({-1.0: 0.5}, {-1.0: True}, 100.0, forward, 120.0, tau, rate) == {}, "below exercise"
