"""Tasks: what a family of nets is trained for. The loop (pipelines/fit.py) knows only this interface.

In: a configuration and a `FeatureStore`. Out: sizes of the net, batches, the loss, and errors in vol points. A net
names its task (`net.task`). A task is three files here: what is learned (`<task>.py`), how it is evaluated
(`<task>_evaluation.py`) and what a bundle of it carries (`<task>_bundle.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

import models
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.tasks.pricing import PricingTask
from pipelines.tasks.surface import SurfaceTask


class Batches(Protocol):
    """Batches of tensors, the same for the same epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Task(Protocol):
    """What the loop needs to know of what is learned."""

    def sizes(self) -> dict[str, Any]:
        """Sizes to build the net with."""

    def prepare(self, net: Any) -> None:
        """Give a fresh net what it must know of the training dates."""

    def training_batches(self) -> Batches:
        """Batches of the training dates, drawn anew every epoch."""

    def validation_batches(self) -> Batches:
        """Batches of the validation dates, always the same; empty without such dates."""

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        """What is minimised; a scalar."""

    def errors(self, net: nn.Module, batch: Any) -> Tensor:
        """Errors of volatility in vol points, one per item scored."""


TASKS: dict[str, Callable[[Config, FeatureStore], Any]] = {"pricing": PricingTask, "surface": SurfaceTask}


def task_name(family: str) -> str:
    """The task of a family of nets."""
    return models.FAMILIES[family][1].task


def open_task(cfg: Config, store: FeatureStore) -> Task:
    """The task of the configuration's model."""
    task: Task = TASKS[task_name(cfg.model.name)](cfg, store)
    return task


def evaluation_module(family: str) -> Any:
    """Module with `evaluate(cfg, store, trained) -> Evaluation` for this family's task."""
    return importlib.import_module(f"{__name__}.{task_name(family)}_evaluation")


def bundle_module(family: str) -> Any:
    """Module with `contents(...)` and `largest_difference(...)` for this family's task."""
    return importlib.import_module(f"{__name__}.{task_name(family)}_bundle")
