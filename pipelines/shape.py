"""Is a surface free of arbitrage between the quotes? Butterflies and calendars counted on a dense grid.

In: smiles of one snapshot sampled at nodes of k = ln(K/F), each predictor at its own forwards: tau [years], forward
[money], k and volatility [n]. Out: counts (`ButterflyCounts`, `CalendarCounts`) that add up over smiles, and `shares`.

What is counted, with c the undiscounted Black-76 call price and w = volatility^2 tau:
- butterfly: inner nodes at which c isn't convex in strike: the slope of c falls from one side of the node to the other.
  The fall of the slope is negative probability in the risk-neutral law (Breeden & Litzenberger, J. Business 51, 1978);
  its sum over a smile doesn't depend on how fine the nodes are where the smile bends (the share of nodes does); where
  it jumps the sum grows as the nodes draw together.
- durrleman: inner nodes with g(k) < 0, g = (1 - k w'/(2 w))^2 - w'^2/4 (1/w + 1/4) + w''/2, by central differences
  (Gatheral & Jacquier, Quantitative Finance 14, 2014).
- calendar: nodes at which w of a smile lies below w of a smile of the next shorter tenor, at equal k; in money: what
  the longer call lacks, at the longer smile's forward (Gatheral & Jacquier, lemma 2.1).

Smiles of one tenor (SPX and SPXW of one date) aren't compared with each other; each is compared with every smile of the
next longer tenor of the snapshot. Violations that a change of volatility by the share `ROUNDING` can make are none:
nets answer in float32.

Invariants: the order of smiles changes nothing; a smile with fewer than three nodes has no inner ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from serving import black76
from serving.errors import DataError
from serving.normal import Array

STEP = 0.002  # of ln(K/F)/sqrt(tau): a fifth to a third of the distance of SPX's quotes at one to three months
ROUNDING = 2.0**-21  # of the volatility: four units in the last place of a float32


@dataclass(frozen=True)
class SampledSmile:
    """One expiry of a predictor at nodes `k` = ln(K/F), ascending; raises DataError where it can't be judged."""

    tau: float  # years
    forward: float  # the predictor's own, money
    k: Array
    volatility: Array

    def __post_init__(self) -> None:
        if self.k.ndim != 1 or self.k.shape != self.volatility.shape:
            raise DataError(f"a smile has nodes {self.k.shape} and volatilities {self.volatility.shape}: one each")
        if not (np.diff(self.k) > 0).all():
            raise DataError("a smile's nodes aren't ascending: sort them by ln(K/F), one of each")
        bad = np.flatnonzero(~(np.isfinite(self.volatility) & (self.volatility > 0)))
        if bad.size:
            raise DataError(
                f"a smile of tau {self.tau:.4f} has volatility {self.volatility[bad[0]]} at ln(K/F) = "
                f"{self.k[bad[0]]:.4f}: volatilities are positive"
            )

    @property
    def strike(self) -> Array:
        """Strikes of the nodes, money."""
        return np.asarray(self.forward * np.exp(self.k))

    @property
    def variance(self) -> Array:
        """Total variance w."""
        return np.asarray(self.volatility**2 * self.tau)


@dataclass(frozen=True)
class ButterflyCounts:
    """Of some smiles: inner nodes, those not convex, those with g < 0, and the negative probability (a sum)."""

    smiles: int = 0
    nodes: int = 0
    broken: int = 0
    durrleman: int = 0
    negative_probability: float = 0.0

    def __add__(self, other: ButterflyCounts) -> ButterflyCounts:
        return ButterflyCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class CalendarCounts:
    """Of some pairs of smiles: nodes of both, those inverted, and what the longer calls lack (a sum, money)."""

    pairs: int = 0
    nodes: int = 0
    broken: int = 0
    money: float = 0.0

    def __add__(self, other: CalendarCounts) -> CalendarCounts:
        return CalendarCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def grid(lowest: float, highest: float, tau: float, step: float = STEP) -> Array:
    """Nodes k within [lowest, highest]: whole multiples of `step` sqrt(tau), so that other ends keep the nodes."""
    width = step * float(np.sqrt(tau))
    return np.arange(np.ceil(lowest / width), np.floor(highest / width) + 1) * width


def butterfly(smile: SampledSmile) -> ButterflyCounts:
    """Counts of one smile."""
    if smile.k.size < 3:
        return ButterflyCounts(smiles=1)
    strike, w, k = smile.strike, smile.variance, smile.k
    worth = black76.value(smile.forward, strike, smile.tau, smile.volatility, 1.0, 1.0)
    width = np.diff(strike)
    rise = np.diff(np.diff(worth.price) / width)  # of the slope over a node: its probability
    rounding = 2.0 * ROUNDING * (worth.vega * smile.volatility)[1:-1] * (1.0 / width[:-1] + 1.0 / width[1:])
    broken = rise < -rounding
    left, right = np.diff(k)[:-1], np.diff(k)[1:]
    slopes = np.diff(w) / np.diff(k)
    first = (slopes[:-1] * right + slopes[1:] * left) / (left + right)
    second = 2.0 * np.diff(slopes) / (left + right)
    middle, at = w[1:-1], k[1:-1]
    g = (1.0 - at * first / (2.0 * middle)) ** 2 - first**2 / 4.0 * (1.0 / middle + 0.25) + 0.5 * second
    g_rounding = 4.0 * ROUNDING * middle / np.minimum(left, right) ** 2
    return ButterflyCounts(1, rise.size, int(broken.sum()), int((g < -g_rounding).sum()), float(-rise[broken].sum()))


def calendar(earlier: SampledSmile, later: SampledSmile) -> CalendarCounts:
    """Counts of one pair; both sampled at the same nodes, `later` of the longer tenor."""
    if not earlier.tau < later.tau:
        raise DataError(f"calendar: tenors {earlier.tau:.4f} and {later.tau:.4f} years aren't ascending")
    if earlier.k.shape != later.k.shape or not np.array_equal(earlier.k, later.k):
        raise DataError("calendar: the two smiles are sampled at different ln(K/F)")
    broken = later.variance < earlier.variance * (1.0 - 4.0 * ROUNDING)
    needed = np.sqrt(earlier.variance[broken] / later.tau)
    strike = later.strike[broken]
    lacking = black76.price(later.forward, strike, later.tau, needed, 1.0, 1.0)
    lacking -= black76.price(later.forward, strike, later.tau, later.volatility[broken], 1.0, 1.0)
    return CalendarCounts(1, earlier.k.size, int(broken.sum()), float(lacking.sum()))


def neighbours(tau: Sequence[float]) -> list[tuple[int, int]]:
    """Places of (shorter, longer) smiles whose tenors follow each other in a snapshot; equal tenors aren't a pair."""
    tenors = np.unique(np.asarray(tau, dtype=np.float64))
    following = dict(zip(tenors[:-1].tolist(), tenors[1:].tolist(), strict=True))
    return [
        (short, long)
        for short, tenor in enumerate(tau)
        for long, other in enumerate(tau)
        if following.get(float(tenor)) == float(other)
    ]


def shares(butterflies: Iterable[ButterflyCounts], calendars: Iterable[CalendarCounts]) -> dict[str, float]:
    """Pooled figures, NaN where there is nothing to divide by.

    `butterfly`, `durrleman`, `calendar`: shares of nodes. `negative_probability`: mean over smiles (1: all of it).
    `calendar_money`: mean over nodes, money. `smiles`, `butterfly_nodes`, `pairs`, `calendar_nodes`: counts.
    """
    strikes = sum(butterflies, ButterflyCounts())
    tenors = sum(calendars, CalendarCounts())

    def per(value: float, count: int) -> float:
        return value / count if count else float("nan")

    return {
        "smiles": strikes.smiles, "butterfly_nodes": strikes.nodes,
        "butterfly": per(strikes.broken, strikes.nodes), "durrleman": per(strikes.durrleman, strikes.nodes),
        "negative_probability": per(strikes.negative_probability, strikes.smiles),
        "pairs": tenors.pairs, "calendar_nodes": tenors.nodes,
        "calendar": per(tenors.broken, tenors.nodes), "calendar_money": per(tenors.money, tenors.nodes),
    }  # fmt: skip
