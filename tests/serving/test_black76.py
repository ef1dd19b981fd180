"""Black-76 keeps its laws (parity, bounds, scaling, the pricing equation), equals mpmath, and inverts.

Everything is asked of NumPy and of the native core in each instruction set with kernels of its own that this CPU has.

`EPSILON` times `condition` is what rounding the inputs alone costs a price; tolerances are small multiples of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import black76, native
from serving.black76 import OUTPUTS, Valuation, VolatilityStatus, implied_volatility, price, value, value_into
from serving.errors import EngineError
from serving.normal import cdf, density

CHOOSE = black76._core
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


# --- shapes and bad input


def test_scalars_broadcasting_and_nothing() -> None:
    alone = value(100.0, 95.0, 0.5, 0.2, 0.98, -1.0)
    table = value(np.array([[100.0], [101.0]]), [95.0, 100.0, 105.0], 0.5, 0.2, 0.98, -1)
    for name in OUTPUTS:
        assert np.shape(getattr(alone, name)) == ()
        assert getattr(table, name).shape == (2, 3)
        assert getattr(table, name)[0, 0] == getattr(alone, name)
    empty = value([], 100.0, 1.0, 0.2, 1.0, 1.0)
    assert all(getattr(empty, name).shape == (0,) for name in OUTPUTS)
    assert value(np.zeros((0, 3)) + 1.0, 100.0, 1.0, 0.2, 1.0, 1.0).price.shape == (0, 3)


BAD = [
    (place, bad)
    for place, values in enumerate([
        (0.0, -1.0, np.nan, np.inf), (0.0, -1.0, np.nan, np.inf), (-1e-9, np.nan, np.inf), (-1e-9, np.nan, np.inf),
        (0.0, -0.5, np.nan, np.inf), (0.0, 2.0, -0.5, np.nan),
    ])
    for bad in values
]  # fmt: skip


@pytest.mark.parametrize(("place", "bad"), BAD)
def test_bad_input_is_nan_and_spoils_no_neighbour(place: int, bad: float) -> None:
    columns = np.tile(np.array([[100.0], [95.0], [0.5], [0.2], [0.98], [1.0]]), 3)
    good = value(*columns[:, 0])
    columns[place, 1] = bad
    worth: Valuation = value(*columns)
    for name in OUTPUTS:
        assert np.isnan(getattr(worth, name)[1])
        assert (getattr(worth, name)[[0, 2]] == getattr(good, name)).all()


def test_edges_of_the_numbers_stay_finite() -> None:
    """Every positive finite input has a finite, bounded price, and no Greek is NaN: no 0 times infinity inside."""
    sizes = np.array([1e-290, 1e-3, 1.0, 1e3, 1e100])
    f, k = (column.ravel() for column in np.meshgrid(sizes, sizes))
    for deviation in (1e-300, 1e-9, 1.0, 50.0, 1e150):
        for w in (1.0, -1.0):
            worth = value(f, k, 1.0, deviation, 0.9, w)
            assert (worth.price >= 0.0).all()
            assert (worth.price <= 0.9 * (f if w > 0 else k) * (1 + 4 * EPSILON)).all()
            for name in ("delta", "vega", "theta", "rho", "vanna", "volga"):
                assert not np.isnan(getattr(worth, name)).any(), name


# --- the caller's own arrays


def test_value_into_writes_what_value_returns_and_nothing_else(implementation: str) -> None:
    columns = [np.ascontiguousarray(column) for column in grid()]
    whole = value(*columns)
    for names in (("price",), ("vega", "delta"), OUTPUTS):
        own = {name: np.full(len(columns[0]), -7.0) for name in names}
        value_into(*columns, **own)
        for name in names:
            assert np.array_equal(own[name], getattr(whole, name)), name
    columns[4] = np.array([0.97])  # one for all
    expected, found = value(*columns).theta, np.empty(len(columns[0]))
    value_into(*columns, theta=found)
    assert np.array_equal(found, expected)
    if implementation != "numpy":
        before = native.core().allocation_count()
        value_into(*columns, theta=found)
        assert native.core().allocation_count() == before


def test_an_output_may_be_an_inputs_own_array() -> None:
    columns = [np.ascontiguousarray(column) for column in grid()]
    expected = price(*columns)
    value_into(*columns, price=columns[3])
    assert np.array_equal(columns[3], expected)


@pytest.mark.parametrize(
    ("name", "array"),
    [("strike", np.ones(2)), ("price", np.ones(3, dtype=np.float32)), ("delta", np.ones((3, 1))),
     ("vega", np.ones(6)[::2]), ("tau", np.ones(3, dtype=np.int64)), ("rho", np.ones(4)), ("volga", np.array(1.0)),
     ("forward", np.array(1.0)), ("strike", np.ones(3, ">f8")), ("vanna", np.zeros(25, np.uint8)[1:].view(np.float64)),
     ("discount", np.zeros(25, np.uint8)[1:].view(np.float64))],
)  # fmt: skip
def test_value_into_refuses_by_name(name: str, array: np.ndarray) -> None:
    inputs = dict.fromkeys(("forward", "strike", "tau", "volatility", "discount", "right"), np.ones(3))
    outputs = {"theta": np.ones(3)}
    (inputs if name in inputs else outputs)[name] = array
    with pytest.raises(ValueError, match=f"value_into: {name}: expected contiguous float64"):
        value_into(**outputs, **inputs)


def test_value_into_refuses_what_is_no_array() -> None:
    with pytest.raises(ValueError, match="value_into: price: expected a NumPy array, found list"):
        value_into(*[np.ones(3)] * 6, price=[0.0] * 3)  # type: ignore[arg-type]


def test_any_memory_is_read() -> None:
    """Strides, the other byte order, bytes at odd addresses, read-only memory: one value."""
    strikes = np.linspace(90.0, 110.0, 5)
    odd = np.zeros(5 * 8 + 1, np.uint8)[1:].view(np.float64)
    odd[:] = strikes
    frozen = strikes.copy()
    frozen.flags.writeable = False
    expected = price(100.0, strikes, 0.5, 0.2, 0.98, 1.0)
    for one in (strikes[::-1][::-1], np.repeat(strikes, 2)[::2], strikes.astype(">f8"), odd, frozen):
        assert np.array_equal(price(100.0, one, 0.5, 0.2, 0.98, 1.0), expected)
    assert price(100.0, odd[:1], 0.5, 0.2, 0.98, 1.0) == expected[0]
    found, _ = implied_volatility(expected, 100.0, odd, 0.5, 0.98, 1.0)
    assert np.allclose(found, 0.2, rtol=1e-9, atol=0.0)


def test_value_into_refuses_what_it_may_not_write() -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"value_into: vega: .* not writeable"):
        value_into(*[frozen] * 6, vega=frozen)


def test_value_into_wants_an_output() -> None:
    with pytest.raises(ValueError, match="no output is wanted"):
        value_into(*[np.ones(3)] * 6)


# --- implied volatility


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


# --- which implementation


@pytest.fixture
def undecided(implementation: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`_core` as it is, deciding anew."""
    fresh = functools.cache(CHOOSE.__wrapped__)
    monkeypatch.setattr(black76, "_core", fresh)
    monkeypatch.delenv(black76.CHOICE, raising=False)
    return monkeypatch


def test_without_the_native_core_numpy_runs_and_says_so(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(native, "why_unavailable", lambda: "not built")
    assert black76.implementation() == "numpy"
    assert price(100.0, 100.0, 1.0, 0.0, 1.0, 1.0) == 0.0


def test_the_native_core_runs_where_it_is(undecided: pytest.MonkeyPatch) -> None:
    if len(IMPLEMENTATIONS) == 1:
        pytest.skip(f"no native core: {native.why_unavailable()}")
    assert black76.implementation() == f"native_{native.core().choose_isa()}"


def test_numpy_can_be_asked_for(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv(black76.CHOICE, "numpy")
    assert black76.implementation() == "numpy"


def test_native_asked_for_and_absent_is_an_error(undecided: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("no such file")

    undecided.setattr(native, "_load", absent)
    undecided.setenv(black76.CHOICE, "native")
    with pytest.raises(EngineError, match="native core isn't here"):
        price(100.0, 100.0, 1.0, 0.2, 1.0, 1.0)
    undecided.setenv(black76.CHOICE, "fortran")
    with pytest.raises(EngineError, match="no implementation 'fortran'"):
        black76.implementation()
