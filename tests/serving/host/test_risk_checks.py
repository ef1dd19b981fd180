"""Risk before every order: each check passes at its limit and refuses one step beyond; the first that fails is told."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.errors import HostError
from serving.host.limits import FIELDS, MOST_ORDER_RATE
from tests.serving.host.risk_cases import CASES, SELL, Case
from tests.serving.host.risk_gates import (
    BUY,
    CANCEL,
    INF,
    NAN,
    NEW,
    REASONS,
    REFUSALS,
    REPLACE,
    START_NS,
    STATES,
    UNLIMITED,
    Desk,
    limits_with,
)
from tests.serving.native.built import built_core

CORE = built_core()
PAGE = Path(__file__).parents[3] / "docs" / "host-rules.md"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_at_the_limit_passes_and_beyond_is_refused(case: Case) -> None:
    desk = Desk(CORE, limits_with(**case.limits))
    before = desk.refused(case.reason)
    assert case.beyond(desk) == case.reason
    assert desk.refused(case.reason) == before + 1


def test_every_check_of_the_page_has_a_case_and_its_place() -> None:
    told = PAGE.read_text().split("## Risk, before every order")[1].split("##")[0]
    places = [told.index(f"`{reason}`") for reason in REFUSALS]
    assert places == sorted(places)
    assert {case.reason for case in CASES} == set(REFUSALS)
    assert tuple(CORE.reason_name(number) for number in range(len(REASONS))) == REASONS
    assert tuple(CORE.state_name(number) for number in range(len(STATES))) == STATES
    with pytest.raises(HostError):
        CORE.reason_name(len(REASONS))


def test_the_first_that_fails_is_the_reason() -> None:
    """An order that breaks every rule, of which one after the other is mended."""
    tight = ("order_quantity", "collar_money", "position_quantity", "notional_money", "delta", "gamma", "vega")
    desk = Desk(CORE)
    assert desk.order(SELL, 1.0, 1.0) == "none"
    desk.set_limits(**dict.fromkeys(tight, 0.5), order_rate_count=0.0, order_rate_window_ns=10, stale_book_ns=0)
    market = {"event_ns": START_NS + 1, "model_expired": True}
    desk.market |= market
    desk.reduce()

    def order(price: float = 4.0) -> str:
        return desk.order(BUY, price, 8.0)

    seen = []
    works = desk.contracts[0]["sell"].copy()
    desk.halt()
    desk.contracts[0]["sell"] = works  # as if it still worked
    seen.append(order(4.1))
    desk.gate.resume()
    desk.reduce()
    seen.append(order(4.1))
    desk.gate.resume()
    seen += [order(4.1), order()]
    desk.market["book_changed_ns"] = desk.market["event_ns"]
    seen.append(order())
    desk.market["model_expired"] = False
    seen.append(order())
    desk.set_limits(order_quantity=INF)
    seen.append(order())
    desk.set_limits(collar_money=INF)
    seen.append(order())
    assert desk.cancel(SELL) == "none"
    for mended in tight[2:]:
        seen.append(order())
        desk.set_limits(**{mended: INF})
    seen.append(order())
    desk.set_limits(order_rate_count=2.0)
    assert seen == list(REFUSALS)
    assert order() == "none"


@pytest.mark.parametrize("state", ["ACTIVE", "REDUCING", "HALTED"])
def test_cancels_pass_whatever_the_state(state: str) -> None:
    desk = Desk(CORE, limits_with(stale_book_ns=0, order_rate_count=2.0))
    assert desk.order(BUY, 1.0) == desk.order(SELL, 3.0) == "none"
    left = desk.left()
    if state == "REDUCING":
        desk.reduce()
    if state == "HALTED":
        works = desk.contracts[0].copy()
        desk.halt()
        assert [record["flags"] for record in desk.left()] == [CANCEL | BUY, CANCEL]
        desk.contracts[0] = works  # as if they still worked
    desk.market |= {"event_ns": START_NS + 10, "spot": NAN, "model_expired": True, "anomaly_score": NAN}
    desk.set(0, fair=NAN)
    assert desk.state == state
    for side, order in ((BUY, left[0]), (SELL, left[1])):
        assert desk.cancel(side) == "none"
        (record,) = desk.left()
        assert record["flags"] == CANCEL | side
        assert [record[name] for name in ("order_id", "price", "quantity")] == [
            order[name] for name in ("order_id", "price", "quantity")
        ]


@pytest.mark.parametrize(("contract", "side"), [(0, BUY), (1, SELL), (2, BUY), (65535, SELL)])
def test_a_cancel_of_nothing_leaves_nothing(contract: int, side: int) -> None:
    desk = Desk(CORE)
    assert desk.cancel(side, contract) == "none"
    assert not len(desk.left())
    assert desk.gate.records == desk.gate.cancelled == 0


def test_records_are_numbered_and_tell_what_was_asked() -> None:
    desk = Desk(CORE)
    desk.market["arrival_ns"] = 77
    desk.order(BUY, 1.75, 2.0, contract=1)
    desk.order(BUY, 1.5, 3.0, contract=1, action=REPLACE)
    desk.order(SELL, 2.25, 1.0)
    desk.cancel(BUY, 1)
    left = desk.left()
    assert left["sequence"].tolist() == [1, 2, 3, 4]
    assert left["order_id"].tolist() == [1, 2, 3, 2]
    assert left["instrument"].tolist() == [2, 2, 1, 2]
    assert left["flags"].tolist() == [NEW | BUY, REPLACE | BUY, NEW, CANCEL | BUY]
    assert left["price"].tolist() == [1.75, 1.5, 2.25, 1.5]
    assert left["quantity"].tolist() == [2.0, 3.0, 1.0, 3.0]
    assert set(left["event_ns"]) == {START_NS}
    assert set(left["arrival_ns"]) == {77}
    assert set(left["kind"]) == {5}
    assert (desk.gate.accepted, desk.gate.cancelled, desk.gate.records) == (3, 1, 4)
    assert desk.contracts[1]["buy"]["id"] == 0
    assert tuple(desk.contracts[0]["sell"]) == (3, 2.25, 1.0)


def test_a_refused_replacement_cancels_what_works() -> None:
    desk = Desk(CORE, limits_with(order_quantity=2.0))
    desk.order(BUY, 1.75)
    desk.left()
    assert desk.order(BUY, 1.5, 3.0, action=REPLACE) == "order_size"
    (record,) = desk.left()
    assert (record["flags"], record["order_id"], record["price"]) == (CANCEL | BUY, 1, 1.75)
    assert desk.order(BUY, 1.5) == "none"


def test_limits_change_between_two_orders() -> None:
    desk = Desk(CORE, limits_with(order_quantity=2.0))
    assert desk.order(BUY, quantity=3.0) == "order_size"
    desk.set_limits(order_quantity=3.0, order_rate_count=1.0)
    assert desk.order(BUY, quantity=3.0) == "none"
    assert desk.order(SELL, 3.0) == "order_rate"  # the orders before the change count
    desk.set_limits(order_rate_count=float(MOST_ORDER_RATE))
    assert desk.order(SELL, 3.0) == "none"
    for name in ("multiplier", "tick_money"):
        with pytest.raises(HostError, match="restart"):
            desk.gate.set_limits(replace(desk.limits, **{name: 1.0}))


def test_the_order_rate_holds_at_the_most_that_is_remembered() -> None:
    desk = Desk(CORE, limits_with(order_rate_count=float(MOST_ORDER_RATE), order_rate_window_ns=MOST_ORDER_RATE + 1))
    assert desk.order(BUY) == "none"
    for number in range(1, MOST_ORDER_RATE):
        desk.market["event_ns"] = START_NS + number
        assert desk.order(BUY, 1.75 if number % 2 else 2.0, action=REPLACE) == "none"
    desk.market["event_ns"] = START_NS + MOST_ORDER_RATE
    assert desk.order(BUY, contract=1) == "order_rate"
    desk.market["event_ns"] += 1
    assert desk.order(BUY, contract=1) == "none"
    assert desk.order(SELL, 3.0, contract=1) == "order_rate"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [NAN, -1.0])
def test_the_gate_itself_refuses_senseless_limits(name: str, value: float) -> None:
    values = asdict(UNLIMITED)
    if isinstance(values[name], int):
        value = -1
    with pytest.raises(HostError, match=name):
        CORE.RiskGate(SimpleNamespace(**(values | {name: value})), 1)


def test_the_core_knows_the_same_limits() -> None:
    assert tuple(CORE.LIMIT_NAMES) == FIELDS
    assert CORE.MOST_ORDER_RATE == MOST_ORDER_RATE
