"""How every expiry's smile has changed since it was last seen, and which of them doesn't go with the others.

In: `LastSeen` now and before. Out: `Changes`, numbers per expiry; of them eight statistics of a snapshot, which
serving/surface_score.py holds against those of other dates, beside the net's.

A grid between expiries dilutes what is wrong with one of them, so these are made of quotes. An expiry's change is the
logarithm of its volatilities over the last smile's at the strike, in three bands of moneyness (medians: a wrong quote
alone moves nothing). Its *misfit* is what a line in ln(tau) through the other expiries' changes, the nearer ones
weighted more, misses it by. *Roughness* is what a parabola in moneyness leaves of a change: quotes that were really
made anew never agree that well, so a smile without any is a copy, be it of the volatilities at the strikes or of those
at the moneyness. *Forward*: ln of the forward over the one carried with the underlying: quotes that missed a move keep
theirs.

Invariants: only expiries seen both times within the scored range count, and nothing is read beyond the last smile's
strikes; NaN is what too few quotes or expiries give; evaluation and hosts compute the same numbers.
Source of the line: local linear regression (Fan & Gijbels, 1996), leaving one out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.last_seen import LastSeen, LastSmile
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR

BANDS = {"level": (-0.15, 0.15), "put_wing": (-np.inf, -0.2), "call_wing": (0.1, np.inf)}  # moneyness, ends included
FEWEST_IN_BAND = 2  # quotes
FEWEST_ROUGH = 6  # quotes: a parabola takes three
FEWEST_OTHERS = 2  # expiries that a line goes through
BANDWIDTH = 0.5  # of ln(tau)
SLOPE_RIDGE = 0.01  # of the weights' sum: a line through neighbours on one side doesn't run away
NODES_DAYS = (7.0, 14.0, 30.0, 60.0, 120.0, 240.0)  # tenors at which a misfit's usual size is kept
SMALLEST_SIZE = 1e-3  # of ln(volatility): a smaller usual misfit is taken for this
SMALLEST_ROUGHNESS, SMALLEST_FORWARD = 1e-6, 1e-5  # below these there is nothing to tell apart
QUOTE_STATISTICS = (*(f"worst_expiry_{name}" for name in BANDS), *(f"common_{name}" for name in BANDS),
                    "roughness", "forward")  # fmt: skip
COMMON_LEVEL = QUOTE_STATISTICS.index("common_level")


@dataclass(frozen=True)
class Changes:
    """`log_return` of the underlying; per expiry [E], by tenor: `tau` in years; `bands` [E, 3], ln of volatility over
    the last one, in order of BANDS, the wings' less the level's; `rough` [E, 2], of that logarithm at equal strike and
    at equal moneyness; `forward`, ln of the forward over the carried one."""

    log_return: float
    tau: Array
    bands: Array
    rough: Array
    forward: Array


def changes(now: LastSeen, last: LastSeen) -> Changes:
    """Of the expiries that both know."""
    pairs = [(smile, last.smiles[key]) for key, smile in now.smiles.items()
             if smile.in_range and key in last.smiles and last.smiles[key].in_range]  # fmt: skip
    pairs.sort(key=lambda pair: pair[0].tau)
    found = [_one(smile, before) for smile, before in pairs]
    table = np.array(found, dtype=np.float64).reshape(len(pairs), len(BANDS) + 2)
    carried = [last.carried_forward(smile.key, now.spot) for smile, _ in pairs]
    forward = np.array([np.log(smile.forward / at) for (smile, _), at in zip(pairs, carried, strict=True)], dtype=float)
    tau = np.array([smile.tau for smile, _ in pairs], dtype=float)
    move = float(np.log(now.spot / last.spot))
    return Changes(move, tau, table[:, : len(BANDS)], table[:, len(BANDS) :], forward)


def _one(smile: LastSmile, before: LastSmile) -> list[float]:
    """Bands and roughnesses of one expiry."""
    inside = (smile.strike >= before.strike[0]) & (smile.strike <= before.strike[-1])
    strike, volatility = smile.strike[inside], smile.volatility[inside]
    moneyness = np.log(strike / smile.forward) / np.sqrt(smile.tau)
    then = np.log(before.strike / before.forward) / np.sqrt(before.tau)
    at_strike = np.log(volatility / before.at(strike))
    at_moneyness = np.log(volatility / np.interp(moneyness, then, before.volatility))
    level, *wings = [
        middle(at_strike[(moneyness >= low) & (moneyness <= high)], FEWEST_IN_BAND) for low, high in BANDS.values()
    ]
    rough = [_roughness(moneyness, change) for change in (at_strike, at_moneyness)]
    return [level, *(wing - level for wing in wings), *rough]


def middle(values: Array, fewest: int = 1) -> float:
    """Median of the values that aren't NaN; NaN if they are fewer than `fewest`."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size >= fewest else np.nan


def _roughness(moneyness: Array, change: Array) -> float:
    """Robust deviation of a change from its least-squares parabola."""
    if change.size < FEWEST_ROUGH:
        return np.nan
    columns = np.stack([np.ones_like(moneyness), moneyness, moneyness**2], axis=1)
    left = change - columns @ np.linalg.lstsq(columns, change, rcond=None)[0]
    return 1.4826 * float(np.median(np.abs(left)))


def misfit(tau: Array, values: Array) -> Array:
    """[E]: what the line through the others' `values` misses each by; NaN where it or more than all but two of the
    others are NaN."""
    out = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    if known.size <= FEWEST_OTHERS:
        return out
    at, value = np.log(tau[known]), values[known]
    away = at[np.newaxis] - at[:, np.newaxis]
    second = np.sort(np.abs(away), axis=1)[:, FEWEST_OTHERS]  # the first is the expiry itself
    weight = np.exp(-0.5 * (away / np.maximum(second, BANDWIDTH)[:, np.newaxis]) ** 2)
    np.fill_diagonal(weight, 0.0)
    total, first, squares = (np.sum(weight * away**power, axis=1) for power in range(3))
    squares = squares + SLOPE_RIDGE * total
    sums, products = weight @ value, (weight * away) @ value
    out[known] = value - (squares * sums - first * products) / (total * squares - first**2)
    return out


def usual_sizes(days: Sequence[Changes]) -> Array:
    """[3, nodes]: robust size of each band's misfit at NODES_DAYS, from the neighbouring tenors of all days; infinite
    for a band that no day shows."""
    tau = np.concatenate([day.tau for day in days])
    nodes = _nodes()
    sizes = np.full((len(BANDS), len(nodes)), np.inf)
    for band in range(len(BANDS)):
        missed = np.abs(np.concatenate([misfit(day.tau, day.bands[:, band]) for day in days]))
        known = np.isfinite(missed)
        if known.any():
            away = np.log(tau[known])[np.newaxis] - nodes[:, np.newaxis]
            near = np.exp(-0.5 * ((away - _nearest(away)) / BANDWIDTH) ** 2)
            sizes[band] = [max(1.4826 * _weighted_median(missed[known], row), SMALLEST_SIZE) for row in near]
    return sizes


def _nodes() -> Array:
    return np.log(np.array(NODES_DAYS) / DAYS_PER_YEAR)


def _nearest(away: Array) -> Array:
    """[nodes, 1]: the distance of the nearest tenor, so that a node far from all of them takes what there is."""
    return np.asarray(np.take_along_axis(away, np.abs(away).argmin(axis=1)[:, np.newaxis], axis=1))


def _weighted_median(values: Array, weight: Array) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(reached, 0.5 * reached[-1])])


def quote_statistics(day: Changes, sizes: Array) -> Array:
    """[8] in order of QUOTE_STATISTICS, NaN where the quotes don't say.

    The worst expiry's misfit in usual sizes, by band; the middle of all expiries' changes times sqrt(tau), by band,
    with its sign; the logarithms of roughness (the smaller of the two) and of the forward's deviation, middles of all
    expiries.
    """
    worst, common = [], []
    for band, size in enumerate(sizes):
        missed = np.abs(misfit(day.tau, day.bands[:, band]))
        known = np.isfinite(missed) & bool(np.isfinite(size).all())
        usual = np.interp(np.log(day.tau[known]), _nodes(), size)
        worst.append(float((missed[known] / usual).max()) if known.any() else np.nan)
        common.append(middle(day.bands[:, band] * np.sqrt(day.tau)))
    rough = [middle(column) for column in day.rough.T]
    smaller = np.log(np.maximum(np.min(rough), SMALLEST_ROUGHNESS))  # both are NaN or none
    forward = np.log(np.maximum(middle(np.abs(day.forward)), SMALLEST_FORWARD))
    return np.array([*worst, *common, smaller, forward])
