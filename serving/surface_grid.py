"""A surface on a fixed grid of tenors and moneyness, with a mask: what surface_vae reads, in training and on hosts.

In: `LastSeen` (the smiles of one snapshot in the scored range). Out: `Grid`: volatilities [G] and a mask [G], tenors in
rows, moneyness ln(K/F)/sqrt(tau) in columns, flattened. A cell is known where the smiles on both sides of its tenor
quote on both sides of its moneyness (or one smile lies within TENOR_REACH of it); total variance is linear in tau
between smiles.

`carried` reads a snapshot's surface as of a later time: the same contracts at the same strikes (sticky strike), at
their later tenor and the forward carried with the underlying.

Invariants: nothing is extrapolated further than stated; unknown cells are 0 with mask 0; `fill` changes no known cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.last_seen import LastSeen, LastSmile
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR, tau_years

TENORS_DAYS = (10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 270.0)
MONEYNESS = (-0.5, -0.4, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)
CELLS = len(TENORS_DAYS) * len(MONEYNESS)
SHAPE = (len(TENORS_DAYS), len(MONEYNESS))
MONEYNESS_REACH = 0.02  # a smile speaks for a cell this far beyond its last quote
TENOR_REACH = 1.25  # and a row this factor before its first or beyond its last tenor
MOVE_FEATURES = ("log_return", "absolute_return", "elapsed_days")
VERSION = 1  # of what grid and move features mean


@dataclass(frozen=True)
class Grid:
    """`volatility` float64 [G], a fraction, 0 where unknown; `mask` float64 [G], 1 where known."""

    volatility: Array
    mask: Array

    @property
    def known(self) -> int:
        """Cells known."""
        return int(self.mask.sum())


NOTHING = Grid(np.zeros(CELLS), np.zeros(CELLS))  # where nothing was seen


def grid_spec() -> dict[str, Any]:
    """What a bundle says of the grid it was trained on."""
    return {"tenors_days": list(TENORS_DAYS), "moneyness": list(MONEYNESS), "move_features": list(MOVE_FEATURES),
            "version": VERSION}  # fmt: skip


def check_grid_spec(spec: dict[str, Any]) -> None:
    """DataError where a bundle's grid isn't the one this code computes."""
    ours = grid_spec()
    differing = [name for name, value in ours.items() if spec.get(name) != value]
    if differing:
        raise DataError(f"the bundle's surface grid differs from this code's in {', '.join(differing)}: install the "
                        "version it was made with")  # fmt: skip


def to_grid(tau: Array, moneyness: list[Array], volatility: list[Array]) -> Grid:
    """Grid of smiles: `tau` [S] in years, per smile its moneyness (ascending) and volatilities; roots of one date
    apart."""
    nodes = np.array(MONEYNESS)
    order = np.argsort(tau, kind="stable")
    rows = np.full((len(order), nodes.size), np.nan)
    for row, place in enumerate(order):
        x, values = moneyness[place], volatility[place]
        if len(x):
            rows[row] = np.interp(nodes, x, values)
            rows[row, (nodes < x[0] - MONEYNESS_REACH) | (nodes > x[-1] + MONEYNESS_REACH)] = np.nan
    out = np.stack([_row(days / DAYS_PER_YEAR, tau[order], rows) for days in TENORS_DAYS]).ravel()
    mask = np.isfinite(out)
    return Grid(np.where(mask, out, 0.0), mask.astype(np.float64))


def _row(at: float, tau: Array, rows: Array) -> Array:
    """Volatilities of one tenor: in each column between the nearest smiles that know it, before and after."""
    out = np.full(rows.shape[1], np.nan)
    for column in range(rows.shape[1]):
        known = np.flatnonzero(np.isfinite(rows[:, column]))
        before, after = known[tau[known] <= at], known[tau[known] > at]
        if before.size and after.size:
            low, high = before[-1], after[0]
            share = (at - tau[low]) / (tau[high] - tau[low])
            variance = (1 - share) * rows[low, column] ** 2 * tau[low] + share * rows[high, column] ** 2 * tau[high]
            out[column] = np.sqrt(variance / at)
        elif before.size and at <= TENOR_REACH * tau[before[-1]]:
            out[column] = rows[before[-1], column]
        elif after.size and tau[after[0]] <= TENOR_REACH * at:
            out[column] = rows[after[0], column]
    return out


def surface_grid(seen: LastSeen) -> Grid:
    """The grid of a snapshot as it stands."""
    return carried(seen, seen.ts, seen.spot)


def carried(seen: LastSeen, ts: np.datetime64, spot: float) -> Grid:
    """The grid of a snapshot's contracts at a later time and spot, each strike at its volatility as seen."""
    alive: list[LastSmile] = [
        smile for smile in seen.smiles.values() if smile.in_range and tau_years(ts, smile.key.expiry) > 0
    ]
    tau = np.array([tau_years(ts, smile.key.expiry) for smile in alive])
    moneyness = [
        np.log(smile.strike / seen.carried_forward(smile.key, spot)) / np.sqrt(at)
        for smile, at in zip(alive, tau, strict=True)
    ]
    return to_grid(tau, moneyness, [smile.volatility for smile in alive])


def fill(grid: Grid) -> Array:
    """Volatility of every cell [G]: known ones as they are, others from the nearest in moneyness, then in tenor; 0 if
    none."""
    values = np.where(grid.mask > 0, grid.volatility, np.nan).reshape(SHAPE)
    nodes = np.array(MONEYNESS)
    for row in values:
        known = np.isfinite(row)
        if known.any():
            row[:] = np.interp(nodes, nodes[known], row[known])
    full = np.isfinite(values[:, 0])
    if not full.any():
        return np.zeros(CELLS)
    at = np.log(np.array(TENORS_DAYS))
    return np.stack([np.interp(at, at[full], column[full]) for column in values.T], axis=1).ravel()


def move_features(last: LastSeen | None, ts: np.datetime64, spot: float) -> Array:
    """What the underlying did since the surface was last seen, [M] in the order of MOVE_FEATURES; zeros without a
    last."""
    if last is None:
        return np.zeros(len(MOVE_FEATURES))
    log_return = float(np.log(spot / last.spot))
    return np.array([log_return, abs(log_return), float((ts - last.ts) / np.timedelta64(1, "s")) / 86400.0])


def at_points(cells: npt.NDArray[np.floating[Any]], tau: Array, moneyness: Array) -> Array:
    """Cells [G] read at points (tau in years, moneyness), both [N]: bilinear in ln(tau) and moneyness, flat outside."""
    table = np.asarray(cells, dtype=np.float64).reshape(SHAPE)
    row, down = _between(np.log(np.array(TENORS_DAYS) / DAYS_PER_YEAR), np.log(tau))
    column, right = _between(np.array(MONEYNESS), moneyness)
    upper = (1 - right) * table[row, column] + right * table[row, column + 1]
    lower = (1 - right) * table[row + 1, column] + right * table[row + 1, column + 1]
    return np.asarray((1 - down) * upper + down * lower)


def _between(nodes: Array, at: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """Place of the node before each point, and the share of the way to the next; clipped to the ends."""
    place = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    return place, np.clip((at - nodes[place]) / (nodes[place + 1] - nodes[place]), 0.0, 1.0)
