"""The peer of the training benchmark: a plain PyTorch loop with the arithmetic of pipelines/fit.py and nothing else.

In: what `fit` takes. Out: `BareFitted`. Written anew from torch alone (seed, AdamW, warm-up and cosine, accumulation,
clipping, validation after every epoch, early stopping, the best epoch's weights), with the task's own batches, loss and
errors. Nothing is written to disk, logged or told to anybody, and torch keeps its default algorithms.

Invariant: for the same configuration and features it ends with the weights of `fit`, bit for bit, on a CPU at full
precision; benchmarks/training.py and tests/benchmarks/test_training_bench.py hold it to that.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import models
from pipelines.config import Config, TrainerConfig
from pipelines.dataset import FeatureStore
from pipelines.tasks import Batches, Task, open_task


@dataclass(frozen=True)
class BareFitted:
    """The net of the best epoch (the last, without validation dates), what each epoch gave, and when it began."""

    net: nn.Module
    losses: list[float]  # mean loss of each epoch
    validation: list[float]  # vol points, after each epoch; empty without validation dates
    best_epoch: int
    samples: int  # trained on
    began: float  # time.perf_counter() at the start of the first epoch, seconds
    cpu_began: float  # time.process_time() then


def bare_fit(cfg: Config, store: FeatureStore, epochs: int) -> BareFitted:
    """Train a net of `cfg.model` for at most `epochs` epochs on the CPU."""
    torch.use_deterministic_algorithms(False)  # torch's default; pipelines.fit, in the same process, asks for True
    torch.manual_seed(cfg.seed)
    if cfg.hardware.threads:
        torch.set_num_threads(cfg.hardware.threads)
    task = open_task(cfg, store)
    net = models.build(cfg.model.name, task.sizes())
    task.prepare(net)
    training, validation = task.training_batches(), task.validation_batches()
    trainer = cfg.trainer
    optimiser = torch.optim.AdamW(net.parameters(), lr=trainer.learning_rate, weight_decay=trainer.weight_decay)
    steps = epochs * -(-len(training) // trainer.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, trainer.warmup_share))
    best_epoch, best, best_weights = -1, float("inf"), net.state_dict()
    if len(validation):
        best_epoch, best, best_weights = 0, _error(net, task, validation), _copied(net)
    losses: list[float] = []
    errors: list[float] = []
    samples, waited = 0, 0
    stopper = float("inf")  # the best error early stopping has seen: that of epoch 0 isn't among them
    began, cpu_began = time.perf_counter(), time.process_time()
    for epoch in range(epochs):
        training.set_epoch(epoch)
        loss, count = _epoch(net, task, training, optimiser, schedule, trainer)
        losses.append(loss)
        samples += count
        if not len(validation):
            continue
        errors.append(_error(net, task, validation))
        if errors[-1] < best:
            best_epoch, best, best_weights = epoch + 1, errors[-1], _copied(net)
        stopper, waited = (errors[-1], 0) if errors[-1] < stopper else (stopper, waited + 1)
        if waited >= trainer.patience:
            break
    if len(validation):
        net.load_state_dict(best_weights)
    else:
        best_epoch = len(losses)
    return BareFitted(net.eval(), losses, errors, best_epoch, samples, began, cpu_began)


def _epoch(
    net: nn.Module, task: Task, training: Batches, optimiser: torch.optim.Optimizer, schedule: Any,
    trainer: TrainerConfig,
) -> tuple[float, int]:  # fmt: skip
    """One pass over the training batches: mean loss over samples, and their number."""
    net.train()
    total, count, last = torch.zeros(()), 0, len(training) - 1
    parameters = list(net.parameters())
    for index, batch in enumerate(training):
        loss = task.loss(net, batch)
        torch.autograd.backward(loss / trainer.accumulate)
        total, count = total + loss.detach() * len(batch.target), count + len(batch.target)
        if (index + 1) % trainer.accumulate == 0 or index == last:
            torch.nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return float(total) / count, count


@torch.no_grad()
def _error(net: nn.Module, task: Task, validation: Batches) -> float:
    """Root mean square of the task's errors over all items, vol points."""
    net.eval()
    squares, count = torch.zeros((), dtype=torch.float64), 0
    for batch in validation:
        error = task.errors(net, batch).double()
        squares, count = squares + (error**2).sum(), count + error.numel()
    return math.sqrt(float(squares) / count)


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def _rate(step: int, steps: int, warmup_share: float) -> float:
    """Share of the learning rate at an optimiser step: a line up, then half a cosine down to 0 at `steps`."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
