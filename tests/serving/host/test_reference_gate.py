"""The native risk gate is the slow reference, operation by operation, over random streams of all that a gate can meet.

Compared after every operation: the answer, every byte that left, state and reason, profit and best profit, positions,
cash, working orders, refusals by reason. Streams: gate_streams.py.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import native
from serving.host.reference.risk import BREAKERS, CHECKS
from serving.host.reference.states import Reason, State
from tests.serving.host.gate_streams import Operation, Seen, limits_of, run_native, run_reference, stream

reason = native.why_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

SEEDS, LENGTH = range(12), 400
EVERY_CHECK = [reason for reason, _ in CHECKS]


@cache
def known_streams() -> list[tuple[list[Operation], list[Seen]]]:
    """Operations, and what the native gate did of them."""
    drawn = [stream(seed, LENGTH, limits_of()) for seed in SEEDS]
    return [(operations, run_native(operations, limits_of())) for operations in drawn]


def first_difference(operations: list[Operation], native_saw: list[Seen], reference_saw: list[Seen]) -> str:
    """The first operation after which the two differ, in words; "" where none does. NaN is NaN, -0.0 isn't 0.0."""
    for place, (operation, one, other) in enumerate(zip(operations, native_saw, reference_saw, strict=True)):
        if repr(one) != repr(other):
            return f"operation {place}, {operation}:\nnative    {one}\nreference {other}"
    return ""


def test_streams_meet_every_check_and_every_state() -> None:
    """Else the comparison below would say little."""
    answers, states = Counter[Any](), Counter[Any]()
    for _, seen in known_streams():
        answers.update(row[0] for row in seen)
        states.update((row[2], row[3]) for row in seen)
    assert {check for check in EVERY_CHECK if answers[int(check)] < 5} == set()
    assert answers[int(Reason.NONE)] > 200
    halted = (Reason.LOSS, Reason.REJECT_BURST, Reason.KILL_SWITCH, Reason.OPERATOR_ASKED)
    reducing = (Reason.DRAWDOWN, Reason.MARKET_MOVE, Reason.OPERATOR_ASKED)
    expected = {(int(State.HALTED), int(why)) for why in halted} | {(int(State.REDUCING), int(why)) for why in reducing}
    assert {state for state in expected if states[state] < 5} == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_operation_does_the_same(seed: int) -> None:
    operations, native_saw = known_streams()[seed]
    assert first_difference(operations, native_saw, run_reference(operations, limits_of())) == ""


@pytest.mark.parametrize("left_out", [check.name.lower() for check in (*EVERY_CHECK, *BREAKERS)])
def test_a_reference_without_one_check_or_breaker_differs(left_out: str) -> None:
    """So a native gate without it would have been seen."""
    assert any(
        first_difference(operations, native_saw, run_reference(operations, limits_of(), [left_out]))
        for operations, native_saw in known_streams()
    )


LIMITS = {
    "collar_money": [0.0, 0.5, math.inf], "collar_share": [0.0, 0.1], "order_quantity": [0.0, 2.0, math.inf],
    "position_quantity": [0.0, 2.0, math.inf], "notional_money": [0.0, 300.0, math.inf], "delta": [0.0, 20.0, math.inf],
    "gamma": [0.0, 1.0, math.inf], "vega": [0.0, 200.0, math.inf], "loss_money": [0.0, 50.0, math.inf],
    "drawdown_money": [0.0, 30.0, math.inf], "order_rate_count": [0.0, 1.0, 3.0, math.inf],
    "order_rate_window_ns": [1, 25_000_000, 2**63 - 1], "stale_book_ns": [0, 29_000_000, 2**63 - 1],
    "anomaly_score": [0.0, math.inf], "clipped_share": [0.0, 1.0], "market_move_share": [0.0, 0.01, math.inf],
    "market_move_window_ns": [0, 5_000_000, 2**63 - 1], "market_move_pause_ns": [0, 5_000_000, 2**63 - 1],
    "reject_burst_count": [1.0, 3.0, math.inf], "multiplier": [1.0, 0.1], "tick_money": [0.25, 0.1],
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    changed=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in LIMITS.items()}),
)
def test_whatever_the_limits(seed: int, changed: dict[str, float]) -> None:
    limits = limits_of(**changed)
    operations = stream(seed, 120, limits)
    assert first_difference(operations, run_native(operations, limits), run_reference(operations, limits)) == ""
