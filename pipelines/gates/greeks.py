"""Greeks: what a host reports with the version's volatilities is what finite differences of its prices say.

In: the exam's contracts with the stored bundle's volatilities; of a pricing model also the comparison on record, made
by evaluate with automatic differentiation of the trained net's prices. Recomputed, on `rows` rows spread evenly:
delta, gamma, vega and theta of serving/black76.py against central differences, relative to the largest of each; then
what no Greek may break: discounted delta within its bounds, gamma and vega not negative, delta of call less put equal
to the discount. `value` is the largest relative error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED, Count, Positive
from pipelines.gate_context import GateContext, GateOutcome
from serving import black76

NAME = "greeks"
GREEKS = ("delta", "gamma", "vega", "theta")
RECORDED = ("against_finite_differences", "against_the_host")
ROUNDING = 1e-12


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """`tolerance` is relative to the largest magnitude of each Greek."""

    rows: Count = 2000
    tolerance: Positive = 1e-4  # central differences themselves are good to about 1e-6


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    exam = context.exam
    chosen = np.unique(np.linspace(0, len(exam) - 1, settings.rows).astype(int))
    volatility = context.answers[chosen]
    if not (np.isfinite(volatility) & (volatility > 0)).all():
        return GateOutcome(NAME, False, None, settings.tolerance, "volatilities that aren't positive have no Greeks")
    rows = [exam.rows[name][chosen] for name in ("forward_model", "strike", "tau", "discount_model", "right")]
    errors, problems = _errors(volatility, *rows)
    if exam.task == "pricing":
        recorded, lacking = _recorded(context.details)
        errors |= recorded
        problems += lacking
    problems += [f"{name} is off by {error:.3g} of the largest" for name, error in errors.items()
                 if not error <= settings.tolerance]  # fmt: skip
    finite = [error for error in errors.values() if math.isfinite(error)]
    worst = max(finite, default=None)
    message = "; ".join(problems) or (
        f"errors are at most {worst:.3g} of the largest Greek of its kind, over {len(chosen)} rows and the record"
    )
    return GateOutcome(NAME, not problems, worst, settings.tolerance, message, {"errors": errors})


def _errors(
    volatility: Any, forward: Any, strike: Any, tau: Any, discount: Any, right: Any
) -> tuple[dict[str, float], list[str]]:
    """Relative errors of each Greek against central differences, and bounds that are broken."""
    rate = -np.log(discount) / tau

    def price(f: Any = forward, t: Any = tau, v: Any = volatility) -> Any:
        return black76.price(f, strike, t, v, np.exp(-rate * t), right)

    worth = black76.value(forward, strike, tau, volatility, discount, right)
    other = black76.value(forward, strike, tau, volatility, discount, -right)
    step_f, step_v, step_t = 1e-4 * forward, 1e-5, 1e-4 * tau
    up, down = price(f=forward + step_f), price(f=forward - step_f)
    numeric = {
        "delta": (up - down) / (2 * step_f), "gamma": (up - 2 * price() + down) / step_f**2,
        "vega": (price(v=volatility + step_v) - price(v=volatility - step_v)) / (2 * step_v),
        "theta": -(price(t=tau + step_t) - price(t=tau - step_t)) / (2 * step_t),
    }  # fmt: skip
    errors = {}
    for name in GREEKS:
        scale = float(np.abs(numeric[name]).max())
        errors[name] = float(np.abs(getattr(worth, name) - numeric[name]).max()) / scale if scale > 0 else math.nan
    parity = right * (worth.delta - other.delta) - discount
    broken = {
        "delta outside its bounds": (right * worth.delta < -ROUNDING) | (right * worth.delta > discount + ROUNDING),
        "gamma negative": worth.gamma < 0, "vega negative": worth.vega < 0,
        "deltas of call and put don't differ by the discount": np.abs(parity) > ROUNDING,
    }  # fmt: skip
    return errors, [f"{name} in {int(rows.sum())} rows" for name, rows in broken.items() if rows.any()]


def _recorded(details: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Errors that evaluate recorded of the trained net's Greeks, and what is lacking."""
    metrics = details.get("metrics")
    listed = metrics.get("greeks") if isinstance(metrics, Mapping) else None
    rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list | tuple) else []
    errors, lacking = {}, []
    for name in GREEKS:
        row: Mapping[str, Any] = next((row for row in rows if row.get("greek") == name), {})
        for measure in RECORDED:
            value = row.get(measure)
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                errors[f"{name} {measure.replace('_', ' ')} (on record)"] = float(value)
            else:
                lacking.append(f"no usable metrics.greeks.{name}.{measure} on record")
    return errors, lacking
