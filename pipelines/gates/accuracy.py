"""Accuracy: the stored bytes, put to the version's exam, beat a baseline and aren't worse than the champion.

In: the exam the version was registered with, both bundles, the metrics on record. Everything is recomputed:
1. the exam asks no date the model was trained or validated on, and enough of them;
2. the recomputed errors are those on record, for the model and every baseline (a record that claims otherwise fails);
3. test IV RMSE is at most `ratio` times the task's baseline's; the Diebold-Mariano test (by date, two-sided,
   Harvey-Leybourne-Newbold) against it must be positive at `baseline_significance` (null: only reported);
4. on the dates that lie outside the training and validation sets of BOTH: at most `champion_tolerance` worse than the
   champion, and not significantly worse. The first version has no champion to meet and is told so.
A champion that can't answer (other features, no exam, dates unknown, too few dates in common) makes the gate fail
unless `without_champion` is `allowed`; then the report says that nothing was compared.
`value` is the largest share of what is allowed, so at most 1.
Source of the tests: pipelines/metrics.py.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED, TASKS, Count, NotNegative, Positive, Task
from pipelines.gate_context import MODEL_PREDICTOR, GateContext, GateOutcome
from serving.errors import BundleError, DataError, EngineError

if TYPE_CHECKING:
    import polars as pl

    from pipelines.metrics import Score

NAME = "accuracy"
CHAMPION = "champion"
MEASURES = ("iv_rmse", "iv_mae", "price_rmse", "price_mae", "inside_spread")
Level = Annotated[float, Field(gt=0, lt=1, strict=True)]


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """Thresholds; `ratio`, `champion_tolerance` and `record_tolerance` are relative, levels are of two-sided tests.

    Ten dates are what a test at 5 % needs to see a difference of one standard deviation of the daily ones in four
    cases of five; the thresholds weren't chosen by any model's test figures.
    """

    baselines: dict[Task, str] = field(
        default_factory=lambda: {"pricing": "anchored_sticky_strike", "surface": "shifted_last"}
    )
    ratio: Positive = 1.0001  # float32 rounds where model and baseline are equal
    baseline_significance: Level | None = 0.05
    champion_tolerance: NotNegative = 0.02
    significance: Level = 0.05
    min_dates: Count = 10
    without_champion: Literal["refused", "allowed"] = "refused"
    record_tolerance: Positive = 1e-3

    @field_validator("baselines")
    @classmethod
    def _every_task_has_one(cls, value: dict[Task, str]) -> dict[Task, str]:
        lacking = [task for task in TASKS if not value.get(task)]
        if lacking:
            raise ValueError(f"names no baseline for {', '.join(lacking)}; each task needs one")
        return value


class Finding(NamedTuple):
    """One of the module's points: `share` is of what is allowed, None where nothing is measured."""

    passed: bool
    text: str
    share: float | None = None
    figures: Mapping[str, Any] = {}


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    from pipelines.exam_answers import exam_table
    from pipelines.metrics import scores

    table = exam_table(context.exam, {MODEL_PREDICTOR: context.answers})
    found = scores(table)
    baseline = settings.baselines[context.exam.task]  # type: ignore[index]
    findings = [_unseen(context, settings), _on_record(context, settings, found)]
    findings += [_against_baseline(settings, baseline, table, found), _against_champion(context, settings)]
    shares = [finding.share for finding in findings if finding.share is not None]
    passed = all(finding.passed for finding in findings)
    said = [finding for finding in findings if passed or not finding.passed]
    figures: dict[str, Any] = {}
    for finding in findings:
        figures |= finding.figures
    return GateOutcome(
        NAME, passed, max(shares, default=None), 1.0, "; ".join(finding.text for finding in said), figures
    )


def seen_dates(details: Mapping[str, Any], version: int) -> set[datetime.date]:
    """The training and validation dates that a `registered` event holds; DataError if it doesn't say."""
    dates = details.get("dates")
    try:
        assert isinstance(dates, Mapping)
        named = [*dates["train"], *dates["validation"]]
        seen = {datetime.date.fromisoformat(day) for day in named}
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"version {version} has no usable dates of training and validation on record") from error
    if not dates["train"]:
        raise DataError(f"version {version}: the record names no training date")
    return seen


def _exam_dates(context: GateContext) -> set[datetime.date]:
    days: list[datetime.date] = context.exam.date.astype("datetime64[D]").astype(object).tolist()
    return set(days)


def _unseen(context: GateContext, settings: Settings) -> Finding:
    """1. Dates the model hasn't seen, and enough."""
    asked, seen = _exam_dates(context), seen_dates(context.details, context.version)
    if context.exam.seen() != {name: list(context.details["dates"][name]) for name in ("train", "validation")}:
        return Finding(False, "the dates of training and validation on record aren't those of the exam")
    if both := asked & seen:
        return Finding(False, f"{len(both)} of the exam's {len(asked)} dates were trained or validated on "
                              f"(the first is {min(both)})")  # fmt: skip
    if len(asked) < settings.min_dates:
        return Finding(False, f"{len(asked)} dates are too few to judge by, at least {settings.min_dates} are needed")
    return Finding(True, f"{len(asked)} dates, none of them trained or validated on", figures={"dates": len(asked)})


def _on_record(context: GateContext, settings: Settings, found: Mapping[str, Score]) -> Finding:
    """2. What was recorded at registration is what the bytes answer."""
    wrong = []
    for predictor, score in found.items():
        for measure in MEASURES if predictor == MODEL_PREDICTOR else ("iv_rmse",):
            name, value = f"metrics.test.{predictor}.{measure}", score[measure]  # type: ignore[literal-required]
            recorded = _recorded(context.details, predictor, measure)
            if recorded is None:
                wrong.append(f"no usable {name} on record")
            elif not math.isclose(recorded, value, rel_tol=settings.record_tolerance, abs_tol=1e-9):
                wrong.append(f"{name} is {recorded:.6g} on record, but the stored bytes answer {value:.6g}")
    own = found[MODEL_PREDICTOR]
    return Finding(not wrong, "; ".join(wrong) or f"the {len(found)} predictors' errors on record are confirmed",
                   figures={"rows": own["rows"], "model": {name: own[name] for name in MEASURES}})  # type: ignore[literal-required]  # fmt: skip


def _recorded(details: Mapping[str, Any], predictor: str, measure: str) -> float | None:
    value: Any = details
    for key in ("metrics", "test", predictor, measure):
        value = value.get(key) if isinstance(value, Mapping) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if usable else None


def _against_baseline(settings: Settings, baseline: str, table: pl.DataFrame, found: Mapping[str, Score]) -> Finding:
    """3. At most `ratio` times the baseline's error."""
    from pipelines.metrics import diebold_mariano

    if baseline not in found:
        return Finding(False, f"the exam has no baseline {baseline}; there are {', '.join(sorted(found))}")
    table = _only(table, MODEL_PREDICTOR, baseline)
    own, other = found[MODEL_PREDICTOR]["iv_rmse"], found[baseline]["iv_rmse"]
    test = diebold_mariano(table, MODEL_PREDICTOR, baseline)
    limit, level = settings.ratio * other, settings.baseline_significance
    better = test.t > 0 and level is not None and test.p <= level
    passed = own <= limit and (level is None or better)
    text = (f"test IV RMSE {own:.6g} {'<=' if own <= limit else '>'} {limit:.6g} vol points "
            f"({settings.ratio:g} x {baseline}'s {other:.6g}); {_said(test, baseline)}")  # fmt: skip
    if level is not None and not better:
        text += f", and it must be better at {level:g}"
    figures = {"baseline": {"name": baseline, "iv_rmse": other, **_figures(test)}, "by_date": _by_date(table, baseline)}
    return Finding(passed, text, own / limit if limit > 0 else math.inf, figures)


def _against_champion(context: GateContext, settings: Settings) -> Finding:
    """4. Not worse than the champion on dates that neither has seen."""
    from pipelines.exam_answers import answer, exam_table

    if context.champion_version is None or context.champion_details is None:
        return Finding(True, "there is no champion to compare with: baselines only", figures={"champion": None})
    name = f"champion {context.champion_version}"
    try:
        theirs = seen_dates(context.champion_details, context.champion_version)
        read_as = context.champion_exam if context.exam.task == "surface" else None
        answers = answer(context.champion_bundle(), context.exam, read_as=read_as)
        common = sorted(_exam_dates(context) - theirs - seen_dates(context.details, context.version))
        if len(common) < settings.min_dates:
            raise DataError(f"{len(common)} of the exam's dates lie outside the training and validation sets of both, "
                            f"at least {settings.min_dates} are needed")  # fmt: skip
        table = exam_table(context.exam, {MODEL_PREDICTOR: context.answers, CHAMPION: answers}, baselines=False)
        return _compared(settings, name, common, table)
    except (BundleError, EngineError, DataError) as error:
        allowed = settings.without_champion == "allowed"
        hint = "allowed by gate.accuracy.without_champion" if allowed else "gate.accuracy.without_champion=allowed"
        text = f"{name} can't be compared: {error} ({hint if allowed else f'to promote all the same: {hint}'})"
        return Finding(allowed, text, figures={"champion": {"version": context.champion_version, "compared": False}})


def _compared(settings: Settings, name: str, dates: list[datetime.date], table: pl.DataFrame) -> Finding:
    import polars as pl

    from pipelines.metrics import diebold_mariano, scores

    table = table.filter(pl.col("ts").dt.date().is_in(dates))
    found, test = scores(table), diebold_mariano(table, MODEL_PREDICTOR, CHAMPION)
    own, other = found[MODEL_PREDICTOR]["iv_rmse"], found[CHAMPION]["iv_rmse"]
    limit = (1.0 + settings.champion_tolerance) * other
    worse = test.t < 0 and test.p < settings.significance
    text = (f"on the {len(dates)} dates that neither has seen {name} has an IV RMSE of {other:.6g} vol points, this "
            f"version {own:.6g} {'<=' if own <= limit else '>'} {limit:.6g} "
            f"({100.0 * settings.champion_tolerance:.3g} % above the champion's); {_said(test, name)}")  # fmt: skip
    if worse:
        text += f": significantly worse at {settings.significance:g}"
    figures = {"champion": {"compared": True, "dates": len(dates), "iv_rmse": other, "model_iv_rmse": own,
                            **_figures(test)}, "by_date_with_champion": _by_date(table, CHAMPION)}  # fmt: skip
    return Finding(own <= limit and not worse, text, own / limit if limit > 0 else math.inf, figures)


def _only(table: pl.DataFrame, *names: str) -> pl.DataFrame:
    """The table with some of its predictors."""
    from pipelines.metrics import predictors

    others = [name for name in predictors(table) if name not in names]
    return table.drop(*(f"{kind}_{name}" for name in others for kind in ("iv", "price")))


def _said(test: Any, other: str) -> str:
    if test.reason:
        return f"no Diebold-Mariano test against {other}: {test.reason}"
    return f"Diebold-Mariano t {test.t:+.3g} against {other} (positive: better), p {test.p:.3g}, {test.dates} dates"


def _figures(test: Any) -> dict[str, Any]:
    return {"t": test.t, "p": test.p, "test_dates": test.dates}


def _by_date(table: pl.DataFrame, other: str) -> dict[str, Any]:
    """IV RMSE by date of the model and one other predictor, vol points."""
    from pipelines.metrics import by_date

    wide = by_date(table).pivot(on="predictor", index="date", values="iv_rmse").sort("date")
    return {"date": [str(day) for day in wide["date"]], MODEL_PREDICTOR: wide[MODEL_PREDICTOR].to_list(),
            other: wide[other].to_list()}  # fmt: skip
