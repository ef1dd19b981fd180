"""The training table: snapshots with their windows and contracts, and the batches the loop takes.

In: `OUT/features/` (memory-mapped). Out: `Batch`es of torch tensors; one snapshot is one item.
Shapes: B snapshots, T steps, F step features, N contracts of all of them, K contract features.
Invariants: a window holds the last T steps of its own underlying up to and including the snapshot, zeros before the
first; the rows drawn depend on (seed, epoch, snapshot) alone, so a resumed run draws what an uninterrupted one draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from serving import black76
from serving.errors import DataError
from serving.features import FeatureSpec

FILES = ("spec.json", "steps.npy", "contracts.npy", "rows.parquet", "snapshots.parquet")


class Batch(NamedTuple):
    """`window` [B, T, F], `contracts` [N, K], `snapshot` [N] (place in the window), `target` [N] (IV), `weight` [N]."""

    window: Tensor
    contracts: Tensor
    snapshot: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class FeatureStore:
    """The files of the features stage, open."""

    spec: FeatureSpec
    steps: npt.NDArray[np.float32]  # [M, F]
    contracts: npt.NDArray[np.float32]  # [N, K]
    rows: pl.DataFrame  # [N]
    snapshots: pl.DataFrame  # [M], in the order of `steps`

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open `OUT/features/`; raises DataError where it isn't complete."""
        missing = [str(folder / name) for name in FILES if not (folder / name).exists()]
        if missing:
            raise DataError(f"{', '.join(missing)} isn't there: run python -m pipelines.features with the same out=")
        return cls(
            FeatureSpec.from_json(json.loads((folder / "spec.json").read_text())),
            np.load(folder / "steps.npy", mmap_mode="r"),
            np.load(folder / "contracts.npy", mmap_mode="r"),
            pl.read_parquet(folder / "rows.parquet"),
            pl.read_parquet(folder / "snapshots.parquet"),
        )

    def places(self, split: str) -> npt.NDArray[np.intp]:
        """Places (in `snapshots`) of a split's snapshots, in order of time."""
        chosen = self.snapshots.with_row_index("place").filter((pl.col("split") == split) & (pl.col("rows") > 0))
        return chosen.sort("ts", "underlying")["place"].to_numpy().astype(np.intp)

    def row_range(self, place: int) -> slice:
        """Rows of one snapshot."""
        first, count = self.snapshots["first_row"][place], self.snapshots["rows"][place]
        return slice(first, first + count)

    def window(self, place: int) -> npt.NDArray[np.float32]:
        """[T, F]: the last T steps of this underlying, zeros before its first."""
        underlying = self.snapshots["underlying"]
        start = max(0, place - self.spec.window + 1)
        while underlying[start] != underlying[place]:
            start += 1
        out = np.zeros((self.spec.window, self.steps.shape[1]), np.float32)
        out[self.spec.window - (place + 1 - start) :] = self.steps[start : place + 1]
        return out


class SnapshotBatches:
    """Iterable of batches over some snapshots; draws `rows_per_snapshot` rows of each, or takes all."""

    def __init__(
        self,
        store: FeatureStore,
        places: npt.NDArray[np.intp],
        *,
        target: npt.NDArray[np.float32],
        weight: npt.NDArray[np.float32],
        snapshots_per_batch: int,
        rows_per_snapshot: int | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.places, self.target, self.weight = store, places, target, weight
        self.snapshots_per_batch, self.rows_per_snapshot, self.seed = snapshots_per_batch, rows_per_snapshot, seed
        self.windows = {int(place): store.window(int(place)) for place in places}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.places) // self.snapshots_per_batch)

    def __iter__(self) -> Iterator[Batch]:
        order = self.places
        if self.rows_per_snapshot is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for begin in range(0, len(order), self.snapshots_per_batch):
            yield self._batch([int(place) for place in order[begin : begin + self.snapshots_per_batch]])

    def _batch(self, places: list[int]) -> Batch:
        chosen = [self._draw(place) for place in places]
        rows = np.concatenate(chosen)
        snapshot = np.repeat(np.arange(len(places)), [len(part) for part in chosen])
        return Batch(
            torch.from_numpy(np.stack([self.windows[place] for place in places])),
            torch.from_numpy(self.store.contracts[rows]),
            torch.from_numpy(snapshot),
            torch.from_numpy(self.target[rows]),
            torch.from_numpy(self.weight[rows]),
        )

    def _draw(self, place: int) -> npt.NDArray[np.intp]:
        span = self.store.row_range(place)
        rows = np.arange(span.start, span.stop)
        if self.rows_per_snapshot is None or len(rows) <= self.rows_per_snapshot:
            return rows
        generator = np.random.default_rng((self.seed, self.epoch, place))
        drawn: npt.NDArray[np.intp] = np.sort(generator.choice(rows, self.rows_per_snapshot, replace=False))
        return drawn


def row_objective(
    store: FeatureStore, day_power: float, price_share: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Target volatility and weight of each row: what the loss pulls towards, and how hard (mean 1 over training rows).

    The loss of a row is (1 - `price_share`) (IV error)^2 + `price_share` (price error)^2, each in units of the prior's
    own, and the price is the one a host quotes: vega (IV error) plus what the market's volatility misses the mid by at
    the carried forward. Such a sum of squares is one square around a target a little off the market's volatility. A
    day's rows weigh 1 / (root-mean-square error of the prior on that day)^`day_power`.
    """
    rows = store.rows
    training = (rows["split"] == "train").to_numpy()
    market = rows["iv_market"].to_numpy()
    prior_error = market - (rows["last_volatility"] + rows["shift"]).to_numpy()
    forward, strike, tau, discount, right = (
        rows[name].to_numpy() for name in ("forward_model", "strike", "tau", "discount_model", "right_sign")
    )
    worth = black76.value(forward, strike, tau, market, discount, right)
    missed = worth.price - 0.5 * (rows["bid"] + rows["ask"]).to_numpy()
    in_volatility = (1.0 - price_share) / np.mean(prior_error[training] ** 2)
    in_money = price_share / np.mean((prior_error * worth.vega)[training] ** 2)
    weight = in_volatility + in_money * worth.vega**2
    target = market - in_money * worth.vega * missed / weight
    for place in range(len(store.snapshots)):
        span = store.row_range(place)
        if span.stop > span.start:
            weight[span] *= max(float(np.sqrt(np.mean(prior_error[span] ** 2))), 1e-4) ** -day_power
    return target.astype(np.float32), (weight / weight[training].mean()).astype(np.float32)
