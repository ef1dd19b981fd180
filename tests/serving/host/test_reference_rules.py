"""The slow reference alone: identities of fills and profit, the lives of orders, the quoter; before it holds others."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving import native
from serving.host.limits import Limits
from serving.host.records import FILL, ORDER, SIGNAL, Records
from serving.host.reference.fills import fill, print_of
from serving.host.reference.states import (
    ContractState,
    ControlCode,
    Kind,
    Market,
    Outbox,
    Reason,
    Side,
    SignalCode,
    State,
    Working,
)
from serving.host.reference.strategy import fixed_width
from tests.serving.host.worlds import (
    QUOTER,
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

reason = native.why_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))
if reason is None:
    from serving.host.reference.loop import ReferenceLoop

MULTIPLIER, TICK = 10.0, 0.01


def loop_of(limits: Limits | None = None, **options: Any) -> ReferenceLoop:
    limits = limits or limits_of(**UNLIMITED)
    return ReferenceLoop(engine_of(), spec_of(), contracts_of(), limits, QUOTER, **options)


def kinds(left: Records, kind: Kind) -> Records:
    return left[left["kind"] == kind]


def test_enums_are_the_cores() -> None:
    core = native.core()
    assert [core.reason_name(int(one)) for one in Reason] == [one.name.lower() for one in Reason]
    assert [core.state_name(int(one)) for one in State] == [one.name for one in State]


# Fills and profit.


def test_a_round_trip_earns_the_spread() -> None:
    contract = ContractState(5.0, 0.5, 0.0, 0.0, buy=Working(1, 4.9, 2.0), sell=Working(2, 5.2, 2.0))
    outbox = Outbox()
    fill(99.0, 1.0, 1, 100.0, [contract], MULTIPLIER, outbox)  # prints 4.5
    assert (contract.position, contract.buy) == (2.0, None)
    fill(101.0, 1.0, 2, 100.0, [contract], MULTIPLIER, outbox)  # prints 5.5
    assert (contract.position, contract.sell) == (0.0, None)
    assert contract.cash == pytest.approx((5.2 - 4.9) * 2.0 * MULTIPLIER)
    assert len(outbox.records) == 2


@pytest.mark.parametrize("print_move", [0.0, -1e-9, 1e-9])
def test_a_print_at_the_orders_price_doesnt_fill(print_move: float) -> None:
    """Strictly through it, as one at the back of the queue would be filled."""
    contract = ContractState(5.0 + print_move, 0.0, 0.0, 0.0, buy=Working(1, 5.0, 1.0), sell=Working(2, 5.0, 1.0))
    fill(100.0, 1.0, 1, 100.0, [contract], MULTIPLIER, Outbox())
    assert (contract.buy is None, contract.sell is None) == (print_move < 0, print_move > 0)


def test_the_print_is_a_second_order_expansion() -> None:
    contract = ContractState(5.0, 0.5, 0.25, 0.0)
    assert print_of(contract, 102.0, 100.0) == 5.0 + 0.5 * 2 + 0.5 * 0.25 * 4


@pytest.mark.parametrize("price", [math.nan, math.inf, -math.inf, 0.0, -1.0])
@pytest.mark.parametrize("side", ["price", "size", "spot", "fair"])
def test_what_isnt_a_number_fills_nothing(price: float, side: str) -> None:
    if side in ("spot", "fair"):
        price = math.nan
    known = ContractState(
        price if side == "fair" else 5.0, 0.5, 0.1, 0.0, buy=Working(1, 9.0, 1.0), sell=Working(2, 1.0, 1.0)
    )
    trade_price, size, spot = (price if side == name else 1.0 for name in ("price", "size", "spot"))
    fill(trade_price, size, 1, spot, [known], MULTIPLIER, Outbox())
    assert known.buy is not None
    assert known.sell is not None


@pytest.mark.parametrize("seed", range(3))
def test_without_trades_nothing_fills(seed: int) -> None:
    records = stream(seed, 400)
    left = loop_of().process(records[records["kind"] != Kind.TRADE])
    assert len(kinds(left, Kind.ORDER)) > 50
    assert len(kinds(left, Kind.FILL)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_profit_is_cash_and_marks_of_the_fills(seed: int) -> None:
    loop = loop_of()
    fills = kinds(loop.process(stream(seed, 600, garbage=0.0, controls=0.0)), Kind.FILL).view(FILL)
    assert len(fills) > 20
    signed = np.where(fills["flags"] & Side.BUY, 1.0, -1.0) * fills["quantity"]
    cash = -(signed * fills["price"]).sum() * MULTIPLIER
    marks = sum(
        signed[fills["instrument"] == place + 1].sum() * contract.fair * MULTIPLIER
        for place, contract in enumerate(loop.contracts)
    )
    assert loop.gate.profit == pytest.approx(cash + marks, abs=1e-6)


def test_an_order_cant_fill_on_the_event_that_sent_it() -> None:
    """The same trade again would."""
    loop = loop_of()
    first = [
        record(START_NS, Kind.QUOTE, 3, (99.99, 1.0, 100.01, 1.0)),
        record(START_NS + 1, Kind.TRADE, 0, (90.0, 1.0)),
    ]
    left = loop.process(records_of(first[:1]))
    assert len(kinds(left, Kind.ORDER)) == 2 * contracts_of().quoted
    again = loop_of()
    fresh = again.process(records_of(first))
    assert len(kinds(fresh, Kind.FILL)) == contracts_of().quoted  # calls' bids, puts' offers
    alone = loop_of()
    assert len(kinds(alone.process(records_of(first[1:])), Kind.FILL)) == 0


# Orders' lives, over random streams.


@pytest.mark.parametrize("seed", range(4))
def test_every_record_fits_what_left_before(seed: int) -> None:
    """Ids and sequences count by one; only what works is replaced, cancelled or filled, at its own price."""
    left = loop_of(limits_of()).process(stream(seed, 800))
    working: dict[tuple[int, bool], Any] = {}
    counted: dict[int, int] = defaultdict(int)
    last_ns, next_id = 0, 1
    for one in left:
        kind, place = Kind(one["kind"]), (int(one["instrument"]), bool(one["flags"] & Side.BUY))
        counted[kind] += 1
        assert one["sequence"] == counted[kind]
        assert one["event_ns"] >= last_ns
        last_ns = int(one["event_ns"])
        if kind is Kind.SIGNAL:
            continue
        row = np.array([one]).view(ORDER if kind is Kind.ORDER else FILL)[0]
        known = (int(row["order_id"]), float(row["price"]), float(row["quantity"]))
        if kind is Kind.FILL or row["flags"] & Side.CANCEL:
            assert working.pop(place) == known
            continue
        assert (place in working) == bool(row["flags"] & Side.REPLACE)
        assert known[0] == next_id
        next_id += 1
        working[place] = known
    assert next_id > 50


def test_halted_nothing_leaves_until_resume() -> None:
    records = stream(2, 300, garbage=0.0, controls=0.0)
    kill, resume = (
        records_of([record(START_NS, Kind.CONTROL, int(code))]) for code in (ControlCode.KILL, ControlCode.RESUME)
    )
    loop = loop_of()
    assert len(loop.process(records[:200])) > 20
    working = sum(one.working(side) is not None for one in loop.contracts for side in (True, False))
    halted = loop.process(kill)
    assert [int(row["flags"]) for row in kinds(halted, Kind.SIGNAL)] == [SignalCode.CONTROL_ACTED, SignalCode.STATE]
    cancels = kinds(halted, Kind.ORDER)
    assert len(cancels) == working > 0
    assert (cancels["flags"] & Side.CANCEL).all()
    assert len(loop.process(records[200:])) == 0
    assert len(kinds(loop.process(resume), Kind.ORDER)) == 0
    assert len(kinds(loop.process(records[-20:]), Kind.ORDER)) > 0


@pytest.mark.parametrize("cut", [1, 7, 399])
def test_pieces_give_what_the_whole_gives(cut: int) -> None:
    records = stream(4, 400)
    whole, loop = loop_of(limits_of()).process(records), loop_of(limits_of())
    parts = [loop.process(records[at : at + cut]) for at in range(0, len(records), cut)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_kill_between_two_orders_is_told_so_that_a_replay_repeats_it() -> None:
    """The n-th intent and what follows it are refused; the control that is told, put before the event, repeats it."""
    quote = record(START_NS, Kind.QUOTE, 3, (99.99, 1.0, 100.01, 1.0))
    control = record(START_NS, Kind.CONTROL, int(ControlCode.KILL), (2.0, 0.0, 0.0, 4.0))
    left = loop_of().process(records_of([control, quote]))
    orders, signals = kinds(left, Kind.ORDER), kinds(left, Kind.SIGNAL).view(SIGNAL)
    assert orders["flags"].tolist() == [3, 2, 3, 9, 8, 9]  # three new ones, each cancelled
    assert signals["value"][0].tolist() == [ControlCode.KILL, 2.0, 0.0, 4.0]
    assert signals["value"][1][:2].tolist() == [State.HALTED, Reason.KILL_SWITCH]


# The quoter.


def contract_of(**changed: Any) -> ContractState:
    return ContractState(**{"delta": 0.5, "gamma": 0.1, "vega": 8.0} | changed)


def market_at(ns: int) -> Market:
    return Market(event_ns=START_NS + ns, book_changed_ns=START_NS + ns, spot=100.0)


@pytest.mark.parametrize("position", [-3.0, 0.0, 3.0])
def test_quotes_stand_a_half_width_around_the_skewed_fair_value(position: float) -> None:
    options, contract = QUOTER, contract_of(fair=5.0037, position=position)
    bid, ask = fixed_width(options, TICK, market_at(0), [contract], {})
    centre = 5.0037 - options.skew_money_per_unit * position
    assert (bid.flags, ask.flags) == (Side.NEW | Side.BUY, Side.NEW)
    assert 0 <= centre - options.half_width_money - bid.price < TICK
    assert 0 <= ask.price - centre - options.half_width_money < TICK


def test_quotes_stay_until_the_requote_distance_and_go_without_a_fair_value() -> None:
    options = replace(QUOTER, requote_money=0.02, skew_money_per_unit=0.0)
    contract = contract_of(fair=5.0)
    for one in fixed_width(options, TICK, market_at(0), [contract], {}):
        contract.set_working(one.is_buy, Working(1, one.price, 1.0))
    contract.fair = 5.009
    assert fixed_width(options, TICK, market_at(0), [contract], {}) == []
    contract.fair = 5.03
    assert [one.flags & ~1 for one in fixed_width(options, TICK, market_at(0), [contract], {})] == [Side.REPLACE] * 2
    contract.fair = math.nan
    gone = [one.flags for one in fixed_width(options, TICK, market_at(0), [contract], {})]
    assert gone == [Side.CANCEL | Side.BUY, Side.CANCEL]


def test_a_refused_side_is_left_alone_for_its_time() -> None:
    options, contracts, waits = replace(QUOTER, retry_ns=10), [contract_of(fair=5.0)], {(0, True): START_NS}
    assert [one.is_buy for one in fixed_width(options, TICK, market_at(9), contracts, waits)] == [False]
    assert [one.is_buy for one in fixed_width(options, TICK, market_at(10), contracts, waits)] == [True, False]


def test_no_bid_below_a_tick() -> None:
    assert [one.flags for one in fixed_width(QUOTER, TICK, market_at(0), [contract_of(fair=0.03)], {})] == [Side.NEW]
