"""Precision: weights in fewer bits cost at most a stated share of accuracy, on the exam's real rows.

In: the stored bundle in `engine`, its exam. For each of `precisions`, and for fp32, every row is answered in every way
the bundle holds a file for (pipelines/parity.py); IV RMSE is against the market volatilities that the accuracy gate
scores by. A precision is admitted if its RMSE is at most (1 + `precision_slack`) times fp32's of the same engine, in
every way; its distance to fp32's answers is reported. What isn't admitted isn't released: no engine pack is made of it,
so no host runs it (pipelines/native_packs.py). The gate says no only for a precision in `required`.
`value` is the worst RMSE ratio of the required precisions (of all that were measured where none is required), reported
against 1 + `precision_slack`. Figure `admitted` is part of the verdict (pipelines/gate_report.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import MODEL_PREDICTOR, GateContext, GateOutcome
from pipelines.gates.parity import why_not_here
from pipelines.parity import ways_of
from serving.bundle import Bundle
from serving.engine import open_engine
from serving.errors import DataError, EngineError
from serving.normal import Array

if TYPE_CHECKING:
    from pipelines.exam import Exam

NAME = "precision"
TASKS = ("pricing",)
Reduced = Literal["bf16", "int8"]
Slack = Annotated[float, Field(ge=0, lt=1, strict=True)]


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """`precision_slack` is relative; `required` precisions must be among `precisions`, and be admitted."""

    engine: Literal["native"] = "native"
    precisions: tuple[Reduced, ...] = ("bf16", "int8")
    precision_slack: Slack = 0.01
    required: tuple[Reduced, ...] = ()

    @field_validator("required")
    @classmethod
    def _is_known(cls, value: tuple[Reduced, ...]) -> tuple[Reduced, ...]:
        return tuple(dict.fromkeys(value))


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    bundle = context.bundle()
    unasked = [name for name in settings.required if name not in settings.precisions]
    if unasked:
        raise DataError(
            f"required precisions {', '.join(unasked)} aren't among those measured; name them in precisions"
        )
    reason = why_not_here(bundle, settings.engine)
    if reason is not None:
        text = f"nothing measured, so no reduced precision is admitted: engine {settings.engine}: {reason}"
        return GateOutcome(NAME, not settings.required, None, None, text, {"admitted": [], "precisions": {}})
    limit = 1.0 + settings.precision_slack
    reference = answers_of(context.exam, bundle, settings.engine, "fp32")
    figures: dict[str, Any] = {}
    lines = []
    for precision in settings.precisions:
        try:
            open_engine(bundle, settings.engine, precision=precision)
        except EngineError as error:
            figures[precision] = {"refused": str(error)}
            lines.append(f"{precision} refused: {error}")
            continue
        figures[precision] = found = compared(
            context.exam, reference, answers_of(context.exam, bundle, settings.engine, precision)
        )
        lines.append(
            f"{precision} {'admitted' if found['ratio'] <= limit else 'NOT admitted'}: IV RMSE "
            f"{found['iv_rmse']:.6g} vol points, {found['ratio']:.6g} times fp32's {found['fp32_iv_rmse']:.6g}, "
            f"at most {found['largest_distance']:.3g} of volatility from fp32's answers"
        )
    ratios = {name: one["ratio"] for name, one in figures.items() if "ratio" in one}
    admitted = [name for name, ratio in ratios.items() if ratio <= limit]
    lacking = [name for name in settings.required if name not in admitted]
    asked = [ratios[name] for name in settings.required if name in ratios] or [*ratios.values()]
    value = max(asked, default=None)
    text = "; ".join(lines) or "no reduced precision is asked for"
    figures = {"admitted": admitted, "precisions": figures}
    return GateOutcome(
        NAME, not lacking, value if value is not None and math.isfinite(value) else None, limit, text, figures
    )


def answers_of(exam: Exam, bundle: Bundle, engine: str, precision: str) -> dict[str, Array]:
    """Volatility of every row of the exam, by way of computing."""
    from pipelines.exam_answers import answer

    return {
        role: answer(bundle, exam, backend=engine, semantics=semantics, precision=precision)
        for role, semantics in ways_of(bundle).items()
    }


def compared(exam: Exam, reference: dict[str, Array], found: dict[str, Array]) -> dict[str, float]:
    """RMSE in vol points of the worse way, its ratio to fp32's, and distances to fp32's answers (a volatility).

    All infinite where an answer isn't a number.
    """
    from pipelines.exam_answers import exam_table
    from pipelines.metrics import scores

    worst: dict[str, float] = {}
    for role, answers in found.items():
        distance = np.abs(answers - reference[role])
        if not np.isfinite(distance).all():
            return dict.fromkeys(("ratio", "iv_rmse", "fp32_iv_rmse", "largest_distance", "rms_distance"), math.inf)
        table = exam_table(exam, {MODEL_PREDICTOR: reference[role], "reduced": answers}, baselines=False)
        scored = scores(table)
        fp32, reduced = scored[MODEL_PREDICTOR]["iv_rmse"], scored["reduced"]["iv_rmse"]
        ratio = reduced / fp32 if fp32 > 0.0 else math.inf if reduced > 0.0 else 1.0
        if ratio > worst.get("ratio", -1.0):
            worst = {
                "ratio": ratio, "iv_rmse": reduced, "fp32_iv_rmse": fp32,
                "largest_distance": float(np.max(distance)), "rms_distance": float(np.sqrt(np.mean(distance**2))),
            }  # fmt: skip
    return worst
