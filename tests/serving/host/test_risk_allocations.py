"""The gate allocates nothing once it was made: orders, replacements, refusals, cancels, markets, halts."""

from __future__ import annotations

from tests.serving.host.risk_cases import SELL
from tests.serving.host.risk_gates import BUY, REASONS, START_NS, limits_with
from tests.serving.host.risk_gates import CANCEL as CANCELS
from tests.serving.host.risk_gates import NEW as NEWS
from tests.serving.host.risk_gates import REPLACE as REPLACES
from tests.serving.native.built import built_core

CORE = built_core()
ROUNDS = 2_000


def test_nothing_is_allocated() -> None:
    limits = limits_with(order_quantity=2.0, order_rate_count=16000.0, order_rate_window_ns=1000, loss_money=1e9)
    gate = CORE.RiskGate(limits, 8, 12 * ROUNDS)
    gate.contracts[:, :4] = 2.0, 0.5, 0.125, 2.0
    market = CORE.Market(event_ns=START_NS, book_changed_ns=START_NS, spot=100.0)
    before, seen = CORE.allocation_count(), set()
    for number in range(ROUNDS):
        market.event_ns = START_NS + number
        gate.on_market(market)
        for contract, side in ((0, BUY), (7, SELL)):
            price = 1.0 if side else 3.0
            seen.add(gate.submit(contract, NEWS | side, price, 1.0, market))
            seen.add(gate.submit(contract, REPLACES | side, price + 0.25, 1.0, market))
            seen.add(gate.submit(contract, REPLACES | side, price, 3.0, market))
            seen.add(gate.submit(contract, NEWS | side, price, 1.0, market))
        gate.submit(0, CANCELS | BUY, 0.0, 0.0, market)
        gate.halt(REASONS.index("operator_asked"), market)
        gate.resume()
    assert CORE.allocation_count() == before
    assert {REASONS[reason] for reason in seen} == {"none", "order_size"}
    assert gate.records == 10 * ROUNDS
