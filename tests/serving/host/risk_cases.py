"""Each check of docs/host-rules.md at its limit and one step beyond: what must pass, and what must be refused why.

A case is a reason, limits, and a function: on a desk where nothing else is limited it does at the limit what must pass,
asserting so, and returns the reason that it got one step beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.serving.host.risk_gates import BUY, INF, NAN, NEW, REPLACE, START_NS, Desk

SELL = 0


@dataclass(frozen=True)
class Case:
    """`beyond` returns the reason of what must be refused for `reason`."""

    reason: str
    name: str
    beyond: Callable[[Desk], str]
    limits: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.reason}-{self.name}"


CASES: list[Case] = []


def case(reason: str, **limits: Any) -> Callable[[Callable[[Desk], str]], Callable[[Desk], str]]:
    def keep(beyond: Callable[[Desk], str]) -> Callable[[Desk], str]:
        CASES.append(Case(reason, beyond.__name__, beyond, limits))
        return beyond

    return keep


def passes(reason: str) -> None:
    assert reason == "none", f"refused for {reason} at the limit"


@case("halted")
def after_a_halt(desk: Desk) -> str:
    passes(desk.order())
    desk.halt()
    return desk.order(SELL, 3.0)


@case("halted")
def even_what_reduces(desk: Desk) -> str:
    desk.set(0, position=2.0)
    passes(desk.order(SELL, 3.0))
    desk.halt()
    return desk.order(SELL, 3.0)


@case("reducing")
def more_than_is_held(desk: Desk) -> str:
    desk.set(0, position=2.0)
    desk.reduce()
    passes(desk.order(SELL, quantity=2.0))
    return desk.order(SELL, quantity=math.nextafter(2.0, 3.0), action=REPLACE)


@case("reducing")
def the_same_way(desk: Desk) -> str:
    desk.set(0, position=-2.0)
    desk.reduce()
    passes(desk.order(BUY))
    return desk.order(SELL, 3.0)


@case("reducing")
def from_nothing(desk: Desk) -> str:
    desk.reduce()
    return desk.order()


WRONG_PRICES = (2.125, NAN, INF, 0.0, -2.0, 2.0 * (1 + 2e-9))  # the tick is a quarter, its tolerance 1e-9 of the price
WRONG_QUANTITIES = (0.0, -1.0, NAN, INF)
for number, (price, quantity) in enumerate(
    (*((price, 1.0) for price in WRONG_PRICES), *((2.0, quantity) for quantity in WRONG_QUANTITIES))
):

    def wrong_number(desk: Desk, price: float = price, quantity: float = quantity) -> str:
        passes(desk.order(BUY, 2.0 * (1 + 0.5e-9)))
        return desk.order(BUY, price, quantity, contract=1)

    CASES.append(Case("malformed", f"number_{number}", wrong_number))

for number, (contract, action) in enumerate([(2, NEW), (65535, NEW), (0, 0), (0, NEW | REPLACE), (0, NEW | 16)]):

    def wrong_shape(desk: Desk, contract: int = contract, action: int = action) -> str:
        return desk.order(contract=contract, action=action)

    CASES.append(Case("malformed", f"shape_{number}", wrong_shape))


@case("malformed")
def new_where_one_works(desk: Desk) -> str:
    passes(desk.order())
    return desk.order(price=1.75)


@case("malformed")
def replaces_nothing(desk: Desk) -> str:
    passes(desk.order(SELL, 3.0))
    passes(desk.order(SELL, 3.25, action=REPLACE))
    return desk.order(BUY, action=REPLACE)


@case("stale_book", stale_book_ns=5)
def older(desk: Desk) -> str:
    desk.tick(event_ns=START_NS + 5)
    passes(desk.order())
    desk.tick(event_ns=START_NS + 6)
    return desk.order(contract=1)


@case("stale_book")
def no_spot(desk: Desk) -> str:
    desk.tick(spot=NAN)
    return desk.order()


@case("model_guard", anomaly_score=3.0)
def unusual(desk: Desk) -> str:
    desk.tick(anomaly_score=3.0)
    passes(desk.order())
    desk.tick(anomaly_score=math.nextafter(3.0, 4.0))
    return desk.order(contract=1)


@case("model_guard", anomaly_score=3.0)
def unusual_beyond_number(desk: Desk) -> str:
    desk.tick(anomaly_score=NAN)
    return desk.order()


@case("model_guard", clipped_share=0.25)
def beyond_the_training_range(desk: Desk) -> str:
    desk.tick(clipped_share=0.25)
    passes(desk.order())
    desk.tick(clipped_share=math.nextafter(0.25, 1.0))
    return desk.order(contract=1)


@case("model_guard")
def expired(desk: Desk) -> str:
    desk.tick(model_expired=True)
    return desk.order()


for unknown in ("fair", "delta", "gamma", "vega"):
    for value in (NAN, INF, -INF):

        def not_priced(desk: Desk, unknown: str = unknown, value: float = value) -> str:
            desk.set(0, **{unknown: value})
            passes(desk.order(contract=1))
            return desk.order()

        CASES.append(Case("model_guard", f"{unknown}_{value}", not_priced))


@case("order_size", order_quantity=3.0)
def larger(desk: Desk) -> str:
    passes(desk.order(quantity=3.0))
    return desk.order(quantity=math.nextafter(3.0, 4.0), contract=1)


@case("price_collar", collar_money=0.25, collar_share=0.125)
def above(desk: Desk) -> str:
    passes(desk.order(BUY, 2.5))
    return desk.order(BUY, 2.75, contract=1)


@case("price_collar", collar_money=0.25, collar_share=0.125)
def below(desk: Desk) -> str:
    passes(desk.order(BUY, 1.5))
    return desk.order(BUY, 1.25, contract=1)


@case("price_collar", collar_money=0.5)
def a_hair_beyond(desk: Desk) -> str:
    passes(desk.order(SELL, 2.5))
    desk.set(1, fair=math.nextafter(2.0, 1.0))
    return desk.order(SELL, 2.5, contract=1)


@case("self_match")
def buys_its_own_sell(desk: Desk) -> str:
    passes(desk.order(SELL, 2.25))
    passes(desk.order(BUY, 2.0))
    return desk.order(BUY, 2.25, action=REPLACE)


@case("self_match")
def sells_to_its_own_buy(desk: Desk) -> str:
    passes(desk.order(BUY, 2.0))
    passes(desk.order(SELL, 2.0, contract=1))  # another contract's is no match
    return desk.order(SELL, 2.0)


@case("position", position_quantity=5.0)
def longer(desk: Desk) -> str:
    desk.set(0, position=3.0)
    passes(desk.order(BUY, quantity=2.0))
    return desk.order(BUY, quantity=2.0 + math.ulp(5.0), action=REPLACE)


@case("position", position_quantity=5.0)
def shorter(desk: Desk) -> str:
    desk.set(0, position=3.0)
    passes(desk.order(SELL, quantity=8.0))
    return desk.order(SELL, quantity=9.0, action=REPLACE)


@case("position", position_quantity=5.0)
def longer_when_already_beyond(desk: Desk) -> str:
    desk.set(0, position=7.0)
    passes(desk.order(SELL, 3.0))  # back towards the limit
    return desk.order(BUY)


@case("position", position_quantity=5.0)
def through_to_the_other_side(desk: Desk) -> str:
    desk.set(0, position=9.0)  # limits were tightened
    passes(desk.order(SELL, quantity=14.0))
    return desk.order(SELL, quantity=15.0, action=REPLACE)


@case("notional", notional_money=80.0)
def held_and_working(desk: Desk) -> str:
    desk.set(1, position=-3.0)  # 3 * 2
    passes(desk.order(SELL, 3.0, 2.0, contract=1))  # 6
    passes(desk.order(BUY, 2.0, 4.0))  # 8: 4 * 20 = 80
    return desk.order(BUY, 2.25, 4.0, action=REPLACE)  # its own 8 don't count: 84


@case("notional", notional_money=16.0)
def of_the_last_fair_value(desk: Desk) -> str:
    desk.set(1, position=1.0)
    desk.tick()
    passes(desk.order(quantity=1.0))
    desk.set(1, fair=NAN)
    desk.tick()
    return desk.order(quantity=1.25, action=REPLACE)


@case("notional", notional_money=8.0)
def whatever_reduces_passes(desk: Desk) -> str:
    desk.set(0, position=5.0)
    passes(desk.order(SELL, 3.0, 5.0))
    return desk.order(SELL, 3.0, 6.0, action=REPLACE)


for greek, unit in (("delta", 2.0), ("gamma", 0.5), ("vega", 8.0)):  # of one contract's four units

    def greater(desk: Desk, greek: str = greek) -> str:
        desk.set(1, position=-1.0)
        passes(desk.order(BUY, quantity=3.0))
        return desk.order(BUY, quantity=math.nextafter(3.0, 4.0), action=REPLACE)

    def less(desk: Desk, greek: str = greek) -> str:
        desk.set(1, position=1.0)
        passes(desk.order(SELL, quantity=3.0))
        return desk.order(SELL, quantity=3.5, action=REPLACE)

    def back_from_beyond(desk: Desk, greek: str = greek) -> str:
        desk.set(1, position=4.0)
        passes(desk.order(SELL, 3.0, quantity=6.0))  # as far as the limit allows on the other side
        return desk.order(BUY, quantity=0.25)

    def through_to_the_other_side_of_it(desk: Desk, greek: str = greek) -> str:
        desk.set(1, position=4.0)  # the market moved: twice the limit
        passes(desk.order(SELL, 3.0, quantity=6.0))
        return desk.order(SELL, 3.0, quantity=7.0, action=REPLACE)

    def held_and_unknown(desk: Desk, greek: str = greek) -> str:
        desk.set(1, **{greek: NAN})
        passes(desk.order(BUY, quantity=2.0))  # what isn't held counts nothing
        desk.set(1, position=0.5)
        desk.set(0, position=-1.0)
        passes(desk.order(BUY, quantity=1.0, action=REPLACE))  # it reduces
        return desk.order(BUY, quantity=1.25, action=REPLACE)

    def with_what_works(desk: Desk, greek: str = greek) -> str:
        passes(desk.order(BUY, quantity=1.0, contract=1))
        passes(desk.order(SELL, 3.0, quantity=2.0, contract=1))  # pulls the other way
        passes(desk.order(BUY, quantity=1.0))
        passes(desk.order(BUY, 1.75, quantity=1.0, action=REPLACE))  # the one replaced doesn't count
        return desk.order(BUY, quantity=1.25, action=REPLACE)

    for check in (
        greater,
        less,
        back_from_beyond,
        through_to_the_other_side_of_it,
        held_and_unknown,
        with_what_works,
    ):
        CASES.append(Case(greek, check.__name__, check, {greek: 2 * unit}))


@case("order_rate", order_rate_count=2.0, order_rate_window_ns=10)
def a_third_within(desk: Desk) -> str:
    passes(desk.order(BUY, 1.0))
    passes(desk.order(SELL, 3.0))
    desk.cancel(BUY)  # cancels count nothing
    desk.tick(event_ns=START_NS + 10)
    passes(desk.order(BUY, 1.0, contract=1))
    passes(desk.order(BUY, 1.25, contract=1, action=REPLACE))
    desk.tick(event_ns=START_NS + 19)
    return desk.order(BUY, 1.0)


@case("order_rate", order_rate_count=0.0)
def none_at_all(desk: Desk) -> str:
    return desk.order()
