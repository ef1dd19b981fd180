"""The smiles behind the surface grids: what a host would have of every snapshot of the feature store.

In: a `FeatureStore` and the quotes it was made of (`OUT/ingest/quotes.parquet`). Out: `SurfaceDays`: by place, the
scored smiles (`LastSeen`), those of the snapshot before, the changes between them.
Invariant: what came before is what came before in the features: the same underlying, no split in between, snapshots
without a usable smile passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.dataset import FeatureStore
from pipelines.snapshots import read_snapshots
from serving.errors import DataError
from serving.last_seen import LastSeen, last_seen
from serving.surface import build_surface
from serving.surface_changes import Changes, changes


@dataclass(frozen=True)
class SurfaceDays:
    """In order of the store's snapshots; `before[place]` is None where nothing was seen before."""

    now: list[LastSeen]
    before: list[LastSeen | None]

    @classmethod
    def read(cls, store: FeatureStore, quotes_path: Path) -> SurfaceDays:
        """Build every snapshot's smiles again; DataError where the quotes lack one of the store's."""
        names, times = store.snapshots["underlying"].to_list(), store.snapshots["ts"].to_numpy()
        places = {(name, ts): place for place, (name, ts) in enumerate(zip(names, times.tolist(), strict=True))}
        found: dict[int, LastSeen] = {}
        for name, quotes in read_snapshots(quotes_path):
            place = places.get((name, quotes.ts.astype(times.dtype).item()))
            if place is not None:
                found[place] = last_seen(build_surface(quotes))
        missing = [place for place in range(len(times)) if place not in found]
        if missing:
            raise DataError(f"{quotes_path} holds no quotes of {names[missing[0]]} at {times[missing[0]]}, which the "
                            "features have: run python -m pipelines.features with the same out= again")  # fmt: skip
        now = [found[place] for place in range(len(times))]
        segment = store.snapshots["segment"].to_list()
        same = [place > 0 and (names[place - 1], segment[place - 1]) == (names[place], segment[place])
                for place in range(len(now))]  # fmt: skip
        return cls(now, [now[place - 1] if follows else None for place, follows in enumerate(same)])

    def pair(self, place: int) -> tuple[LastSeen, LastSeen]:
        """A scored snapshot's smiles, and those last seen."""
        before = self.before[place]
        assert before is not None, "a snapshot that is scored has one before it"
        return self.now[place], before

    def changes(self, place: int) -> Changes:
        """Of a scored snapshot."""
        return changes(*self.pair(place))

    def move(self, place: int) -> float:
        """Log return of the underlying since the snapshot before."""
        now, before = self.pair(place)
        return float(np.log(now.spot / before.spot))
