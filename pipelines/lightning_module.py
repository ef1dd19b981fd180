"""The one LightningModule: what a step, a validation and an optimiser are, for every net.

In: a task's batches, in groups; the task gives the loss and the errors (pipelines/tasks/). Logged: `train_loss`,
`validation_iv_rmse` (vol points, every item of the validation dates alike).

Lightning's hooks, progress and bookkeeping around a step cost 0.4 ms of one core, a tenth of a step of the small nets
trained here. So a step of Lightning's is a group of `GROUP` batches, and the weights move in it by manual optimisation,
batch after batch: the arithmetic is that of a step per batch, and `trainer.global_step` counts the optimiser's steps.

Invariant: whoever is in `told` hears of every batch when it's done, with arguments as of `on_train_batch_end`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import nn

from pipelines.config import TrainerConfig
from pipelines.tasks import Batches, Task

GROUP = 16  # batches a step of Lightning's


class Groups:
    """A task's batches as lists of `GROUP`, the last of an epoch perhaps shorter, in their order."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return -(-len(self.batches) // GROUP)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = iter(self.batches)
        while group := list(islice(batches, GROUP)):
            yield group


class FitModule(lightning.LightningModule):
    """Wraps a bare net and its task; `total_steps` is the number of optimiser steps the schedule is laid out for."""

    def __init__(
        self, net: nn.Module, task: Task, trainer_config: TrainerConfig, total_steps: int,
        told: Sequence[Callable[..., None]] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.net, self.task, self.settings, self.total_steps = net, task, trainer_config, total_steps
        self.told = told
        self._squares = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._loss_total, self._samples = torch.zeros(()), 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are made on the CPU: there nothing has to be walked through and moved."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_epoch_start(self) -> None:
        self._loss_total, self._samples = torch.zeros((), device=self.device), 0

    def training_step(self, batches: list[Any], group: int) -> None:
        """Forward and backward of each batch; the weights move every `accumulate` of them and after an epoch's last.

        The mean loss is kept here and logged once an epoch: a log per step costs a tenth of a small step.
        """
        trainer, accumulate, final = self.trainer, self.settings.accumulate, len(batches) - 1
        for place, batch in enumerate(batches):
            index, last = group * GROUP + place, trainer.is_last_batch and place == final
            loss = self.task.loss(self.net, batch)
            self._loss_total += loss.detach() * len(batch.target)
            self._samples += len(batch.target)
            with torch.autocast(self.device.type, enabled=False):  # mixed precision is for the forward pass
                self.manual_backward(loss / accumulate)
                if last or (index + 1) % accumulate == 0:
                    self._move_weights()
            for tell in self.told:
                tell(trainer, self, None, batch, index)
        if trainer.is_last_batch:
            self.log("train_loss", self._loss_total / self._samples, on_step=False, on_epoch=True, batch_size=1)

    def _move_weights(self) -> None:
        optimiser: Any = self.optimizers()  # one of each
        schedule: Any = self.lr_schedulers()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here, where 16-bit gradients have their own scale again."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)

    def on_validation_epoch_start(self) -> None:
        self._squares, self._count = torch.zeros((), dtype=torch.float64), 0

    def validation_step(self, batches: list[Any], group: int) -> None:
        for batch in batches:
            error = self.task.errors(self.net, batch)
            self._squares += (error.double() ** 2).sum().cpu()
            self._count += error.numel()

    def on_validation_epoch_end(self) -> None:
        self.log("validation_iv_rmse", (self._squares / max(self._count, 1)).sqrt().float(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(
            self.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the learning rate: linear warm-up, then half a cosine down to zero."""
        warmup = max(1, round(self.settings.warmup_share * self.total_steps))
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * done))
