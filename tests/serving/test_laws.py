"""Laws of motion: each meets its anchors, each predicts the world it describes, and on a flat surface they are one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.features import Contracts, contract_table
from serving.last_seen import Anchor, AnchorTarget, LastSeen, LastSmile, find_anchors, last_seen
from serving.laws import LawsOfMotion
from serving.normal import Array
from serving.smooth_smile import FEWEST_QUOTES, fit_smooth_smile
from serving.surface import ExpiryKey, build_surface
from tests.serving.test_last_seen import TARGETS, before, now
from tests.serving.test_surface import RATE, SPOT, TS, YIELD, chain, expiry_of

LAWS = ("sticky_strike", "sticky_moneyness", "scaled")
TENORS = (14, 30, 45, 120, 200)  # days, as seen
DAY = 1.0 / 365.0
QUOTED = np.linspace(-0.5, 0.45, 39)  # moneyness
ASKED = np.linspace(-0.3, 0.25, 23)


def parabola(x: Array) -> Array:
    return np.asarray(0.2 - 0.12 * x + 0.15 * x**2)


def level_of(volatility: float) -> Callable[[Array], Array]:
    return lambda x: np.full_like(x, volatility)


def key_of(days: int) -> ExpiryKey:
    return ExpiryKey("SPX", expiry_of("SPX", days))


def seen(smile: Callable[[Array], Array] = parabola, x: Array = QUOTED) -> LastSeen:
    """Every tenor quotes `smile` at moneyness `x`; made without prices, so worlds are exact."""
    smiles = {}
    for days in TENORS:
        tau = days * DAY
        forward, volatility = SPOT * float(np.exp(0.02 * tau)), smile(x)
        smiles[key_of(days)] = LastSmile(
            key_of(days), tau, forward, float(np.exp(-0.04 * tau)), forward * np.exp(x * np.sqrt(tau)), volatility,
            np.zeros(3), True, None, fit_smooth_smile(x, volatility),
        )  # fmt: skip
    return LastSeen(TS, SPOT, smiles)


@dataclasses.dataclass(frozen=True)
class World:
    """The next day: the underlying has returned `move`, forwards lie `deviation` (log) off the carried ones."""

    last: LastSeen
    move: float = 0.0
    deviation: float = 0.0

    @property
    def spot(self) -> float:
        return SPOT * float(np.exp(self.move))

    def strike(self, days: int, x: Array) -> Array:
        """The strikes at moneyness of now."""
        forward = self.last.carried_forward(key_of(days), self.spot) * np.exp(self.deviation)
        return np.asarray(forward * np.exp(x * np.sqrt((days - 1) * DAY)))

    def anchor(self, days: int, x: float, volatility: float) -> Anchor:
        """One that quotes this at moneyness `x`, as a pair."""
        strike, tau = self.strike(days, np.array([x])), (days - 1) * DAY
        smile = self.last.smiles[key_of(days)]
        carried = x + self.deviation / np.sqrt(tau)
        return Anchor(smile.key, float(strike[0]), tau, carried, volatility, float(smile.at(strike)[0]), self.deviation)

    def laws(self, anchors: list[Anchor]) -> Callable[[int, Array], dict[str, Array]]:
        """Volatilities by law, of days as seen and moneyness of now."""
        motion = LawsOfMotion(self.last, anchors, self.spot)
        return lambda days, x: motion.at(key_of(days), self.strike(days, x), (days - 1) * DAY)._asdict()


@st.composite
def anchor_points(draw: st.DrawFn, fewest: int = 0) -> list[tuple[int, float, float]]:
    """Days, moneyness, volatility; several per tenor, none twice."""
    place = st.tuples(st.sampled_from(TENORS), st.integers(-40, 40).map(lambda cent: cent / 100.0))
    places = draw(st.lists(place, min_size=fewest, max_size=7, unique=True))
    return [(days, x, draw(st.floats(0.05, 0.6))) for days, x in places]


# --- anchors


@settings(deadline=None, max_examples=100)
@given(anchor_points(), st.floats(-0.1, 0.1), st.floats(-0.02, 0.02))
def test_every_law_gives_every_anchor_its_volatility(
    points: list[tuple[int, float, float]], move: float, deviation: float
) -> None:
    world = World(seen(), move, deviation)
    laws = world.laws([world.anchor(*point) for point in points])
    for days, x, volatility in points:
        found = laws(days, np.array([x]))
        for name in LAWS:
            assert found[name] == pytest.approx([volatility], abs=1e-9), name


TARGET = st.builds(AnchorTarget, st.sampled_from([14.0, 22.0, 50.0, 113.0, 170.0]), st.floats(-0.4, 0.3))


@settings(deadline=None, max_examples=40)
@given(st.lists(TARGET, min_size=1, max_size=6), st.floats(-0.03, 0.03), st.floats(-0.01, 0.01), st.integers(0, 2**31))
def test_quoted_anchors_are_met_through_the_contract_table(
    targets: list[AnchorTarget], rise: float, error: float, seed: int
) -> None:
    """From quotes: noisy smiles as seen, the underlying printed `error` off, strikes wherever the grid has them."""
    noisy = chain(volatility=lambda strike, tau: 0.2 + np.random.default_rng(seed).normal(0.0, 0.01, strike.size))
    last, quotes = last_seen(build_surface(noisy)), now(SPOT, rise)
    quotes = dataclasses.replace(quotes, spot=SPOT * float(np.exp(error)))
    anchors = find_anchors(quotes, last, tuple(targets))
    assert anchors
    asked = Contracts(
        np.array([one.key.root for one in anchors]), np.array([one.key.expiry for one in anchors]),
        np.array([one.strike for one in anchors]), np.ones(len(anchors)),
    )  # fmt: skip
    table = contract_table(asked, quotes.ts, quotes.spot, last, anchors)
    volatility = np.array([anchors[row].volatility for row in table.rows])
    assert table.features[:, 0] == pytest.approx(volatility, abs=1e-10)
    motion = LawsOfMotion(last, anchors, quotes.spot)
    for one in anchors:
        found = motion.at(one.key, np.array([one.strike]), one.tau)
        assert np.array(found[:3]).ravel() == pytest.approx([one.volatility] * 3, abs=1e-10)


def test_without_anchors_the_surface_only_moves() -> None:
    world = World(seen(), 0.015)
    laws = world.laws([])
    for days in TENORS:
        smile, strike = world.last.smiles[key_of(days)], world.strike(days, ASKED)
        found = laws(days, ASKED)
        assert np.array_equal(found["sticky_strike"], smile.smooth_at(strike))
        assert found["sticky_moneyness"] == pytest.approx(parabola(ASKED), abs=1e-10)
        assert found["scaled"] == pytest.approx(parabola(ASKED), abs=1e-10)
        assert found["shift"].tolist() == [0.0] * ASKED.size
        then = np.log(strike / smile.forward) / np.sqrt(smile.tau)
        assert found["sticky_strike"] == pytest.approx(parabola(then), abs=1e-10)
        assert np.abs(found["sticky_strike"] - found["sticky_moneyness"]).max() > 0.002


@settings(deadline=None, max_examples=40)
@given(anchor_points(), st.floats(-0.1, 0.1), st.floats(0.5, 2.0))
def test_sticky_moneyness_and_scaled_follow_the_forward(
    points: list[tuple[int, float, float]], move: float, factor: float
) -> None:
    """Anchors, strikes and the underlying higher by a factor: the same volatilities."""
    here, there = (World(seen(), add) for add in (move, move + float(np.log(factor))))
    found, again = (world.laws([world.anchor(*point) for point in points]) for world in (here, there))
    for days in TENORS:
        for name in ("sticky_moneyness", "scaled"):
            assert found(days, ASKED)[name] == pytest.approx(again(days, ASKED)[name], abs=1e-9)


# --- worlds


@settings(deadline=None, max_examples=40)
@given(
    st.floats(-0.02, 0.02), st.floats(-0.005, 0.005), st.floats(-0.01, 0.01), st.floats(-0.003, 0.003),
    st.floats(-0.3, 0.2),
)  # fmt: skip
def test_sticky_worlds_are_predicted_by_their_laws(
    move: float, deviation: float, level: float, slope: float, x: float
) -> None:
    """The surface stays at its strikes, or at its moneyness, and sqrt(tau) volatility rises by a line in ln(tau):
    anchors at three tenors, off the money, tell it all; the tenors between them have none."""
    world = World(seen(), move, deviation)
    for name in ("sticky_strike", "sticky_moneyness"):

        def truth(days: int, at: Array, name: str = name) -> Array:
            tau, smile = (days - 1) * DAY, world.last.smiles[key_of(days)]
            then = np.log(world.strike(days, at) / smile.forward) / np.sqrt(smile.tau)
            rise = (level + slope * np.log(tau)) / np.sqrt(tau)
            return np.asarray(parabola(then if name == "sticky_strike" else at) + rise)

        laws = world.laws([world.anchor(days, x, float(truth(days, np.array([x]))[0])) for days in (14, 45, 200)])
        for days in TENORS:
            assert laws(days, ASKED)[name] == pytest.approx(truth(days, ASKED), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.02, 0.02), st.floats(-0.005, 0.005), st.lists(st.floats(0.8, 1.25), min_size=5, max_size=5))
def test_a_scaled_world_is_predicted_by_its_law(move: float, deviation: float, scales: list[float]) -> None:
    """sigma(x) = s last(x/s), another s for every tenor, told by an anchor at the money."""
    world = World(seen(), move, deviation)
    level, pairs = float(parabola(np.zeros(1))[0]), list(zip(TENORS, scales, strict=True))
    laws = world.laws([world.anchor(days, 0.0, scale * level) for days, scale in pairs])
    for days, scale in pairs:
        found = laws(days, ASKED)
        assert found["scaled"] == pytest.approx(scale * parabola(ASKED / scale), abs=1e-9)
        if abs(scale - 1.0) > 0.1:
            assert np.abs(found["sticky_moneyness"] - found["scaled"]).max() > 1e-3


@settings(deadline=None, max_examples=60)
@given(anchor_points(), st.floats(-0.1, 0.1), st.floats(0.1, 0.6))
def test_on_a_flat_surface_the_laws_are_one(
    points: list[tuple[int, float, float]], move: float, volatility: float
) -> None:
    """Whatever the anchors say: a surface without a shape has no way of its own to move."""
    world = World(seen(level_of(volatility)), move)
    laws = world.laws([world.anchor(*point) for point in points])
    for days in TENORS:
        found = laws(days, ASKED)
        assert found["sticky_moneyness"] == pytest.approx(found["sticky_strike"], abs=1e-10)
        if not points or min(point[2] for point in points) >= volatility:  # it isn't scaled down to nothing
            assert found["scaled"] == pytest.approx(found["sticky_strike"], abs=1e-10)


def test_a_surface_of_one_vol_point_stays_there() -> None:
    """Below the level to which a scaled smile comes down; without news it doesn't move."""
    world = World(seen(level_of(0.01)), 0.001)
    for name, found in world.laws([])(45, ASKED).items():
        assert found == pytest.approx(np.full(ASKED.size, 0.0 if name == "shift" else 0.01), abs=1e-12)


def test_an_anchor_at_nothing_leaves_a_scaled_smile_positive() -> None:
    world = World(seen())
    found = world.laws([world.anchor(days, 0.0, 1e-4) for days in TENORS])(45, ASKED)
    assert found["scaled"][np.abs(ASKED).argmin()] == pytest.approx(1e-4, abs=2e-4)
    assert np.isfinite(found["scaled"]).all()


# --- forwards


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.01, 0.01))
def test_a_common_error_of_the_forwards_is_put_right(error: float) -> None:
    """Quotes are made at the true spot, the underlying printed is off: pairs tell by how much, for all expiries."""
    quotes, last = dataclasses.replace(now(), spot=SPOT * float(np.exp(error))), before()
    anchors = find_anchors(quotes, last, TARGETS)
    motion = LawsOfMotion(last, anchors, quotes.spot)
    assert motion.deviation == pytest.approx(-error, abs=1.5e-4)
    contracts = Contracts(quotes.root, quotes.expiry, quotes.strike, quotes.right)
    table = contract_table(contracts, quotes.ts, quotes.spot, last, anchors)
    for key, smile in last.smiles.items():
        true = SPOT * np.exp((RATE - YIELD) * (smile.tau - DAY))
        assert motion.forward(key) == pytest.approx(true, rel=1.5e-4)  # the carry of the day is the rest
        rows = (contracts.root == key.root) & (contracts.expiry == key.expiry)
        here = rows[table.rows]
        assert here.any()
        assert set(table.forward[here].tolist()) == {motion.forward(key)}
        assert set(table.carried_forward[here].tolist()) == {last.carried_forward(key, quotes.spot)}


def test_forwards_are_carried_where_no_pair_quotes() -> None:
    last = before()
    quotes = now(1.01 * SPOT)
    calls = find_anchors(quotes.take(quotes.right > 0), last, TARGETS)
    assert calls
    for anchors in ([], calls):
        motion = LawsOfMotion(last, anchors, quotes.spot)
        assert all(motion.forward(key) == last.carried_forward(key, quotes.spot) for key in last.smiles)


def test_the_deviation_is_the_median_of_the_pairs() -> None:
    """One mad pair moves no forward."""
    world = World(seen())
    anchors = [
        dataclasses.replace(world.anchor(days, 0.0, 0.2), forward_deviation=value)
        for days, value in zip(TENORS[:3], (0.001, 5.0, 0.0012), strict=True)
    ]
    motion = LawsOfMotion(world.last, anchors, SPOT)
    assert motion.forward(key_of(14)) == pytest.approx(world.last.smiles[key_of(14)].forward * np.exp(0.0012))


# --- odd surfaces


@pytest.mark.parametrize("count", [1, 2, FEWEST_QUOTES - 1])
def test_smiles_with_few_quotes_stay_linear_between_them(count: int) -> None:
    x = np.linspace(-0.2, 0.1, count)
    world = World(seen(parabola, x), 0.01)
    assert all(smile.smooth is None for smile in world.last.smiles.values())
    smile, strike = world.last.smiles[key_of(45)], world.strike(45, ASKED)
    assert world.laws([])(45, ASKED)["sticky_strike"] == pytest.approx(smile.at(strike), abs=1e-12)
    moneyness = world.laws([])(45, ASKED)["sticky_moneyness"]
    then = np.interp(smile.forward * np.exp(ASKED * np.sqrt(smile.tau)), smile.strike, smile.volatility)
    assert moneyness == pytest.approx(then, abs=1e-12)
    laws = world.laws([world.anchor(45, -0.1, 0.3), world.anchor(45, 0.1, 0.25), world.anchor(14, 0.0, 0.1)])
    for days, at, volatility in ((45, -0.1, 0.3), (45, 0.1, 0.25), (14, 0.0, 0.1)):
        found = laws(days, np.array([at]))
        assert [found[name][0] for name in LAWS] == pytest.approx([volatility] * 3, abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    anchor_points(), st.floats(-2.0, 2.0), st.sampled_from([1e-7, 0.01, 0.2, 5.0, 600.0]), st.integers(0, 2**31),
    st.sampled_from([1, 3, FEWEST_QUOTES, 40]), st.sampled_from([-5.0, 0.0, 0.01]),
)  # fmt: skip
def test_nothing_that_isnt_finite_leaves(
    points: list[tuple[int, float, float]], move: float, size: float, seed: int, count: int, deviation: float
) -> None:
    """Absurd levels, leaps and forwards; strikes from a cent to a million."""
    rng = np.random.default_rng(seed)
    last = seen(lambda x: size * np.exp(rng.normal(0.0, 1.0, x.size)), np.linspace(-0.5, 0.4, count))
    world = World(last, move, deviation)
    anchors = [world.anchor(*point) for point in points]
    motion = LawsOfMotion(last, anchors, world.spot)
    for days in TENORS:
        found = motion.at(key_of(days), np.geomspace(0.01, 1e6, 50), (days - 1) * DAY)
        assert all(np.isfinite(values).all() for values in found)


def test_an_expiry_that_was_not_seen_has_no_law() -> None:
    with pytest.raises(KeyError):
        LawsOfMotion(seen(), [], SPOT).at(key_of(77), np.array([100.0]), 0.2)
