"""How unusual a surface is, given the one last seen and what the underlying did since; its regime; its completion.

In: a net (surface -> completed surface, deviations, latent, surprise, regime) and a `Grid` now, the last one carried
to now, the move. Out: `Score`. Used by evaluation and by hosts alike.

Four statistics: the latent's distance from its prior (a stale surface stays where the move says it shouldn't), the
residuals of all cells, and the worst of the residuals when each tenor in turn, then each column of moneyness, is
hidden and has to be completed from the others (a tenor that doesn't fit its neighbours). Each is held against its own
distribution on dates the net wasn't fitted on, in robust deviations of its logarithm, on both sides: a surface that
doesn't stir is unusual too.

Invariants: cells that aren't known take no part, nor do statistics that too few known cells give (NaN); a score is
finite whatever is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import BundleError
from serving.normal import Array
from serving.surface_grid import CELLS, SHAPE, Grid

Floats = npt.NDArray[np.float32]
STATISTICS = ("surprise", "residual", "worst_tenor", "worst_moneyness")
FEWEST_CELLS = 3  # of a hidden tenor or column, to judge it
FEWEST_REFERENCES = 5
FEWEST_CALIBRATED = 100  # dates: with fewer nothing can lie above 99 % of them
SMALLEST_SPREAD = 0.05  # of the logarithm


@dataclass(frozen=True)
class SurfaceInput:
    """What the net is given, float32: surfaces and masks [B, G], moves [B, M]."""

    surface: Floats
    mask: Floats
    last: Floats
    last_mask: Floats
    move: Floats

    @classmethod
    def of(cls, now: Grid, last: Grid, move: npt.NDArray[np.floating[Any]]) -> SurfaceInput:
        """One surface; `last` carried to now and filled."""
        parts = (now.volatility, now.mask, last.volatility, last.mask, move)
        return cls(*(np.asarray(part, dtype=np.float32).reshape(1, -1) for part in parts))

    def hiding(self, hidden: npt.NDArray[np.bool_]) -> SurfaceInput:
        """This one surface once for each row of `hidden` [B, G], without the cells hidden there."""
        mask = self.mask * ~hidden
        count = (len(hidden), 1)
        surface = (self.surface * mask).astype(np.float32)
        rest = (np.tile(part, count) for part in (self.last, self.last_mask, self.move))
        return SurfaceInput(surface, mask.astype(np.float32), *rest)


@dataclass(frozen=True)
class SurfaceAnswer:
    """What the net answers, float32; see models/surface_vae.py."""

    completed: Floats  # [B, G]
    deviation: Floats  # [B, G]
    latent: Floats  # [B, Z]
    surprise: Floats  # [B]
    regime: Floats  # [B, R]


SurfaceNet = Callable[[SurfaceInput], SurfaceAnswer]


@dataclass(frozen=True)
class Reference:
    """Statistics on some dates: medians and spreads of their logarithms [4], their scores ascending.

    `held_out`: the net wasn't fitted on these dates. If it was, new dates score higher than they did, whatever they
    are.
    """

    median: Array
    spread: Array
    scores: Array
    held_out: bool = True

    @classmethod
    def fit(cls, statistics: Sequence[Array], *, held_out: bool = True) -> Reference:
        """From the statistics of at least FEWEST_REFERENCES surfaces; one that none of them gives is never held
        against (infinite spread)."""
        assert len(statistics) >= FEWEST_REFERENCES, "checked by the caller"
        logs = np.log(np.stack(statistics))
        median, spread = np.zeros(len(STATISTICS)), np.full(len(STATISTICS), np.inf)
        for place, column in enumerate(logs.T):
            known = column[~np.isnan(column)]
            if known.size:
                median[place] = np.median(known)
                spread[place] = max(1.4826 * float(np.median(np.abs(known - median[place]))), SMALLEST_SPREAD)
        return cls(median, spread, np.sort(np.nanmax(np.abs(logs - median) / spread, axis=1)), held_out)

    @property
    def calibrated(self) -> bool:
        """Whether a score can be called unusual at all: dates held out, and FEWEST_CALIBRATED of them."""
        return self.held_out and len(self.scores) >= FEWEST_CALIBRATED

    def to_arrays(self) -> dict[str, Array]:
        """For `reference.npz`."""
        return {"score_median": self.median, "score_spread": self.spread, "score_reference": self.scores,
                "score_held_out": np.array([float(self.held_out)])}  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], file: str) -> Reference:
        """Read back `to_arrays`; BundleError where something is missing or of another shape."""
        names = ("score_median", "score_spread", "score_reference", "score_held_out")
        median, spread, scores, held_out = (arrays.get(name) for name in names)
        if median is None or spread is None or scores is None or not scores.size or held_out is None:
            raise BundleError(f"{file}: holds no reference of the anomaly score; export the bundle again")
        if median.shape != (len(STATISTICS),) or spread.shape != median.shape or scores.ndim != 1:
            raise BundleError(f"{file}: the reference of the anomaly score has shapes {median.shape}, {spread.shape}")
        if not (np.isfinite(median).all() and (spread > 0).all() and np.isfinite(scores).all()):
            raise BundleError(f"{file}: the reference of the anomaly score holds medians {median}, spreads {spread} or "
                              "scores that can't be; export the bundle again")  # fmt: skip
        parts = median.astype(np.float64), spread.astype(np.float64), np.sort(scores.astype(np.float64))
        return cls(*parts, held_out=bool(held_out.size and held_out.all()))


@dataclass(frozen=True)
class Score:
    """`value`: the most unusual statistic, in robust deviations; `percentile`: share of the reference dates, and of
    this one, below it (so that exchangeable dates exceed 99 % once in a hundred)."""

    value: float
    percentile: float
    by_statistic: Mapping[str, float]  # signed robust deviations: positive is large; those that could be judged
    calibrated: bool = True  # see `Reference.calibrated`


def statistics(net: SurfaceNet, one: SurfaceInput) -> tuple[Array, SurfaceAnswer]:
    """The four statistics (positive, NaN where too few cells are known) and the answer with nothing hidden."""
    grid = np.arange(CELLS).reshape(SHAPE)
    hidden = np.zeros((1 + SHAPE[0] + SHAPE[1], CELLS), dtype=bool)
    for tenor in range(SHAPE[0]):
        hidden[1 + tenor, grid[tenor]] = True
    for column in range(SHAPE[1]):
        hidden[1 + SHAPE[0] + column, grid[:, column]] = True
    answer = net(one.hiding(hidden))
    squares = ((one.surface - answer.completed) / answer.deviation).astype(np.float64) ** 2 * one.mask
    whole = float(squares[0].sum() / max(one.mask.sum(), 1.0))
    judged = hidden[1:] & (one.mask[0] > 0)
    counts = judged.sum(1)
    enough = counts >= FEWEST_CELLS
    lines = np.where(enough, (squares[1:] * judged).sum(1) / np.maximum(counts, 1), 0.0)
    worst = (lines[: SHAPE[0]].max(), lines[SHAPE[0] :].max())
    first = SurfaceAnswer(*(getattr(answer, name)[:1] for name in SurfaceAnswer.__dataclass_fields__))
    found = np.array([float(answer.surprise[0]), *np.sqrt([whole, *worst])])
    given = np.array([True, bool(one.mask.any()), enough[: SHAPE[0]].any(), enough[SHAPE[0] :].any()])
    return np.where(given, np.maximum(np.nan_to_num(found, nan=1e6, posinf=1e6), 1e-6), np.nan), first


def score(found: Array, reference: Reference) -> Score:
    """Hold statistics against the reference."""
    signed = (np.log(found) - reference.median) / reference.spread
    value = float(np.nanmax(np.abs(signed)))
    below = float(np.searchsorted(reference.scores, value, side="left")) / (len(reference.scores) + 1)
    judged = {name: float(one) for name, one in zip(STATISTICS, signed, strict=True) if not np.isnan(one)}
    return Score(value, below, judged, reference.calibrated)
