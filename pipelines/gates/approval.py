"""Approval: a person answers for the promotion, by name.

In: `approve_by` and `by` of the promotion. The name stands in the gate report and in the `promoted` event. It is what
was typed, not proven: who may start a promotion at all is decided where it runs (docs/operations.md).
"""

from __future__ import annotations

from pydantic import StrictBool
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome

NAME = "approval"


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """`other_than_by`: whoever promotes can't approve."""

    other_than_by: StrictBool = False


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    name = (context.approve_by or "").strip()
    if not name:
        return GateOutcome(NAME, False, None, None, "nobody answers for it: say approve_by=NAME")
    if settings.other_than_by and name.casefold() == context.by.strip().casefold():
        return GateOutcome(
            NAME, False, None, None, f"{name} promotes and can't approve as well: say approve_by=ANOTHER"
        )
    return GateOutcome(NAME, True, None, None, f"approved by {name}")
