"""The one LightningModule: what a step, a validation and an optimiser are, for every net.

In: a task's batches; the task gives the loss and the errors (pipelines/tasks/). Logged: `train_loss`,
`validation_iv_rmse` (vol points, every item of the validation dates alike).
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from pipelines.config import TrainerConfig
from pipelines.tasks import Task


class FitModule(lightning.LightningModule):
    """Wraps a bare net and its task; `total_steps` is the number of optimiser steps the schedule is laid out for."""

    def __init__(self, net: nn.Module, task: Task, trainer_config: TrainerConfig, total_steps: int) -> None:
        super().__init__()
        self.net, self.task, self.settings, self.total_steps = net, task, trainer_config, total_steps
        self._squares = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._loss_total, self._samples = torch.zeros(()), 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are made on the CPU: there nothing has to be walked through and moved."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_epoch_start(self) -> None:
        self._loss_total, self._samples = torch.zeros((), device=self.device), 0

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss. Its mean is kept here and logged once an epoch: a log per step costs a tenth of a small step."""
        loss = self.task.loss(self.net, batch)
        self._loss_total += loss.detach() * len(batch.target)
        self._samples += len(batch.target)
        if self.trainer.is_last_batch:
            self.log("train_loss", self._loss_total / self._samples, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._squares, self._count = torch.zeros((), dtype=torch.float64), 0

    def validation_step(self, batch: Any, batch_index: int) -> None:
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
