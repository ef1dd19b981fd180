"""The slow reference of replay's fills: docs/host-rules.md, "Simulated fills".

Data in: a trade's price and size, and spot and contracts as they stood after the event before. Data out: fills through
an `Outbox`; positions, cash and working orders of `contracts` move at once.
"""

from __future__ import annotations

import math

from serving.host.reference.states import ContractState, Outbox


def print_of(contract: ContractState, trade_price: float, spot: float) -> float:
    """The price at which the underlying's trade prints a contract; NaN where the contract or the spot isn't known."""
    d = trade_price - spot
    return contract.fair + contract.delta * d + 0.5 * contract.gamma * d * d


def fill(
    trade_price: float, trade_size: float, event_ns: int, spot: float, contracts: list[ContractState],
    multiplier: float, outbox: Outbox,
) -> None:  # fmt: skip
    """Fill what the trade prints through, whole, at the orders' own prices."""
    if not all(math.isfinite(number) and number > 0 for number in (trade_price, trade_size)):
        return
    for place, contract in enumerate(contracts):
        printed = print_of(contract, trade_price, spot)
        buy, sell = contract.buy, contract.sell
        if buy is not None and buy.price > printed:
            contract.position += buy.quantity
            contract.cash -= buy.price * buy.quantity * multiplier
            contract.buy = None
            outbox.fill(event_ns, place, True, buy, trade_price)
        if sell is not None and sell.price < printed:
            contract.position -= sell.quantity
            contract.cash += sell.price * sell.quantity * multiplier
            contract.sell = None
            outbox.fill(event_ns, place, False, sell, trade_price)
