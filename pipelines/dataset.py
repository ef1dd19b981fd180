"""What the features stage wrote, open: the market sequence, the contract table, the surface grids, the rows.

In: `OUT/features/` (memory-mapped). Out: `FeatureStore`. Batches for the loop are made of it by pipelines/tasks/.
Invariant: a window holds the last T steps of its own underlying up to and including the snapshot, zeros before the
first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.errors import DataError
from serving.features import FeatureSpec

FILES = ("spec.json", "steps.npy", "contracts.npy", "grids.npy", "moves.npy", "rows.parquet", "snapshots.parquet")


@dataclass(frozen=True)
class FeatureStore:
    """The files of the features stage, open."""

    spec: FeatureSpec
    steps: npt.NDArray[np.float32]  # [M, F]
    contracts: npt.NDArray[np.float32]  # [N, K]
    grids: npt.NDArray[np.float32]  # [M, 4, G]: volatility, mask, that last seen (carried, filled), its mask
    moves: npt.NDArray[np.float32]  # [M, features of the underlying's move]
    rows: pl.DataFrame  # [N]
    snapshots: pl.DataFrame  # [M], in the order of `steps`

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open `OUT/features/`; raises DataError where it isn't complete."""
        missing = [str(folder / name) for name in FILES if not (folder / name).exists()]
        if missing:
            raise DataError(f"{', '.join(missing)} isn't there: run python -m pipelines.features with the same out=")
        spec = FeatureSpec.from_json(json.loads((folder / "spec.json").read_text()))
        steps, contracts, grids, moves = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("steps", "contracts", "grids", "moves")
        )
        rows, snapshots = (pl.read_parquet(folder / f"{name}.parquet") for name in ("rows", "snapshots"))
        lacking = [name for name in ("segment", "regime", "first_row") if name not in snapshots.columns]
        if lacking or not len(steps) == len(grids) == len(moves) == len(snapshots) or len(contracts) != len(rows):
            what = ", ".join(lacking) or "rows"
            raise DataError(f"{folder} was made by another version (snapshots.parquet lacks {what}): run python -m "
                            "pipelines.features with the same out= again")  # fmt: skip
        return cls(spec, steps, contracts, grids, moves, rows, snapshots)

    def places(self, split: str) -> npt.NDArray[np.intp]:
        """Places (in `snapshots`) of a split's snapshots, in order of time."""
        chosen = self.snapshots.with_row_index("place").filter((pl.col("split") == split) & (pl.col("rows") > 0))
        return chosen.sort("ts", "underlying")["place"].to_numpy().astype(np.intp)

    def row_range(self, place: int) -> slice:
        """Rows of one snapshot."""
        first, count = self.snapshots["first_row"][place], self.snapshots["rows"][place]
        return slice(first, first + count)

    def window(self, place: int) -> npt.NDArray[np.float32]:
        """[T, F]: the last T steps of this underlying since it last split, zeros before the first."""
        underlying, segment = self.snapshots["underlying"], self.snapshots["segment"]
        start = max(0, place - self.spec.window + 1)
        while (underlying[start], segment[start]) != (underlying[place], segment[place]):
            start += 1
        out = np.zeros((self.spec.window, self.steps.shape[1]), np.float32)
        out[self.spec.window - (place + 1 - start) :] = self.steps[start : place + 1]
        return out
