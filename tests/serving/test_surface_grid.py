"""The surface on its grid: what is linear is reproduced, nothing is extrapolated, a carried smile keeps its strikes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DataError
from serving.last_seen import LastSeen, LastSmile, last_seen
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR, ExpiryKey, build_surface, tau_years
from serving.surface_grid import (
    CELLS,
    MONEYNESS,
    MONEYNESS_REACH,
    MOVE_FEATURES,
    NOTHING,
    SHAPE,
    TENOR_REACH,
    TENORS_DAYS,
    Grid,
    at_points,
    carried,
    check_grid_spec,
    fill,
    grid_spec,
    move_features,
    surface_grid,
    to_grid,
)
from tests.serving.test_surface import chain, flat

TS = np.datetime64("2024-03-01T20:45:00", "ns")
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")
TENORS, NODES = np.array(TENORS_DAYS), np.array(MONEYNESS)
WIDE = np.linspace(-0.6, 0.45, 22)
DENSE = np.array([6.0, 14.0, 25.0, 40.0, 70.0, 100.0, 150.0, 250.0, 340.0])


def grid_of(days: Array, moneyness: list[Array], volatility: list[Array]) -> tuple[Array, Array]:
    """Volatility and mask as tables, tenors in rows."""
    made = to_grid(days / DAYS_PER_YEAR, moneyness, volatility)
    return made.volatility.reshape(SHAPE), made.mask.reshape(SHAPE)


def seen_of(days: list[int], strikes: Array, volatility: Array, *, spot: float = 100.0, drift: float = 0.0) -> LastSeen:
    """One smile of the same strikes and volatilities per expiry; forwards grow with `drift`."""
    smiles = {}
    for count in days:
        key = ExpiryKey("AB", (TS.astype("datetime64[D]") + count).astype("datetime64[ns]"))
        forward = spot * float(np.exp(drift * count / DAYS_PER_YEAR))
        smiles[key] = LastSmile(key, count / DAYS_PER_YEAR, forward, 0.99, strikes, volatility, np.zeros(3), True)
    return LastSeen(TS, spot, smiles)


# --- smiles to cells


def test_a_flat_surface_gives_a_flat_grid() -> None:
    volatility, mask = grid_of(DENSE, [WIDE] * len(DENSE), [np.full(len(WIDE), 0.23)] * len(DENSE))
    assert mask.all()
    np.testing.assert_allclose(volatility, 0.23, rtol=1e-14)


def test_total_variance_linear_in_tau_and_volatility_linear_in_moneyness_are_reproduced() -> None:
    """w(tau, x) = tau level(x)^2 + c(x): volatilities between smiles are exactly those of w."""

    def volatility(tau: Array | float, x: Array) -> Array:
        return np.sqrt((0.04 - 0.03 * x) + 0.002 * (1 + x) / tau)

    tau = DENSE / DAYS_PER_YEAR
    found, mask = grid_of(DENSE, [NODES] * len(DENSE), [volatility(at, NODES) for at in tau])
    assert mask.all()
    wanted = np.stack([volatility(days / DAYS_PER_YEAR, NODES) for days in TENORS])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    line, mask = grid_of(TENORS, [WIDE] * len(TENORS), [0.2 - 0.1 * WIDE] * len(TENORS))
    assert mask.all()
    np.testing.assert_allclose(line, np.tile(0.2 - 0.1 * NODES, (SHAPE[0], 1)), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-0.55, 0.2), width=st.floats(0.02, 0.6))
def test_nothing_beyond_the_quotes_of_a_smile(low: float, width: float) -> None:
    x = np.linspace(low, low + width, 5)
    _, mask = grid_of(TENORS, [x] * len(TENORS), [np.full(5, 0.2)] * len(TENORS))
    inside = (low - MONEYNESS_REACH <= NODES) & (x[-1] + MONEYNESS_REACH >= NODES)
    assert (mask == inside).all()


@settings(max_examples=60, deadline=None)
@given(days=st.lists(st.integers(6, 364), min_size=1, max_size=5, unique=True))
def test_nothing_beyond_the_reach_of_the_first_and_last_tenor(days: list[int]) -> None:
    tau = np.array(days, dtype=float)
    _, mask = grid_of(tau, [WIDE] * len(tau), [np.full(len(WIDE), 0.2)] * len(tau))
    inside = (tau.min() / TENOR_REACH <= TENORS) & (TENOR_REACH * tau.max() >= TENORS)
    assert (mask == inside[:, None]).all()


def test_a_cell_needs_both_neighbours_to_know_its_column() -> None:
    """The nearer smile is narrow: its columns come from the next one, if that is still near enough."""
    narrow, wide = np.linspace(-0.1, 0.1, 5), WIDE
    days = np.array([20.0, 40.0, 60.0])
    volatility, mask = grid_of(days, [wide, narrow, wide], [np.full(len(x), v) for x, v in
                               ((wide, 0.2), (narrow, 0.9), (wide, 0.2))])  # fmt: skip
    at_45 = TENORS_DAYS.index(45.0)
    outer, inner = MONEYNESS.index(-0.4), MONEYNESS.index(0.0)
    assert mask[at_45].all()
    assert volatility[at_45, outer] == pytest.approx(0.2, rel=1e-12)
    assert volatility[at_45, inner] > 0.5


def test_unknown_cells_are_zero_and_an_empty_snapshot_knows_none() -> None:
    made = to_grid(np.array([30.0]) / DAYS_PER_YEAR, [np.linspace(-0.1, 0.1, 5)], [np.full(5, 0.2)])
    assert (made.volatility[made.mask == 0] == 0).all()
    assert made.known == made.mask.sum() > 0
    for empty in (to_grid(np.array([]), [], []), to_grid(np.array([0.1]), [np.array([])], [np.array([])])):
        assert empty.known == 0
        assert not empty.volatility.any()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_order_of_smiles_does_not_matter(order: list[int], seed: int) -> None:
    days = np.array([12.0, 33.0, 80.0, 200.0])
    volatility = list(0.1 + 0.2 * np.random.default_rng(seed).random((4, len(WIDE))))
    first = grid_of(days, [WIDE] * 4, volatility)
    second = grid_of(days[order], [WIDE] * 4, [volatility[place] for place in order])
    np.testing.assert_array_equal(first, second)


def test_the_grid_of_real_quotes_is_the_smile_they_were_priced_with() -> None:
    made = surface_grid(last_seen(build_surface(chain(volatility=flat))))
    (level,) = set(flat(np.array([100.0]), 0.1))
    assert made.known > 40
    np.testing.assert_allclose(made.volatility[made.mask > 0], level, rtol=1e-6)


# --- carried to a later time


STRIKES = 100.0 * np.exp(np.linspace(-0.35, 0.3, 40))
SKEW = 0.2 - 0.15 * np.log(STRIKES / 100.0)
EXPIRIES = [8, 25, 50, 100, 200, 340]


def test_carried_nowhere_it_is_the_grid() -> None:
    seen = seen_of(EXPIRIES, STRIKES, SKEW, drift=0.02)
    same, wanted = carried(seen, seen.ts, seen.spot), surface_grid(seen)
    np.testing.assert_array_equal(same.volatility, wanted.volatility)
    np.testing.assert_array_equal(same.mask, wanted.mask)


@pytest.mark.parametrize("factor", [0.95, 1.0, 1.04])
def test_a_carried_contract_keeps_its_volatility_at_its_new_moneyness(factor: float) -> None:
    """The smile is linear in ln K: so a cell at moneyness x reads it at F exp(x sqrt(tau)), F the carried forward."""
    days, later, spot = 65, TS + 5 * DAY, 100.0 * factor
    made = carried(seen_of([days], STRIKES, SKEW, drift=0.02), later, spot)
    tau, forward = 60 / DAYS_PER_YEAR, spot * np.exp(0.02 * days / DAYS_PER_YEAR)
    row = slice(TENORS_DAYS.index(60.0) * SHAPE[1], (TENORS_DAYS.index(60.0) + 1) * SHAPE[1])
    wanted = 0.2 - 0.15 * np.log(forward * np.exp(NODES * np.sqrt(tau)) / 100.0)
    assert made.mask[row].all()
    np.testing.assert_allclose(made.volatility[row], wanted, rtol=1e-12)


def test_what_has_expired_is_not_carried() -> None:
    seen = seen_of([8, 60], STRIKES, SKEW)
    alone = seen_of([60], STRIKES, SKEW)
    later = TS + 8 * DAY
    assert tau_years(later, next(iter(seen.smiles)).expiry) == 0
    first, second = carried(seen, later, 100.0), carried(alone, later, 100.0)
    np.testing.assert_array_equal(first.volatility, second.volatility)
    assert carried(seen_of([8], STRIKES, SKEW), later, 100.0).known == 0


def test_smiles_outside_the_scored_range_take_no_part() -> None:
    seen = seen_of([30, 60], STRIKES, SKEW)
    key = next(iter(seen.smiles))
    smile = seen.smiles[key]
    outside = LastSmile(key, smile.tau, smile.forward, smile.discount, smile.strike, smile.volatility + 0.5,
                        smile.shape, False)  # fmt: skip
    first = surface_grid(LastSeen(seen.ts, seen.spot, {**seen.smiles, key: outside}))
    np.testing.assert_array_equal(first.volatility, surface_grid(seen_of([60], STRIKES, SKEW)).volatility)


# --- filled


grids = st.tuples(st.integers(0, 10_000), st.floats(0.01, 1.0)).map(
    lambda drawn: np.random.default_rng(drawn[0]).random((2, CELLS)) * [[0.5], [1.0]] + [[0.05], [drawn[1] - 1.0]]
)


@settings(max_examples=60, deadline=None)
@given(drawn=grids)
def test_filling_keeps_what_is_known_and_stays_within_it(drawn: Array) -> None:
    mask = (drawn[1] > 0).astype(float)
    filled = fill(Grid(drawn[0] * mask, mask))
    known = mask > 0
    if not known.any():
        assert not filled.any()
        return
    np.testing.assert_array_equal(filled[known], drawn[0][known])
    assert filled.min() >= drawn[0][known].min() - 1e-12
    assert filled.max() <= drawn[0][known].max() + 1e-12


def test_one_known_cell_fills_all() -> None:
    for cell in (0, 40, CELLS - 1):
        mask = np.zeros(CELLS)
        mask[cell] = 1.0
        np.testing.assert_allclose(fill(Grid(0.31 * mask, mask)), 0.31, rtol=1e-14)
    assert not fill(NOTHING).any()


# --- read between the cells


def points(count: int = 200, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    days = np.exp(generator.uniform(np.log(TENORS[0]), np.log(TENORS[-1]), count))
    return days / DAYS_PER_YEAR, generator.uniform(NODES[0], NODES[-1], count)


def test_reading_at_the_nodes_gives_the_cells() -> None:
    cells = np.random.default_rng(1).random(CELLS)
    found = at_points(cells, np.repeat(TENORS / DAYS_PER_YEAR, SHAPE[1]), np.tile(NODES, SHAPE[0]))
    np.testing.assert_allclose(found, cells, rtol=1e-12)


def test_what_is_bilinear_in_log_tau_and_moneyness_is_reproduced() -> None:
    def plane(tau: Array, x: Array) -> Array:
        return np.asarray(0.2 + 0.02 * np.log(tau) - 0.1 * x + 0.05 * x * np.log(tau))

    cells = plane(np.repeat(TENORS / DAYS_PER_YEAR, SHAPE[1]), np.tile(NODES, SHAPE[0]))
    np.testing.assert_allclose(at_points(cells, *points()), plane(*points()), rtol=1e-11)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), days=st.floats(1.0, 800.0), x=st.floats(-3.0, 3.0))
def test_reading_lies_between_the_four_cells_around_and_is_flat_outside(seed: int, days: float, x: float) -> None:
    cells = np.random.default_rng(seed).random(CELLS)
    table = cells.reshape(SHAPE)
    found = at_points(cells, np.array([days]) / DAYS_PER_YEAR, np.array([x]))[0]
    inside_days, inside_x = np.clip(days, TENORS[0], TENORS[-1]), np.clip(x, NODES[0], NODES[-1])
    assert found == pytest.approx(at_points(cells, np.array([inside_days]) / DAYS_PER_YEAR, np.array([inside_x]))[0])
    row = int(np.clip(np.searchsorted(TENORS, inside_days) - 1, 0, SHAPE[0] - 2))
    column = int(np.clip(np.searchsorted(NODES, inside_x) - 1, 0, SHAPE[1] - 2))
    around = table[row : row + 2, column : column + 2]
    assert around.min() - 1e-9 <= found <= around.max() + 1e-9


# --- the underlying's move, and what a bundle says


def test_moves_are_those_since_the_last_snapshot() -> None:
    seen = seen_of([30], STRIKES, SKEW)
    found = dict(zip(MOVE_FEATURES, move_features(seen, TS + 3 * DAY, 98.0), strict=True))
    assert found["log_return"] == pytest.approx(np.log(0.98))
    assert found["absolute_return"] == pytest.approx(-np.log(0.98))
    assert found["elapsed_days"] == pytest.approx(3.0)
    assert not move_features(None, TS, 98.0).any()


@pytest.mark.parametrize("name", list(grid_spec()))
def test_another_grid_is_refused_by_name(name: str) -> None:
    check_grid_spec(grid_spec() | {"regimes": ["calm"]})
    for wrong in (grid_spec() | {name: [1.0]}, {key: value for key, value in grid_spec().items() if key != name}):
        with pytest.raises(DataError, match=f"differs from this code's in {name}: install"):
            check_grid_spec(wrong)
