"""The slow reference's gate alone: every limit at it and beyond it, and the breakers of the market."""

from __future__ import annotations

import math
from typing import Any

import pytest

from serving.host.limits import Limits
from serving.host.reference.risk import ReferenceGate
from serving.host.reference.states import ContractState, Intent, Market, Outbox, Reason, Side, State, Working
from tests.serving.host.worlds import UNLIMITED, limits_of

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
