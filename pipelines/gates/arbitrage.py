"""Arbitrage: at the exam's strikes the version's smiles break no-arbitrage conditions no more often than the market's.

In: the exam and the stored bundle's answers. Out: the shares of rows at which calls rise or fall too fast in strike
(`monotone`), aren't convex (`butterfly`), or have less total variance than the expiry before (`calendar`), of the model
and of the market's mids (pipelines/metrics.py). The quoted mids are noisy and a fair surface should be cleaner, so each
share is at most the larger of `allowed_share` and `market_ratio` times the market's. `value` is the largest share of
what is allowed. Volatilities must be within `largest_volatility` (a fraction); prices then respect their bounds
because Black-76 makes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED, NotNegative, Positive
from pipelines.gate_context import MODEL_PREDICTOR, GateContext, GateOutcome

NAME = "arbitrage"
KINDS = ("monotone", "butterfly", "calendar")


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """Shares of rows."""

    allowed_share: Positive = 0.002  # for markets without any: a scored row in five hundred
    market_ratio: NotNegative = 1.0
    largest_volatility: Positive = 5.0


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    from pipelines.exam_answers import exam_table
    from pipelines.metrics import MARKET, shape_violations

    answers = context.answers
    wild = ~(np.isfinite(answers) & (answers > 0) & (answers <= settings.largest_volatility))
    if wild.any():
        row = int(wild.argmax())
        message = (f"{int(wild.sum())} of {len(answers)} volatilities aren't between 0 and "
                   f"{settings.largest_volatility:g}; row {row} of the exam has {answers[row]:g}")  # fmt: skip
        return GateOutcome(NAME, False, None, 1.0, message)
    table = exam_table(context.exam, {MODEL_PREDICTOR: answers}, baselines=False)
    found: dict[str, Any] = {row["predictor"]: row for row in shape_violations(table).iter_rows(named=True)}
    own, market = found[MODEL_PREDICTOR], found[MARKET]
    limits = {kind: max(settings.allowed_share, settings.market_ratio * market[kind]) for kind in KINDS}
    shares = {kind: own[kind] / limits[kind] for kind in KINDS}
    worst = max(shares, key=lambda kind: shares[kind])
    passed = all(share <= 1.0 for share in shares.values())
    shown = [kind for kind in KINDS if passed or shares[kind] > 1.0]
    message = "; ".join(
        f"{kind}: {100.0 * own[kind]:.3g} % of the rows {'<=' if shares[kind] <= 1.0 else '>'} "
        f"{100.0 * limits[kind]:.3g} % (the market's mids {100.0 * market[kind]:.3g} %)"
        for kind in shown
    )
    figures = {name: {kind: found[name][kind] for kind in KINDS} for name in (MODEL_PREDICTOR, MARKET)}
    return GateOutcome(NAME, passed, shares[worst], 1.0, message, {**figures, "rows": own["rows"]})
