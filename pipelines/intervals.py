"""Prediction intervals of the pricing task's volatilities, by split conformal prediction with dates as the unit.

In: a `FeatureStore`, what was said of rows that weren't fitted on (`unseen`, see pipelines/trust.py), the table of test
predictions. Out: `IntervalReport`: coverage and width by level for the net and for anchored sticky strike, each by its
own errors on the same dates.

A row's score is |market - prediction| / scale, the scale an exponential of tenor, moneyness and the underlying's move,
fitted on dates before the calibration's. The interval of a level is prediction +- scale times the least radius that the
level's share of the scores doesn't exceed, every date weighing the same. If the K dates of the calibration and those to
come are exchangeable, a row drawn from a date to come lies in it with a probability between level K / (K + 1) and, but
for ties, (level K + 1) / (K + 1), on average over calibrations: a handful of dates guarantees little. That is marginal,
over dates, tenors and strikes. Nor does it hold as markets drift and successive dates are alike; validation dates chose
the net's epoch and the share of its correction, which is kind to it; where dates were held out of a first fit, the net
judged has been fitted anew on more dates, these among them.

Invariant: no label of a test row enters an interval. Sources: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic learning
in a random world" (2005); Y. Lee, R. F. Barber, R. Willett, "Distribution-free inference with hierarchical data"
(2023), for groups; T. Gneiting, A. Raftery, "Strictly proper scoring rules", JASA 102 (2007), for the interval score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.baselines import FLOOR
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.metrics import MODEL, with_buckets
from pipelines.tasks.pricing import prior_volatility
from serving.errors import DataError

Array = npt.NDArray[np.float64]
Dates = npt.NDArray[np.datetime64]

BASELINE = "anchored_sticky_strike"
LEVELS = (0.5, 0.8, 0.9)
SHOWN = 0.9  # the level that is looked at by tenor and moneyness
FEWEST_DATES = 3  # to calibrate on
SMALLEST_ERROR = 1e-4  # volatility; a smaller one says nothing of the scale
SMALLEST_MOVE = 0.002  # of the underlying, log return; added, so that a still day isn't expected to be without error
VOL_POINT = 0.01
COLUMNS = ("tau", "strike", "forward_model", "log_return")  # of rows.parquet, known at t: what a scale reads


@dataclass(frozen=True)
class IntervalReport:
    """For the report: `tables` by title, `notes`; for metrics.json: `measures`."""

    tables: Mapping[str, pl.DataFrame]
    measures: Mapping[str, Any]
    notes: Sequence[str]


@dataclass(frozen=True)
class Scale:
    """The size of an error that is to be expected of a row, known when it is predicted: exp(coefficients . position).

    The position is 1, ln(tau), the parts of ln(K/F)/sqrt(tau) above and below zero, F the forward of the anchors, and
    ln(|return since last seen| + SMALLEST_MOVE). Chosen on SPX of May 2019 and the sample's dates before 2018;
    the move was thought of when the test coverage without it had been seen.
    """

    coefficients: Array  # [5]

    @classmethod
    def plain(cls) -> Scale:
        """The same for every row."""
        return cls(np.zeros(5))

    @classmethod
    def fit(cls, rows: pl.DataFrame, error: Array, dates: Dates) -> Scale:
        """Least squares on ln|error| (volatility, [N]), every date weighing the same."""
        root = np.sqrt(date_weights(dates))
        wanted = np.log(np.maximum(np.abs(error), SMALLEST_ERROR))
        solved = np.linalg.lstsq(_position(rows) * root[:, np.newaxis], wanted * root, rcond=None)
        return cls(solved[0])

    def at(self, rows: pl.DataFrame) -> Array:
        """Of every row [N], volatility."""
        return np.asarray(np.exp(_position(rows) @ self.coefficients))


def _position(rows: pl.DataFrame) -> Array:
    """[N, 5]."""
    tau, strike, forward, log_return = (rows[name].to_numpy() for name in COLUMNS)
    x = np.log(strike / forward) / np.sqrt(tau)
    move = np.log(np.abs(log_return) + SMALLEST_MOVE)
    return np.stack([np.ones_like(x), np.log(tau), np.maximum(x, 0.0), np.maximum(-x, 0.0), move], axis=1)


def date_weights(dates: Dates) -> Array:
    """Weight [N] of each row: every date the same, its rows alike, 1 in all."""
    _, place, count = np.unique(dates, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (count[place] * len(count)))


@dataclass(frozen=True)
class Calibration:
    """Scores of the calibration dates, ascending, the weight up to and including each, and the number of dates."""

    scores: Array
    reached: Array
    dates: int

    @classmethod
    def of(cls, scores: Array, dates: Dates) -> Calibration:
        """From |error| / scale [N] and the dates [N] of the rows."""
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], np.cumsum(date_weights(dates)[order]), len(np.unique(dates)))

    def radius(self, level: float) -> float:
        """The least score that at least the share `level` (0 to 1) of the weight doesn't exceed."""
        place = int(np.searchsorted(self.reached, level - 1e-12))  # sums of weights round
        return float(self.scores[min(place, len(self.scores) - 1)])

    def guaranteed(self, level: float) -> float:
        """The coverage of a row of a new date that exchangeable dates guarantee: level K / (K + 1)."""
        return level * self.dates / (self.dates + 1)


@dataclass(frozen=True)
class Intervals:
    """How one predictor's intervals are made."""

    scale: Scale
    calibration: Calibration

    def half_width(self, rows: pl.DataFrame, level: float) -> Array:
        """Of every row [N], volatility; reads COLUMNS."""
        return self.calibration.radius(level) * self.scale.at(rows)


def calibrate(store: FeatureStore, unseen: pl.DataFrame) -> dict[tuple[str, str], Intervals]:
    """By predictor and kind (`scaled`, `unscaled`), from the rows of `unseen` and the training rows of earlier dates.

    The net's scale is fitted to the errors of its prior, which no training date has fitted; anchored sticky strike's to
    its own.
    """
    dates = store.rows["ts"].dt.date().to_numpy()
    market = store.rows["iv_market"].to_numpy()
    row = unseen["row"].to_numpy()
    earlier = np.flatnonzero((store.rows["split"] == "train").to_numpy() & (dates < dates[row].min()))
    carried = np.maximum((store.rows["last_volatility"] + store.rows["shift"]).to_numpy(), FLOOR)
    prior = prior_volatility(store)
    answers = {MODEL: (unseen["iv_model"].to_numpy(), prior), BASELINE: (carried[row], carried)}
    before, now = store.rows[earlier], store.rows[row]
    out = {}
    for name, (answer, scaled_by) in answers.items():
        fitted = Scale.fit(before, (market - scaled_by)[earlier], dates[earlier])
        for kind, scale in (("scaled", fitted), ("unscaled", Scale.plain())):
            scores = np.abs(market[row] - answer) / scale.at(now)
            out[name, kind] = Intervals(scale, Calibration.of(scores, dates[row]))
    return out


def why_none(cfg: Config, store: FeatureStore, unseen: pl.DataFrame) -> str:
    """Why no interval can be given; empty where one can."""
    if not len(unseen):
        also = (
            "trainer.trust_share is 0" if cfg.trainer.trust_share == 0.0 else "too few training dates to hold any out"
        )
        return f"there are no dates that the net wasn't fitted on (split.validation_dates is 0, {also})"
    count = store.rows["ts"][unseen["row"]].dt.date().n_unique()
    if count < FEWEST_DATES:
        return f"{count} date(s) to calibrate on, at least {FEWEST_DATES} needed (split.validation_dates)"
    return ""


def report(cfg: Config, store: FeatureStore, unseen: pl.DataFrame | None, predictions: pl.DataFrame) -> IntervalReport:
    """Intervals of the test rows, and how they fared; where there can be none, a note that says why.

    `predictions` holds `iv_model` and `iv_anchored_sticky_strike` of the test rows, in their order in the store.
    Raises DataError where the training didn't write `unseen.parquet`.
    """
    if unseen is None:
        raise DataError(f"{cfg.folder / 'train' / cfg.model.name} holds no unseen.parquet, so another version trained: "
                        "run python -m pipelines.train again with the same out= and model=")  # fmt: skip
    if reason := why_none(cfg, store, unseen):
        return IntervalReport({}, {"intervals": {"none": reason}}, [f"No prediction intervals: {reason}."])
    made = calibrate(store, unseen)
    test = store.rows.filter(pl.col("split") == "test").with_columns(
        predictions.select(f"iv_{MODEL}", f"iv_{BASELINE}")
    )
    levels = pl.DataFrame([{"predictor": name, "interval": kind, **coverage(test, name, intervals, level)}
                           for (name, kind), intervals in made.items() for level in LEVELS])  # fmt: skip
    buckets = pl.concat([by_bucket(test, made, column) for column in ("tenor", "moneyness")])
    count = made[MODEL, "scaled"].calibration.dates
    validated = store.rows["split"][int(unseen["row"][0])] == "validation"
    which = "validation dates, which chose the epoch too" if validated else "training dates held out of a first fit"
    return IntervalReport(
        {"Prediction intervals on the test dates: coverage and width [vol points]": levels,
         f"Prediction intervals of {100 * SHOWN:.0f} % by tenor and moneyness": buckets},
        {"intervals": {"calibrated_on": "validation" if validated else "held_out", "calibration_dates": count,
                       "levels": levels.to_dicts(), "buckets": buckets.to_dicts()}},
        [f"Prediction intervals: split conformal, calibrated on {count} {which}. Guaranteed: the coverage of a row of "
         "a new date if dates were exchangeable, level K / (K + 1). Coverage: every test date weighs the same. "
         "Width at level: what the width would have been with the radius that covers exactly the level's share of the "
         "test dates, known only afterwards: what the predictor's accuracy is worth. Interval score: width plus what "
         "lies outside, times 2 / (1 - level); lower is better."],
    )  # fmt: skip


def coverage(rows: pl.DataFrame, name: str, intervals: Intervals, level: float) -> dict[str, Any]:
    """How a predictor's intervals of a level fared on the test dates; shares, and widths in vol points.

    Intervals that would reach below zero are cut off there.
    """
    error, volatility, dates = _errors(rows, name)
    weight = date_weights(dates)
    half = intervals.half_width(rows, level)
    inside = error <= half
    daily = np.array([inside[dates == day].mean() for day in np.unique(dates)])
    unit = intervals.scale.at(rows)
    would = Calibration.of(error / unit, dates).radius(level) * unit
    width = half + np.minimum(half, volatility)
    missed = np.maximum(error - half, 0.0)
    return {
        "level": level, "guaranteed": intervals.calibration.guaranteed(level), "coverage": float(daily.mean()),
        "date_lowest": float(daily.min()), "date_lower_tenth": float(np.quantile(daily, 0.1)),
        "date_deviation": float(daily.std()),
        "width": float(weight @ width) / VOL_POINT,
        "width_at_level": float(weight @ (would + np.minimum(would, volatility))) / VOL_POINT,
        "interval_score": float(weight @ (width + 2.0 / (1.0 - level) * missed)) / VOL_POINT,
    }  # fmt: skip


def by_bucket(rows: pl.DataFrame, made: Mapping[tuple[str, str], Intervals], column: str) -> pl.DataFrame:
    """Coverage and mean width [vol points] of the level SHOWN by `tenor` or `moneyness`; rows weigh the same.

    Of the baseline the scaled kind alone.
    """
    table = with_buckets(rows)
    measured = []
    for (name, kind), intervals in made.items():
        if (name, kind) == (BASELINE, "unscaled"):
            continue
        error, volatility, _ = _errors(rows, name)
        half = intervals.half_width(rows, SHOWN)
        width = (half + np.minimum(half, volatility)) / VOL_POINT
        measured += [pl.Series(f"{name}_{kind}_coverage", (error <= half).astype(float)),
                     pl.Series(f"{name}_{kind}_width", width)]  # fmt: skip
    names = [series.name for series in measured]
    grouped = table.with_columns(measured).group_by(pl.col(column).alias("bucket"), maintain_order=True)
    found = grouped.agg(pl.len().alias("rows"), *(pl.col(name).mean() for name in names), order=pl.col(column).first())
    return found.sort("order").select(pl.lit(column).alias("by"), pl.col("bucket").cast(pl.String), "rows", *names)


def _errors(rows: pl.DataFrame, name: str) -> tuple[Array, Array, Dates]:
    """|market - prediction|, the prediction, the date, of every row."""
    volatility = rows[f"iv_{name}"].to_numpy()
    error = np.abs(rows["iv_market"].to_numpy() - volatility)
    return error, volatility, rows["ts"].dt.date().to_numpy()
