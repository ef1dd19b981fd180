"""Sweep: search any keys of conf/ for the least validation error; Optuna on SQLite, killed and gone on with at will.

In: `OUT/features/` (made by python -m pipelines.features), or quotes where keys of data, features or split are swept;
conf/sweep/NAME.yaml. Out, in `OUT/sweep/STUDY/`: `study.db`, `best.yaml` (an experiment file), `report.html`; in MLflow
a run for the study and a child run for each trial.

`sweep.trials` is how many trials the study has in the end: complete, pruned or failed by their own configuration. A
process killed at any moment loses none and adds none: the same command goes on with the trial it was at. With the
number reached it only writes the report anew; a larger number goes on. Keys outside `sweep.` are every trial's.
More: docs/sweeps.md.

Run: python -m pipelines.sweep sweep=NAME [sweep.trials=N] [key=value ...]
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import PLACES, Config, SweepConfig, as_json, load_config, load_sweep
from serving.errors import ConfigError, DataError, StrikeforgeError

if TYPE_CHECKING:
    from pipelines.sweep_objective import Features
    from pipelines.sweep_space import Space
    from pipelines.sweep_study import RunningTrial, Study
    from pipelines.sweep_tracking import Tracker

log = logging.getLogger("strikeforge.sweep")
REPORT_SECONDS = 300.0  # between reports of a sweep at work


@dataclass(frozen=True)
class SweepResult:
    """Where the report is, and the best trial: its number and its validation error (vol points)."""

    folder: Path
    trials: int
    best_trial: int
    validation_iv_rmse: float

    @property
    def message(self) -> str:
        """One line."""
        best = f"trial {self.best_trial}, validation IV RMSE {self.validation_iv_rmse:.4f} vol points"
        return f"{self.trials} trials, best: {best}; {self.folder}/report.html, {self.folder}/best.yaml"


@dataclass(frozen=True)
class Plan:
    """A checked sweep: nothing of it is refused later but what a trial's data say."""

    arguments: tuple[str, ...]  # of the command line
    sweep: SweepConfig
    overrides: list[str]  # of every trial
    space: Space
    first: Config  # of the space's first corner

    @property
    def folder(self) -> Path:
        """OUT/sweep/STUDY."""
        return self.first.folder / "sweep" / self.sweep.study

    @property
    def name(self) -> str:
        """Of the experiment file."""
        return self.sweep.write_experiment or self.sweep.study

    def trial_overrides(self, params: dict[str, Any]) -> list[str]:
        """A trial's whole configuration as overrides."""
        return [*self.overrides, *self.space.overrides(params)]


def run(arguments: Sequence[str]) -> SweepResult:
    """Search until the budget is used, then write; raises ConfigError with every problem found, before any trial."""
    plan = planned(arguments)
    from pipelines.lineage import features_hash
    from pipelines.sweep_objective import SECTIONS, Features
    from pipelines.sweep_study import Rules, Study
    from pipelines.sweep_tracking import Tracker

    features = Features(plan.folder, swept=plan.space.lies_in(*SECTIONS))
    definition = _definition(plan)
    if not features.swept:
        features.of(plan.first)
        definition["features_sha256"] = features_hash(plan.first.folder / "features")
        for path in ("path", "history"):  # already in the features
            definition["config"]["data"].pop(path)
    rules = Rules(plan.space, plan.sweep.sampler, plan.sweep.pruner, _longest(plan))
    with Study.open(plan.folder, plan.sweep.study, rules, definition) as study:
        tracker = Tracker.open(plan.first.registry, study, {"study": plan.sweep.study})
        _remove_leftovers(study, plan.folder)
        if features.swept:
            features.ingested(plan.first)  # files that can't be read are no trial's fault
        written = time.monotonic()
        while (trial := study.next(plan.sweep.trials)) is not None:
            _run_trial(trial, study, plan, features, tracker)
            if time.monotonic() - written > REPORT_SECONDS:
                _write(study, plan)
                written = time.monotonic()
        return _end(study, plan, tracker)


def planned(arguments: Sequence[str]) -> Plan:
    """The sweep of a command line; raises ConfigError with every problem found."""
    from pipelines.sweep_experiment import check_name, experiment_text
    from pipelines.sweep_space import check_composed, read_space

    own = [text for text in arguments if _key(text).split(".")[0] == "sweep"]
    others = [text for text in arguments if text not in own]
    problems: list[str] = []
    try:
        sweep = load_sweep([part for text in own for part in _replacing(text)])
    except ConfigError as error:
        problems += error.problems
        try:
            load_config(others)
        except ConfigError as further:
            problems += further.problems
        raise ConfigError(problems) from error
    space = read_space(sweep.space, problems)
    overrides = _last_of_each(sweep.overrides, others)
    problems += [f"{key}: is swept and also set for all trials; leave one (sweep.space.{key}=null takes it out)"
                 for key in space.keys if key in map(_key, overrides)]  # fmt: skip
    first = check_composed(space, overrides, problems)
    if sweep.write_experiment:
        try:
            check_name(sweep.write_experiment)
        except ConfigError as error:
            problems += error.problems
    if problems or first is None:
        raise ConfigError(problems)
    plan = Plan(tuple(arguments), sweep, overrides, space, first)
    experiment_text(plan.name, plan.trial_overrides(next(space.corners())), space.keys, None)  # refused now or never
    return plan


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _replacing(override: str) -> list[str]:
    """A distribution (or a whole space) of the command line takes the place of the file's; Hydra would merge them."""
    key, _, value = override.partition("=")
    is_mapping = _key(override).startswith("sweep.space") and value.lstrip().startswith("{")
    return [f"{key}=null", override] if is_mapping else [override]


def _last_of_each(*lists: Sequence[str]) -> list[str]:
    """Overrides without those whose key comes again; Hydra takes a group's choice once only."""
    by_key: dict[str, str] = {}
    for text in (text for texts in lists for text in texts):
        by_key.pop(_key(text), None)
        by_key[_key(text)] = text
    return list(by_key.values())


def _definition(plan: Plan) -> dict[str, Any]:
    """Everything that decides what the trials are."""
    config = as_json(plan.first)
    for section in PLACES:
        config.pop(section)
    settings = {"sampler": asdict(plan.sweep.sampler), "pruner": asdict(plan.sweep.pruner)}
    return {"space": plan.space.plain(), "config": config, **settings}


def _longest(plan: Plan) -> int:
    """The most epochs a trial may have."""
    if not plan.space.lies_in("trainer"):
        return plan.first.trainer.epochs
    return max(load_config(plan.trial_overrides(params)).trainer.epochs for params in plan.space.corners())


def _remove_leftovers(study: Study, folder: Path) -> None:
    """Checkpoints of trials that were finished before their process was killed."""
    from pipelines.sweep_study import FINISHED

    for trial in study.trials(*FINISHED):
        shutil.rmtree(folder / "trials" / str(trial.number), ignore_errors=True)


def _run_trial(trial: RunningTrial, study: Study, plan: Plan, features: Features, tracker: Tracker) -> None:
    """One trial to its end. What its configuration or data make impossible is recorded; all other errors go on up."""
    import torch

    from pipelines.sweep_objective import train

    doing = "going on with" if trial.gone_on_with else "begun:"
    log.info("trial %d of %d %s %s", trial.number, plan.sweep.trials, doing, plan.space.values(trial.params))
    tracker.begin(trial.number)
    checkpoints = plan.folder / "trials" / str(trial.number)
    try:
        cfg = load_config(plan.trial_overrides(trial.params))
        value = train(cfg, features.of(cfg), trial, checkpoints)
        finished = trial.finish(value)
    except (ConfigError, DataError, torch.OutOfMemoryError) as error:
        finished = trial.finish(failure=f"{type(error).__name__}: {error}")
    tracker.end(finished)
    shutil.rmtree(checkpoints, ignore_errors=True)
    best = study.best()
    log.info("trial %d: %s, value %s, best %s", trial.number, finished.state.name, finished.value,
             f"{best.value} of trial {best.number}" if best else "none")  # fmt: skip


def _write(study: Study, plan: Plan) -> list[Path]:
    """The report, and the best trial's experiment file if there is one; their paths."""
    from pipelines.sweep_experiment import Origin, experiment_text, write_experiment
    from pipelines.sweep_report import SweepReport, write_report

    best = study.best()
    text, files = "", [plan.folder / "report.html"]
    if best is not None and best.value is not None:
        origin = Origin(plan.sweep.study, best.number, best.value)
        text = experiment_text(plan.name, plan.trial_overrides(best.params), plan.space.keys, origin)
        aside = plan.folder / ".best.yaml.new"
        aside.write_text(text, encoding="utf-8")
        files.append(aside.replace(plan.folder / "best.yaml"))
        if plan.sweep.write_experiment:
            log.info("%s written", write_experiment(plan.name, text))
    write_report(plan.folder / "report.html", SweepReport.of(study, plan, text))
    return files


def _end(study: Study, plan: Plan, tracker: Tracker) -> SweepResult:
    """Files and the study's run; raises StrikeforgeError where no trial is complete."""
    from pipelines.sweep_study import FINISHED, MESSAGE

    files = _write(study, plan)
    best, finished = study.best(), study.trials(*FINISHED)
    tracker.close(best, files)
    if best is None or best.value is None:
        messages = sorted({str(trial.user_attrs.get(MESSAGE, trial.state.name)) for trial in finished})
        raise StrikeforgeError(f"no trial of {len(finished)} is complete ({plan.folder}/report.html): "
                               + "; ".join(messages))  # fmt: skip
    return SweepResult(plan.folder, len(finished), best.number, best.value)


if __name__ == "__main__":
    from pipelines.command import with_overrides

    raise SystemExit(with_overrides(__doc__, run))
