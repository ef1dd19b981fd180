"""A surface as last seen without its quotes' noise: per expiry a penalised cubic spline in ln(K/F)/sqrt(tau).

In: moneyness (ascending) and volatilities of an expiry's quotes; then all smiles of a snapshot. Out: `SmoothSmile`,
volatilities at any moneyness; `ordered` lifts smiles whose total variance lies below that of the next shorter tenor.

The spline has knots every `KNOT_WIDTH` and minimises the sum of squared misses plus `PENALTY` times the integral of its
third derivative squared, so parabolas come back as they are (P. Eilers, B. Marx, "Flexible smoothing with B-splines and
penalties", Statistical Science 11, 1996). Outside the quotes it goes on along its slope, less and less: at most
`REACH` times the slope. Constants were chosen on SPX 2019 before June: docs/LOG.md.

Invariants: linear in the volatilities; continuous with its slope; no quote of t enters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from serving.normal import Array

FEWEST_QUOTES = 6  # with fewer a smile stays linear between its quotes
KNOT_WIDTH = 0.03
PENALTY = 3e-8
ORDER = 3  # of the derivative that is penalised
REACH = 0.1  # of moneyness
MARGIN = 0.003  # of volatility: how far a lifted quote lies above the shorter tenor's
EDGE = np.arange(1, 6) * 0.02  # moneyness beyond the quotes at which a lift holds the extension up, too

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
        inside = _basis(np.clip(moneyness, self.low, self.high), self.low, self.high, intervals) @ self.coefficients
        width = (self.high - self.low) / intervals
        slopes = 0.5 * (self.coefficients[[2, -1]] - self.coefficients[[0, -3]]) / width
        below, above = np.minimum(moneyness - self.low, 0.0), np.maximum(moneyness - self.high, 0.0)
        return np.asarray(inside + REACH * (slopes[0] * np.tanh(below / REACH) + slopes[1] * np.tanh(above / REACH)))


def fit_smooth_smile(moneyness: Array, volatility: Array) -> SmoothSmile | None:
    """The smoothed smile; None where there are fewer than FEWEST_QUOTES, or all within one knot's width."""
    if moneyness.size < FEWEST_QUOTES or np.ptp(moneyness) < KNOT_WIDTH:
        return None
    low, high = float(moneyness[0]), float(moneyness[-1])
    intervals = int(np.ceil((high - low) / KNOT_WIDTH))
    width = (high - low) / intervals
    basis = _basis(moneyness, low, high, intervals)
    differences = np.diff(np.eye(intervals + 3), ORDER, axis=0)
    penalty = PENALTY / width ** (2 * ORDER - 1) * (differences.T @ differences)
    coefficients = np.linalg.solve(basis.T @ basis + penalty, basis.T @ volatility)
    return SmoothSmile(low, high, np.asarray(coefficients, dtype=np.float64))


def ordered(
    smiles: Mapping[Name, SmoothSmile], tau: Mapping[Name, float], quotes: Mapping[Name, tuple[Array, Array]]
) -> dict[Name, SmoothSmile]:
    """Smiles fitted again, shortest tenor first, where quotes (moneyness, volatility) or their extension lie below the
    total variance of a smile of the next shorter tenor at equal ln(K/F); equal tenors aren't compared."""
    out: dict[Name, SmoothSmile] = {}
    before: Sequence[Name] = []
    for tenor in sorted({tau[name] for name in smiles}):
        here = [name for name in smiles if tau[name] == tenor]
        for name in here:
            smile, (moneyness, volatility) = smiles[name], quotes[name]
            low, high = moneyness[0] - EDGE[::-1], moneyness[-1] + EDGE
            at = np.r_[low, moneyness, high]
            given = np.r_[smile.at(low), volatility, smile.at(high)]
            floor = np.zeros_like(given)
            for shorter in before:
                scale = float(np.sqrt(tenor / tau[shorter]))
                known = (at * scale > out[shorter].low - REACH) & (at * scale < out[shorter].high + REACH)
                floor = np.maximum(floor, np.where(known, (1.0 + MARGIN) * out[shorter].at(at * scale) / scale, 0.0))
            lifted = fit_smooth_smile(at, np.maximum(given, floor)) if (floor > given).any() else None
            out[name] = smile if lifted is None else lifted
        before = here
    return out


def _basis(at: Array, low: float, high: float, intervals: int) -> Array:
    """Uniform cubic B-splines at [n]: [n, intervals + 3], rows that add up to 1."""
    place = (at - low) / (high - low) * intervals
    cell = np.clip(place.astype(np.intp), 0, intervals - 1)
    u = place - cell
    out = np.zeros((at.size, intervals + 3))
    rows = np.arange(at.size)
    for offset, part in enumerate(((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)):
        out[rows, cell + offset] = part / 6.0
    return out
