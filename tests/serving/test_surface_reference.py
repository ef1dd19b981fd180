"""What is usual: moves explain what they explain, units are what a tenth of the dates exceed, arrays read back.

`date` makes evidence of a world in which changes grow with the underlying's move.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import BundleError
from serving.normal import Array
from serving.surface_changes import Changes
from serving.surface_reference import (
    FEWEST_CALIBRATED,
    FEWEST_REFERENCES,
    NET_STATISTICS,
    PREDICTORS,
    STATISTICS,
    Evidence,
    Expected,
    Reference,
    largest,
)

TAU = np.array([10.0, 30.0, 60.0, 120.0, 240.0]) / 365.0


def date(seed: int, move: float | None = None) -> Evidence:
    """The level falls as the underlying rises, wings lag the level, everything is rougher after large moves."""
    generator = np.random.default_rng(seed)
    move = 0.01 * float(generator.standard_normal()) if move is None else move
    level = (-4.0 * move + 0.01 * generator.standard_normal()) / np.sqrt(365 * TAU / 30)
    bands = np.stack([level, -0.5 * level, -0.2 * level], axis=1) + 0.003 * generator.standard_normal((len(TAU), 3))
    rough = 0.004 * np.exp(40 * abs(move) + 0.2 * generator.standard_normal((len(TAU), 2)))
    forward = 1e-4 * generator.standard_normal(len(TAU))
    net = np.exp(20 * abs(move) + 0.2 * generator.standard_normal(3))
    return Evidence(net, Changes(move, TAU, bands, rough, forward))


TRAINING = [date(seed).changes for seed in range(300)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.fit([date(seed) for seed in range(1000, 1150)], TRAINING)


def units(reference: Reference, found: Evidence) -> dict[str, float]:
    return dict(zip(STATISTICS, reference.units(found).tolist(), strict=True))


# --- expected


def test_a_unit_is_what_a_tenth_of_the_dates_exceed_on_each_side() -> None:
    generator = np.random.default_rng(0)
    values = np.where(generator.random(20_000) < 0.5, -1.0, 3.0) * np.abs(generator.standard_normal(20_000))
    nothing = np.zeros((len(values), 3))
    found = Expected.fit(values[:, np.newaxis], nothing, np.zeros(1), np.ones((1, 3)))
    away = values - found.median[0]
    assert np.mean(away > found.high[0]) == pytest.approx(0.1, abs=0.005)
    assert np.mean(away < -found.low[0]) == pytest.approx(0.1, abs=0.005)
    assert found.units(np.array([found.median[0] - 2 * found.low[0]]), np.zeros(3))[0] == pytest.approx(-2.0)


def test_moves_explain_what_they_explain_and_wrong_dates_little() -> None:
    generator = np.random.default_rng(1)
    predictors = generator.standard_normal((2000, 3))
    slopes = np.array([0.5, -2.0, 1.0])
    values = predictors @ slopes + 0.1 * generator.standard_normal(2000)
    values[::20] += 50.0
    found = Expected.fit(values[:, np.newaxis], predictors, np.zeros(1), np.ones((1, 3)))
    np.testing.assert_allclose(found.coefficient[0], slopes, atol=0.05)
    only = Expected.fit(values[:, np.newaxis], predictors, np.zeros(1), np.array([[1.0, 0.0, 1.0]]))
    assert only.coefficient[0, 1] == 0.0


def test_few_dates_are_hardly_explained() -> None:
    """The ridge: of five dates in which a move explains everything, less than half is believed."""
    predictors = np.zeros((5, 3))
    predictors[:, 0] = [-1.0, -0.5, 0.0, 0.5, 1.0]
    found = Expected.fit(predictors[:, :1], predictors, np.zeros(1), np.ones((1, 3)))
    assert 0.0 < found.coefficient[0, 0] < 0.5


def test_a_statistic_that_no_date_gives_is_not_judged() -> None:
    values = np.stack([np.full(9, np.nan), np.arange(9.0)], axis=1)
    found = Expected.fit(values, np.zeros((9, 3)), np.full(2, 0.1), np.ones((2, 3)))
    judged = found.units(np.array([7.0, 5.0]), np.zeros(3))
    assert np.isnan(judged[0])
    assert judged[1] > 0
    assert np.isnan(found.units(np.array([7.0, np.nan]), np.zeros(3))).all()


def test_equal_dates_still_have_a_unit() -> None:
    found = Expected.fit(np.ones((9, 1)), np.zeros((9, 3)), np.array([0.05]), np.ones((1, 3)))
    assert found.low.tolist() == found.high.tolist() == [0.05]


def test_the_largest_is_over_what_is_judged() -> None:
    assert largest(np.array([np.nan, -3.0, 2.0])) == 3.0
    assert largest(np.full(4, np.nan)) == 0.0


# --- reference


def test_a_large_move_alone_is_usual(reference: Reference) -> None:
    """A move of three deviations, with all that such a move brings, scores like any other date; without it, high."""
    scores = [largest(reference.units(date(seed, 0.03))) for seed in range(2000, 2100)]
    usual = [largest(reference.units(date(seed))) for seed in range(2100, 2200)]
    assert np.median(scores) < np.quantile(usual, 0.9)
    moved = date(2000, -0.03)
    still = dataclasses.replace(moved, changes=dataclasses.replace(moved.changes, log_return=0.0))
    assert units(reference, still)["common_level"] > 3.0


def test_the_common_level_explains_the_wings_but_not_itself(reference: Reference) -> None:
    place, column = STATISTICS.index("common_level"), PREDICTORS.index("common_level")
    assert reference.expected.coefficient[place, column] == 0.0
    assert reference.expected.coefficient[STATISTICS.index("common_put_wing"), column] < 0.0


def test_a_date_without_noise_is_unusual_below(reference: Reference) -> None:
    one = date(3000)
    stale = dataclasses.replace(one, changes=dataclasses.replace(one.changes, rough=np.zeros((len(TAU), 2))))
    assert units(reference, stale)["roughness"] < -5.0
    copied = np.array(one.changes.rough)
    copied[:, 1] = 0.0  # a copy at one of the two is enough
    half = dataclasses.replace(one, changes=dataclasses.replace(one.changes, rough=copied))
    assert units(reference, half)["roughness"] == units(reference, stale)["roughness"]


def test_the_net_is_judged_on_dates_it_was_not_fitted_on_alone(reference: Reference) -> None:
    dates = [date(seed) for seed in range(1000, 1150)]
    known = Reference.fit(dates, TRAINING, held_out=False)
    assert not known.calibrated
    assert reference.calibrated
    assert np.isnan(known.units(dates[0])[: len(NET_STATISTICS)]).all()
    np.testing.assert_array_equal(known.units(dates[0])[len(NET_STATISTICS) :], reference.units(dates[0])[3:])
    assert not np.isnan(reference.units(dates[0])).any()


@pytest.mark.parametrize(("count", "calibrated"), [(FEWEST_CALIBRATED, True), (FEWEST_CALIBRATED - 1, False)])
def test_a_verdict_takes_a_hundred_dates(reference: Reference, count: int, calibrated: bool) -> None:
    assert dataclasses.replace(reference, scores=np.linspace(0.1, 3.0, count)).calibrated == calibrated


def test_the_reference_is_robust(reference: Reference) -> None:
    """A twentieth of the training dates being absurd barely moves it."""
    spoilt = [dataclasses.replace(day, bands=day.bands * 100) if place % 20 == 0 else day
              for place, day in enumerate(TRAINING)]  # fmt: skip
    other = Reference.fit([date(seed) for seed in range(1000, 1150)], spoilt)
    ratio = other.expected.high / reference.expected.high
    assert (ratio > 0.5).all()
    assert (ratio < 2.0).all()


def test_chains_too_thin_to_say_anything_score_nothing() -> None:
    empty = Changes(0.01, np.zeros(0), np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0))
    nothing = Evidence(np.full(3, np.nan), empty)
    found = Reference.fit([nothing] * FEWEST_REFERENCES, [empty] * FEWEST_REFERENCES)
    assert (found.scores == 0.0).all()
    assert np.isnan(found.units(date(1))).all()
    read = Reference.from_arrays(found.to_arrays(), "reference.npz")
    assert largest(read.units(nothing)) == 0.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999))
def test_arrays_read_back(seed: int) -> None:
    made = Reference.fit([date(seed + place) for place in range(6)], TRAINING[:20])
    again = Reference.from_arrays(made.to_arrays(), "reference.npz")
    found = date(seed + 5000)
    np.testing.assert_array_equal(again.units(found), made.units(found))
    np.testing.assert_array_equal(again.scores, made.scores)
    assert (np.diff(again.scores) >= 0).all()
    assert again.held_out == made.held_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected_median": None}, "holds no reference of the anomaly score .lacks expected_median"),
        ({"change_sizes": None, "score_held_out": None}, "lacks change_sizes, score_held_out"),
        ({"score_reference": np.zeros(0)}, "lacks dates"),
        ({"expected_low": np.ones(3)}, r"expected_low .* has shape \(3,\), expected \(11,\)"),
        ({"score_reference": np.ones((2, 2))}, "score_reference .* has shape"),
        ({"expected_median": np.full(len(STATISTICS), np.nan)}, "expected_median .* can't be"),
        ({"expected_high": np.zeros(len(STATISTICS))}, "expected_high .* can't be"),
        ({"move_scale": np.array([0.01, -1.0])}, "move_scale .* can't be"),
        ({"score_reference": np.array([1.0, np.inf])}, "score_reference .* can't be"),
    ],
)  # fmt: skip
def test_a_broken_reference_is_refused(reference: Reference, change: dict[str, Array | None], message: str) -> None:
    arrays = {name: values for name, values in (reference.to_arrays() | change).items() if values is not None}
    with pytest.raises(BundleError, match=f"reference.npz: .*{message}"):
        Reference.from_arrays(arrays, "reference.npz")
