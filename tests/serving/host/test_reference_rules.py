"""The slow reference alone: identities, limits from both sides, the lives of orders, before anything is held to it."""

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
from serving.host.reference.risk import ReferenceGate
from serving.host.reference.states import (
    ContractState,
    ControlCode,
    Intent,
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
    assert next_id > 100


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


# Every limit, at it and beyond it.

FAIR, NOW = 5.0, 10**18


def contract_of(**changed: Any) -> ContractState:
    return ContractState(**{"fair": FAIR, "delta": 0.5, "gamma": 0.1, "vega": 8.0} | changed)


def asked(
    limits: Limits, *, flags: int = Side.NEW | Side.BUY, price: float = FAIR, quantity: float = 1.0,
    contract: ContractState | None = None, market: dict[str, Any] | None = None, gate: ReferenceGate | None = None,
) -> Reason:  # fmt: skip
    gate = gate or ReferenceGate(limits, 1, Outbox())
    known = {"event_ns": NOW, "book_changed_ns": NOW, "spot": 100.0} | (market or {})
    return gate.submit(Intent(0, flags, price, quantity), Market(**known), [contract or contract_of()])


def free(**changed: Any) -> Limits:
    return limits_of(**UNLIMITED | changed)


SELL = int(Side.NEW)
CASES: list[tuple[Reason, Limits, dict[str, Any], dict[str, Any]]] = [
    (Reason.MALFORMED, free(), {"price": 5.01}, {"price": 5.015}),
    (Reason.MALFORMED, free(), {"quantity": 1e-9}, {"quantity": 0.0}),
    (Reason.STALE_BOOK, free(stale_book_ns=7), {"market": {"book_changed_ns": NOW - 7}},
     {"market": {"book_changed_ns": NOW - 8}}),
    (Reason.STALE_BOOK, free(), {"market": {"spot": 1.0}}, {"market": {"spot": math.nan}}),
    (Reason.MODEL_GUARD, free(anomaly_score=2.0), {"market": {"anomaly_score": 2.0}},
     {"market": {"anomaly_score": 2.1}}),
    (Reason.MODEL_GUARD, free(anomaly_score=2.0), {}, {"market": {"anomaly_score": math.nan}}),
    (Reason.MODEL_GUARD, free(clipped_share=0.5), {"market": {"clipped_share": 0.5}},
     {"market": {"clipped_share": 0.6}}),
    (Reason.MODEL_GUARD, free(), {}, {"market": {"model_expired": True}}),
    (Reason.MODEL_GUARD, free(), {}, {"contract": contract_of(fair=math.nan)}),
    (Reason.MODEL_GUARD, free(), {}, {"contract": contract_of(gamma=math.nan)}),
    (Reason.ORDER_SIZE, free(order_quantity=2.0), {"quantity": 2.0}, {"quantity": 2.5}),
    (Reason.PRICE_COLLAR, free(collar_money=0.5, collar_share=0.1), {"price": 6.0}, {"price": 6.01}),
    (Reason.PRICE_COLLAR, free(collar_money=0.5, collar_share=0.1), {"price": 4.0}, {"price": 3.99}),
    (Reason.SELF_MATCH, free(), {"contract": contract_of(sell=Working(1, 5.01, 1.0))},
     {"contract": contract_of(sell=Working(1, 5.0, 1.0))}),
    (Reason.SELF_MATCH, free(), {"flags": SELL, "contract": contract_of(buy=Working(1, 4.99, 1.0))},
     {"flags": SELL, "contract": contract_of(buy=Working(1, 5.0, 1.0))}),
    (Reason.POSITION, free(position_quantity=3.0), {"contract": contract_of(position=2.0)},
     {"contract": contract_of(position=2.5)}),
    (Reason.POSITION, free(position_quantity=3.0), {"flags": SELL, "contract": contract_of(position=9.0)},
     {"flags": SELL, "quantity": 19.0, "contract": contract_of(position=9.0)}),
    (Reason.NOTIONAL, free(notional_money=150.0), {"quantity": 3.0}, {"quantity": 3.5}),
    (Reason.NOTIONAL, free(notional_money=150.0), {"contract": contract_of(position=2.0)},
     {"contract": contract_of(position=2.0, sell=Working(1, 6.0, 1.0))}),
    (Reason.NOTIONAL, free(notional_money=150.0), {"flags": SELL, "contract": contract_of(position=50.0)},
     {"contract": contract_of(position=50.0)}),
    (Reason.DELTA, free(delta=10.0), {"quantity": 2.0}, {"quantity": 2.5}),
    (Reason.GAMMA, free(gamma=2.0), {"quantity": 2.0}, {"quantity": 2.5}),
    (Reason.VEGA, free(vega=160.0), {"quantity": 2.0}, {"quantity": 2.5}),
    (Reason.DELTA, free(delta=10.0), {"flags": SELL, "contract": contract_of(position=50.0)},
     {"contract": contract_of(position=50.0)}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "limits", "at", "beyond"), CASES)
def test_at_the_limit_passes_and_beyond_is_refused(
    expected: Reason, limits: Limits, at: dict[str, Any], beyond: dict[str, Any]
) -> None:
    assert asked(limits, **at) is Reason.NONE
    assert asked(limits, **beyond) is expected


def test_order_rate_counts_what_was_accepted_within_the_window() -> None:
    limits = free(order_rate_count=2.0, order_rate_window_ns=10)
    gate, contract = ReferenceGate(limits, 1, Outbox()), contract_of()
    times = [0, 4, 9, 10, 13, 14]  # at 10 the first is out of the window, at 14 the second
    answers = []
    for at in times:
        flags = Side.BUY | (Side.REPLACE if contract.buy else Side.NEW)
        answers.append(asked(limits, flags=flags, contract=contract, market={"event_ns": NOW + at}, gate=gate))
    assert answers == [Reason.NONE, Reason.NONE, Reason.ORDER_RATE, Reason.NONE, Reason.ORDER_RATE, Reason.NONE]


def test_a_burst_of_refusals_halts() -> None:
    limits = free(reject_burst_count=3.0, order_quantity=1.0)
    gate, contract = ReferenceGate(limits, 1, Outbox()), contract_of()
    for quantity, state in ((2.0, 0), (2.0, 0), (1.0, 0), (2.0, 0), (2.0, 0), (2.0, 2)):
        flags = int(Side.NEW) | (Side.BUY if quantity == 1.0 else 0)
        asked(limits, flags=flags, quantity=quantity, contract=contract, gate=gate)
        assert gate.state == state
    assert contract.buy is None  # what worked is cancelled
    assert gate.why is Reason.REJECT_BURST


# The market's breakers.


def market_at(ns: int, spot: float = 100.0) -> Market:
    return Market(event_ns=NOW + ns, book_changed_ns=NOW + ns, spot=spot)


def test_loss_halts_at_its_limit_and_drawdown_reduces_until_resume() -> None:
    gate, contract = ReferenceGate(free(loss_money=100.0, drawdown_money=50.0), 1, Outbox()), contract_of(position=1.0)
    states = []
    for fair in (5.0, 9.0, 4.1, 4.0, 8.9):  # times the multiplier: 50, 90, 41, 40, 89
        contract.fair = fair
        gate.on_market(market_at(0), [contract])
        states.append((gate.state, gate.why))
    reduces = (State.REDUCING, Reason.DRAWDOWN)
    assert states == [(State.ACTIVE, Reason.NONE)] * 3 + [reduces, reduces]
    gate.resume()
    assert gate.state is State.ACTIVE
    contract.cash, contract.fair = -100.0 - 0.1, 0.01
    gate.on_market(market_at(1), [contract])
    assert (gate.state, gate.why) == (State.HALTED, Reason.LOSS)


def test_a_market_move_reduces_for_its_pause() -> None:
    limits = free(market_move_share=0.02, market_move_window_ns=100, market_move_pause_ns=30)
    gate, contract = ReferenceGate(limits, 1, Outbox()), contract_of()
    seen = []
    for ns, spot in ((0, 100.0), (50, 101.9), (100, 101.9), (120, 102.0), (149, 102.0), (150, 102.0)):
        gate.on_market(market_at(ns, spot), [contract])
        seen.append(gate.state)
    # at 120 the reference is the second one, and the one before it is 2 % away
    assert seen == [State.ACTIVE, State.ACTIVE, State.ACTIVE, State.REDUCING, State.REDUCING, State.ACTIVE]


def test_a_reason_that_lasts_longer_stays() -> None:
    limits = free(market_move_share=0.02, market_move_window_ns=100, market_move_pause_ns=30)
    gate, contract = ReferenceGate(limits, 1, Outbox()), contract_of()
    gate.reduce()
    for ns, spot in ((0, 100.0), (1, 110.0), (1000, 110.0)):
        gate.on_market(market_at(ns, spot), [contract])
        assert (gate.state, gate.why) == (State.REDUCING, Reason.OPERATOR_ASKED)


# The quoter.


@pytest.mark.parametrize("position", [-3.0, 0.0, 3.0])
def test_quotes_stand_a_half_width_around_the_skewed_fair_value(position: float) -> None:
    options, contract = QUOTER, contract_of(fair=5.0037, position=position)
    bid, ask = fixed_width(options, TICK, market_at(0), [contract])
    centre = 5.0037 - options.skew_money_per_unit * position
    assert (bid.flags, ask.flags) == (Side.NEW | Side.BUY, Side.NEW)
    assert 0 <= centre - options.half_width_money - bid.price < TICK
    assert 0 <= ask.price - centre - options.half_width_money < TICK


def test_quotes_stay_until_the_requote_distance_and_go_without_a_fair_value() -> None:
    options = replace(QUOTER, requote_money=0.02, skew_money_per_unit=0.0)
    contract = contract_of(fair=5.0)
    for one in fixed_width(options, TICK, market_at(0), [contract]):
        contract.set_working(one.is_buy, Working(1, one.price, 1.0))
    contract.fair = 5.009
    assert fixed_width(options, TICK, market_at(0), [contract]) == []
    contract.fair = 5.03
    assert [one.flags & ~1 for one in fixed_width(options, TICK, market_at(0), [contract])] == [Side.REPLACE] * 2
    contract.fair = math.nan
    gone = [one.flags for one in fixed_width(options, TICK, market_at(0), [contract])]
    assert gone == [Side.CANCEL | Side.BUY, Side.CANCEL]


def test_no_bid_below_a_tick() -> None:
    assert [one.flags for one in fixed_width(QUOTER, TICK, market_at(0), [contract_of(fair=0.03)])] == [Side.NEW]
