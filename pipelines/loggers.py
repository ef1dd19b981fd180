"""Where a training writes what it measures: MLflow, TensorBoard, CSV, Weights & Biases.

In: `cfg.logging`; every epoch the metrics the module logged, its learning rate and time. Out, under a folder:
`runs.json` (the key that finds the MLflow and W&B runs again), `logs/csv/metrics.csv`, `logs/tensorboard/`,
`logs/wandb/`; a run in MLflow. Steps are epochs, counted from 1, as in history.csv.

Invariants: the record of all epochs travels in the checkpoint, and an epoch is written out only once a checkpoint that
holds it is complete. A training that was killed and goes on brings every destination up to date from the record: MLflow
and W&B under the same run, no epoch twice, none missing. Addresses (`storage`, `registry`) may hold passwords and are
not logged.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import polars as pl
import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from pipelines.config import Config, as_json
from pipelines.register import flatten
from pipelines.registry import Registry, open_registry
from serving.disk import replace_file
from serving.errors import ConfigError, StrikeforgeError

log = logging.getLogger("strikeforge.train")

NO_RUN = "none"  # run_id of a training that MLflow doesn't know
RUNS, LOGS = "runs.json", "logs"
NOT_LOGGED = ("out", "storage", "registry", "logging")
STEP, TIME = "epoch", "time_seconds"  # of a record; everything else in it is a metric

Record = dict[str, float]


class Destination(Protocol):
    """One place that is kept up to date with the records."""

    def update(self, records: Sequence[Record]) -> None:
        """Write what isn't there yet; all records so far are given, oldest first."""

    def close(self, status: str) -> None:
        """No more comes; `status` is FINISHED, FAILED or KILLED."""


class TrainingLog(Callback):
    """Give it to `fit` as a callback, inside `with`: it keeps the record and updates the destinations."""

    def __init__(self, destinations: Sequence[Destination], logs: Path, run_id: str) -> None:
        self.destinations, self.logs, self.run_id = destinations, logs, run_id
        self.records: list[Record] = []

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)  # Ctrl-C, sys.exit
        with ExitStack() as closing:  # all of them, even if one fails
            for destination in self.destinations:
                closing.callback(destination.close, "KILLED" if stopped else "FAILED" if kind else "FINISHED")

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._update()

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._update()

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._update()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.records.append({STEP: trainer.current_epoch + 1, **metrics, "learning_rate": rate, TIME: time.time()})

    def state_dict(self) -> dict[str, Any]:
        return {"records": list(self.records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = list(state_dict["records"])

    def _update(self) -> None:
        for destination in self.destinations:
            destination.update(self.records)

    def copy_files(self, target: Path) -> None:
        """The files of `csv/`, `tensorboard/` and `wandb/`, after `with`; W&B's debug logs and links stay behind."""

        def left_out(folder: str, names: list[str]) -> set[str]:
            links = {name for name in names if Path(folder, name).is_symlink()}
            return links | ({"logs", "tmp"} & set(names) if Path(folder).parent.name == "wandb" else set())

        if self.logs.exists():
            shutil.copytree(self.logs, target, ignore=left_out, dirs_exist_ok=True)


def build(
    cfg: Config, folder: Path, tags: Mapping[str, str], *, run_name: str | None = None, parent: str | None = None
) -> TrainingLog:
    """The log of a training whose checkpoints lie in `folder`; with `trainer.resume` it goes on with the runs it had.

    `parent` is the MLflow run that this one is a child of. Raises ConfigError where W&B is asked for and isn't
    installed, StrikeforgeError where W&B or MLflow can't be reached.
    """
    chosen = cfg.logging
    name = run_name or f"train {cfg.model.name}"
    if chosen.wandb != "off":
        _import_wandb()  # before anything is made
    key = _run_key(folder, resume=cfg.trainer.resume)
    logs = folder / LOGS
    if logs.exists():
        shutil.rmtree(logs)  # comes again from the record
    parameters = {group: value for group, value in as_json(cfg).items() if group not in NOT_LOGGED}
    destinations: list[Destination] = []
    run_id = NO_RUN
    with ExitStack() as undo:

        def add(destination: Destination) -> None:
            destinations.append(destination)
            undo.callback(destination.close, "FAILED")

        if chosen.mlflow:
            registry = open_registry(cfg.registry.tracking_uri)
            run_id = registry.open_run(cfg.registry.experiment, name, f"train-{key}", tags, parent=parent)
            add(MLflow(registry, run_id, parameters))
        if chosen.tensorboard:
            add(TensorBoard(logs / "tensorboard"))
        if chosen.csv:
            add(Csv(logs / "csv"))
        if chosen.wandb != "off":
            config, online = {**parameters, **tags}, chosen.wandb == "online"
            add(WeightsAndBiases(logs, chosen.wandb_project, key[:12], name, config, online=online))
        undo.pop_all()
    return TrainingLog(destinations, logs, run_id)


def _run_key(folder: Path, *, resume: bool) -> str:
    """A key of this training, kept beside its checkpoints before any run is made under it."""
    path = folder / RUNS
    if resume and path.exists():
        return str(json.loads(path.read_text())["run_key"])
    key = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({"run_key": key}) + "\n").encode())
    return key


def _metrics(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in (STEP, TIME)}


class MLflow:
    """A run in MLflow. It keeps one of several values equal in name, step and time, so records may come again."""

    def __init__(self, registry: Registry, run_id: str, parameters: Mapping[str, Any]) -> None:
        self.client, self.run_id, self.done = registry.client, run_id, 0
        self.client.update_run(run_id, status="RUNNING")
        known = self.client.get_run(run_id).data.params
        for name, value in flatten(parameters).items():
            if name not in known:  # a value can't be changed; a run gone on with keeps those it began with
                self.client.log_param(run_id, name, value)

    def update(self, records: Sequence[Record]) -> None:
        for record in records[self.done :]:
            for name, value in _metrics(record).items():
                milliseconds = int(1000 * record[TIME])
                self.client.log_metric(self.run_id, name, value, timestamp=milliseconds, step=int(record[STEP]))
        self.done = len(records)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)


class TensorBoard:
    """Event files, one scalar per metric."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.done = SummaryWriter(str(folder)), 0

    def update(self, records: Sequence[Record]) -> None:
        for record in records[self.done :]:
            for name, value in _metrics(record).items():
                self.writer.add_scalar(name, value, int(record[STEP]), walltime=record[TIME])
        self.done = len(records)
        self.writer.flush()

    def close(self, status: str) -> None:
        self.writer.close()


class Csv:
    """`metrics.csv`, a row per epoch; replaced as a whole, so a reader never meets half a row."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        folder.mkdir(parents=True)

    def update(self, records: Sequence[Record]) -> None:
        if records:
            replace_file(self.path, pl.DataFrame(records, infer_schema_length=None).write_csv().encode())

    def close(self, status: str) -> None:
        pass


class WeightsAndBiases:
    """A W&B run; offline it is a folder for `wandb sync`. Neither the machine nor the code is told, nor its output.

    Closing ends W&B's service process, and with it any other W&B run of this process.
    """

    def __init__(
        self, folder: Path, project: str, run_id: str, name: str, config: Mapping[str, Any], *, online: bool
    ) -> None:
        self.wandb = _import_wandb()
        folder.mkdir(parents=True, exist_ok=True)
        private = self.wandb.Settings(
            silent=True, console="off", host="unnamed", disable_git=True, disable_code=True, save_code=False,
            x_disable_meta=True, x_disable_machine_info=True, x_disable_stats=True, x_save_requirements=False,
        )  # fmt: skip
        try:
            self.run = self.wandb.init(
                project=project, id=run_id, name=name, config=dict(config), dir=folder, settings=private,
                mode="online" if online else "offline", resume="allow" if online else None, reinit="create_new",
            )  # fmt: skip
        except self.wandb.errors.Error as error:
            self.wandb.teardown()
            raise StrikeforgeError(
                f"W&B: {error}; log in (wandb login), or say logging.wandb=offline and send the run later (wandb sync)"
            ) from error
        self.next_step = self.run.starting_step  # online, a run gone on with knows the steps it has

    def update(self, records: Sequence[Record]) -> None:
        for record in records:
            if record[STEP] >= self.next_step:
                self.run.log({STEP: record[STEP], **_metrics(record)}, step=int(record[STEP]), commit=True)
                self.next_step = int(record[STEP]) + 1

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)
        self.wandb.teardown()


def _import_wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            ["logging.wandb: Weights & Biases isn't installed; pip install 'strikeforge[wandb]', or say "
             "logging.wandb=off"]
        ) from error  # fmt: skip
    return wandb
