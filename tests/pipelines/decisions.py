"""What the tests of promotion and rollback share: two gates, a desk, and both acts with the usual arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.gates import Gate, GateContext, GateOutcome
from pipelines.parity import recompute
from pipelines.promote import Promotion, promote
from pipelines.rollback import Rollback, rollback
from serving.ledger import Ledger
from tests.tiny_registry import Desk


def accuracy(context: GateContext) -> GateOutcome:
    """Stands for the gates of pipelines/gates/, which have tests of their own: the error on record."""
    test = context.details["metrics"]["test"]
    own, most = test["model"]["iv_rmse"], 0.9 * test["sticky_strike"]["iv_rmse"]
    return GateOutcome("accuracy", own <= most, own, most, f"{own:g} of at most {most:g}")


def parity(context: GateContext) -> GateOutcome:
    """The golden vectors of the stored bundle."""
    worst = max(check.excess for check in recompute(context.bundle()))
    return GateOutcome("parity", worst <= 1.0, None, 1.0, "golden vectors")


GATES: tuple[Gate, ...] = (accuracy, parity)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def promoted(desk: Desk, version: int, gates: tuple[Gate, ...] = GATES, **other: Any) -> Promotion:
    arguments: dict[str, Any] = {
        "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "ci", **other,
    }  # fmt: skip
    return promote(model="tiny", version=version, gates=gates, **arguments)


def rolled_back(desk: Desk, to: int | None = None, reason: str = "bad fills", **other: Any) -> Rollback:
    arguments: dict[str, Any] = {
        "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "trader", **other,
    }  # fmt: skip
    return rollback(model="tiny", to=to, reason=reason, **arguments)


def kinds(desk: Desk) -> list[str]:
    return [f"{event.kind} {event.version}" for event in Ledger(desk.store, "tiny").events()]


def champions(desk: Desk, count: int) -> None:
    for seed in range(1, count + 1):
        desk.register(seed)
        promoted(desk, seed, gates=())
