"""Prediction intervals: what exchangeable dates guarantee, weights per date, what enters, when there are none."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipelines import intervals
from pipelines.dataset import FeatureStore
from pipelines.intervals import BASELINE, LEVELS, Calibration, Intervals, Scale, coverage, date_weights, report
from pipelines.metrics import MODEL
from pipelines.trained import load_trained
from pipelines.trust import UNSEEN
from serving.errors import DataError
from tests.pipelines.conftest import TinyRun

DAY = np.datetime64("2024-01-01", "D")


def _dates(counts: list[int]) -> np.ndarray:
    """Date of each row, `counts` rows on successive dates."""
    return np.repeat(DAY + np.arange(len(counts)), counts)


def _scores(generator: np.random.Generator, counts: list[int]) -> np.ndarray:
    """Scores that share a factor per date, which is what makes dates and not rows the unit."""
    factor = np.exp(0.8 * generator.standard_normal(len(counts)))
    return np.asarray(np.repeat(factor, counts) * np.abs(generator.standard_normal(sum(counts))))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dates", [4, 19])
def test_exchangeable_dates_are_covered_as_often_as_guaranteed(level: float, dates: int) -> None:
    """A row of a new date, 3000 times over: within the bounds of the binomial (one in a million on either side).

    From below level K / (K + 1); from above (level K + 1) / (K + 1), and a row's weight for the quantile's step.
    """
    generator = np.random.default_rng(dates)
    rounds, smallest = 3000, 5
    covered = 0
    for _ in range(rounds):
        counts = generator.integers(smallest, 40, dates + 1).tolist()
        scores = _scores(generator, counts)
        known = len(scores) - counts[-1]
        made = Calibration.of(scores[:known], _dates(counts[:-1]))
        covered += int(generator.choice(scores[known:]) <= made.radius(level))
    least = level * dates / (dates + 1)
    assert made.guaranteed(level) == pytest.approx(least)
    most = (level * dates + 1 + 1 / smallest) / (dates + 1)
    assert stats.binom.ppf(1e-6, rounds, least) <= covered <= stats.binom.isf(1e-6, rounds, min(most, 1.0))


@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_the_radius_is_the_least_score_that_reaches_the_level(seed: int, counts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    dates = _dates(counts)
    scores = generator.integers(0, 5, len(dates)).astype(np.float64)  # with ties
    shuffled = generator.permutation(len(dates))
    made = Calibration.of(scores[shuffled], dates[shuffled])
    for level in LEVELS:
        reached = {c: np.mean([np.mean(scores[dates == day] <= c) for day in np.unique(dates)]) for c in set(scores)}
        slow = min(score for score, share in reached.items() if share >= level - 1e-9)
        assert made.radius(level) == slow


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_higher_level_never_has_a_narrower_interval(seed: int, one: float, other: float) -> None:
    counts = [3, 8, 1, 20]
    made = Calibration.of(_scores(np.random.default_rng(seed), counts), _dates(counts))
    low, high = sorted((one, other))
    assert made.radius(low) <= made.radius(high)
    assert made.guaranteed(low) <= made.guaranteed(high) < high + 1e-12


def test_every_date_weighs_the_same_however_many_quotes_it_has() -> None:
    counts = [1000, 1, 1]
    dates = _dates(counts)
    weight = date_weights(dates)
    for day in np.unique(dates):
        assert weight[dates == day].sum() == pytest.approx(1 / 3)
    made = Calibration.of(np.array([1.0] * 1000 + [10.0, 20.0]), dates)
    assert [made.radius(level) for level in (0.3, 0.5, 0.9)] == [1.0, 10.0, 20.0]  # of rows alone: 1 each time


def _rows(count: int, seed: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    tau = generator.uniform(0.02, 0.9, count)
    return pl.DataFrame({
        "tau": tau, "forward_model": 100.0, "log_return": generator.normal(0.0, 0.01, count),
        "strike": 100.0 * np.exp(generator.uniform(-0.5, 0.5, count) * np.sqrt(tau)),
    })  # fmt: skip


def test_a_scale_finds_the_sizes_that_errors_were_drawn_with() -> None:
    rows = _rows(20_000, 1)
    true = Scale(np.array([-5.0, -0.5, 1.5, 2.5, 0.4]))
    generator = np.random.default_rng(2)
    error = (
        true.at(rows) * np.exp(0.3 * generator.standard_normal(len(rows))) * generator.choice([-1.0, 1.0], len(rows))
    )
    fitted = Scale.fit(rows, error, _dates([200] * 100))
    np.testing.assert_allclose(fitted.at(rows), true.at(rows), rtol=0.03)
    np.testing.assert_array_equal(Scale.plain().at(rows), 1.0)


def test_a_scale_of_constant_columns_is_still_finite() -> None:
    """No anchors, one tenor, one strike, days on which nothing moved."""
    rows = pl.DataFrame({"tau": [0.1] * 4, "strike": 100.0, "forward_model": 100.0, "log_return": 0.0})
    scale = Scale.fit(rows, np.array([0.01, -0.01, 0.01, 0.0]), _dates([2, 2]))
    assert np.isfinite(scale.at(rows)).all()
    assert (scale.at(rows) > 0).all()


def test_coverage_by_hand() -> None:
    """Two dates, half width 1 vol point; the first covers 1 of 2, the second all. A volatility of 0.5 %: cut off."""
    rows = pl.DataFrame({
        "ts": (DAY + np.array([0, 0, 1])).astype("datetime64[us]"), "iv_model": [0.2, 0.2, 0.005],
        "iv_market": [0.205, 0.23, 0.01], "tau": 0.1, "strike": 100.0, "forward_model": 100.0, "log_return": 0.0,
    })  # fmt: skip
    plain = Intervals(Scale.plain(), Calibration.of(np.array([0.01]), _dates([1])))
    found = coverage(rows, MODEL, plain, 0.5)
    assert found["guaranteed"] == 0.25
    assert (found["coverage"], found["date_lowest"]) == (0.75, 0.5)
    width = 0.25 * 2.0 + 0.25 * 2.0 + 0.5 * 1.5
    assert found["width"] == pytest.approx(width)
    assert found["interval_score"] == pytest.approx(width + 0.25 * 4.0 * 2.0)  # one row 2 vol points outside
    assert found["width_at_level"] == pytest.approx(0.25 + 0.25 + 0.5)  # half of the weight within 0.5 vol points


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


@pytest.fixture
def unseen(tiny_run: TinyRun) -> pl.DataFrame:
    answers = load_trained(tiny_run.out / "train/pricing_lstm", tiny_run.out / "features").unseen
    assert answers is not None
    return answers


@pytest.fixture
def predictions(tiny_run: TinyRun) -> pl.DataFrame:
    return pl.read_parquet(tiny_run.out / "predictions.parquet")


def test_the_evaluation_reports_them(tiny_run: TinyRun) -> None:
    found = json.loads((tiny_run.out / "metrics.json").read_text())["measures"]["intervals"]
    assert (found["calibrated_on"], found["calibration_dates"]) == ("validation", 3)
    rows = {(row["predictor"], row["interval"], row["level"]): row for row in found["levels"]}
    assert set(rows) == {(n, kind, level) for n in (MODEL, BASELINE) for kind in ("scaled", "unscaled")
                         for level in LEVELS}  # fmt: skip
    for name in (MODEL, BASELINE):
        widths = [rows[name, "scaled", level]["width"] for level in LEVELS]
        assert 0 < widths[0] <= widths[1] <= widths[2]
    for row in found["levels"]:
        assert row["guaranteed"] == pytest.approx(0.75 * row["level"])
        assert 0.0 <= row["date_lowest"] <= row["coverage"] <= 1.0
    total = {by: sum(row["rows"] for row in found["buckets"] if row["by"] == by) for by in ("tenor", "moneyness")}
    assert set(total.values()) == {len(pl.read_parquet(tiny_run.out / "predictions.parquet"))}
    page = (tiny_run.out / "report.html").read_text()
    assert "Prediction intervals: split conformal, calibrated on 3 validation dates" in page


def test_no_label_of_the_test_dates_enters(
    tiny_run: TinyRun, store: FeatureStore, unseen: pl.DataFrame, predictions: pl.DataFrame
) -> None:
    before = report(tiny_run.cfg, store, unseen, predictions).measures["intervals"]["levels"]
    test = pl.col("split") == "test"
    moved = store.rows.with_columns(iv_market=pl.when(test).then(pl.col("iv_market") + 0.5).otherwise("iv_market"))
    other = dataclasses.replace(store, rows=moved)
    after = report(tiny_run.cfg, other, unseen, predictions).measures["intervals"]["levels"]
    assert [row["width"] for row in after] == [row["width"] for row in before]
    assert {row["coverage"] for row in after} == {0.0}
    assert max(row["coverage"] for row in before) > 0.3


def test_the_scale_is_fitted_before_the_calibration_dates(store: FeatureStore, unseen: pl.DataFrame) -> None:
    """Calibration labels move the scores, never the scale; training labels the scale."""
    made = intervals.calibrate(store, unseen)
    for split, kept in (("validation", True), ("train", False)):
        chosen = pl.col("split") == split
        moved = store.rows.with_columns(
            iv_market=pl.when(chosen).then(1.5 * pl.col("iv_market")).otherwise("iv_market")
        )
        other = intervals.calibrate(dataclasses.replace(store, rows=moved), unseen)
        for name in (MODEL, BASELINE):
            ours, theirs = made[name, "scaled"], other[name, "scaled"]
            assert np.array_equal(ours.scale.coefficients, theirs.scale.coefficients) == kept
            assert ours.calibration.radius(0.9) != theirs.calibration.radius(0.9)


def test_scores_are_those_of_the_rows_named(store: FeatureStore, unseen: pl.DataFrame) -> None:
    made = intervals.calibrate(store, unseen)
    market = store.rows["iv_market"].to_numpy()[unseen["row"].to_numpy()]
    expected = np.sort(np.abs(market - unseen["iv_model"].to_numpy()))
    np.testing.assert_array_equal(made[MODEL, "unscaled"].calibration.scores, expected)


def test_without_dates_to_calibrate_on_there_is_no_interval_and_the_report_says_why(
    tiny_run: TinyRun, store: FeatureStore, unseen: pl.DataFrame, predictions: pl.DataFrame
) -> None:
    cfg = tiny_run.cfg
    never = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, trust_share=0.0))
    first = store.rows["ts"][unseen["row"]].dt.date() == store.rows["ts"][int(unseen["row"][0])].date()
    nothing = pl.DataFrame(schema=UNSEEN)
    for config, answers, reason in (
        (cfg, nothing, "too few training dates to hold any out"),
        (never, nothing, "trainer.trust_share is 0"),
        (cfg, unseen.filter(first), r"1 date(s) to calibrate on, at least 3 needed"),
    ):
        found = report(config, store, answers, predictions)
        assert reason in found.notes[0]
        assert found.notes[0].startswith("No prediction intervals: ")
        assert found.measures["intervals"]["none"] in found.notes[0]
        assert not found.tables


def test_a_training_of_another_version_is_refused(
    tiny_run: TinyRun, store: FeatureStore, predictions: pl.DataFrame
) -> None:
    with pytest.raises(DataError, match=r"unseen\.parquet.*run python -m pipelines\.train again"):
        report(tiny_run.cfg, store, None, predictions)
