"""The fixed-width quoter against the page's words in Python, bit for bit; and what it must never ask for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import HostError
from tests.serving.host.risk_gates import BUY, CANCEL, NAN, NEW, REPLACE, START_NS, Desk, limits_with
from tests.serving.native.built import built_core

CORE = built_core()


@dataclass(frozen=True)
class Options:
    half_width_money: float = 0.25
    quantity: float = 1.0
    requote_money: float = 0.25
    skew_money_per_unit: float = 0.0
    tick_money: float = 0.25
    retry_ns: int = 10


def page(options: Options, spot: float, contracts: list[tuple[float, float, float, float]]) -> list[tuple[object, ...]]:
    """docs/host-rules.md, "Fixed-width quoter", of (fair, position, working buy's price, working sell's; 0: none)."""
    asked: list[tuple[object, ...]] = []
    for place, (fair, position, buy, sell) in enumerate(contracts):
        targets = (0.0, 0.0)
        if not math.isnan(spot) and not math.isnan(fair):
            tick, half = options.tick_money, options.half_width_money
            centre = fair - options.skew_money_per_unit * position
            targets = (math.floor((centre - half) / tick) * tick, math.ceil((centre + half) / tick) * tick)
        for side, target, works in zip((BUY, 0), targets, (buy, sell), strict=True):
            if target <= 0:
                asked += [(place, CANCEL | side, 0.0, 0.0)] if works else []
            elif not works:
                asked.append((place, NEW | side, target, options.quantity))
            elif abs(works - target) >= options.requote_money:
                asked.append((place, REPLACE | side, target, options.quantity))
    return asked


def asked_of(options: Options, desk: Desk) -> list[tuple[object, ...]]:
    return list(quoter(options, desk).ask(desk.gate, CORE.Market(**desk.market)))


def quoter(options: Options, desk: Desk) -> Any:
    return CORE.fixed_width(options, len(desk.contracts))


money = st.floats(0.0, 50.0)
price = st.one_of(st.just(0.0), st.floats(0.01, 50.0))
contract = st.tuples(st.one_of(st.just(NAN), money), st.floats(-100.0, 100.0), price, price)
options_of = st.builds(
    Options,
    half_width_money=st.floats(0.0, 5.0),
    quantity=st.floats(0.5, 10.0),
    requote_money=st.floats(0.0, 2.0),
    skew_money_per_unit=st.floats(0.0, 0.5),
    tick_money=st.sampled_from([0.01, 0.05, 0.25, 1.0, 0.3]),
)


@given(options_of, st.sampled_from([100.0, 100.0, 100.0, NAN]), st.lists(contract, min_size=1, max_size=5))
def test_equals_the_page(options: Options, spot: float, contracts: list[tuple[float, float, float, float]]) -> None:
    desk = Desk(CORE, limits_with(), len(contracts))
    desk.market["spot"] = spot
    for place, (fair, position, buy, sell) in enumerate(contracts):
        desk.set(place, fair=fair, position=position)
        desk.contracts[place]["buy"] = (1 if buy else 0, buy, 1.0 if buy else 0.0)
        desk.contracts[place]["sell"] = (2 if sell else 0, sell, 1.0 if sell else 0.0)
    assert asked_of(options, desk) == page(options, spot, contracts)


@given(options_of, st.floats(0.0, 50.0), st.floats(-100.0, 100.0))
def test_quotes_surround_the_skewed_value(options: Options, fair: float, position: float) -> None:
    desk = Desk(CORE, limits_with(), 1)
    desk.set(0, fair=fair, position=position)
    centre = fair - options.skew_money_per_unit * position
    for _, flags, quoted, quantity in asked_of(options, desk):
        distance = centre - quoted if flags & BUY else quoted - centre  # type: ignore[operator]
        slack = 1e-12 * (50.0 + abs(centre))
        assert options.half_width_money - slack <= distance <= options.half_width_money + options.tick_money + slack
        assert quantity == options.quantity


def test_what_it_asks_passes_the_gate_and_is_asked_once() -> None:
    desk = Desk(CORE)
    for contract, flags, quoted, quantity in asked_of(Options(), desk):
        assert desk.order(flags & BUY, quoted, quantity, contract=contract, action=flags & ~BUY) == "none"  # type: ignore[operator, arg-type]
    assert desk.contracts["buy"]["price"].tolist() == [1.75, 1.75]
    assert desk.contracts["sell"]["price"].tolist() == [2.25, 2.25]
    assert asked_of(Options(), desk) == []
    desk.market["spot"] = NAN
    assert asked_of(Options(), desk) == [(place, CANCEL | side, 0.0, 0.0) for place in (0, 1) for side in (BUY, 0)]


def test_the_null_strategy_asks_for_nothing() -> None:
    desk = Desk(CORE)
    assert CORE.null_strategy().ask(desk.gate, CORE.Market(**desk.market)) == []


def test_beyond_its_room_nothing_is_taken() -> None:
    desk = Desk(CORE, limits_with(), 4)
    assert len(quoter(Options(), desk).ask(desk.gate, CORE.Market(**desk.market), 3)) == 3


@pytest.mark.parametrize("name", [name for name in asdict(Options()) if name != "retry_ns"])
@pytest.mark.parametrize("value", [NAN, math.inf, -1.0])
def test_senseless_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(HostError, match=name):
        CORE.fixed_width(replace(Options(), **{name: value}), 1)


@pytest.mark.parametrize("name", ["quantity", "tick_money"])
def test_what_must_be_above_zero(name: str) -> None:
    with pytest.raises(HostError, match=name):
        CORE.fixed_width(replace(Options(), **{name: 0.0}), 1)


def test_a_time_to_wait_is_not_negative() -> None:
    with pytest.raises(HostError, match="retry_ns"):
        CORE.fixed_width(replace(Options(), retry_ns=-1), 1)


@pytest.mark.parametrize("side", [BUY, 0])
def test_where_it_was_refused_it_asks_nothing_new_for_a_while(side: int) -> None:
    """That side of that contract alone; what works there is still replaced and cancelled."""
    desk = Desk(CORE)
    asks = quoter(Options(retry_ns=10), desk)

    def new(event_ns: int) -> list[tuple[int, int]]:
        desk.market["event_ns"] = event_ns
        return [(place, flags) for place, flags, _, _ in asks.ask(desk.gate, CORE.Market(**desk.market))]

    everything = [(place, NEW | one) for place in (0, 1) for one in (BUY, 0)]
    assert new(START_NS) == everything
    asks.tell_refused(1, NEW | side, CORE.Market(**desk.market))
    others = [one for one in everything if one != (1, NEW | side)]
    assert new(START_NS) == new(START_NS + 9) == others
    desk.contracts[1]["buy" if side else "sell"] = (1, 1.0, 1.0)
    assert new(START_NS + 9) == [*others[: 2 + (not side)], (1, REPLACE | side), *others[2 + (not side) :]]
    desk.contracts[1]["buy" if side else "sell"] = (0, 0.0, 0.0)
    assert new(START_NS + 10) == everything
