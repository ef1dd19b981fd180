"""Does the anomaly score see what is wrong with a surface? Known faults put into real surfaces of the test dates.

In: a `FeatureStore`, a net, its `Reference`. Out: scores of the clean test surfaces, and per fault the area under the
ROC curve against them, for the net's score and for a plain one (how far the surface lies from the last one).
Invariant: a fault changes known cells only; stale surfaces are tried on dates on which the underlying moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from pipelines.dataset import FeatureStore
from serving.normal import Array
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS, Grid
from serving.surface_score import Reference, SurfaceInput, SurfaceNet, score, statistics

WING = -0.2  # moneyness: the wing is what lies below
WING_SHIFT = 0.02  # volatility
SWAPPED_DAYS = (30.0, 120.0)
SCALED_DAYS, SCALE = 60.0, 1.05
MOVED = 0.005  # |log return| of a date on which a stale surface shows

Floats = npt.NDArray[np.float32]
Fault = Callable[[Floats, Floats], tuple[Floats, Floats]]  # (surface, mask) [G] -> the same, wrong


@dataclass(frozen=True)
class Detection:
    """`clean` scores by test snapshot in order of time; `table`: fault, surfaces, AUC of the net's and the plain
    score."""

    places: npt.NDArray[np.intp]
    clean: Array
    percentile: Array
    table: pl.DataFrame


def shifted_wing(surface: Floats, mask: Floats) -> tuple[Floats, Floats]:
    """The low strikes of every tenor, WING_SHIFT too high."""
    wing = np.tile(np.array(MONEYNESS) <= WING, SHAPE[0])
    return (surface + np.float32(WING_SHIFT) * wing * mask).astype(np.float32), mask


def swapped_expiries(surface: Floats, mask: Floats) -> tuple[Floats, Floats]:
    """Two tenors in each other's place."""
    first, second = (TENORS_DAYS.index(days) for days in SWAPPED_DAYS)
    order = np.arange(SHAPE[0])
    order[[first, second]] = second, first
    return surface.reshape(SHAPE)[order].ravel(), mask.reshape(SHAPE)[order].ravel()


def scaled_tenor(surface: Floats, mask: Floats) -> tuple[Floats, Floats]:
    """One tenor's volatilities SCALE times too high."""
    out = surface.reshape(SHAPE).copy()
    out[TENORS_DAYS.index(SCALED_DAYS)] *= np.float32(SCALE)
    return out.ravel(), mask


FAULTS: Mapping[str, Fault] = {
    f"wing shifted by {100 * WING_SHIFT:g} vol points": shifted_wing,
    f"expiries swapped ({SWAPPED_DAYS[0]:g} and {SWAPPED_DAYS[1]:g} days)": swapped_expiries,
    f"tenor scaled by {SCALE:g} ({SCALED_DAYS:g} days)": scaled_tenor,
}
STALE = f"stale surface, |return| > {100 * MOVED:g} %"


def detect(store: FeatureStore, net: SurfaceNet, reference: Reference) -> Detection:
    """Scores and areas under the curve on the test dates."""
    places = store.places("test")
    clean = [_judge(store, int(place), net, reference) for place in places]
    own, plain = np.array([one[0] for one in clean]), np.array([one[2] for one in clean])
    rows = []
    for name, fault in FAULTS.items():
        wrong = [_judge(store, int(place), net, reference, fault(*store.grids[place, :2])) for place in places]
        rows.append(_row(name, wrong, own, plain))
    moved = [int(place) for place in places if abs(store.moves[place, 0]) > MOVED and _has_before(store, int(place))]
    if moved:
        wrong = [_judge(store, place, net, reference, tuple(store.grids[place - 1, :2])) for place in moved]
        same = np.isin(places, moved)  # days on which the underlying moves score higher, stale or not
        rows.append(_row(STALE, wrong, own[same], plain[same]))
    return Detection(places, own, np.array([one[1] for one in clean]), pl.DataFrame(rows))


def _has_before(store: FeatureStore, place: int) -> bool:
    names = store.snapshots["underlying"]
    return place > 0 and bool(names[place - 1] == names[place])


def _judge(
    store: FeatureStore, place: int, net: SurfaceNet, reference: Reference,
    wrong: tuple[Floats, ...] | None = None,
) -> tuple[float, float, float]:  # fmt: skip
    """Score and percentile of a snapshot's surface (or of the wrong one in its place), and its distance from the
    last."""
    surface, mask = (part.astype(np.float64) for part in (store.grids[place, :2] if wrong is None else wrong))
    last, last_mask = (part.astype(np.float64) for part in store.grids[place, 2:])
    found, _ = statistics(net, SurfaceInput.of(Grid(surface, mask), Grid(last, last_mask), store.moves[place]))
    judged = score(found, reference)
    both = mask * last_mask
    distance = float(np.sqrt((both * (surface - last) ** 2).sum() / max(float(both.sum()), 1.0)))
    return judged.value, judged.percentile, distance


def _row(name: str, wrong: list[tuple[float, float, float]], own: Array, plain: Array) -> dict[str, object]:
    return {
        "fault": name, "surfaces": len(wrong),
        "AUC of the net's score": _area([one[0] for one in wrong], own),
        "AUC of the distance from the last surface": _area([one[2] for one in wrong], plain),
    }  # fmt: skip


def _area(wrong: list[float], clean: Array) -> float:
    """Probability that a wrong surface scores above a clean one, ties counted half (Mann-Whitney)."""
    return float(stats.mannwhitneyu(wrong, clean).statistic) / (len(wrong) * len(clean))
