"""How unusual a surface is, given the one last seen and what the underlying did since.

In: a net (surface -> completed surface, deviations, latent, surprise, regime), a `Grid` now, the last one carried to
now, the move; the quotes' `Changes`; a `Reference`. Out: `Score`. Used by evaluation and by hosts alike.

Eleven statistics. Three are the net's: the residuals of all cells, and the worst of the residuals when each tenor in
turn, then each column of moneyness, is hidden and has to be completed from the others. Eight are the quotes' own
(serving/surface_changes.py): an expiry that doesn't go with its neighbours, wings that move alone, quotes that were
left over from before. Each is held against other dates (serving/surface_reference.py); the score is the largest. The
latent's distance from its prior isn't among them: it is largest on days of large moves, faults or not.

Invariants: cells that aren't known take no part, nor do statistics that too little gives (NaN); a score is finite
whatever is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.normal import Array
from serving.surface_grid import CELLS, SHAPE, Grid
from serving.surface_reference import STATISTICS, Evidence, Reference, largest

Floats = npt.NDArray[np.float32]
FEWEST_CELLS = 3  # of a hidden tenor or column, to judge it


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
class Score:
    """`value`: the most unusual statistic, in the distance that a tenth of the dates exceed on its side;
    `percentile`: share of the reference dates, and of this one, below it (so that exchangeable dates exceed 99 % once
    in a hundred)."""

    value: float
    percentile: float
    by_statistic: Mapping[str, float]  # signed: positive is large; those that could be judged
    calibrated: bool = True  # see `Reference.calibrated`


def statistics(net: SurfaceNet, one: SurfaceInput) -> tuple[Array, SurfaceAnswer]:
    """The net's three statistics (positive, NaN where too few cells are known) and the answer with nothing hidden."""
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
    found = np.sqrt([whole, lines[: SHAPE[0]].max(), lines[SHAPE[0] :].max()])
    given = np.array([bool(one.mask.any()), enough[: SHAPE[0]].any(), enough[SHAPE[0] :].any()])
    first = SurfaceAnswer(*(getattr(answer, name)[:1] for name in SurfaceAnswer.__dataclass_fields__))
    return np.where(given, np.maximum(np.nan_to_num(found, nan=1e6, posinf=1e6), 1e-6), np.nan), first


def score(found: Evidence, reference: Reference) -> Score:
    """Hold what a snapshot shows against the reference."""
    units = reference.units(found)
    value = largest(units)
    below = float(np.searchsorted(reference.scores, value, side="left")) / (len(reference.scores) + 1)
    judged = {name: float(one) for name, one in zip(STATISTICS, units, strict=True) if not np.isnan(one)}
    return Score(value, below, judged, reference.calibrated)
