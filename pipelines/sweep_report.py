"""The report of a sweep: ONE HTML file that needs no network, no scripts and no other file.

In: the study, its plan, the best trial's experiment file. Out: the HTML (inline CSS, PNG in base64; readable in light
and dark and on paper). Invariants: everything is escaped; every trial of the study is in the table, with its value in
full in the cell's `<data value=...>`; an importance that can't be computed is said to be missing, with the reason.
"""

from __future__ import annotations

import base64
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pipelines.plot_style import png
from pipelines.report import TEMPLATES
from pipelines.sweep_plots import CAPTIONS, Row, SweepTable, all_figures
from pipelines.sweep_study import DEFINITION, MESSAGE, SECONDS, STARTS, Study

if TYPE_CHECKING:
    from pipelines.sweep import Plan

FEWEST_TRIALS = 4  # complete ones, for an importance
FEW_PER_KEY = 10  # complete trials per key, below which an importance is called a guess
LONG_TABLE = 60  # rows; longer ones start folded
ORDER = ("COMPLETE", "PRUNED", "RUNNING", "FAIL")


@dataclass(frozen=True)
class SweepReport:
    """What the page says."""

    title: str
    facts: Mapping[str, object]
    sentences: Sequence[str]
    table: SweepTable
    no_importance: str  # why there is none
    best_params: Mapping[str, Any]
    experiment: str
    commands: Sequence[str]
    definition_yaml: str

    @classmethod
    def of(cls, study: Study, plan: Plan, experiment: str) -> SweepReport:
        """Everything from the study's database and the plan."""
        importance, why_not = importances(study.optuna)
        distributions = plan.space.distributions
        table = SweepTable(
            [_row(trial) for trial in study.trials()],
            plan.space.keys,
            frozenset(key for key, one in distributions.items()
                      if isinstance(one, FloatDistribution | IntDistribution) and one.log),
            frozenset(key for key, one in distributions.items() if isinstance(one, IntDistribution)),
            {key: one.choices for key, one in distributions.items() if isinstance(one, CategoricalDistribution)},
            importance,
        )  # fmt: skip
        sweep = plan.sweep
        states = {state: sum(row.state == state for row in table.rows) for state in ORDER}
        facts = {
            "study": sweep.study, "budget [trials]": sweep.trials, "complete": states["COMPLETE"],
            "pruned": states["PRUNED"], "failed": states["FAIL"],
            **({"interrupted, not gone on with yet": states["RUNNING"]} if states["RUNNING"] else {}),
            "time at work": _duration(sum(row.seconds for row in table.rows)),
            "sampler": f"{sweep.sampler.name}, seed {sweep.sampler.seed}", "pruner": sweep.pruner.name,
            "model": plan.first.model.name if "model" not in plan.space.keys else "swept",
        }  # fmt: skip
        name = plan.name
        more = "" if sweep.write_experiment else f" sweep.write_experiment={name}"
        commands = [f"python -m pipelines.sweep {shlex.join(plan.arguments)}{more}",
                    *(line.removeprefix("# ") for line in experiment.splitlines()[1:2])]  # fmt: skip
        best = table.best
        return cls(
            f"Sweep {sweep.study}", facts, _sentences(table, why_not), table, why_not,
            plan.space.values(best.params) if best else {}, experiment, commands if experiment else [],
            OmegaConf.to_yaml(OmegaConf.create(json.loads(study.optuna.user_attrs[DEFINITION]))),
        )  # fmt: skip


def importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """fANOVA importance of every key (sums to 1), or nothing and the reason why."""
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(values) < FEWEST_TRIALS:
        return {}, f"{len(values)} complete trials are too few, {FEWEST_TRIALS} are needed"
    if len(set(values)) == 1:
        return {}, "every complete trial has the same value"
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}, ""


def _row(trial: FrozenTrial) -> Row:
    notes = trial.user_attrs
    return Row(trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values,
               float(notes.get(SECONDS, 0.0)), int(notes.get(STARTS, 0)), str(notes.get(MESSAGE, "")))  # fmt: skip


def _sentences(table: SweepTable, why_not: str) -> list[str]:
    """What the trials say, in plain language."""
    best, complete = table.best, table.of("COMPLETE")
    if best is None or best.value is None:
        return ["No trial is complete, so there is nothing to choose. The messages are in the table."]
    values = [float(row.value or 0.0) for row in complete]
    middle = statistics.median(values)
    against = f", against {middle:.4f} for the median complete trial" if len(values) > 1 else ""
    told = [f"The best of {len(table.rows)} trials is trial {best.number}: validation IV RMSE {best.value:.4f} vol "
            f"points{against}."]  # fmt: skip
    ties = sum(row.value == best.value for row in complete) - 1
    if ties:
        have = "s have" if ties > 1 else " has"
        told.append(f"{ties} other complete trial{have} the same value; the first counts. "
                    "Nets that never improve on the prior all have the prior's error.")  # fmt: skip
    if table.importance:
        first = max(table.importance, key=lambda key: table.importance[key])
        few = len(complete) < FEW_PER_KEY * len(table.keys)
        share = 100 * table.importance[first]
        told.append(f"{first} matters most: it explains {share:.0f} % of what the keys explain"
                    + (f", a rough guess from {len(complete)} complete trials for {len(table.keys)} keys." if few
                       else "."))  # fmt: skip
    else:
        told.append(f"No importance: {why_not}.")
    told.append("The least of many errors on the same validation dates flatters its trial; the test dates were not "
                "looked at. Train and evaluate the best anew before believing it.")  # fmt: skip
    return told


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """Complete trials, best first; then pruned, interrupted, failed ones."""
    return sorted(rows, key=lambda row: (ORDER.index(row.state), row.value or 0.0, row.number))


def render(report: SweepReport) -> str:
    """The report's HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["duration"] = _duration
    environment.filters["shown"] = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    images = [
        {"name": name.replace("_", " "), "caption": CAPTIONS[name],
         "base64": base64.b64encode(png(figure)).decode("ascii")}
        for name, figure in all_figures(report.table).items()
    ]  # fmt: skip
    return environment.get_template("sweep.html.j2").render(
        report=report, images=images, rows=_sorted(report.table.rows), best=report.table.best, long=LONG_TABLE,
        messages=any(row.message for row in report.table.rows),
    )  # fmt: skip


def write_report(path: Path, report: SweepReport) -> None:
    """Write the page aside, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(render(report), encoding="utf-8")
    aside.replace(path)
