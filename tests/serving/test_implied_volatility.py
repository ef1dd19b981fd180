"""Implied volatility: what was priced comes back, at every size; what can't be inverted says why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.black76 import VolatilityStatus, implied_volatility, price, value
from tests.serving.options import EPSILON, FORWARD, OPTION, RIGHT, condition, grid, implementation, many, unpack

__all__ = ["implementation"]  # fixtures


@settings(deadline=None, max_examples=300)
@given(FORWARD, st.floats(-3.0, 3.0), st.floats(1.0 / 365.0, 10.0), st.floats(0.001, 4.0), st.floats(0.5, 1.1), RIGHT)
def test_round_trip(f: float, x: float, t: float, v: float, d: float, w: float) -> None:
    """|error| vega stays within the rounding of the price: nothing better is possible from a float64 price."""
    k = f * float(np.exp(x))
    worth = value(f, k, t, v, d, w)
    room = 16 * EPSILON * d * max(f, k) if w * (f - k) > 0 else 16 * EPSILON * float(condition(f, k, t, v, d, w))
    found, status = implied_volatility(worth.price, f, k, t, d, w)
    if status == VolatilityStatus.OK:
        assert abs(float(found) - v) * worth.vega <= room + 4 * EPSILON * v * worth.vega + 1e-300
        assert price(f, k, t, found, d, w) == pytest.approx(float(worth.price), abs=2 * room + 1e-300)
    elif status == VolatilityStatus.BELOW_INTRINSIC:  # the time value is below a rounding of the price
        assert worth.price - max(d * w * (f - k), 0.0) <= room
    else:
        assert status == VolatilityStatus.ABOVE_MAXIMUM
        assert d * (f if w > 0 else k) - worth.price <= room
    assert np.isnan(found) == (status != VolatilityStatus.OK)


def test_every_price_of_the_grid_inverts() -> None:
    """No status but OK where the time value is above rounding, in and out of the money."""
    f, k, t, v, d, w = grid()
    worth = value(f, k, t, v, d, w)
    clear = worth.price - np.maximum(d * w * (f - k), 0.0) > 1e-9 * f
    found, status = implied_volatility(worth.price, f, k, t, d, w)
    assert (status[clear] == VolatilityStatus.OK).all()
    assert (np.abs(found - v)[clear] <= 1e-6 * v[clear]).all()
    assert clear.sum() > 100
    in_money = clear & (w * (f - k) > 0)
    assert in_money.sum() > 30
    assert (np.abs(found - v)[in_money] * worth.vega[in_money] <= 16 * EPSILON * (d * np.maximum(f, k))[in_money]).all()


def test_out_of_the_money_down_to_the_smallest_prices() -> None:
    """Prices from 1e-3 to 1e-300 of the forward: solved against the price equation itself, in logarithms."""
    wanted = 100.0 * 10.0 ** -np.arange(3.0, 301.0)
    found, status = implied_volatility(wanted, 100.0, 120.0, 0.1, 1.0, 1.0)
    assert (status == VolatilityStatus.OK).all()
    assert (np.diff(found) < 0).all()
    amplified = condition(100.0, 120.0, 0.1, found, 1.0, 1.0) / wanted
    assert (np.abs(price(100.0, 120.0, 0.1, found, 1.0, 1.0) / wanted - 1.0) <= 8 * EPSILON * amplified).all()


def test_at_the_money_inverts_at_every_size() -> None:
    volatility = 10.0 ** np.arange(-6.0, 1.1)
    found, status = implied_volatility(price(100.0, 100.0, 1.0, volatility, 1.0, 1.0), 100.0, 100.0, 1.0, 1.0, 1.0)
    assert (status == VolatilityStatus.OK).all()
    worth = value(100.0, 100.0, 1.0, volatility, 1.0, 1.0)
    assert (np.abs(found - volatility) * worth.vega <= 4 * EPSILON * 100.0).all()


@many
@given(OPTION)
def test_call_and_put_of_a_strike_imply_one_volatility(option: tuple[float, ...]) -> None:
    """Parity in volatilities, as far as the in-the-money one has digits."""
    f, k, t, v, d, w = unpack(option)
    out = w if w * (f - k) <= 0 else -w
    other = value(f, k, t, v, d, -out)
    first, fine = implied_volatility(price(f, k, t, v, d, out), f, k, t, d, out)
    second, also_fine = implied_volatility(other.price, f, k, t, d, -out)
    if fine == also_fine == VolatilityStatus.OK:
        room = 16 * EPSILON * (d * max(f, k) + float(condition(f, k, t, v, d, out)))
        assert abs(float(first - second)) * other.vega <= room + 8 * EPSILON * v * other.vega


def test_statuses_say_why() -> None:
    f, k, t, d = 100.0, 90.0, 0.5, 0.95
    floor, ceiling = d * (f - k), d * f
    prices = np.array([floor - 1.0, -1.0, 0.0, np.nextafter(floor, 0.0), floor + 1.0, ceiling, ceiling + 1.0])
    _, status = implied_volatility(prices, f, k, t, d, 1.0)
    below, above = VolatilityStatus.BELOW_INTRINSIC, VolatilityStatus.ABOVE_MAXIMUM
    assert status.tolist() == [below, below, below, below, VolatilityStatus.OK, above, above]
    _, status = implied_volatility([0.0, 1.0, d * k, d * k + 1.0], f, k, t, d, -1.0)
    assert status.tolist() == [below, VolatilityStatus.OK, above, above]
    found, status = implied_volatility([[8.0], [np.nan]], [100.0, 0.0], 100.0, 0.5, 1.0, 1.0)
    bad = VolatilityStatus.BAD_INPUT
    assert status.tolist() == [[VolatilityStatus.OK, bad], [bad, bad]]
    assert np.array_equal(np.isnan(found), status != VolatilityStatus.OK)


def test_a_price_on_a_bound_has_no_volatility() -> None:
    """However the bound's own product was rounded: that a rounding lies within it is no time value."""
    rng = np.random.default_rng(3)
    f, d, w = rng.uniform(10.0, 5000.0, 20_000), rng.uniform(0.6, 1.1, 20_000), rng.choice([-1.0, 1.0], 20_000)
    k = f * np.exp(rng.normal(0.0, 0.4, len(f)))
    for tau in (1e-6, 0.1, 5.0):
        floor, ceiling = d * np.maximum(w * (f - k), 0.0), d * np.where(w > 0, f, k)
        for prices in (floor, np.nextafter(floor, -1.0)):
            assert (implied_volatility(prices, f, k, tau, d, w)[1] == VolatilityStatus.BELOW_INTRINSIC).all()
        for prices in (ceiling, np.nextafter(ceiling, np.inf)):
            assert (implied_volatility(prices, f, k, tau, d, w)[1] == VolatilityStatus.ABOVE_MAXIMUM).all()
        clear = 64 * EPSILON * np.maximum(f, k)
        for prices in (floor + clear, ceiling - clear):
            assert (implied_volatility(prices, f, k, tau, d, w)[1] == VolatilityStatus.OK).all()


@pytest.mark.parametrize(
    ("place", "bad"),
    [(0, np.inf), (0, np.nan)]
    + [(place, bad) for place in (1, 2, 3, 4) for bad in (0.0, -1.0, np.nan, np.inf)]
    + [(5, 0.0), (5, 3.0), (5, np.nan)],
)
def test_bad_input_has_its_own_status(place: int, bad: float) -> None:
    columns = np.tile(np.array([[8.0], [100.0], [98.0], [0.5], [0.98], [1.0]]), 3)
    columns[place, 1] = bad
    found, status = implied_volatility(*columns)
    assert status.tolist() == [VolatilityStatus.OK, VolatilityStatus.BAD_INPUT, VolatilityStatus.OK]
    assert np.isnan(found).tolist() == [False, True, False]


def test_implied_volatility_shapes() -> None:
    strikes = np.array([90.0, 100.0, 110.0])
    prices = price(100.0, strikes, np.array([[0.1], [1.0]]), 0.25, 0.97, 1.0)
    found, status = implied_volatility(prices, 100.0, strikes, np.array([[0.1], [1.0]]), 0.97, 1.0)
    assert found.shape == status.shape == (2, 3)
    assert np.allclose(found, 0.25, rtol=1e-12)
    single, its_status = implied_volatility(float(prices[0, 1]), 100.0, 100.0, 0.1, 0.97, 1)
    assert single.shape == its_status.shape == ()
    assert single == found[0, 1]
    for shape in ((0,), (0, 3)):
        nothing, statuses = implied_volatility(np.zeros(shape), 100.0, 100.0, 0.1, 1.0, 1.0)
        assert nothing.shape == statuses.shape == shape


def test_a_price_implies_the_same_volatility_alone_and_in_any_company() -> None:
    f, k, t, v, d, w = grid()
    prices = price(f, k, t, v, d, w)
    together, _ = implied_volatility(prices, f, k, t, d, w)
    order = np.random.default_rng(3).permutation(len(f))
    shuffled, _ = implied_volatility(prices[order], f[order], k[order], t[order], d[order], w[order])
    assert np.array_equal(together[order], shuffled, equal_nan=True)
    alone = [implied_volatility(*one)[0] for one in zip(prices, f, k, t, d, w, strict=True)]
    assert np.array_equal(together, np.array(alone), equal_nan=True)
