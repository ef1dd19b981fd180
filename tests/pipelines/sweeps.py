"""A small sweep's command line, and what can be asked of the folder where one ran."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from pipelines.registry import open_registry
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
EPOCHS = 5
TRIALS = 6
SPACE = (
    "sweep.space={model: {hidden: {choices: [2, 4]}, dropout: {low: 0.0, high: 0.4}}, "
    "trainer: {learning_rate: {low: 0.001, high: 0.1, log: true}}}"
)
STUDY = ("sweep=pricing_lstm", SPACE, "sweep.sampler.startup_trials=3", "sweep.pruner.startup_trials=1",
         "sweep.pruner.warmup_epochs=2", f"trainer.epochs={EPOCHS}", "sweep.study=tiny")  # fmt: skip


def words(tiny_run: TinyRun, folder: Path, *more: str, trials: int = TRIALS) -> list[str]:
    """A sweep's command line, everything in the folder; its features are those of the tiny run."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    if not (folder / "out/features").exists():
        (folder / "out/features").symlink_to(tiny_run.out / "features")
    swept = ("model.hidden", "model.dropout", "trainer.learning_rate", "trainer.epochs", "out", "registry", "storage")
    base = [text for text in tiny_run.overrides if not text.startswith(swept)]
    return [*STUDY, f"sweep.trials={trials}", *base, *market.places(folder), *more]


def trials_in(folder: Path, study: str = "tiny") -> list[FrozenTrial]:
    database = f"sqlite:///{folder}/out/sweep/{study}/study.db"
    return optuna.load_study(study_name=study, storage=database).get_trials()


def told(folder: Path) -> list[tuple[Any, ...]]:
    """What must be equal between a killed sweep and another one."""
    return [(trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values)
            for trial in trials_in(folder)]  # fmt: skip


def children(folder: Path) -> list[Any]:
    """Every run of MLflow that has a parent."""
    client = open_registry(f"sqlite:///{folder}/mlflow.db").client
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def reported(database: Path) -> int:
    """Values in the database, -1 where there is none yet."""
    if not database.exists():
        return -1
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("select count(*) from trial_intermediate_values").fetchone()[0])
    finally:
        connection.close()
