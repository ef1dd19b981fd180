"""What is timed, and of which events; how long it took is for benchmarks to say."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from serving.host.loop import Sweep
from serving.host.records import ORDER, TRADE, Kind
from tests.serving.host.live import Live
from tests.serving.host.test_loop import loop_of
from tests.serving.host.worlds import UNLIMITED, limits_of, stream

PARTS = ("queue", "advance", "book", "features", "evaluate", "reprice", "decide", "order")


def test_every_event_is_timed_from_its_arrival(tmp_path: Path) -> None:
    records = stream(40, 800, garbage=0.0, controls=0.0)
    records["event_ns"] += np.arange(len(records))  # each event a time of its own
    arrived = np.arange(len(records)) >= 100  # the first ones say no time
    records.view(TRADE)["arrival_ns"][arrived] = time.monotonic_ns()
    live = Live(tmp_path, limits=limits_of(**UNLIMITED), sweep=Sweep(16, 1000))
    with live.running(idle_exit_s=0.2):
        live.write(records)
    board = live.loop.board.read()
    hops = board["hops"]
    ends = (records["kind"] != Kind.LEVEL) | ((records["flags"] & 8) != 0)
    beats = int((records["kind"] == Kind.HEARTBEAT).sum())
    assert board["events"] == hops["decide"].total == ends.sum()
    assert hops["queue"].total == hops["tick_to_done"].total == (ends & arrived).sum()
    assert hops["book"].total == hops["features"].total == ends.sum() - beats
    assert hops["evaluate"].total == hops["reprice"].total <= hops["features"].total
    assert hops["advance"].total == board["advances"] > 0
    assert hops["sweep"].total >= board["sweeps"] > 0
    orders = live.left("orders")
    assert hops["order"].total == len(set(orders["event_ns"].tolist())) > 0
    assert 0 < hops["tick_to_order"].total <= hops["order"].total
    for hop in hops.values():
        assert hop.total == hop.counts.sum()
        assert hop.sum_ns >= hop.max_ns >= 0


def test_the_parts_make_the_whole(tmp_path: Path) -> None:
    """Hops follow each other without a gap: their sum is what a tick takes, but for what comes after the last."""
    records = stream(41, 800, garbage=0.0, controls=0.0)
    live = Live(tmp_path, limits=limits_of(**UNLIMITED))
    records.view(TRADE)["arrival_ns"] = time.monotonic_ns()
    with live.running(idle_exit_s=0.2):
        live.write(records)
    hops = live.loop.board.read()["hops"]
    parts, whole = sum(hops[name].sum_ns for name in PARTS), hops["tick_to_done"].sum_ns
    assert 0.9 * whole < parts <= whole


def test_orders_tell_their_events_arrival_and_when_they_left(tmp_path: Path) -> None:
    records = stream(42, 300, garbage=0.0, controls=0.0)
    begin = time.monotonic_ns()
    records.view(TRADE)["arrival_ns"] = begin
    live = Live(tmp_path)
    with live.running(idle_exit_s=0.2):
        live.write(records)
    orders = live.left("orders", timed=True).view(ORDER)
    assert len(orders) > 10
    assert (orders["arrival_ns"] == begin).all()
    assert (np.diff(orders["sent_ns"], prepend=begin) >= 0).all()
    assert orders["sent_ns"][-1] < time.monotonic_ns()


def test_offline_nothing_is_timed() -> None:
    records = stream(43, 300)
    records.view(TRADE)["arrival_ns"] = 1
    loop = loop_of()
    loop.process(records, sweep=True)
    assert all(hop.total == 0 for hop in loop.board.read()["hops"].values())
