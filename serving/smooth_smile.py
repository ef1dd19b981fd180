"""A surface as last seen without its quotes' noise: per expiry a penalised cubic spline in ln(K/F)/sqrt(tau).

In: moneyness (ascending) and volatilities of an expiry's quotes; then all smiles of a snapshot. Out: `SmoothSmile`,
volatilities at any moneyness; `ordered` lifts smiles whose total variance lies below that of the next shorter tenor.

The spline has knots every `KNOT_WIDTH` and minimises the sum of squared misses plus `PENALTY` times the integral of its
third derivative squared, so parabolas come back as they are (P. Eilers, B. Marx, "Flexible smoothing with B-splines and
penalties", Statistical Science 11, 1996). Outside the quotes it goes on along its slope, less and less: at most
`REACH` times the slope. Constants were chosen on SPX 2019 before June: docs/LOG.md.

Invariants: linear in the volatilities; continuous with its slope; a point alone has, to the bit, the value it has among
others; no quote of t enters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.normal import Array

FEWEST_QUOTES = 6  # with fewer a smile stays linear between its quotes
KNOT_WIDTH = 0.03
PENALTY = 3e-8
ORDER = 3  # of the derivative that is penalised
REACH = 0.1  # of moneyness
MARGIN = 0.003  # of volatility: how far a lifted quote lies above the shorter tenor's
EDGE = np.arange(1, 6) * 0.02  # moneyness beyond the quotes at which a lift holds the extension up, too
_FOUR = np.arange(4)[:, None]

Name = TypeVar("Name")


@dataclass(frozen=True)
class SmoothSmile:
    """Cubic spline on uniform knots from `low` to `high` (moneyness); `coefficients` [intervals + 3], volatility."""

    low: float
    high: float
    coefficients: Array

    def at(self, moneyness: Array) -> Array:
        """Volatility at any moneyness."""
        intervals = self.coefficients.size - 3
        place, weight = _splines(np.minimum(np.maximum(moneyness, self.low), self.high), self.low, self.high, intervals)
        out = np.asarray((weight * self.coefficients[place]).sum(axis=0))
        below, above = np.minimum(moneyness - self.low, 0.0), np.maximum(moneyness - self.high, 0.0)
        if below.any() or above.any():
            width = (self.high - self.low) / intervals
            slopes = 0.5 * (self.coefficients[[2, -1]] - self.coefficients[[0, -3]]) / width
            out += REACH * (slopes[0] * np.tanh(below / REACH) + slopes[1] * np.tanh(above / REACH))
        return out


def fit_smooth_smile(moneyness: Array, volatility: Array) -> SmoothSmile | None:
    """The smoothed smile; None where there are fewer than FEWEST_QUOTES, or all within one knot's width."""
    if moneyness.size < FEWEST_QUOTES or moneyness[-1] - moneyness[0] < KNOT_WIDTH:
        return None
    low, high = float(moneyness[0]), float(moneyness[-1])
    intervals = int(np.ceil((high - low) / KNOT_WIDTH))
    width = (high - low) / intervals
    place, weight = _splines(moneyness, low, high, intervals)
    basis = np.zeros((moneyness.size, intervals + 3))
    basis[np.arange(moneyness.size), place] = weight
    normal = basis.T @ basis + PENALTY / width ** (2 * ORDER - 1) * _roughness(intervals)
    coefficients = np.linalg.solve(normal, basis.T @ volatility)
    return SmoothSmile(low, high, np.asarray(coefficients, dtype=np.float64))


def ordered(
    smiles: Mapping[Name, SmoothSmile], tau: Mapping[Name, float], quotes: Mapping[Name, tuple[Array, Array]]
) -> dict[Name, SmoothSmile]:
    """Smiles fitted again, shortest tenor first, where quotes (moneyness, volatility) or their extension lie less than
    MARGIN above the total variance of a smile of the next shorter tenor at equal ln(K/F), or below it; equal tenors
    aren't compared."""
    out: dict[Name, SmoothSmile] = {}
    before: Sequence[Name] = []
    for tenor in sorted({tau[name] for name in smiles}):
        here = [name for name in smiles if tau[name] == tenor]
        for name in here:
            smile, (moneyness, volatility) = smiles[name], quotes[name]
            at = np.concatenate([moneyness[0] - EDGE[::-1], moneyness, moneyness[-1] + EDGE])
            given = smile.at(at)
            given[EDGE.size : -EDGE.size] = volatility
            floor = np.zeros_like(given)
            for shorter in before:
                scale = float(np.sqrt(tenor / tau[shorter]))
                same = at * scale
                known = (same > out[shorter].low - REACH) & (same < out[shorter].high + REACH)
                floor = np.maximum(floor, np.where(known, (1.0 + MARGIN) * out[shorter].at(same) / scale, 0.0))
            lifted = fit_smooth_smile(at, np.maximum(given, floor)) if (floor > given).any() else None
            out[name] = smile if lifted is None else lifted
        before = here
    return out


def _splines(at: Array, low: float, high: float, intervals: int) -> tuple[npt.NDArray[np.intp], Array]:
    """The four uniform cubic B-splines that reach each of [n]: their places [4, n] and values [4, n], which add up to
    1."""
    position = (at - low) / (high - low) * intervals
    cell = np.minimum(position.astype(np.intp), intervals - 1)
    u = position - cell
    square, rest = u * u, 1.0 - u
    cube = square * u
    values = (rest * rest * rest, 3.0 * cube - 6.0 * square + 4.0, 3.0 * (u + square - cube) + 1.0, cube)
    return cell + _FOUR, np.stack(values) / 6.0


@lru_cache
def _roughness(intervals: int) -> Array:
    """What the squared differences of order ORDER are of the coefficients: [intervals + 3, intervals + 3]."""
    differences = np.diff(np.eye(intervals + 3), ORDER, axis=0)
    matrix = differences.T @ differences
    matrix.setflags(write=False)  # every smile with so many knots gets this one
    return matrix
