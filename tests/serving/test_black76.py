"""Black-76 keeps its laws: parity, bounds, scaling, the pricing equation, limits; and equals mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.black76 import OUTPUTS, price, value
from serving.normal import cdf, density
from tests.serving.options import (
    DISCOUNT,
    EPSILON,
    FORWARD,
    OPTION,
    RIGHT,
    bell_error,
    condition,
    exact_grid,
    exact_price,
    grid,
    implementation,
    many,
    unpack,
)

__all__ = ["implementation"]  # fixtures

# --- laws


@many
@given(OPTION)
def test_parity(option: tuple[float, ...]) -> None:
    """Call minus put is the discounted forward minus strike, and so are its Greeks."""
    f, k, t, v, d, _ = unpack(option)
    call, put = value(f, k, t, v, d, 1.0), value(f, k, t, v, d, -1.0)
    rate = -np.log(d) / t
    size = d * (f + k)
    assert call.price - put.price == pytest.approx(d * (f - k), abs=8 * EPSILON * size)
    assert call.delta - put.delta == pytest.approx(d, abs=4 * EPSILON)
    assert (call.gamma, call.vega, call.vanna, call.volga) == (put.gamma, put.vega, put.vanna, put.volga)
    assert call.rho - put.rho == pytest.approx(-t * d * (f - k), abs=8 * EPSILON * t * size)
    assert call.theta - put.theta == pytest.approx(
        rate * d * (f - k), abs=8 * EPSILON * (abs(rate) * size + abs(float(call.theta)))
    )


@many
@given(OPTION)
def test_bounds(option: tuple[float, ...]) -> None:
    f, k, t, v, d, w = unpack(option)
    worth = value(f, k, t, v, d, w)
    room = 8 * EPSILON * d * (f + k)
    assert max(d * w * (f - k), 0.0) - room <= worth.price <= d * (f if w > 0 else k) + room
    assert worth.price >= 0.0
    assert 0.0 <= w * worth.delta <= d
    assert worth.gamma >= 0.0
    assert worth.vega >= 0.0


@many
@given(OPTION, st.floats(1e-3, 1e3))
def test_homogeneous_in_money(option: tuple[float, ...], scale: float) -> None:
    """Prices in another currency: price, vega, theta scale, delta stays, gamma goes with the inverse."""
    f, k, t, v, d, w = unpack(option)
    base, scaled = value(f, k, t, v, d, w), value(scale * f, scale * k, t, v, d, w)
    room = 8 * EPSILON * condition(f, k, t, v, d, w)
    assert scaled.price / scale == pytest.approx(float(base.price), abs=room)
    assert scaled.delta == pytest.approx(float(base.delta), abs=room / f + 8 * EPSILON * float(base.gamma) * f)
    steep = 2 * bell_error(f, k, t, v)
    assert scaled.gamma * scale == pytest.approx(float(base.gamma), rel=steep, abs=1e-300)
    assert scaled.vega / scale == pytest.approx(float(base.vega), rel=steep, abs=1e-300)


@many
@given(OPTION)
def test_a_call_is_a_put_with_forward_and_strike_exchanged(option: tuple[float, ...]) -> None:
    f, k, t, v, d, w = unpack(option)
    assert price(f, k, t, v, d, w) == pytest.approx(
        float(price(k, f, t, v, d, -w)), abs=8 * EPSILON * condition(f, k, t, v, d, w)
    )


@many
@given(OPTION)
def test_greeks_satisfy_the_pricing_equation(option: tuple[float, ...]) -> None:
    """theta + sigma^2 F^2 gamma / 2 = r V, vega = F^2 gamma sigma tau, and Euler: V = F delta + K dV/dK."""
    f, k, t, v, d, w = unpack(option)
    worth = value(f, k, t, v, d, w)
    rate = -np.log(d) / t
    decay = 0.5 * v**2 * f**2 * worth.gamma
    assert worth.theta + decay == pytest.approx(
        rate * worth.price, abs=16 * EPSILON * (abs(rate) * float(worth.price) + float(decay)) + 1e-300
    )
    assert worth.vega == pytest.approx(float(f**2 * worth.gamma * v * t), rel=16 * EPSILON, abs=1e-300)
    deviation = v * np.sqrt(t)
    d2 = np.log(f / k) / deviation - 0.5 * deviation
    in_strike = -w * d * float(cdf(w * d2))
    own = d * k * float(density(d2)) * EPSILON / deviation  # what rounding f/k does to this d2
    assert f * worth.delta + k * in_strike == pytest.approx(
        float(worth.price), abs=8 * EPSILON * condition(f, k, t, v, d, w) + own
    )
    size = abs(float(np.log(f / k))) / deviation + 0.5 * deviation
    room = 16 * EPSILON * (1.0 / deviation + size) * worth.vega
    assert worth.rho == pytest.approx(-t * float(worth.price), rel=2 * EPSILON, abs=1e-300)
    assert worth.vanna == pytest.approx(-float(worth.vega * d2) / (f * deviation), abs=room / (f * deviation) + 1e-300)
    curved = float(worth.vega) * d2 * (d2 + deviation) / v
    assert worth.volga == pytest.approx(curved, abs=room * (1.0 + size) / v + 1e-300)


@many
@given(OPTION, st.floats(1.0001, 3.0))
def test_worth_rises_with_volatility_and_falls_in_strike_for_calls(option: tuple[float, ...], factor: float) -> None:
    f, k, t, v, d, w = unpack(option)
    room = 8 * EPSILON * (condition(f, k, t, v, d, w) + condition(f, k, t, factor * v, d, w))
    assert price(f, k, t, factor * v, d, w) >= price(f, k, t, v, d, w) - room
    room = 8 * EPSILON * (condition(f, k, t, v, d, w) + condition(f, factor * k, t, v, d, w))
    assert w * (price(f, factor * k, t, v, d, w) - price(f, k, t, v, d, w)) <= room


def test_prices_are_convex_in_strike_and_rise_in_tau() -> None:
    strike = np.linspace(50.0, 200.0, 601)
    room = 64 * EPSILON * 300.0
    for w in (1.0, -1.0):
        assert (np.diff(price(100.0, strike, 0.5, 0.3, 0.97, w), 2) >= -room).all()
    tau = np.linspace(0.0, 2.0, 401)
    assert (np.diff(price(100.0, strike[:, None], tau, 0.3, 1.0, 1.0), axis=1) >= -room).all()  # no rate


# --- limits


@pytest.mark.parametrize(("tau", "volatility"), [(0.0, 0.3), (0.7, 0.0), (0.0, 0.0)])
def test_without_time_or_volatility_it_is_intrinsic(tau: float, volatility: float) -> None:
    f, w = np.array([90.0, 100.0, 110.0, 90.0, 100.0, 110.0]), np.array([1.0, 1, 1, -1, -1, -1])
    worth = value(f, 100.0, tau, volatility, 0.9, w)
    assert np.array_equal(worth.price, 0.9 * np.maximum(w * (f - 100.0), 0.0))
    assert np.array_equal(worth.delta, [0, 0, 0.9, -0.9, 0, 0])
    assert not any(getattr(worth, name).any() for name in ("gamma", "vega", "vanna", "volga"))
    assert np.array_equal(worth.rho, -tau * worth.price)
    rate = -np.log(0.9) / tau if tau else 0.0
    assert np.allclose(worth.theta, rate * worth.price, rtol=4 * EPSILON, atol=0.0)


@many
@given(FORWARD, st.floats(0.01, 1.0), DISCOUNT, RIGHT, st.floats(1e-12, 1e-6))
def test_intrinsic_is_reached_continuously(f: float, x: float, d: float, w: float, tiny: float) -> None:
    for sign in (-1.0, 1.0):
        k = f * float(np.exp(sign * x))
        intrinsic = price(f, k, 0.0, 1.0, d, w)
        for tau, volatility in ((1.0, tiny), (tiny**2, 1.0)):
            assert price(f, k, tau, volatility, d, w) == pytest.approx(float(intrinsic), abs=4 * EPSILON * d * (f + k))


def test_at_the_money_the_price_begins_in_proportion_to_the_deviation() -> None:
    """C ~ F s / sqrt(2 pi) (Brenner and Subrahmanyam), next term -s^3/24."""
    deviation = np.array([1e-3, 1e-2, 0.05])
    series = 100.0 / np.sqrt(2.0 * np.pi) * (deviation - deviation**3 / 24.0)
    assert np.allclose(price(100.0, 100.0, 1.0, deviation, 1.0, 1.0), series, rtol=1e-8, atol=1e-13)


def test_boundless_volatility_gives_the_maximum() -> None:
    assert price(100.0, 130.0, 1.0, 200.0, 0.95, 1.0) == 95.0
    assert price(100.0, 130.0, 1.0, 200.0, 0.95, -1.0) == pytest.approx(0.95 * 130.0, rel=EPSILON)


# --- the slow reference


def test_price_and_greeks_equal_mpmath() -> None:
    options = grid()
    worth = value(*options)
    exact = exact_grid()
    f, k, t, v, d, _ = options
    deviation = v * np.sqrt(t)
    size1 = np.abs(np.log(f / k)) / deviation + 0.5 * deviation  # of the terms of d1, and of d2
    room = 4 * EPSILON * condition(*options)
    wanted = {name: np.array([one[name] for one in exact]) for name in OUTPUTS}
    bell = bell_error(f, k, t, v)
    tolerance = {
        "price": room,
        "delta": room / f + 4 * EPSILON * wanted["gamma"] * f,  # the forward's own rounding
        "gamma": bell * wanted["gamma"],
        "vega": bell * wanted["vega"],
        "theta": np.abs(np.log(d) / t) * room + bell * v * wanted["vega"] / (2.0 * t),
        "rho": t * room,
        # Their zeros, d2 = 0 and d1 d2 = 0, lose digits: errors are relative to the terms' magnitudes.
        "vanna": (bell + 4 * EPSILON / deviation) * wanted["vega"] / (f * deviation) * (1.0 + size1),
        "volga": (bell + 4 * EPSILON / deviation) * wanted["vega"] / v * (1.0 + size1) ** 2,
    }
    for name in OUTPUTS:
        error = np.abs(getattr(worth, name) - wanted[name])
        assert (error <= tolerance[name] + 1e-280).all(), name
    assert options.shape[1] > 150


def test_deep_wings_keep_their_digits() -> None:
    """Out-of-the-money prices of 1e-8 to 1e-250 of the forward against mpmath: relative errors, no underflow to 0."""
    strikes = np.array([150.0, 250.0, 500.0, 2000.0])
    found = price(100.0, strikes, 0.25, 0.2, 1.0, 1.0)
    with mpmath.workdps(60):
        arguments = [[mpmath.mpf(float(x)) for x in (100, k, 0.25, 0.2, 1, 1)] for k in strikes]
        exact = np.array([float(exact_price(*one)) for one in arguments])
    assert exact[-1] < 1e-180
    assert exact[0] < 1e-3
    amplified = condition(100.0, strikes, 0.25, 0.2, 1.0, 1.0) / exact
    assert (np.abs(found / exact - 1.0) <= 4 * EPSILON * amplified).all()
    assert (4 * EPSILON * amplified < 1e-9).all()
