"""The surface task: what surface_vae learns, and how it is fed to it.

In: a `FeatureStore` (grids, moves, regime labels). Out: `SurfaceBatch`es, the loss. Of every surface some known cells
are hidden from the net, single ones and whole tenors or columns; it learns to complete all that are known. The error
is that of the hidden cells.
Shapes: B surfaces, G grid cells, M move features.
Invariants: what is hidden depends on (seed, epoch, snapshot) alone; units, shape numbers and labels come from training
dates only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.surface_vae import Answer, Known, Shape, SurfaceVAE, Units
from pipelines.config import Config, SurfaceVAESettings
from pipelines.dataset import FeatureStore
from serving.errors import TooFewSnapshotsError
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS, Grid, fill

VOL_POINT = 0.01
SURFACES_PER_SNAPSHOT = 4  # a batch holds so many times trainer.snapshots_per_batch
VALIDATION_SEED, VALIDATION_SHARE = 0, 0.5  # what is hidden there is the same whatever is configured
LINES = 0.25  # chance that a tenor, and a column, is hidden whole
SMALLEST_CHANGE, SMALLEST_LEVEL = 0.002, 0.01  # deviations below this are taken for this: volatility
SMALLEST_SHAPE = 1e-4  # the same of a shape number: variance
MIDDLE_TENOR_DAYS = 60.0  # where a surface's level, skew and curvature are read
SHAPES = ("level", "skew", "curvature", "level_slope", "skew_slope", "curvature_slope")  # slopes: per unit of ln(tau)


class SurfaceBatch(NamedTuple):
    """`known`: what the net sees; `target` [B, G] volatilities, `mask` [B, G] the known ones, `label` [B] regime or
    -1."""

    known: Known
    target: Tensor
    mask: Tensor
    label: Tensor


class SurfaceTask:
    """Completion of surfaces and their regime: see the module."""

    def __init__(self, cfg: Config, store: FeatureStore) -> None:
        assert isinstance(cfg.model, SurfaceVAESettings)
        self.cfg, self.store, self.settings = cfg, store, cfg.model
        self.regimes = regime_names(store)
        self.labels = self._labels()
        training = self.labels[store.places("train")]
        self.labelled_share = float((training >= 0).mean()) if training.size else 0.0

    def sizes(self) -> dict[str, Any]:
        """Sizes of the net."""
        chosen = {name: getattr(self.settings, name) for name in ("latent", "width", "dropout")}
        return chosen | {"cells": self.store.grids.shape[2], "moves": self.store.moves.shape[1],
                         "shapes": len(SHAPES), "regimes": max(len(self.regimes), 1)}  # fmt: skip

    def _labels(self) -> npt.NDArray[np.int64]:
        """Regime of each snapshot, -1 for none; of the training dates' a share only, drawn by seed."""
        code = {name: place for place, name in enumerate(self.regimes)}
        found = [code.get(name, -1) for name in self.store.snapshots["regime"].to_list()]
        labels = np.array(found, dtype=np.int64)
        training = self.store.places("train")
        labelled = training[labels[training] >= 0]
        keep = max(round(self.settings.labelled_share * labelled.size), min(len(self.regimes), labelled.size))
        shuffled = np.random.default_rng((self.cfg.seed, 2)).permutation(labelled)
        firsts = [shuffled[labels[shuffled] == regime][:1] for regime in range(len(self.regimes))]  # one of each
        order = np.concatenate([*firsts, shuffled]) if labelled.size else shuffled
        chosen = order[np.sort(np.unique(order, return_index=True)[1])][:keep]
        labels[np.setdiff1d(training, chosen)] = -1
        return labels

    def prepare(self, net: SurfaceVAE) -> None:
        """Units and shape numbers over the training dates."""
        places = self.store.places("train")
        surface, mask, last, last_mask = (self.store.grids[places, part].astype(np.float64) for part in range(4))
        both = mask * last_mask
        if not both.any():
            raise TooFewSnapshotsError(
                "no training date knows a cell of the surface grid that the date before knew too: the chains are too "
                "sparse for surface_vae; give denser ones, or more dates"
            )
        level = _mean(surface, mask)
        change = _mean((surface - last) ** 2, both)
        moves = self.store.moves[places].astype(np.float64)
        values = (
            level,
            np.maximum(np.sqrt(_mean((surface - level) ** 2, mask)), SMALLEST_LEVEL),
            np.maximum(np.sqrt(change), SMALLEST_CHANGE),
            moves.mean(0),
            np.maximum(moves.std(0), 1e-6),
        )
        net.set_units(Units(*(torch.from_numpy(part.astype(np.float32)) for part in values)))
        filled = np.stack([fill(Grid(*one)) for one in zip(surface, mask, strict=True) if one[1].any()])
        numbers = filled**2 @ shape_weight().T
        shape = shape_weight(), numbers.mean(0), np.maximum(numbers.std(0), SMALLEST_SHAPE)
        net.set_shape(Shape(*(torch.from_numpy(part.astype(np.float32)) for part in shape)))

    def training_batches(self) -> SurfaceBatches:
        """All training surfaces, other cells hidden every epoch."""
        return SurfaceBatches(self, self.store.places("train"), shuffle=True)

    def validation_batches(self) -> SurfaceBatches:
        """All validation surfaces, always the same cells hidden."""
        return SurfaceBatches(self, self.store.places("validation"), shuffle=False)

    def loss(self, net: SurfaceVAE, batch: SurfaceBatch) -> Tensor:
        """Negative evidence bound, see models/surface_vae.py."""
        return net.loss(batch.known, batch.target, batch.mask, batch.label, self.settings.kl_weight,
                        self.settings.regime_weight, self.labelled_share)  # fmt: skip

    def errors(self, net: SurfaceVAE, batch: SurfaceBatch) -> Tensor:
        """Completed minus true volatility of the hidden cells, vol points."""
        hidden = (batch.mask - batch.known.mask) > 0
        answer: Answer = net(batch.known)
        return (answer.completed - batch.target)[hidden].float() / VOL_POINT


class SurfaceBatches:
    """Iterable of batches over some snapshots."""

    def __init__(self, task: SurfaceTask, places: npt.NDArray[np.intp], *, shuffle: bool) -> None:
        self.task, self.places, self.shuffle = task, places, shuffle
        self.size = SURFACES_PER_SNAPSHOT * task.cfg.trainer.snapshots_per_batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.places) // self.size)

    def __iter__(self) -> Iterator[SurfaceBatch]:
        order, seed, share = self.places, VALIDATION_SEED, VALIDATION_SHARE
        if self.shuffle:
            seed, share = self.task.cfg.seed, self.task.settings.hidden_share
            order = np.random.default_rng((seed, self.epoch)).permutation(order)
        for begin in range(0, len(order), self.size):
            places = order[begin : begin + self.size]
            generators = [np.random.default_rng((seed, self.epoch, int(place))) for place in places]
            hidden = np.stack([_hidden(generator, share) for generator in generators])
            yield surface_batch(self.task.store, places, hidden, self.task.labels)


def surface_batch(
    store: FeatureStore, places: npt.NDArray[np.intp], hidden: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]
) -> SurfaceBatch:
    """The surfaces at `places`, with the cells `hidden` [B, G] kept from the net."""
    surface, mask, last, last_mask = (store.grids[places, part] for part in range(4))
    visible = np.where(hidden, np.float32(0.0), mask)
    arrays = (surface * visible, visible, last, last_mask, store.moves[places])
    known = Known(*(torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in arrays))
    return SurfaceBatch(known, torch.from_numpy(surface), torch.from_numpy(mask), torch.from_numpy(labels[places]))


def shape_weight() -> npt.NDArray[np.float64]:
    """SHAPES of a surface as weights of its cells' variances (per year), float64 [S, G].

    Least squares of 1, x and x^2, each times 1 and ln(tau / MIDDLE_TENOR_DAYS), x = ln(K/F)/sqrt(tau), on all cells. Of
    variance, not volatility: under Heston the slope of at-the-money variance in the strike doesn't depend, in leading
    order, on the variance of the day, only on what a regime is made of (Gatheral 2006, The Volatility Surface, chapter
    3). Over a whole smile that holds where the day's variance isn't small against the long run's.
    """
    later = np.repeat(np.log(np.array(TENORS_DAYS) / MIDDLE_TENOR_DAYS), SHAPE[1])
    x = np.tile(np.array(MONEYNESS), SHAPE[0])
    powers = np.stack([np.ones_like(x), x, x**2])
    weight: npt.NDArray[np.float64] = np.linalg.pinv(np.concatenate([powers, powers * later]).T)
    return weight


def regime_names(store: FeatureStore) -> list[str]:
    """Names of the regimes that training dates are labelled with, in order."""
    named = store.snapshots.filter(store.snapshots["split"] == "train")["regime"]
    return sorted(name for name in named.unique().to_list() if name is not None)


def _hidden(generator: np.random.Generator, share: float) -> npt.NDArray[np.bool_]:
    """Cells to hide: single ones, a share drawn between 0 and twice `share`, and at times a whole tenor and column."""
    cells = generator.random(SHAPE) < generator.uniform(0.0, min(2.0 * share, 0.95))
    for axis, size in enumerate(SHAPE):
        if generator.random() < LINES:
            line = generator.integers(size)
            cells[(line, slice(None)) if axis == 0 else (slice(None), line)] = True
    return cells.ravel()


def _mean(values: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted mean over surfaces [G]; a cell never known gets the mean of the others."""
    count = weight.sum(0)
    mean = (values * weight).sum(0) / np.maximum(count, 1.0)
    filled: npt.NDArray[np.float64] = np.where(count > 0, mean, mean[count > 0].mean())
    return filled
