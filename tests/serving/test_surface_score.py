"""The anomaly score: unknown cells have no say, few cells no verdict, a usual surface scores low and a spoilt one high.

`likely` stands for a trained net: it completes the surface as the level of what it sees times a fixed shape.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import BundleError
from serving.normal import Array
from serving.surface_grid import CELLS, MONEYNESS, SHAPE, TENORS_DAYS, Grid
from serving.surface_score import (
    FEWEST_CELLS,
    FEWEST_REFERENCES,
    SMALLEST_SPREAD,
    STATISTICS,
    Reference,
    Score,
    SurfaceAnswer,
    SurfaceInput,
    score,
    statistics,
)

FORM = np.outer(1.0 + 0.02 * np.log(np.array(TENORS_DAYS)), 1.0 - 0.5 * np.array(MONEYNESS)).ravel()
DEVIATION = 0.004
ALL = np.ones(CELLS)


def likely(known: SurfaceInput) -> SurfaceAnswer:
    """Completed: level times FORM, the level of the known cells (of the last surface where none is)."""
    surface, mask = known.surface.astype(float), known.mask.astype(float)
    count = mask.sum(1, keepdims=True)
    level = (mask * surface / FORM).sum(1, keepdims=True) / np.maximum(count, 1.0)
    level = np.where(count > 0, level, (known.last.astype(float) / FORM).mean(1, keepdims=True))
    before = (known.last.astype(float) / FORM).mean(1)
    # what the level should have done: minus five times the return, in units of half a vol point
    surprise = 0.5 + ((level[:, 0] - before + 5 * 0.2 * known.move[:, 0]) / 0.005) ** 2
    return SurfaceAnswer(
        (level * FORM).astype(np.float32), np.full(surface.shape, DEVIATION, np.float32),
        np.zeros((len(surface), 2), np.float32), surprise.astype(np.float32), np.ones((len(surface), 1), np.float32),
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


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.fit([statistics(likely, day(seed))[0] for seed in range(200)])


def judged(one: SurfaceInput, reference: Reference) -> Score:
    return score(statistics(likely, one)[0], reference)


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
    assert len(found) == len(STATISTICS)
    np.testing.assert_allclose(found[1:], [residual([], list(range(CELLS))), max(tenors), max(columns)], rtol=1e-5)
    whole = likely(one)
    assert found[0] == pytest.approx(float(whole.surprise[0]), rel=1e-6)
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
    one = judged(day(7, mask.ravel()), reference)
    assert set(one.by_statistic) == {"surprise", "residual", "worst_tenor"}
    whole = judged(day(7), reference)
    assert one.value < whole.value + 3.0
    nothing = judged(day(7, np.zeros(CELLS)), reference)
    assert set(nothing.by_statistic) == {"surprise"}
    assert np.isfinite(nothing.value)


def test_an_answer_that_is_no_number_is_most_unusual(reference: Reference) -> None:
    def broken(known: SurfaceInput) -> SurfaceAnswer:
        return dataclasses.replace(likely(known), completed=np.full_like(known.surface, np.nan))

    found = score(statistics(broken, day(1))[0], reference)
    assert np.isfinite(found.value)
    assert found.percentile == highest(reference)


# --- the score


def highest(reference: Reference) -> float:
    """The percentile above every reference date: the judged one counts too."""
    return len(reference.scores) / (len(reference.scores) + 1)


@pytest.mark.parametrize(
    ("dates", "held_out", "calibrated"), [(100, True, True), (99, True, False), (100, False, False)]
)
def test_a_verdict_takes_a_hundred_dates_that_the_net_did_not_see(dates: int, held_out: bool, calibrated: bool) -> None:
    reference = Reference(np.zeros(4), np.ones(4), np.linspace(0.1, 3.0, dates), held_out)
    read = Reference.from_arrays(reference.to_arrays(), "reference.npz")
    assert score(np.ones(4), read).calibrated == calibrated
    assert (highest(reference) > 0.99) == (dates >= 100)


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
    """The last one again, though the underlying fell by three per cent; and one without any noise at all."""
    stale = dataclasses.replace(
        with_surface(day(5), 0.2 * FORM), last=(0.2 * FORM).astype(np.float32).reshape(1, -1),
        move=np.array([[-0.03, 0.03, 1.0]], np.float32),
    )  # fmt: skip
    found = judged(stale, reference)
    assert found.percentile == highest(reference)
    assert found.by_statistic["surprise"] > 5.0
    assert found.by_statistic["residual"] < -5.0


def test_exactly_the_median_is_the_least_unusual(reference: Reference) -> None:
    found = score(np.exp(reference.median), reference)
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert found.percentile == 0.0


@settings(max_examples=60, deadline=None)
@given(
    deviations=st.lists(st.floats(-9, 9), min_size=4, max_size=4), place=st.integers(0, 3),
    further=st.floats(0.01, 5.0),
)  # fmt: skip
def test_percentile_never_falls_as_a_statistic_moves_away(deviations: list[float], place: int, further: float) -> None:
    reference = Reference.fit([statistics(likely, day(seed))[0] for seed in range(20)])
    signs = np.array(deviations)
    found = score(np.exp(reference.median + signs * reference.spread), reference)
    signs[place] += np.copysign(further, signs[place])
    worse = score(np.exp(reference.median + signs * reference.spread), reference)
    assert worse.value >= found.value
    assert 0.0 <= found.percentile <= worse.percentile <= 1.0
    assert worse.by_statistic[STATISTICS[place]] == pytest.approx(signs[place], abs=1e-9)
    assert worse.value == pytest.approx(np.abs(signs).max(), abs=1e-9)


def test_percentile_is_the_share_of_reference_dates_and_this_one_strictly_below() -> None:
    reference = Reference(np.zeros(4), np.ones(4), np.array([1.0, 2.0, 2.0, 3.0]))
    for value, below in ((0.5, 0.0), (1.0, 0.0), (2.0, 0.2), (2.5, 0.6), (3.0, 0.6), (3.5, 0.8)):
        assert score(np.exp([0.0, -value, 0.0, 0.0]), reference).percentile == below


# --- the reference


def test_the_reference_is_robust(reference: Reference) -> None:
    """A tenth of the dates being absurd barely moves it; equal dates still have a spread."""
    found = [statistics(likely, day(seed))[0] for seed in range(200)]
    spoilt = Reference.fit([one * (1e4 if place % 10 == 0 else 1.0) for place, one in enumerate(found)])
    np.testing.assert_allclose(spoilt.median, reference.median, atol=0.5 * reference.spread.max())
    assert (spoilt.spread < 2 * reference.spread).all()
    assert (Reference.fit([found[0]] * FEWEST_REFERENCES).spread == SMALLEST_SPREAD).all()


def test_statistics_that_no_reference_date_gives_are_never_held_against() -> None:
    narrow = np.zeros(SHAPE)
    narrow[3] = 1.0
    few = Reference.fit([statistics(likely, day(seed, narrow.ravel()))[0] for seed in range(50)])
    assert np.isfinite(few.scores).all()
    found = score(statistics(likely, day(60))[0], Reference.from_arrays(few.to_arrays(), "reference.npz"))
    assert found.by_statistic["worst_moneyness"] == 0.0
    assert np.isfinite(found.value)


def test_arrays_read_back(reference: Reference) -> None:
    again = Reference.from_arrays(reference.to_arrays(), "reference.npz")
    for field in dataclasses.fields(Reference):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(reference, field.name))
    assert (np.diff(again.scores) >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_median": None}, "holds no reference"), ({"score_spread": None}, "holds no reference"),
        ({"score_reference": None}, "holds no reference"), ({"score_reference": np.zeros(0)}, "holds no reference"),
        ({"score_median": np.zeros(3)}, r"shapes \(3,\), \(4,\)"), ({"score_spread": np.ones((2, 2))}, "shapes"),
        ({"score_reference": np.ones((2, 2))}, "shapes"), ({"score_median": np.full(4, np.nan)}, "can't be"),
        ({"score_spread": np.zeros(4)}, "can't be"), ({"score_reference": np.array([1.0, np.inf])}, "can't be"),
    ],
)  # fmt: skip
def test_a_broken_reference_is_refused(reference: Reference, change: dict[str, Array | None], message: str) -> None:
    arrays = {name: values for name, values in (reference.to_arrays() | change).items() if values is not None}
    with pytest.raises(BundleError, match=f"reference.npz: .*{message}"):
        Reference.from_arrays(arrays, "reference.npz")
