"""Nothing bypasses the gate: random streams of markets, orders, fills, kills, limits, held to independent witnesses."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.serving.host.risk_gates import CAUSES, REFUSALS
from tests.serving.host.risk_oracle import drive, fills_in_any_order
from tests.serving.native.built import built_core

CORE = built_core()


@settings(max_examples=60, deadline=None, phases=set(Phase) - {Phase.explain})
@given(st.data())
def test_every_order_that_leaves_breaks_no_rule(data: st.DataObject) -> None:
    drive(CORE, lambda options: data.draw(st.sampled_from(options)), steps=25)


def test_no_sequence_of_fills_goes_beyond_the_limits() -> None:
    for seed in range(200):
        fills_in_any_order(CORE, random.Random(seed).choice, steps=60)


def test_long_streams_meet_every_reason() -> None:
    met = sum((drive(CORE, random.Random(seed).choice, steps=200) for seed in range(200)), Counter())
    assert {reason: met[reason] for reason in ("accepted", *REFUSALS, *CAUSES) if met[reason] < 10} == {}
