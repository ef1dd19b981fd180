"""Fit a net: Lightning's trainer with our checkpoints, early stopping and resume.

In: a `FeatureStore`, a `Config`. Out: `Fitted`: the net with the weights of its best validation epoch, and the history.
Epoch 0's weights (the prior) are a candidate too: a net that never improves on them stays the prior.

Invariants: a checkpoint is complete or absent (written aside, synced, renamed); a run killed at any time and started
again with the same configuration and features goes on from its last whole epoch and ends with the same weights.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

import models
from pipelines.config import Config, HardwareConfig
from pipelines.dataset import FeatureStore
from pipelines.lightning_module import FitModule, Groups
from pipelines.tasks import Batches, Task, open_task
from serving.errors import ConfigError, TooFewSnapshotsError

MONITOR = "validation_iv_rmse"
HISTORY = (MONITOR, "train_loss")
HOOK = "on_train_batch_end"


@dataclass(frozen=True)
class Fitted:
    """The net of the best epoch (the last, without validation dates), on the CPU; its sizes; a row per epoch."""

    net: nn.Module
    sizes: dict[str, Any]
    history: pl.DataFrame
    best_epoch: int
    best_validation: float | None  # vol points; None without validation dates


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a reader never meets half a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)


class _Epochs(Callback):
    """Sets the draw of each epoch, keeps the history and the best weights; both travel in the checkpoint.

    So does the state of the random generators: dropout after a resume goes on where the killed run's was.
    """

    def __init__(self, batches: Batches, early: EarlyStopping) -> None:
        self.batches, self.early = batches, early
        self.random: dict[str, Any] | None = None  # of the checkpoint gone on from
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": -1, "value": float("inf"), "weights": None}

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.early.stopped_epoch:  # killed between the last epoch and the writing of the weights
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.random is not None:
            torch.set_rng_state(self.random["cpu"])
            torch.cuda.set_rng_state_all(self.random["cuda"])
            self.random = None
        self.batches.set_epoch(trainer.current_epoch)

    def consider(self, epoch: int, value: float, net: nn.Module) -> None:
        """Keep the weights if they are the best so far."""
        if value < self.best["value"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
            self.best = {"epoch": epoch, "value": value, "weights": weights}

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, FitModule)
        if trainer.sanity_checking:
            return
        self.consider(trainer.current_epoch + 1, float(trainer.callback_metrics[MONITOR]), module.net)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in HISTORY}
        self.history.append({"epoch": trainer.current_epoch + 1, **values})

    def state_dict(self) -> dict[str, Any]:
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        return {"history": self.history, "best": self.best, "random": random}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.best, self.random = state_dict["history"], state_dict["best"], state_dict["random"]


def fit(
    cfg: Config,
    store: FeatureStore,
    checkpoints: Path,
    *,
    epochs: int | None = None,
    task: Task | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    show_progress: bool = False,
) -> Fitted:
    """Train a net of `cfg.model` on the training dates; its epoch is chosen on the validation dates, if there are any.

    `task` stands in for the model's own, as a sanity run on shuffled labels needs it.
    """
    if cfg.hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            ["hardware.accelerator: there is no GPU that torch can use here; say auto or cpu (value 'gpu')"]
        )
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # devices it hasn't, adverts
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.hardware.threads:
        torch.set_num_threads(cfg.hardware.threads)
    task = task or open_task(cfg, store)
    sizes = task.sizes()
    net = models.build(cfg.model.name, sizes)
    task.prepare(net)
    training, validation = task.training_batches(), task.validation_batches()
    held_out = len(validation) > 0
    epochs = epochs or cfg.trainer.epochs
    total_steps = epochs * -(-len(training) // cfg.trainer.accumulate)
    early = EarlyStopping(MONITOR, patience=cfg.trainer.patience)
    record = _Epochs(training, early)
    if held_out:
        record.consider(0, root_mean_square_error(net, task, validation), net)
    keep = ModelCheckpoint(checkpoints, filename="last", save_top_k=1, monitor=None, enable_version_counter=False)
    trainer = lightning.Trainer(
        accelerator=cfg.hardware.accelerator, devices=1, max_epochs=epochs, precision=precision(cfg),
        callbacks=[record, *([early] if held_out else []), keep, *callbacks],
        plugins=[AtomicCheckpointIO()], logger=list(loggers) or False, deterministic=True, num_sanity_val_steps=0,
        enable_progress_bar=show_progress, enable_model_summary=False, log_every_n_steps=1,
        use_distributed_sampler=False,
    )  # fmt: skip
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # an aid to debugging
    last = checkpoints / "last.ckpt"
    with warnings.catch_warnings(), _told_of_batches(callbacks) as told:
        warnings.filterwarnings(
            "ignore",
            message=".*does not have many workers.*|.*LeafSpec.*|.*exists and is not empty.*|.*no `val_dataloader`.*|"
            ".*ended before the epoch ended.*",  # Lightning takes a group of batches for an optimiser step there
        )
        resume = str(last) if cfg.trainer.resume and last.exists() else None
        module = FitModule(net, task, cfg.trainer, total_steps, told)
        groups = (Groups(training), Groups(validation) if held_out else None)
        try:
            trainer.fit(module, *groups, ckpt_path=resume, weights_only=False)
        except SystemExit as error:
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt from error  # Lightning makes an exit of Ctrl-C
    if trainer.interrupted:
        raise KeyboardInterrupt
    if held_out:
        net.load_state_dict(record.best["weights"])
    history = pl.DataFrame(record.history, schema={"epoch": pl.Int64, MONITOR: pl.Float64, "train_loss": pl.Float64})
    best = (record.best["epoch"], record.best["value"]) if held_out else (len(history), None)
    return Fitted(net.cpu().eval(), sizes, history, *best)


@contextmanager
def _told_of_batches(callbacks: Sequence[Callback]) -> Iterator[list[Callable[..., None]]]:
    """Those callbacks' `on_train_batch_end`, for FitModule to call: Lightning, that would name a group, is kept off."""
    told: list[Callable[..., None]] = []
    with ExitStack() as undo:
        for callback in callbacks:
            if type(callback).on_train_batch_end is not Callback.on_train_batch_end:
                told.append(callback.on_train_batch_end)
                setattr(callback, HOOK, None)  # Lightning passes over what can't be called
                undo.callback(delattr, callback, HOOK)
        yield told


def precision(cfg: Config) -> Any:
    """The precision to train in; `auto` is bf16-mixed on a GPU that has it, else full."""
    if cfg.trainer.precision != "auto":
        return cfg.trainer.precision
    on_gpu = uses_gpu(cfg.hardware)
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def uses_gpu(hardware: HardwareConfig) -> bool:
    """Whether the loop runs on a GPU."""
    return hardware.accelerator != "cpu" and torch.cuda.is_available()


@torch.no_grad()
def root_mean_square_error(net: nn.Module, task: Task, batches: Batches) -> float:
    """Of the task's errors over all items, vol points."""
    net.eval()
    squares, count = 0.0, 0
    for batch in batches:
        error = task.errors(net, batch).double()
        squares, count = squares + float((error**2).sum()), count + error.numel()
    net.train()
    if not count:
        raise TooFewSnapshotsError(
            "the validation dates hold nothing to score the net by: give more data, or choose other dates with split.*"
        )
    return float(np.sqrt(squares / count))
