"""The native loop is the slow reference, byte for byte: every order, fill and signal, over random streams of records.

Streams: worlds.py. Both nets, both semantics, several limits, both strategies; and a reference with one stage or one
check left out must differ, so that a native loop without it would be seen.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import native
from serving.engines.native import NativeEngine
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable
from serving.host.loop import HotLoop, with_controls
from serving.host.records import SIGNAL, Records
from serving.host.reference.compare import first_difference
from serving.host.reference.loop import STAGES, ReferenceLoop
from serving.host.reference.states import ControlCode, Kind, Reason, SignalCode, State
from tests.serving.host.worlds import (
    QUOTER,
    SIZES,
    START_NS,
    UNLIMITED,
    contracts_of,
    engine_of,
    limits_of,
    record,
    records_of,
    spec_of,
    stream,
)

SEMANTICS = ("window", "stateful")
LIMITS: dict[str, dict[str, Any]] = {
    "tight": {},
    "none": UNLIMITED,
    "patient": {
        "reject_burst_count": math.inf,
        "gamma": 1.0,
        "clipped_share": 0.35,
        "stale_book_ns": 50_000_000,
        "collar_money": 0.065,
        "collar_share": 0.0,
    },
    "breakers": UNLIMITED | {"loss_money": 15.0, "drawdown_money": 10.0, "market_move_share": 0.005},
}
SEEDS, EVENTS = (0, 2, 3), 400


def native_loop(
    family: str = "pricing_lstm", semantics: str = "window", strategy: FixedWidth | None = QUOTER,
    limits: str = "tight", **options: Any,
) -> HotLoop:  # fmt: skip
    engine, known = engine_of(family, semantics), limits_of(**LIMITS[limits])
    return HotLoop(engine, spec_of(), contracts_of(), known, strategy, **options)


def reference_loop(
    family: str = "pricing_lstm", semantics: str = "window", strategy: FixedWidth | None = QUOTER,
    limits: str = "tight", **options: Any,
) -> ReferenceLoop:  # fmt: skip
    engine, known = engine_of(family, semantics), limits_of(**LIMITS[limits])
    return ReferenceLoop(engine, spec_of(), contracts_of(), known, strategy, **options)


@cache
def known_streams() -> tuple[Records, ...]:
    return tuple(stream(seed, EVENTS) for seed in SEEDS)


@cache
def known_reference(family: str, semantics: str, limits: str, place: int) -> tuple[Records, Counter[Reason]]:
    """What the reference makes of a known stream, and what it refused."""
    loop = reference_loop(family, semantics, limits=limits)
    return loop.process(known_streams()[place]), loop.gate.refused


def states_of(left: Records) -> Counter[tuple[int, int]]:
    told = left.view(SIGNAL)[(left["kind"] == Kind.SIGNAL) & (left["flags"] == SignalCode.STATE)]
    return Counter((int(row[0]), int(row[1])) for row in told["value"])


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("family", SIZES)
def test_every_byte_is_the_same(family: str, semantics: str, limits: str) -> None:
    both = limits in ("tight", "none") or (family, semantics) == ("pricing_lstm", "window")
    for place in range(len(SEEDS) if both else 1):
        product = native_loop(family, semantics, limits=limits).process(known_streams()[place])
        assert first_difference(product, known_reference(family, semantics, limits, place)[0]) == ""


def test_the_streams_bring_fills_and_every_refusal_and_state() -> None:
    """Else equality would say little."""
    kinds, states, refused = Counter[int](), Counter[tuple[int, int]](), Counter[Reason]()
    for limits in LIMITS:
        for place in range(len(SEEDS)):
            left, its_refused = known_reference("pricing_lstm", "window", limits, place)
            kinds.update(left["kind"].tolist())
            states.update(states_of(left))
            refused.update(its_refused)
    assert min(kinds[kind] for kind in (Kind.ORDER, Kind.FILL, Kind.SIGNAL)) > 200
    halted = (Reason.LOSS, Reason.REJECT_BURST, Reason.KILL_SWITCH)
    reducing = (Reason.DRAWDOWN, Reason.MARKET_MOVE, Reason.OPERATOR_ASKED)
    expected = {(int(State.HALTED), int(why)) for why in halted} | {(int(State.REDUCING), int(why)) for why in reducing}
    assert {state for state in expected if not states[state]} == set()
    never = {Reason.MALFORMED, Reason.ORDER_SIZE}  # the quoter asks for multiples of the tick, and always as much
    checks = {one for one in Reason if Reason.HALTED <= one <= Reason.ORDER_RATE}
    assert {one for one in checks - never if not refused[one]} == set()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), garbage=st.sampled_from([0.0, 0.02, 0.3]), controls=st.sampled_from([0.0, 0.05]),
    family=st.sampled_from(list(SIZES)), semantics=st.sampled_from(SEMANTICS), limits=st.sampled_from(list(LIMITS)),
    half_width=st.sampled_from([0.0, 0.004, 0.05, 1.0]), requote=st.sampled_from([0.0, 0.01, 0.2]),
    skew=st.sampled_from([0.0, 0.01, 0.1]), quantity=st.sampled_from([0.1, 1.0, 3.0]),
    fair_values=st.sampled_from([0, 1, 250_000_000]), sweep=st.booleans(),
    retry=st.sampled_from([0, 1, 40_000_000, 10**9]),
)  # fmt: skip
def test_whatever_comes(
    seed: int, garbage: float, controls: float, family: str, semantics: str, limits: str, half_width: float,
    requote: float, skew: float, quantity: float, fair_values: int, sweep: bool, retry: int,
) -> None:  # fmt: skip
    """Sweeps of the chain between events decide nothing, so the reference has none."""
    quoter = FixedWidth(half_width, quantity, requote, skew, retry)
    records = stream(seed, 120, garbage, controls)
    product = native_loop(family, semantics, quoter, limits, fair_values_every_ns=fair_values)
    reference = reference_loop(family, semantics, quoter, limits, fair_values_every_ns=fair_values)
    assert first_difference(product.process(records, sweep=sweep), reference.process(records)) == ""


def test_the_null_strategy_sends_nothing_and_tells_the_same() -> None:
    records = known_streams()[0]
    product = native_loop(strategy=None, fair_values_every_ns=10**9).process(records)
    reference = reference_loop(strategy=None, fair_values_every_ns=10**9).process(records)
    assert first_difference(product, reference) == ""
    assert set(product["kind"].tolist()) == {Kind.SIGNAL}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("isa", native.core().isas() if native.why_unavailable() is None else [])
def test_every_instruction_set_and_precision(isa: str, precision: str) -> None:
    """The reference takes volatilities and Black-76 from kernels of the same set."""
    records, limits = known_streams()[0][:200], limits_of(**UNLIMITED)

    def engine() -> NativeEngine:
        return engine_of("pricing_lstm", "window", precision, isa)

    product = HotLoop(engine(), spec_of(), contracts_of(), limits, QUOTER).process(records)
    reference = ReferenceLoop(engine(), spec_of(), contracts_of(), limits, QUOTER).process(records)
    assert first_difference(product, reference) == ""


def test_pieces_give_what_the_whole_gives() -> None:
    records, loop = known_streams()[1], native_loop()
    parts = [loop.process(part) for part in np.array_split(records, 37)]
    assert first_difference(np.concatenate(parts), known_reference("pricing_lstm", "window", "tight", 1)[0]) == ""


@pytest.mark.parametrize("before", [1, 2, 7, 10, 11, 12, 23, 38])
def test_a_kill_between_two_orders_repeats(before: int) -> None:
    """What the loop tells of its controls, put among the market's records, gives the same session again."""
    kill = record(START_NS, Kind.CONTROL, int(ControlCode.KILL), (3.0, 0.0, 0.0, float(before)))
    market = known_streams()[2]
    market = market[market["kind"] != Kind.CONTROL][:60]
    at = next(at for at in range(61) if _asked_after(market, at) >= before)
    records = np.concatenate([market[: at - 1], records_of([kill]), market[at - 1 :]])
    product = native_loop(limits="none").process(records)
    assert first_difference(product, reference_loop(limits="none").process(records)) == ""
    signals = product[product["kind"] == Kind.SIGNAL]
    assert [row["flags"] for row in signals] == [SignalCode.CONTROL_ACTED, SignalCode.STATE]
    assert first_difference(native_loop(limits="none").process(with_controls(market, signals)), product) == ""


@cache
def _asked_counts() -> dict[int, int]:
    return {}


def _asked_after(market: Records, count: int) -> int:
    """How many intents the gate was given in the first `count` records."""
    known = _asked_counts()
    if count not in known:
        loop = reference_loop(limits="none")
        loop.process(market[:count])
        known[count] = loop.asked
    return known[count]


def test_a_kill_that_finds_the_loop_halted_is_told_after_the_event() -> None:
    """And doesn't lie in wait for what leaves after a resume."""
    limits = limits_of(**UNLIMITED | {"order_quantity": 0.5, "reject_burst_count": 2.0})
    kill = records_of([record(START_NS, Kind.CONTROL, int(ControlCode.KILL), (2.0, 0.0, 0.0, 4.0))])
    resume = records_of([record(START_NS, Kind.CONTROL, int(ControlCode.RESUME))])
    quote = records_of([record(START_NS, Kind.QUOTE, 3, (99.99, 1.0, 100.01, 1.0))])
    records = np.concatenate([kill, quote, resume, quote])
    product = HotLoop(engine_of(), spec_of(), contracts_of(), limits, QUOTER).process(records)
    reference = ReferenceLoop(engine_of(), spec_of(), contracts_of(), limits, QUOTER).process(records)
    assert first_difference(product, reference) == ""
    told = product.view(SIGNAL)
    assert [(row["flags"], *row["value"][:2]) for row in told] == [
        (SignalCode.STATE, State.HALTED, Reason.REJECT_BURST),
        (SignalCode.CONTROL_ACTED, ControlCode.KILL, 1.0),
        (SignalCode.CONTROL_ACTED, ControlCode.RESUME, 0.0),
        (SignalCode.STATE, State.ACTIVE, Reason.NONE),
        (SignalCode.STATE, State.HALTED, Reason.REJECT_BURST),
    ]


@pytest.mark.parametrize(("price", "fills"), [(99.0, 0), (98.99, 1), (101.0, 0), (101.01, 1)])
def test_a_print_at_the_orders_price_doesnt_fill(price: float, fills: int) -> None:
    """A call so deep in the money that it is the underlying less 50, exactly: the quotes are 49 and 51."""
    deep = ContractTable(
        *(np.array([one]) for one in (50.0, 0.001, 1.0, 1.0, 1.0, 0.2)), quoted=1, reference_spot=100.0
    )
    limits, quoter = (
        limits_of(**UNLIMITED, tick_money=0.25),
        replace(QUOTER, half_width_money=1.0, skew_money_per_unit=0.0),
    )
    records = records_of([
        record(START_NS, Kind.QUOTE, 3, (99.5, 1.0, 100.5, 1.0)), record(START_NS, Kind.TRADE, 0, (price, 1.0))
    ])  # fmt: skip
    product = HotLoop(engine_of(), spec_of(), deep, limits, quoter).process(records)
    assert first_difference(product, ReferenceLoop(engine_of(), spec_of(), deep, limits, quoter).process(records)) == ""
    assert (product["kind"] == Kind.FILL).sum() == fills


def test_a_quoter_at_a_limit_is_not_a_burst_of_refusals() -> None:
    """It goes on with what the limits leave it; asked again at every event, the same refusal halts the host."""
    limits = limits_of(**UNLIMITED | {"position_quantity": 1.0, "reject_burst_count": 12.0})
    made_of = (spec_of(), contracts_of(), limits)
    records = known_streams()[0]
    ends = {}
    for retry_ns in (0, 10**9):
        quoter = replace(QUOTER, half_width_money=0.01, requote_money=0.01, retry_ns=retry_ns)
        product, reference = HotLoop(engine_of(), *made_of, quoter), ReferenceLoop(engine_of(), *made_of, quoter)
        assert first_difference(product.process(records), reference.process(records)) == ""
        assert reference.gate.refused[Reason.POSITION] > 0
        ends[retry_ns] = reference.gate.state
    assert ends == {0: State.HALTED, 10**9: State.ACTIVE}


PAST, FUTURE = -(2**63), 2**63 - 1


@pytest.mark.parametrize("times", [(PAST,), (-1, 0), (FUTURE,), (FUTURE, PAST, FUTURE), (FUTURE - 1, FUTURE)])
def test_the_ends_of_time(times: tuple[int, ...]) -> None:
    """Nonsense of a feed's clock: nothing overflows."""
    market = known_streams()[2]
    for kind in (Kind.QUOTE, Kind.TRADE, Kind.HEARTBEAT):
        strange = records_of([record(ns, kind, 3, (99.99, 1.0, 100.01, 1.0)) for ns in times])
        records = np.concatenate([strange, market[:60], strange, market[60:120]])
        for limits in ("tight", "breakers"):
            product = native_loop(limits=limits, fair_values_every_ns=10**9).process(records)
            reference = reference_loop(limits=limits, fair_values_every_ns=10**9).process(records)
            assert first_difference(product, reference) == ""


# Planted defects: only the reference has them.


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("family", SIZES)
def test_a_reference_without_one_stage_differs(family: str, semantics: str, stage: str) -> None:
    records = known_streams()[0][:400]
    product = native_loop(family, semantics).process(records)
    assert first_difference(product, reference_loop(family, semantics, without=[stage]).process(records)) != ""


# What makes each check or breaker act, all else being free.
ACTING: dict[str, dict[str, Any]] = {
    "halted": {},
    "reducing": {"drawdown_money": 5.0},
    "stale_book": {"stale_book_ns": 20_000_000},
    "model_guard": {"clipped_share": 0.3},
    "order_size": {"order_quantity": 0.5},
    "price_collar": {"collar_money": 0.018, "collar_share": 0.0},
    "self_match": {},
    "position": {"position_quantity": 1.0},
    "notional": {"notional_money": 400.0},
    "delta": {"delta": 10.0},
    "gamma": {"gamma": 1.0},
    "vega": {"vega": 200.0},
    "order_rate": {"order_rate_count": 12.0},
    "loss": {"loss_money": 20.0},
    "drawdown": {"drawdown_money": 10.0},
    "market_move": {"market_move_share": 0.003},
    "reject_burst": {"reject_burst_count": 5.0, "position_quantity": 1.0},
}


@pytest.mark.parametrize("guard", ACTING)
def test_a_reference_without_one_check_or_breaker_differs(guard: str) -> None:
    """A quoter never asks for what is malformed: test_reference_gate.py has that one."""
    limits, narrow = limits_of(**UNLIMITED | ACTING[guard]), replace(QUOTER, half_width_money=0.01, requote_money=0.01)
    kill = records_of([record(0, Kind.CONTROL, int(ControlCode.KILL), (1.0, 0.0, 0.0, 4.0))])
    before = kill if guard == "halted" else kill[:0]  # between two orders, else nobody is asked

    def differs(records: Records) -> bool:
        product = HotLoop(engine_of(), spec_of(), contracts_of(), limits, narrow).process(records)
        planted = ReferenceLoop(engine_of(), spec_of(), contracts_of(), limits, narrow, without=[guard])
        return first_difference(product, planted.process(records)) != ""

    assert any(differs(np.concatenate([before, records])) for records in known_streams())


def test_a_stage_that_isnt_there_is_refused() -> None:
    with pytest.raises(ValueError, match="fils"):
        reference_loop(without=["fils"])


def test_a_quoter_of_half_a_tick_more_is_seen() -> None:
    records, wider = known_streams()[2], replace(QUOTER, half_width_money=QUOTER.half_width_money + 0.005)
    assert first_difference(native_loop().process(records), reference_loop(strategy=wider).process(records)) != ""
