"""A sweep in MLflow: one run for the study, and below it exactly one child run for each trial.

In: trials as the study's database has them. Out: runs with parameters, every epoch's value, the last one, the state.
Invariants: runs are found again by a key made of the study's unique name and the trial's number, so no start of a sweep
makes one twice; what is in the database and not in MLflow (a kill between the two, another MLflow) is made up for.
A trial's state tells its run's status: COMPLETE is FINISHED, PRUNED is KILLED, FAIL is FAILED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from pipelines.config import RegistryConfig
from pipelines.fit import MONITOR
from pipelines.lineage import commit_tags
from pipelines.registry import LoggedMetric, Registry, open_registry
from pipelines.sweep_study import FINISHED, MESSAGE, SECONDS, Study

STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
LONGEST_TAG = 5000  # characters MLflow takes


@dataclass(frozen=True)
class Tracker:
    """The study's run, open."""

    registry: Registry
    experiment: str
    study: Study
    run_id: str

    @classmethod
    def open(cls, config: RegistryConfig, study: Study, tags: Mapping[str, str]) -> Tracker:
        """Find or make the study's run, and the runs of finished trials that have none."""
        registry = open_registry(config.tracking_uri)
        name = f"sweep {study.optuna.study_name}"
        run_id = registry.open_run(config.experiment, name, f"sweep/{study.key}", {**tags, **commit_tags()})
        tracker = cls(registry, config.experiment, study, run_id)
        known = registry.child_runs(config.experiment, run_id)
        for trial in study.trials(*FINISHED):
            if known.get(tracker._key(trial.number)) != STATUS[trial.state]:
                tracker.begin(trial.number)
                tracker.end(trial)
        return tracker

    def begin(self, number: int) -> str:
        """The trial's run, RUNNING; its id."""
        name, tags = f"trial {number}", {"trial": str(number)}
        return self.registry.open_run(self.experiment, name, self._key(number), tags, parent=self.run_id)

    def end(self, trial: FrozenTrial) -> None:
        """Record a finished trial in its run, and end that."""
        begun = _milliseconds(trial)
        curve = sorted(trial.intermediate_values.items())
        metrics = [LoggedMetric(MONITOR, value, begun, epoch) for epoch, value in curve]
        if trial.value is not None:
            metrics.append(LoggedMetric("value", trial.value, begun, 0))
        metrics.append(LoggedMetric(SECONDS, float(trial.user_attrs.get(SECONDS, 0.0)), begun, 0))
        tags = {"state": trial.state.name}
        if MESSAGE in trial.user_attrs:
            tags[MESSAGE] = str(trial.user_attrs[MESSAGE])[:LONGEST_TAG]
        self.registry.close_run(self.begin(trial.number), STATUS[trial.state], params=trial.params, metrics=metrics,
                                tags=tags)  # fmt: skip

    def close(self, best: FrozenTrial | None, artifacts: Sequence[Path]) -> None:
        """End the study's run with the best trial and the files made of it."""
        metrics, tags = [], {}
        if best is not None and best.value is not None:
            metrics.append(LoggedMetric("value", best.value, _milliseconds(best), best.number))
            tags = {"best_trial": str(best.number)}
        self.registry.close_run(self.run_id, "FINISHED", metrics=metrics, tags=tags, artifacts=artifacts)

    def _key(self, number: int) -> str:
        return f"sweep/{self.study.key}/{number}"


def _milliseconds(trial: FrozenTrial) -> int:
    assert trial.datetime_start is not None, "a trial that was begun has a time"
    return int(trial.datetime_start.timestamp() * 1000)
