"""States that market, profit, refusals and operators bring about (docs/host-rules.md, "Risk, on the market")."""

from __future__ import annotations

import math

import pytest

from tests.serving.host.risk_cases import SELL
from tests.serving.host.risk_gates import BUY, CANCEL, NAN, REPLACE, START_NS, Desk, limits_with
from tests.serving.native.built import built_core

CORE = built_core()


def in_market(**limits: object) -> Desk:
    """Orders work on every side of two contracts."""
    desk = Desk(CORE, limits_with(**limits))
    for contract in (1, 0):
        for side, price in ((SELL, 3.0), (BUY, 1.0)):
            assert desk.order(side, price, contract=contract) == "none"
    assert len(desk.left()) == 4
    return desk


def assert_all_cancelled(desk: Desk) -> None:
    left = desk.left()
    assert left["instrument"].tolist() == [1, 1, 2, 2]  # in contract order, buy before sell
    assert left["flags"].tolist() == [CANCEL | BUY, CANCEL] * 2
    assert not desk.contracts["buy"]["id"].any()
    assert not desk.contracts["sell"]["id"].any()


def test_a_kill_within_the_loop_stops_the_very_next_order() -> None:
    desk = in_market()
    assert desk.order(BUY, 1.25, action=REPLACE) == "none"
    desk.left()
    desk.gate.set_kill(True)
    assert desk.state == "ACTIVE"  # nobody asked the gate yet
    assert desk.order(BUY, 1.5, action=REPLACE) == "halted"
    assert (desk.state, desk.why) == ("HALTED", "kill_switch")
    assert_all_cancelled(desk)
    desk.gate.resume()
    assert desk.order() == "halted"  # while the switch is on nobody resumes
    desk.gate.set_kill(False)
    desk.gate.resume()
    assert desk.order() == "none"


def test_a_loss_halts_at_the_limit() -> None:
    desk = in_market(loss_money=100.0)
    desk.set(0, position=10.0, cash=-80.0)  # 10 * 2 * 4 - 80 = 0
    assert desk.tick(event_ns=START_NS + 1) == "ACTIVE"
    desk.set(0, cash=math.nextafter(-180.0, 0.0))
    assert desk.tick() == "ACTIVE"
    assert desk.gate.profit == desk.gate.best_profit + desk.gate.profit  # the best stays 0, where it started
    desk.set(0, cash=-180.0)
    assert desk.tick() == "HALTED"
    assert (desk.why, desk.gate.profit) == ("loss", -100.0)
    assert_all_cancelled(desk)
    desk.set(0, cash=0.0)
    assert desk.tick() == "HALTED"  # a recovery doesn't leave it
    desk.gate.resume()
    assert desk.tick() == "ACTIVE"
    assert desk.gate.best_profit == desk.gate.profit == 80.0


def test_a_drawdown_reduces_and_stays() -> None:
    desk = in_market(drawdown_money=50.0)
    desk.set(1, position=0.0, cash=200.0)
    assert desk.tick(event_ns=START_NS + 1) == "ACTIVE"
    desk.set(1, cash=math.nextafter(150.0, 200.0))
    assert desk.tick() == "ACTIVE"
    desk.set(1, cash=150.0)
    assert desk.tick() == "REDUCING"
    assert desk.why == "drawdown"
    assert_all_cancelled(desk)  # nothing is held, so nothing of it reduces
    desk.set(1, cash=500.0)
    assert desk.tick() == "REDUCING"
    desk.gate.resume()
    assert desk.tick() == "ACTIVE"


def test_only_what_reduces_goes_on_working_while_reducing() -> None:
    desk = Desk(CORE)
    desk.set(0, position=2.0)
    for side, price in ((SELL, 3.0), (BUY, 1.0)):
        assert desk.order(side, price, 2.0) == "none"
    desk.reduce()
    desk.left()
    assert desk.tick() == "REDUCING"
    assert desk.left()[["instrument", "flags"]].tolist() == [(1, CANCEL | BUY)]
    desk.set(0, position=1.0)  # by what we don't know of: now the sell would open a short one
    desk.tick()
    assert desk.left()[["instrument", "flags"]].tolist() == [(1, CANCEL)]


@pytest.mark.parametrize(
    "untrusted",
    [{"event_ns": START_NS + 6}, {"spot": NAN}, {"model_expired": True}, {"anomaly_score": 1.5}, {"anomaly_score": NAN},
     {"clipped_share": 0.75}],
)  # fmt: skip
def test_nothing_rests_in_the_market_on_a_book_or_a_model_that_is_not_trusted(untrusted: dict[str, float]) -> None:
    """A line died and heartbeats go on: event time passes, nothing is asked anew, so nothing would be refused."""
    desk = in_market(stale_book_ns=5, anomaly_score=1.0, clipped_share=0.5)
    assert desk.tick(event_ns=START_NS + 5, anomaly_score=1.0, clipped_share=0.5) == "ACTIVE"
    assert not len(desk.left())  # at the limits
    assert desk.tick(**untrusted) == "ACTIVE"
    assert_all_cancelled(desk)


def test_what_works_for_a_contract_that_is_not_priced_is_withdrawn() -> None:
    desk = in_market()
    desk.set(1, vega=NAN)
    desk.tick()
    assert desk.left()[["instrument", "flags"]].tolist() == [(2, CANCEL | BUY), (2, CANCEL)]


def test_an_unpriced_contract_keeps_its_last_value() -> None:
    desk = Desk(CORE)
    desk.set(0, position=3.0, cash=-10.0, fair=NAN)
    desk.tick()
    assert desk.gate.profit == -10.0  # never priced: its cash alone
    desk.set(0, fair=2.5)
    desk.tick()
    assert desk.gate.profit == 20.0
    desk.set(0, fair=NAN)
    desk.tick()
    assert desk.gate.profit == 20.0
    desk.set(0, position=0.0)
    desk.tick()
    assert desk.gate.profit == -10.0


@pytest.mark.parametrize("way", [1, -1])
def test_a_market_move_reduces_for_its_pause(way: int) -> None:
    desk = Desk(CORE, limits_with(market_move_share=0.125, market_move_window_ns=10, market_move_pause_ns=20))
    assert desk.tick() == "ACTIVE"
    assert desk.tick(spot=100.0 + way * 12.25) == "ACTIVE"
    assert desk.tick(spot=100.0 + way * 12.5, event_ns=START_NS + 1) == "REDUCING"
    assert desk.why == "market_move"
    assert desk.tick(event_ns=START_NS + 20) == "REDUCING"
    assert desk.tick(event_ns=START_NS + 21) == "ACTIVE"


def test_a_move_across_the_renewal_of_the_reference_is_seen() -> None:
    desk = Desk(CORE, limits_with(market_move_share=0.125, market_move_window_ns=10, market_move_pause_ns=20))
    desk.tick()
    assert desk.tick(spot=107.0, event_ns=START_NS + 10) == "ACTIVE"  # the reference now; 100 the one before
    assert desk.tick(spot=113.0, event_ns=START_NS + 11) == "REDUCING"
    desk = Desk(CORE, limits_with(market_move_share=0.125, market_move_window_ns=10, market_move_pause_ns=20))
    desk.tick()
    desk.tick(spot=107.0, event_ns=START_NS + 10)
    assert desk.tick(spot=112.0, event_ns=START_NS + 20) == "ACTIVE"  # 100 is forgotten
    assert desk.tick(spot=113.0, event_ns=START_NS + 21) == "ACTIVE"
    assert desk.tick(spot=NAN, event_ns=START_NS + 22) == "ACTIVE"


def test_a_second_move_prolongs_the_pause() -> None:
    desk = Desk(CORE, limits_with(market_move_share=0.125, market_move_window_ns=10, market_move_pause_ns=20))
    desk.tick()
    assert desk.tick(spot=80.0, event_ns=START_NS + 1) == "REDUCING"
    assert desk.tick(spot=60.0, event_ns=START_NS + 5) == "REDUCING"
    assert desk.tick(event_ns=START_NS + 24) == "REDUCING"
    assert desk.tick(event_ns=START_NS + 25) == "ACTIVE"


@pytest.mark.parametrize("why", ["operator_asked", "drawdown"])
def test_the_end_of_a_pause_ends_no_longer_lasting_reason(why: str) -> None:
    desk = Desk(CORE, limits_with(market_move_share=0.125, market_move_window_ns=10, market_move_pause_ns=20))
    desk.tick()
    desk.reduce(why)
    assert desk.tick(spot=80.0, event_ns=START_NS + 1) == "REDUCING"
    assert desk.tick(event_ns=START_NS + 40) == "REDUCING"
    assert desk.why == why
    desk.gate.resume()
    assert desk.tick() == "ACTIVE"


def test_refusals_in_a_row_halt() -> None:
    desk = in_market(reject_burst_count=3.0, order_quantity=1.0)
    assert [desk.order(quantity=2.0) for _ in range(2)] == ["malformed"] * 2
    assert desk.order(BUY, 1.25, action=REPLACE) == "none"  # an acceptance begins anew
    desk.left()
    assert [desk.order(quantity=2.0) for _ in range(2)] == ["malformed"] * 2
    assert desk.state == "ACTIVE"
    assert desk.order(BUY, quantity=2.0, action=REPLACE) == "order_size"
    assert (desk.state, desk.why) == ("HALTED", "reject_burst")
    assert_all_cancelled(desk)  # the refused replacement's first
    desk.gate.resume()
    assert desk.order(BUY, 1.0, 2.0) == "order_size"
    assert desk.state == "ACTIVE"


def test_what_the_state_refuses_is_no_burst() -> None:
    """A quoter that goes on asking through a pause of the market isn't halted by it."""
    desk = Desk(CORE, limits_with(reject_burst_count=3.0))
    desk.reduce()
    assert {desk.order() for _ in range(10)} == {"reducing"}
    assert desk.state == "REDUCING"


def test_halted_keeps_its_first_reason_and_hears_no_reduce() -> None:
    desk = in_market()
    desk.halt("operator_asked")
    assert_all_cancelled(desk)
    desk.halt("kill_switch")
    desk.reduce()
    assert (desk.state, desk.why) == ("HALTED", "operator_asked")
    assert desk.tick(spot=1.0) == "HALTED"
    desk.gate.resume()
    assert desk.tick(spot=90.0) == "ACTIVE"  # references begin anew
    assert desk.why == "none"


def test_times_from_a_broken_feed_do_no_harm() -> None:
    desk = Desk(CORE, limits_with(stale_book_ns=5, order_rate_count=1.0, order_rate_window_ns=10))
    desk.tick(event_ns=2**63 - 1, book_changed_ns=-(2**63))
    assert desk.order() == "stale_book"
    desk.tick(book_changed_ns=2**63 - 1)
    assert desk.order() == "none"
    assert desk.order(contract=1) == "order_rate"
