"""The smoothing gives back what it says it does, goes on smoothly outside the quotes, and lifts nothing but planted
inversions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.normal import Array
from serving.smooth_smile import (
    EDGE,
    FEWEST_QUOTES,
    KNOT_WIDTH,
    MARGIN,
    PENALTY,
    REACH,
    SmoothSmile,
    fit_smooth_smile,
    ordered,
)

WIDE = np.linspace(-3.0, 3.0, 601)


@st.composite
def quoted_moneyness(draw: st.DrawFn, fewest: int = FEWEST_QUOTES) -> Array:
    """Ascending, unevenly spaced, at least a knot's width in all."""
    steps = draw(st.lists(st.floats(0.002, 0.2), min_size=fewest - 1, max_size=40))
    width = draw(st.floats(1.01 * KNOT_WIDTH, 1.2))
    return np.asarray(draw(st.floats(-0.6, 0.1)) + width * np.r_[0.0, np.cumsum(steps)] / np.sum(steps))


def fitted(moneyness: Array, volatility: Array) -> SmoothSmile:
    smile = fit_smooth_smile(moneyness, volatility)
    assert smile is not None
    return smile


def slow_fit(moneyness: Array, volatility: Array, at: Array) -> Array:
    """The minimiser of the docstring in another basis: a cubic and one truncated cube per inner knot, whose third
    derivative is a step function, so that the integral is a sum over the intervals."""
    low, high = moneyness[0], moneyness[-1]
    count = int(np.ceil((high - low) / KNOT_WIDTH))
    knots = np.linspace(low, high, count + 1)

    def columns(x: Array) -> Array:
        inner = [np.maximum(x - knot, 0.0) ** 3 for knot in knots[1:-1]]
        return np.stack([np.ones_like(x), x - low, (x - low) ** 2, (x - low) ** 3, *inner], axis=1)

    third = np.zeros((count, 3 + count))  # of each column, in each interval
    for column in range(count):
        third[column:, 3 + column] = 6.0
    weight = np.sqrt(PENALTY * (high - low) / count)
    stacked = np.concatenate([columns(moneyness), weight * third])
    wanted = np.concatenate([volatility, np.zeros(count)])
    scale = np.linalg.norm(stacked, axis=0)
    return np.asarray(columns(at) @ (np.linalg.lstsq(stacked / scale, wanted, rcond=None)[0] / scale))


# --- one smile


@settings(deadline=None, max_examples=60)
@given(quoted_moneyness(), st.floats(0.01, 2.0), st.floats(-1.0, 1.0), st.floats(-2.0, 2.0))
def test_parabolas_come_back_as_they_are(x: Array, level: float, slope: float, curvature: float) -> None:
    smile = fitted(x, level + slope * x + curvature * x**2)
    at = np.linspace(x[0], x[-1], 301)
    assert smile.at(at) == pytest.approx(level + slope * at + curvature * at**2, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(quoted_moneyness(), st.integers(0, 2**31))
def test_the_smile_is_the_minimiser_it_says_it_is(x: Array, seed: int) -> None:
    """Noise of 0.3 vol points on a smile no parabola fits."""
    noise = np.random.default_rng(seed).normal(0.0, 0.003, x.size)
    volatility = 0.2 + 0.1 * np.tanh(-4.0 * x) + noise
    at = np.linspace(x[0], x[-1], 101)
    scale = np.abs(slow_fit(x, volatility, at)).max()
    assert fitted(x, volatility).at(at) == pytest.approx(slow_fit(x, volatility, at), abs=1e-6 * scale)


def test_noise_is_taken_out_and_a_skew_is_not() -> None:
    """Against the truth, 90 quotes with noise of one vol point: less than half of the noise is left; without noise the
    penalty costs less than 0.05 vol points."""
    x = np.linspace(-0.55, 0.3, 90)
    truth = 0.15 + 0.25 * (np.sqrt((x - 0.1) ** 2 + 0.02) - (x - 0.1)) / 2.0
    noisy = truth + np.random.default_rng(0).normal(0.0, 0.01, x.size)
    assert np.sqrt(np.mean((fitted(x, noisy).at(x) - truth) ** 2)) < 0.005
    assert np.abs(fitted(x, truth).at(x) - truth).max() < 5e-4


@settings(deadline=None, max_examples=30)
@given(quoted_moneyness(), st.integers(0, 2**31), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_linear_in_the_volatilities(x: Array, seed: int, first: float, second: float) -> None:
    one, other = np.random.default_rng(seed).uniform(0.05, 0.9, (2, x.size))
    both = fitted(x, first * one + second * other).at(WIDE)
    apart = first * fitted(x, one).at(WIDE) + second * fitted(x, other).at(WIDE)
    assert both == pytest.approx(apart, abs=1e-8 * max(1.0, float(np.abs(apart).max())))


@settings(deadline=None, max_examples=60)
@given(quoted_moneyness(), st.integers(0, 2**31))
def test_continuous_with_its_slope_at_the_ends_and_bounded_beyond(x: Array, seed: int) -> None:
    smile = fitted(x, np.random.default_rng(seed).uniform(0.1, 0.4, x.size))
    step = 1e-7
    for end, sign in ((smile.low, -1.0), (smile.high, 1.0)):
        here, inside, outside = smile.at(np.array([end, end - sign * step, end + sign * step]))
        inner, outer = (here - inside) / step, (outside - here) / step  # outward slopes
        size = 1.0 + abs(inner)
        assert abs(outside - here) < 2.0 * size * step
        assert outer == pytest.approx(inner, abs=1e-3 * size)
        beyond = smile.at(end + sign * np.geomspace(1e-6, 1e6, 200))
        rises = np.diff(np.r_[here, beyond]) * np.sign(outer)
        assert (rises >= -1e-12 * size).all(), "goes on one way"
        assert np.abs(beyond - here).max() <= REACH * abs(inner) + 1e-4 * size


def test_far_beyond_the_quotes_nothing_grows() -> None:
    x = np.linspace(-0.3, 0.2, 12)
    smile = fitted(x, 0.2 - 0.3 * x)
    assert smile.at(np.array([-1e300, 1e300])) == pytest.approx([0.29 + 0.03, 0.14 - 0.03], abs=1e-9)


def test_a_point_alone_equals_the_same_point_in_company() -> None:
    """To the last bit: a host prices some contracts, training priced all."""
    x = np.sort(np.random.default_rng(1).uniform(-0.6, 0.4, 50))
    smile = fitted(x, 0.2 - 0.1 * x + 0.01 * np.sin(30.0 * x))
    at = np.random.default_rng(2).uniform(-1.0, 1.0, 203)
    whole = smile.at(at)
    assert [float(smile.at(at[[place]])[0]) for place in range(at.size)] == whole.tolist()
    assert np.array_equal(smile.at(at[::-7]), whole[::-7])


def test_quotes_that_are_few_or_on_one_spot_have_no_smile() -> None:
    x = np.linspace(-0.3, 0.2, FEWEST_QUOTES)
    assert fit_smooth_smile(x, np.full_like(x, 0.2)) is not None
    assert fit_smooth_smile(x[:-1], np.full(x.size - 1, 0.2)) is None
    assert fit_smooth_smile(x[:0], x[:0]) is None
    assert fit_smooth_smile(0.99 * KNOT_WIDTH * np.linspace(0.0, 1.0, 40), np.full(40, 0.2)) is None


@settings(deadline=None, max_examples=60)
@given(quoted_moneyness(), st.integers(0, 2**31), st.sampled_from([1e-9, 1e-3, 1.0, 600.0]))
def test_any_volatilities_give_finite_smiles(x: Array, seed: int, size: float) -> None:
    volatility = size * np.exp(np.random.default_rng(seed).normal(0.0, 2.0, x.size))
    assert np.isfinite(fitted(x, volatility).at(WIDE)).all()


# --- several tenors

TAU = {"near": 28 / 365, "middle": 35 / 365, "middle too": 35 / 365, "far": 42 / 365}
Quoted = dict[str, tuple[Array, Array]]


def surface(level: float = 0.2) -> Quoted:
    """Equal volatilities at equal moneyness: total variance rises with the tenor."""
    x = np.linspace(-0.5, 0.4, 37)
    return dict.fromkeys(TAU, (x, level - 0.1 * x + 0.1 * x**2))


def smooth(quotes: Quoted) -> dict[str, SmoothSmile]:
    return {name: fitted(*quoted) for name, quoted in quotes.items()}


def assert_same(first: SmoothSmile, second: SmoothSmile) -> None:
    assert (first.low, first.high) == (second.low, second.high)
    assert np.array_equal(first.coefficients, second.coefficients)


def test_an_ordered_surface_is_left_alone() -> None:
    quotes = surface()
    before = smooth(quotes)
    after = ordered(before, TAU, quotes)
    assert after.keys() == before.keys()
    for name in before:
        assert_same(after[name], before[name])


@pytest.mark.parametrize(("low", "shorter"), [("middle", "near"), ("far", "middle")])
def test_a_planted_inversion_is_lifted_and_nothing_else(low: str, shorter: str) -> None:
    """An expiry 15 % too low at all strikes: its total variance lies below the shorter tenor's."""
    quotes = surface()
    x, volatility = quotes[low]
    quotes[low] = x, 0.85 * volatility
    before = smooth(quotes)
    after = ordered(before, TAU, quotes)
    for name in before:
        if name != low:
            assert_same(after[name], before[name])
    scale = np.sqrt(TAU[low] / TAU[shorter])
    common = x[np.abs(x * scale) < 0.4]
    variance = after[low].at(common) ** 2 * TAU[low]
    floor = after[shorter].at(common * scale) ** 2 * TAU[shorter]
    assert (before[low].at(common) ** 2 * TAU[low] < 0.95 * floor).all()
    assert (variance > floor).all()
    inner = np.abs(common) < 0.25  # further out the quotes beyond the shorter tenor's, which stay low, are felt
    assert variance[inner] == pytest.approx((floor * (1.0 + MARGIN) ** 2)[inner], rel=MARGIN)


def test_low_quotes_are_lifted_and_the_smile_far_from_them_stays() -> None:
    """Five quotes at the money, 5 vol points low, below the shorter tenor's total variance."""
    quotes = surface()
    x, volatility = quotes["far"]
    low = np.abs(x) < 0.06
    assert low.sum() == 5
    quotes["far"] = x, np.where(low, volatility - 0.05, volatility)
    before = smooth(quotes)
    after = ordered(before, TAU, quotes)
    scale = np.sqrt(TAU["far"] / TAU["middle"])
    floor = after["middle"].at(x * scale) / scale
    assert before["far"].at(x)[20] < floor[20] - 0.02
    assert after["far"].at(x)[19:22] == pytest.approx(floor[19:22], abs=0.003)
    away = np.abs(x) > 0.2
    assert after["far"].at(x[away]) == pytest.approx(volatility[away], abs=5e-4)


def test_equal_tenors_are_not_compared() -> None:
    quotes = surface()
    x, volatility = quotes["middle"]
    quotes["middle too"] = x, volatility * 0.96  # still above the nearer tenor
    before = smooth(quotes)
    after = ordered(before, TAU, quotes)
    for name in before:
        assert_same(after[name], before[name])


def test_what_the_shorter_tenor_does_not_reach_is_not_lifted() -> None:
    """The shorter tenor quotes calls only: puts of the longer one lie below nothing that is known."""
    x = np.linspace(0.15, 0.5, 20)
    wide = np.linspace(-0.5, 0.4, 37)
    tau = {"near": 28 / 365, "far": 35 / 365}
    low = np.where(wide < 0.0, 0.1, 0.5)
    quotes = {"near": (x, np.full_like(x, 0.4)), "far": (wide, low)}
    before = smooth(quotes)
    assert_same(ordered(before, tau, quotes)["far"], before["far"])


def test_the_extension_is_held_up_too() -> None:
    """A longer tenor that quotes little: beyond its quotes, where it falls below the shorter one's puts."""
    x = np.linspace(-0.5, 0.4, 37)
    narrow = np.linspace(-0.1, 0.1, 9)
    tau = {"near": 30 / 365, "far": 37 / 365}
    quotes = {"near": (x, 0.2 - 0.4 * x), "far": (narrow, np.full_like(narrow, 0.23))}
    before = smooth(quotes)
    after = ordered(before, tau, quotes)
    scale = np.sqrt(tau["far"] / tau["near"])
    edge = narrow[0] - EDGE[1:]  # inside the shorter tenor's quotes
    floor = after["near"].at(edge * scale) / scale
    assert (before["far"].at(edge) < floor).all()
    assert (after["far"].at(edge) > floor - 1e-3).all()
    assert after["far"].at(narrow[4:]) == pytest.approx(np.full(5, 0.23), abs=5e-3)


@settings(deadline=None, max_examples=40)
@given(st.permutations(list(TAU)), st.integers(0, 2**31))
def test_the_order_in_which_smiles_are_given_does_not_matter(names: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.linspace(-0.5, 0.4, 37)
    quotes = {name: (x, rng.uniform(0.1, 0.5) * np.exp(rng.normal(0.0, 0.1, x.size))) for name in TAU}
    found = ordered(smooth(quotes), TAU, quotes)
    again = ordered(smooth({name: quotes[name] for name in names}), TAU, quotes)
    assert found.keys() == again.keys()
    for name in TAU:
        assert_same(found[name], again[name])
        assert np.isfinite(found[name].at(WIDE)).all()


def test_no_smiles_no_surface() -> None:
    assert ordered({}, {}, {}) == {}
