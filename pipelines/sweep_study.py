"""The study of a sweep on SQLite: which trials there are, what the next one is, when one is given up.

In: the sweep's settings and `OUT/sweep/STUDY/study.db`. Out: `Study`, and one `RunningTrial` at a time.

Invariants, which make a killed sweep equal to an uninterrupted one:
- the database is complete or absent (made aside, renamed), and so is a trial (number, parameters and state are written
  in one transaction); a kill leaves at most one trial RUNNING, and that one is gone on with, never made anew;
- the next parameters depend on the finished trials, the seed and the trial's number alone: Optuna draws them in a copy
  of the study in memory, whose sampler is seeded for this number;
- whether a trial is given up depends on the finished trials and its own values alone: the pruner judges in such a copy,
  into which the values reported before a kill are told again;
- one process at a time works on a study: `Study.open` holds a lock, which the system releases if the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipelines.config import PrunerConfig, SamplerConfig
from pipelines.sweep_space import Space
from serving.disk import sync_file
from serving.errors import ConfigError, StrikeforgeError

DATABASE = "study.db"
DEFINITION = "definition"  # study attribute: everything that decides the trials
KEY = "key"  # study attribute: its unique name
MESSAGE = "message"  # trial attribute: why it failed
SECONDS = "seconds"  # trial attribute: at work, without the time between a kill and the next start
STARTS = "starts"  # trial attribute: how often it was begun or gone on with
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Rules:
    """How parameters are drawn and trials given up; `longest` is the most epochs a trial may have."""

    space: Space
    sampler: SamplerConfig
    pruner: PrunerConfig
    longest: int

    def copy_of(self, study: optuna.Study, number: int) -> optuna.Study:
        """The finished trials before this one in memory, with a sampler and a pruner of their own."""
        copy = optuna.create_study(study_name=study.study_name, sampler=self._sampler(number), pruner=self._pruner())
        copy.add_trials([trial for trial in study.get_trials(states=FINISHED) if trial.number < number])
        return copy

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence((self.sampler.seed, number)).generate_state(1)[0])
        if self.sampler.name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.sampler.startup_trials)

    def _pruner(self) -> optuna.pruners.BasePruner:
        warmup = self.pruner.warmup_epochs
        if self.pruner.name == "none":
            return optuna.pruners.NopPruner()
        if self.pruner.name == "median":
            return optuna.pruners.MedianPruner(self.pruner.startup_trials, warmup)
        fewest = max(1, warmup)
        return optuna.pruners.HyperbandPruner(fewest, max(fewest, self.longest), self.pruner.reduction_factor)


class Study:
    """An open study; `optuna` is Optuna's own."""

    def __init__(self, storage: RDBStorage, name: str, rules: Rules) -> None:
        self.storage, self.rules = storage, rules
        self.optuna = optuna.load_study(study_name=name, storage=storage)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, name: str, rules: Rules, definition: Mapping[str, Any]) -> Iterator[Study]:
        """The study of the folder, made if it isn't there, locked for this process.

        Raises StrikeforgeError where another process holds it, ConfigError where it was made by another definition.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / DATABASE).exists():
                _make(folder, name, definition)
            storage = RDBStorage(f"sqlite:///{(folder / DATABASE).resolve()}")
            try:
                study = cls(storage, name, rules)
                study._check(definition)
                yield study
            finally:
                storage.remove_session()
                storage.engine.dispose()

    @property
    def key(self) -> str:
        """Unique among all studies."""
        return str(self.optuna.user_attrs[KEY])

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials of these states (all of them, without any), by number."""
        return self.optuna.get_trials(states=states or None)

    def best(self) -> FrozenTrial | None:
        """The complete trial of the least value; the first of several."""
        complete = self.trials(TrialState.COMPLETE)
        return min(complete, key=lambda trial: (trial.value, trial.number), default=None)

    def next(self, budget: int) -> RunningTrial | None:
        """The interrupted trial, else a new one; None where `budget` trials are finished."""
        if len(self.trials(*FINISHED)) >= budget:
            return None
        if not (running := self.trials(TrialState.RUNNING)):
            number = len(self.trials())
            distributions = dict(self.rules.space.distributions)
            params = self.rules.copy_of(self.optuna, number).ask(distributions).params
            self.optuna.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
            running = self.trials(TrialState.RUNNING)
        return RunningTrial(self, running[0])

    def _check(self, definition: Mapping[str, Any]) -> None:
        theirs = _flat(json.loads(self.optuna.user_attrs[DEFINITION]))
        ours = _flat(json.loads(json.dumps(definition)))
        absent = "nothing"
        problems = [
            f"{key}: study {self.optuna.study_name} was made with {theirs.get(key, absent)!r}, now it is "
            f"{ours.get(key, absent)!r}; set it back or name another study, sweep.study=NAME"
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key, absent) != ours.get(key, absent)
        ]
        if problems:
            raise ConfigError(problems)


class RunningTrial:
    """The trial at work. `pruned`: the values so far say that it is given up."""

    def __init__(self, study: Study, trial: FrozenTrial) -> None:
        self.study, self.number, self.params = study, trial.number, trial.params
        self.storage = study.storage
        study_id = self.storage.get_study_id_from_name(study.optuna.study_name)
        self.trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        self.gone_on_with = STARTS in trial.user_attrs
        self.reported = max(trial.intermediate_values, default=0)
        self._seconds, self._begun = float(trial.user_attrs.get(SECONDS, 0.0)), time.monotonic()
        self.storage.set_trial_user_attr(self.trial_id, STARTS, trial.user_attrs.get(STARTS, 0) + 1)
        copy = study.rules.copy_of(study.optuna, trial.number)
        copy.enqueue_trial(trial.params)
        self._judged = copy.ask(dict(study.rules.space.distributions))
        self._rungs = set(trial.system_attrs)
        self.pruned = False
        for epoch in sorted(trial.intermediate_values):
            self.pruned = self._judge(epoch, trial.intermediate_values[epoch])

    def report(self, epoch: int, value: float) -> bool:
        """Note the value of an epoch (from 1; once, whatever runs again after a kill); whether to give the trial up."""
        if epoch > self.reported:
            self.storage.set_trial_intermediate_value(self.trial_id, epoch, value)
            self.reported = epoch
            self._note_seconds()
            self.pruned = self._judge(epoch, value)
        return self.pruned

    def finish(self, value: float | None = None, *, failure: str | None = None) -> FrozenTrial:
        """End it: FAIL with its message, PRUNED, or COMPLETE with its value."""
        self._note_seconds()
        if failure is not None:
            self.storage.set_trial_user_attr(self.trial_id, MESSAGE, failure)
            return self.study.optuna.tell(self.number, state=TrialState.FAIL)
        if self.pruned:
            return self.study.optuna.tell(self.number, state=TrialState.PRUNED)
        return self.study.optuna.tell(self.number, value, state=TrialState.COMPLETE)

    def _judge(self, epoch: int, value: float) -> bool:
        self._judged.report(value, epoch)
        verdict = self._judged.should_prune()
        for name, noted in self._judged.study.trials[-1].system_attrs.items():
            # Hyperband's rungs: later trials are held against them.
            if name.startswith("completed_rung_") and name not in self._rungs:
                self._rungs.add(name)
                self.storage.set_trial_system_attr(self.trial_id, name, noted)
        return bool(verdict)

    def _note_seconds(self) -> None:
        spent = self._seconds + time.monotonic() - self._begun
        self.storage.set_trial_user_attr(self.trial_id, SECONDS, round(spent, 3))


def _make(folder: Path, name: str, definition: Mapping[str, Any]) -> None:
    """A new database, complete before it has its name."""
    for left in folder.glob(f".{DATABASE}.new*"):
        left.unlink()
    aside = folder / f".{DATABASE}.new"
    storage = RDBStorage(f"sqlite:///{aside.resolve()}")
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    study.set_user_attr(DEFINITION, json.dumps(definition, sort_keys=True))
    study.set_user_attr(KEY, uuid.uuid4().hex)
    storage.remove_session()
    storage.engine.dispose()
    sync_file(aside)
    aside.replace(folder / DATABASE)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with closing(os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666), "r+")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().strip() or "unknown"
            raise StrikeforgeError(f"{folder}: another sweep (process {holder}) is at work on this study; wait for it, "
                                   "or end it: the trial it has begun will be gone on with") from error  # fmt: skip
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists are leaves."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}.{name}" if path else str(name)
        leaves |= _flat(value, key) if isinstance(value, dict) and value else {key: value}
    return leaves
