"""The host's use of a surface net: is this chain's surface what one would expect, which regime is it, what is missing.

In: a verified bundle, its engine, and snapshots of a chain, the last of which is judged; the one before is what was
last seen.
Out: `Inspected`. Invariants: the statistics and the grid are those of evaluation (serving/surface_score.py,
surface_grid.py, surface_changes.py); a chain of one snapshot can be completed but not judged, nor can one be whose
quotes have too little in common with the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from serving.bundle import Bundle
from serving.engine import SurfaceEngine
from serving.errors import BundleError, DataError
from serving.last_seen import LastSeen, last_seen
from serving.normal import Array
from serving.quotes import is_split
from serving.surface import Quotes, build_surface
from serving.surface_changes import changes
from serving.surface_grid import NOTHING, Grid, carried, check_grid_spec, fill, move_features, surface_grid
from serving.surface_reference import Evidence, Reference
from serving.surface_score import Score, SurfaceAnswer, SurfaceInput, score, statistics

REFERENCE = "reference.npz"
UNUSUAL = 0.99  # a score above this share of the reference dates' is worth a look


@dataclass(frozen=True)
class Inspected:
    """A judged snapshot; `score` is None where nothing was seen before it, or nothing that it can be held against."""

    quotes: Quotes
    last: LastSeen | None
    grid: Grid
    completed: Array  # [G], volatility
    deviation: Array  # [G], its standard deviation by the net
    regimes: dict[str, float]  # probabilities
    score: Score | None

    @property
    def unusual(self) -> bool:
        """Whether the score lies above UNUSUAL of the reference's, and the reference can tell."""
        return self.score is not None and self.score.calibrated and self.score.percentile > UNUSUAL


def regime_names(bundle: Bundle) -> list[str]:
    """Names of the regimes, in the order of the net's answer."""
    names = bundle.manifest.feature_spec.get("regimes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"manifest.json: feature_spec.regimes must be a list of names, found {names!r}")
    return names


def inspect_chain(bundle: Bundle, engine: SurfaceEngine, chain: Sequence[Quotes]) -> Inspected:
    """Judge the last snapshot; DataError where it has no smile in the scored range or times don't ascend."""
    if not chain:
        raise DataError("the chain has no snapshot: at least the one to be judged is needed")
    for earlier, later in pairwise(quotes.ts for quotes in chain):
        if later <= earlier:
            raise DataError(f"snapshots must ascend in time: {later} follows {earlier}")
    check_grid_spec(dict(bundle.manifest.feature_spec))
    reference = Reference.from_arrays(bundle.arrays(REFERENCE), REFERENCE)
    now = chain[-1]
    seen = last_seen(build_surface(now))
    if not seen.usable:
        raise DataError(f"the snapshot of {now.ts} has no usable smile: calls and puts with two-sided quotes within 5 "
                        "% of spot are needed, expiring in 5 days to a year")  # fmt: skip
    last = _last_usable(chain[:-1], now)
    grid, known = surface_input(seen, last)
    found, answer = statistics(engine.answer, known)
    names = regime_names(bundle)
    judged = score(Evidence(found, changes(seen, last)), reference) if last is not None else None
    return Inspected(
        now, last, grid, answer.completed[0].astype(float), answer.deviation[0].astype(float), _regimes(names, answer),
        judged if judged is not None and judged.by_statistic else None,
    )  # fmt: skip


def surface_input(seen: LastSeen, last: LastSeen | None) -> tuple[Grid, SurfaceInput]:
    """The grid of a snapshot, and what the net is given of it."""
    grid = surface_grid(seen)
    before = carried(last, seen.ts, seen.spot) if last is not None else NOTHING
    return grid, SurfaceInput.of(grid, Grid(fill(before), before.mask), move_features(last, seen.ts, seen.spot))


def _last_usable(chain: Sequence[Quotes], now: Quotes) -> LastSeen | None:
    """The latest snapshot with a usable smile, as in training, which passes over the others; none before a split."""
    for quotes in reversed(chain):
        seen = last_seen(build_surface(quotes))
        if seen.usable:
            return None if is_split(quotes, now) else seen
    return None


def _regimes(names: list[str], answer: SurfaceAnswer) -> dict[str, float]:
    if not names:
        return {}  # a net trained without labels has one nameless regime
    if len(names) != answer.regime.shape[1]:
        raise BundleError(
            f"manifest.json: feature_spec.regimes names {len(names)}, the net tells {answer.regime.shape[1]}"
        )
    return dict(zip(names, answer.regime[0].astype(float).tolist(), strict=True))
