"""What surfaces usually are after a move: what an anomaly score is held against (serving/surface_score.py).

In: `Evidence` of dates (the net's statistics and the quotes' `Changes`). Out: `Reference`, which a bundle carries as
arrays (`reference.npz`).

Big moves change more, in every respect, without anything being wrong. So each statistic is first freed of what it is
after such a move (a robust ridge regression on the underlying's move and the common level's change), then measured in
the distance from the middle that a tenth of the dates exceed, each side by its own: a surface that doesn't stir is
unusual too.

What is usual of the quotes comes from the training dates. Of the net it comes from dates that it wasn't fitted on;
where there are too few of them its statistics don't count, because on training dates they say nothing of new ones.

Invariants: statistics that a date doesn't give (NaN) or that no date gave aren't judged; `Reference.from_arrays` of
`to_arrays` is the same reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import BundleError
from serving.normal import Array
from serving.surface_changes import (
    BANDS,
    COMMON_LEVEL,
    NODES_DAYS,
    QUOTE_STATISTICS,
    Changes,
    quote_statistics,
    usual_sizes,
)

NET_STATISTICS = ("residual", "worst_tenor", "worst_moneyness")
STATISTICS = (*NET_STATISTICS, *QUOTE_STATISTICS)
FEWEST_REFERENCES = 5
FEWEST_CALIBRATED = 100  # dates: with fewer nothing can lie above 99 % of them
PREDICTORS = ("absolute_return", "log_return", "common_level")
LARGEST_PREDICTOR = 4.0  # in deviations of the training dates: what is said of larger moves is what is said of this
RIDGE = 10.0  # dates without a move that count beside the given ones
BISQUARE = 4.685  # robust deviations from which on a date doesn't count
ROUNDS = 5  # of reweighting
UNIT_QUANTILE = 0.8  # of the deviations on one side: a tenth of all dates lie beyond
NORMAL_NINE = 1.645  # deviations that a tenth of normal moves exceed
SMALLEST_DEVIATION = 1e-6
NET_UNITS = np.full(3, 0.05)  # smallest units: of logarithms
QUOTE_UNITS = np.array([0.05] * 3 + [5e-4] * 3 + [0.05] * 2)  # misfits in usual sizes, changes, logarithms
QUOTE_PREDICTORS = np.ones((len(QUOTE_STATISTICS), len(PREDICTORS)))
QUOTE_PREDICTORS[COMMON_LEVEL, PREDICTORS.index("common_level")] = 0.0  # it would explain itself
EXPECTED = ("coefficient", "median", "low", "high")
SHAPES: dict[str, tuple[int, ...]] = {  # of the arrays in a bundle; -1: any
    "change_sizes": (len(BANDS), len(NODES_DAYS)), "move_scale": (2,),
    "expected_coefficient": (len(STATISTICS), len(PREDICTORS)),
    **{f"expected_{name}": (len(STATISTICS),) for name in EXPECTED[1:]},
    "score_reference": (-1,), "score_held_out": (1,),
}  # fmt: skip
POSITIVE = ("change_sizes", "move_scale", "expected_low", "expected_high")  # maybe infinite


@dataclass(frozen=True)
class Evidence:
    """What one snapshot shows: the net's three statistics (`surface_score.statistics`) and the quotes' changes."""

    net: Array
    changes: Changes


@dataclass(frozen=True)
class Expected:
    """What some statistics [S] usually are after a move, and how far off they usually are.

    `coefficient` [S, 3] of PREDICTORS, `median` [S] of what is left; `low` and `high` [S], the distance from it that
    UNIT_QUANTILE of the dates on that side keep, infinite for a statistic that no date gives.
    """

    coefficient: Array
    median: Array
    low: Array
    high: Array

    @classmethod
    def fit(cls, values: Array, predictors: Array, smallest: Array, allowed: Array) -> Expected:
        """From `values` [dates, S], NaN where not given, and scaled predictors [dates, 3], of which a statistic takes
        those that are 1 in `allowed` [S, 3]; units are at least `smallest` [S]."""
        count = values.shape[1]
        out = cls(np.zeros((count, len(PREDICTORS))), np.zeros(count), np.full(count, np.inf), np.full(count, np.inf))
        for place, column in enumerate(values.T):
            known = np.isfinite(column)
            if not known.any():
                continue
            out.coefficient[place] = _robust_slopes(column[known], predictors[known] * allowed[place])
            left = column[known] - predictors[known] @ out.coefficient[place]
            out.median[place] = np.median(left)
            away = left - out.median[place]
            out.low[place] = max(float(np.quantile(-away[away <= 0], UNIT_QUANTILE)), smallest[place])
            out.high[place] = max(float(np.quantile(away[away >= 0], UNIT_QUANTILE)), smallest[place])
        return out

    def units(self, values: Array, predictors: Array) -> Array:
        """Signed deviations [S] of one date, in units of their side; NaN where there is nothing to hold it against."""
        away = values - self.coefficient @ predictors - self.median
        unit = np.where(away < 0, self.low, self.high)
        return np.where(np.isfinite(unit), away / unit, np.nan)


def _robust_slopes(values: Array, predictors: Array) -> Array:
    """Ridge regression with an intercept, dates far off weighted down (Tukey's bisquare, from no slopes on)."""
    slopes: Array = np.zeros(predictors.shape[1])
    for _ in range(ROUNDS):
        left = values - predictors @ slopes
        left -= np.median(left)
        limit = max(BISQUARE * 1.4826 * float(np.median(np.abs(left))), SMALLEST_DEVIATION)
        weight = np.maximum(1.0 - (left / limit) ** 2, 0.0) ** 2
        centred = predictors - np.average(predictors, axis=0, weights=weight)
        about = values - np.average(values, weights=weight)
        matrix = (centred * weight[:, np.newaxis]).T @ centred + RIDGE * np.eye(predictors.shape[1])
        slopes = np.asarray(np.linalg.solve(matrix, (centred * weight[:, np.newaxis]).T @ about), dtype=np.float64)
    return slopes


@dataclass(frozen=True)
class Reference:
    """What other dates are like: `sizes` [3, nodes] of misfits, `scale` [2], robust deviations of the log return and
    the common level's change, what is expected of the statistics, and the dates' scores, ascending.

    `held_out`: the net wasn't fitted on the dates of the scores. If it was, its statistics aren't judged.
    """

    sizes: Array
    scale: Array
    expected: Expected
    scores: Array
    held_out: bool = True

    @classmethod
    def fit(cls, dates: Sequence[Evidence], training: Sequence[Changes], *, held_out: bool = True) -> Reference:
        """From at least FEWEST_REFERENCES dates, and the changes of the training dates (of all dates that came before
        what will be judged; they may be the same)."""
        assert len(dates) >= FEWEST_REFERENCES, "checked by the caller"
        sizes = usual_sizes(training)
        quotes = np.stack([quote_statistics(day, sizes) for day in training])
        moves = np.array([day.log_return for day in training])
        level = quotes[np.isfinite(quotes[:, COMMON_LEVEL]), COMMON_LEVEL]
        nines = [float(np.quantile(np.abs(part), 0.9)) if part.size else 0.0 for part in (moves, level)]
        scale = np.maximum(np.array(nines) / NORMAL_NINE, SMALLEST_DEVIATION)
        of_quotes = Expected.fit(
            quotes, np.stack([_predictors(day, row, scale) for day, row in zip(training, quotes, strict=True)]),
            QUOTE_UNITS, QUOTE_PREDICTORS,
        )  # fmt: skip
        nothing = Expected(np.zeros((0, len(PREDICTORS))), *(np.zeros(0) for _ in range(3)))
        reference = cls(sizes, scale, nothing, np.zeros(0), held_out)
        predictors = np.stack([reference.predictors(date.changes) for date in dates])
        of_net = Expected.fit(
            np.log(np.stack([date.net for date in dates])) if held_out else np.full((len(dates), 3), np.nan),
            predictors, NET_UNITS, np.ones((3, len(PREDICTORS))),
        )  # fmt: skip
        joined = (np.concatenate(parts) for parts in zip(_parts(of_net), _parts(of_quotes), strict=True))
        reference = replace(reference, expected=Expected(*joined))
        return replace(reference, scores=np.sort([largest(reference.units(date)) for date in dates]))

    @property
    def calibrated(self) -> bool:
        """Whether a score can be called unusual at all: dates held out, and FEWEST_CALIBRATED of them."""
        return self.held_out and len(self.scores) >= FEWEST_CALIBRATED

    def predictors(self, day: Changes) -> Array:
        """[3] of a date, scaled and clipped; the level's change is 0 where quotes don't tell it."""
        return _predictors(day, quote_statistics(day, self.sizes), self.scale)

    def units(self, found: Evidence) -> Array:
        """Signed deviations [11] in order of STATISTICS, NaN where not judged."""
        quotes = quote_statistics(found.changes, self.sizes)
        return self.expected.units(np.r_[np.log(found.net), quotes], _predictors(found.changes, quotes, self.scale))

    def to_arrays(self) -> dict[str, Array]:
        """For `reference.npz`."""
        expected = {f"expected_{name}": part for name, part in zip(EXPECTED, _parts(self.expected), strict=True)}
        return {"change_sizes": self.sizes, "move_scale": self.scale, **expected, "score_reference": self.scores,
                "score_held_out": np.array([float(self.held_out)])}  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], file: str) -> Reference:
        """Read back `to_arrays`; BundleError where something is missing, of another shape or can't be."""
        missing = [name for name in SHAPES if name not in arrays]
        if missing or not arrays["score_reference"].size:
            what = ", ".join(missing) or "dates"
            raise BundleError(
                f"{file}: holds no reference of the anomaly score (lacks {what}); export the bundle again"
            )
        parts = {name: arrays[name].astype(np.float64) for name in SHAPES}
        for name, shape in SHAPES.items():
            if parts[name].shape != shape and (shape != (-1,) or parts[name].ndim != 1):
                raise BundleError(f"{file}: {name} of the anomaly score has shape {parts[name].shape}, expected "
                                  f"{shape}; export the bundle again")  # fmt: skip
            # an infinite size or unit says that nothing is known to hold the statistic against
            usable = parts[name] > 0 if name in POSITIVE else np.isfinite(parts[name])
            if not usable.all():
                raise BundleError(f"{file}: {name} of the anomaly score holds {parts[name][~usable][:3]}, which can't "
                                  "be; export the bundle again")  # fmt: skip
        expected = Expected(*(parts[f"expected_{name}"] for name in EXPECTED))
        return cls(parts["change_sizes"], parts["move_scale"], expected, np.sort(parts["score_reference"]),
                   bool(parts["score_held_out"].all()))  # fmt: skip


def _parts(expected: Expected) -> list[Array]:
    return [getattr(expected, name) for name in EXPECTED]


def _predictors(day: Changes, quotes: Array, scale: Array) -> Array:
    move, level = day.log_return / scale[0], float(np.nan_to_num(quotes[COMMON_LEVEL])) / scale[1]
    return np.asarray(np.clip([abs(move), move, level], -LARGEST_PREDICTOR, LARGEST_PREDICTOR))


def largest(units: Array) -> float:
    """The largest of the deviations that are judged; 0 where none is."""
    return float(np.max(np.abs(units[np.isfinite(units)]), initial=0.0))
