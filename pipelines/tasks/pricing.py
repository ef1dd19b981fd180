"""The pricing task: what pricing_lstm and pricing_transformer learn, and how it is fed to them.

In: a `FeatureStore`. Out: `Batch`es (one snapshot is one item), the loss, predictions. The loss is the weighted mean
squared error of the implied volatility, in vol points; what it pulls towards and how hard: `row_objective`.
Shapes: B snapshots, T steps, F step features, N contracts of all of them, K contract features.
Invariant: the rows drawn depend on (seed, epoch, snapshot) alone, so a resumed run draws what an uninterrupted one
draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.config import Config
from pipelines.dataset import FeatureStore
from serving import black76
from serving.features import CONTRACT_FEATURES

VOL_POINT = 0.01
PRIOR = CONTRACT_FEATURES.index("prior_volatility")  # unscaled


class Batch(NamedTuple):
    """`window` [B, T, F], `contracts` [N, K], `snapshot` [N] (place in the window), `target` [N] (IV), `weight` [N]."""

    window: Tensor
    contracts: Tensor
    snapshot: Tensor
    target: Tensor
    weight: Tensor


class PricingTask:
    """Fair volatilities of contracts: see the module."""

    def __init__(self, cfg: Config, store: FeatureStore) -> None:
        self.cfg, self.store = cfg, store
        self.target, self.weight = row_objective(store, cfg.trainer.day_weight_power, cfg.trainer.price_share)
        self.market = store.rows["iv_market"].to_numpy().astype(np.float32)

    def sizes(self) -> dict[str, Any]:
        """Sizes of the net: those of the configuration and those the features decide."""
        chosen = {name: value for name, value in asdict(self.cfg.model).items() if name != "name"}
        return chosen | {"step_features": self.store.steps.shape[1], "contract_features": self.store.contracts.shape[1],
                         "window": self.store.spec.window}  # fmt: skip

    def prepare(self, net: nn.Module) -> None:
        """Nothing: scaled features come in."""

    def shuffle_labels(self) -> None:
        """Permute the corrections among the rows of the training and validation dates: a run on these must learn
        nothing."""
        self.target = self.market = _shuffled(self.store, self.cfg.seed)

    def training_batches(self) -> SnapshotBatches:
        """Drawn rows of the training dates, pulled towards `target`."""
        trainer = self.cfg.trainer
        return SnapshotBatches(
            self.store, self.store.places("train"), target=self.target, weight=self.weight,
            snapshots_per_batch=trainer.snapshots_per_batch, rows_per_snapshot=trainer.rows_per_snapshot,
            seed=self.cfg.seed,
        )  # fmt: skip

    def validation_batches(self) -> SnapshotBatches:
        """All rows of the validation dates with the market's volatility; empty where there are no such dates."""
        return SnapshotBatches(
            self.store, self.store.places("validation"), target=self.market, weight=self.weight,
            snapshots_per_batch=self.cfg.trainer.snapshots_per_batch,
        )  # fmt: skip

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Weighted mean squared error, squared vol points."""
        out: Tensor = (batch.weight * self.errors(net, batch) ** 2).mean()
        return out

    def errors(self, net: nn.Module, batch: Batch) -> Tensor:
        """Volatility minus target per row, vol points."""
        volatility: Tensor = net(batch.window, batch.contracts, batch.snapshot)
        return (volatility - batch.target).float() / VOL_POINT


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
    the anchors' forward. Such a sum of squares is one square around a target a little off the market's volatility. A
    day's rows weigh 1 / (root-mean-square error of the prior on that day)^`day_power`.
    """
    rows = store.rows
    training = (rows["split"] == "train").to_numpy()
    market = rows["iv_market"].to_numpy()
    prior_error = market - prior_volatility(store)
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


def prior_volatility(store: FeatureStore) -> npt.NDArray[np.float64]:
    """What an untrained net answers for every row: the smoothed last smile at the strike, moved by the anchors [N]."""
    return np.asarray(store.contracts[:, PRIOR], dtype=np.float64)


@torch.no_grad()
def predict(net: nn.Module, store: FeatureStore, split: str) -> np.ndarray:
    """Implied volatility of every row of a split, in the order of `rows` filtered to it; float64 [N]."""
    out = np.full(len(store.rows), np.nan)
    for place in store.places(split):
        span = store.row_range(int(place))
        contracts = torch.from_numpy(np.array(store.contracts[span]))
        window = torch.from_numpy(store.window(int(place))).unsqueeze(0)
        out[span] = net(window, contracts, torch.zeros(len(contracts), dtype=torch.long)).double().numpy()
    return np.asarray(out[(store.rows["split"] == split).to_numpy()])


def _shuffled(store: FeatureStore, seed: int) -> np.ndarray:
    """Targets whose corrections (IV minus prior) are permuted over all rows of the training and validation dates."""
    rows, prior = store.rows, prior_volatility(store)
    correction = rows["iv_market"].to_numpy() - prior
    correction -= correction[(rows["split"] == "train").to_numpy()].mean()
    generator = np.random.default_rng((seed, 1))
    for split in ("train", "validation"):
        chosen = np.flatnonzero((rows["split"] == split).to_numpy())
        correction[chosen] = correction[generator.permutation(chosen)]
    return np.asarray(prior + correction, dtype=np.float32)
