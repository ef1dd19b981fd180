"""The anomaly score: unknown cells have no say, few cells no verdict, a usual surface scores low and a spoilt one high.

`likely` stands for a trained net: it completes the surface as the level of what it sees times a fixed shape. The quotes
behind `day` change as its surfaces do, an expiry per tenor.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.normal import Array
from serving.surface import DAYS_PER_YEAR
from serving.surface_changes import Changes
from serving.surface_grid import CELLS, MONEYNESS, SHAPE, TENORS_DAYS, Grid
from serving.surface_reference import NET_STATISTICS, STATISTICS, Evidence, Expected, Reference
from serving.surface_score import FEWEST_CELLS, Score, SurfaceAnswer, SurfaceInput, score, statistics

FORM = np.outer(1.0 + 0.02 * np.log(np.array(TENORS_DAYS)), 1.0 - 0.5 * np.array(MONEYNESS)).ravel()
DEVIATION = 0.004
ALL = np.ones(CELLS)
WINGS = np.array(MONEYNESS) <= -0.2, np.array(MONEYNESS) >= 0.1


def likely(known: SurfaceInput) -> SurfaceAnswer:
    """Completed: level times FORM, the level of the known cells (of the last surface where none is)."""
    surface, mask = known.surface.astype(float), known.mask.astype(float)
    count = mask.sum(1, keepdims=True)
    level = (mask * surface / FORM).sum(1, keepdims=True) / np.maximum(count, 1.0)
    level = np.where(count > 0, level, (known.last.astype(float) / FORM).mean(1, keepdims=True))
    return SurfaceAnswer(
        (level * FORM).astype(np.float32), np.full(surface.shape, DEVIATION, np.float32),
        np.zeros((len(surface), 2), np.float32), np.zeros(len(surface), np.float32),
        np.ones((len(surface), 1), np.float32),
    )  # fmt: skip


def day(seed: int, mask: Array = ALL) -> SurfaceInput:
    """A surface of the net's world with its noise, after an ordinary move."""
    generator = np.random.default_rng(seed)
    move = 0.01 * generator.standard_normal()
    before = 0.2 * np.exp(0.1 * generator.standard_normal())
    level = before - 5 * 0.2 * move + 0.002 * generator.standard_normal()
    surface = level * FORM + DEVIATION * generator.standard_normal(CELLS)
    return SurfaceInput.of(Grid(surface * mask, mask), Grid(before * FORM, ALL), np.array([move, abs(move), 1.0]))


def with_surface(one: SurfaceInput, surface: Array) -> SurfaceInput:
    return dataclasses.replace(one, surface=surface.astype(np.float32).reshape(1, -1))


def quotes_of(one: SurfaceInput) -> Changes:
    """An expiry per tenor whose smile is the row of the grid."""
    change = np.log(np.maximum(one.surface, 1e-3) / one.last)[0].astype(float).reshape(SHAPE)
    level, put, call = (np.median(change[:, columns], axis=1) for columns in (~(WINGS[0] | WINGS[1]), *WINGS))
    rough = np.median(np.abs(change - np.median(change, axis=1, keepdims=True)), axis=1)
    return Changes(float(one.move[0, 0]), np.array(TENORS_DAYS) / DAYS_PER_YEAR,
                   np.stack([level, put - level, call - level], axis=1), np.stack([rough, rough], axis=1),
                   np.full(SHAPE[0], 1e-4))  # fmt: skip


def evidence(one: SurfaceInput) -> Evidence:
    return Evidence(statistics(likely, one)[0], quotes_of(one))


@pytest.fixture(scope="module")
def reference() -> Reference:
    training = [quotes_of(day(seed)) for seed in range(5000, 5200)]
    return Reference.fit([evidence(day(seed)) for seed in range(200)], training)


def judged(one: SurfaceInput, reference: Reference) -> Score:
    return score(evidence(one), reference)


# --- statistics


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.0, 1.0))
def test_unknown_cells_have_no_say(seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random(CELLS) < share).astype(float)
    one = day(seed, mask)
    other = with_surface(one, np.where(mask > 0, one.surface[0], 7.0))
    np.testing.assert_array_equal(statistics(likely, one)[0], statistics(likely, other)[0])


def test_statistics_are_those_written_out() -> None:
    """Each tenor and column hidden by hand, one call of the net for each."""
    mask = (np.random.default_rng(4).random(CELLS) < 0.6).astype(float)
    one = day(3, mask)
    table = np.arange(CELLS).reshape(SHAPE)
    surface = one.surface[0].astype(float)

    def residual(hidden: list[int], judge: list[int]) -> float:
        chosen = [cell for cell in judge if mask[cell] > 0]
        rows = np.zeros((1, CELLS), dtype=bool)
        rows[0, hidden] = True
        answer = likely(one.hiding(rows))
        misses = [((surface[cell] - answer.completed[0, cell]) / answer.deviation[0, cell]) ** 2 for cell in chosen]
        return float(np.sqrt(np.mean(misses))) if len(chosen) >= FEWEST_CELLS else 0.0

    tenors = [residual(list(row), list(row)) for row in table]
    columns = [residual(list(column), list(column)) for column in table.T]
    found, answer = statistics(likely, one)
    assert len(found) == len(NET_STATISTICS)
    np.testing.assert_allclose(found, [residual([], list(range(CELLS))), max(tenors), max(columns)], rtol=1e-5)
    whole = likely(one)
    for name in SurfaceAnswer.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(answer, name), getattr(whole, name))


def test_hiding_takes_cells_away_and_leaves_the_rest() -> None:
    one = day(1, (np.random.default_rng(1).random(CELLS) < 0.7).astype(float))
    hidden = np.random.default_rng(2).random((3, CELLS)) < 0.4
    many = one.hiding(hidden)
    np.testing.assert_array_equal(many.mask, one.mask * ~hidden)
    np.testing.assert_array_equal(many.surface, one.surface * many.mask)
    for name in ("last", "last_mask", "move"):
        np.testing.assert_array_equal(getattr(many, name), np.repeat(getattr(one, name), 3, axis=0))
    assert {part.dtype for part in vars(many).values()} == {np.dtype(np.float32)}


def test_few_cells_give_no_verdict_on_lines(reference: Reference) -> None:
    """One expiry alone: no column has enough cells to be hidden and judged, and that isn't unusual in itself."""
    mask = np.zeros(SHAPE)
    mask[3] = 1.0
    quotes = quotes_of(day(7))
    one = score(Evidence(statistics(likely, day(7, mask.ravel()))[0], quotes), reference)
    assert set(one.by_statistic) == set(STATISTICS) - {"worst_moneyness"}
    assert one.value < judged(day(7), reference).value + 3.0
    nothing = score(Evidence(statistics(likely, day(7, np.zeros(CELLS)))[0], quotes), reference)
    assert set(nothing.by_statistic) == set(STATISTICS) - set(NET_STATISTICS)
    assert np.isfinite(nothing.value)


def test_where_nothing_is_known_nothing_is_judged(reference: Reference) -> None:
    empty = Changes(0.01, np.zeros(0), np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0))
    found = score(Evidence(np.full(3, np.nan), empty), reference)
    assert found.by_statistic == {}
    assert (found.value, found.percentile) == (0.0, 0.0)


def test_an_answer_that_is_no_number_is_most_unusual(reference: Reference) -> None:
    def broken(known: SurfaceInput) -> SurfaceAnswer:
        return dataclasses.replace(likely(known), completed=np.full_like(known.surface, np.nan))

    found = score(Evidence(statistics(broken, day(1))[0], quotes_of(day(1))), reference)
    assert np.isfinite(found.value)
    assert found.percentile == highest(reference)


# --- the score


def highest(reference: Reference) -> float:
    """The percentile above every reference date: the judged one counts too."""
    return len(reference.scores) / (len(reference.scores) + 1)


def test_a_usual_surface_scores_low_and_spoilt_ones_high(reference: Reference) -> None:
    fresh = [judged(day(seed), reference) for seed in range(1000, 1100)]
    percentiles = np.array([one.percentile for one in fresh])
    assert 0.35 < percentiles.mean() < 0.65
    spoilt = day(1000).surface[0].reshape(SHAPE).astype(float)
    for change in (np.s_[4], np.s_[:, 2]):
        wrong = spoilt.copy()
        wrong[change] += 0.03
        found = judged(with_surface(day(1000), wrong.ravel()), reference)
        assert found.percentile == highest(reference)
        assert found.value > max(one.value for one in fresh)


def test_a_surface_that_does_not_stir_is_unusual(reference: Reference) -> None:
    """The last one again, though the underlying fell by three per cent."""
    stale = dataclasses.replace(
        with_surface(day(5), 0.2 * FORM), last=(0.2 * FORM).astype(np.float32).reshape(1, -1),
        move=np.array([[-0.03, 0.03, 1.0]], np.float32),
    )  # fmt: skip
    found = judged(stale, reference)
    assert found.percentile == highest(reference)
    assert found.by_statistic["roughness"] < -5.0
    assert found.by_statistic["common_level"] < -2.0
    assert found.by_statistic["residual"] < -5.0


def simple(scores: Array) -> Reference:
    """Median 0 and unit 1 for the net's statistics, nothing for the quotes'."""
    count = len(STATISTICS)
    unit = np.where(np.arange(count) < len(NET_STATISTICS), 1.0, np.inf)
    return Reference(np.full((3, 6), np.inf), np.ones(2), Expected(np.zeros((count, 3)), np.zeros(count), unit, unit),
                     scores)  # fmt: skip


def of_net(logs: list[float]) -> Evidence:
    return Evidence(np.exp(logs), quotes_of(day(1)))


def test_exactly_the_median_is_the_least_unusual() -> None:
    found = score(of_net([0.0, 0.0, 0.0]), simple(np.array([0.5, 1.0])))
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert found.percentile == 0.0


@settings(max_examples=60, deadline=None)
@given(
    deviations=st.lists(st.floats(-9, 9), min_size=3, max_size=3), place=st.integers(0, 2),
    further=st.floats(0.01, 5.0),
)  # fmt: skip
def test_percentile_never_falls_as_a_statistic_moves_away(deviations: list[float], place: int, further: float) -> None:
    reference = simple(np.linspace(0.1, 12.0, 50))
    found = score(of_net(deviations), reference)
    moved = list(deviations)
    moved[place] += float(np.copysign(further, moved[place]))
    worse = score(of_net(moved), reference)
    assert worse.value >= found.value
    assert 0.0 <= found.percentile <= worse.percentile <= 1.0
    assert worse.by_statistic[STATISTICS[place]] == pytest.approx(moved[place], abs=1e-9)
    assert worse.value == pytest.approx(np.abs(moved).max(), abs=1e-9)


def test_percentile_is_the_share_of_reference_dates_and_this_one_strictly_below() -> None:
    reference = simple(np.array([1.0, 2.0, 2.0, 3.0]))
    for value, below in ((0.5, 0.0), (1.0, 0.0), (2.0, 0.2), (2.5, 0.6), (3.0, 0.6), (3.5, 0.8)):
        assert score(of_net([0.0, -value, 0.0]), reference).percentile == below


@pytest.mark.parametrize(
    ("dates", "held_out", "calibrated"), [(100, True, True), (99, True, False), (100, False, False)]
)
def test_a_verdict_takes_a_hundred_dates_that_the_net_did_not_see(dates: int, held_out: bool, calibrated: bool) -> None:
    reference = dataclasses.replace(simple(np.linspace(0.1, 3.0, dates)), held_out=held_out)
    read = Reference.from_arrays(reference.to_arrays(), "reference.npz")
    assert score(of_net([1.0, 1.0, 1.0]), read).calibrated == calibrated
    assert (highest(reference) > 0.99) == (dates >= 100)
