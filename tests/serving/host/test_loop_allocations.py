"""Once made, a loop allocates nothing: 10,000 events through rings, with orders, fills, signals, controls, sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import native
from serving.host.loop import ControlCode, Sweep
from tests.serving.host.live import Live, wait_until
from tests.serving.host.worlds import STEP_NS, stream

EVENTS = 10_000


@pytest.mark.parametrize("sleep", [False, True])
def test_ten_thousand_events_allocate_nothing(tmp_path: Path, sleep: bool) -> None:
    core = native.core()
    records = stream(21, EVENTS + 500)
    live = Live(tmp_path, fair_values_every_ns=10 * STEP_NS, sweep=Sweep(16, 1000))
    with live.running(sleep=sleep):
        live.write(records[:100])
        live.loop.ask(ControlCode.ANOMALY_SCORE)
        wait_until(lambda: live.loop.board.number("sweeps"), "a sweep")
        before = core.allocation_count()
        for first in range(100, len(records), 2000):
            live.write(records[first : first + 2000])
            live.loop.ask(ControlCode.RESUME)
        wait_until(lambda: live.read_all() == len(records), "reading all records")
        assert core.allocation_count() == before
    board = live.loop.board
    assert board.number("events") >= EVENTS
    assert board.number("allocations") == 0
    assert min(board.number(name) for name in ("orders", "cancels", "fills", "controls", "advances")) > 5
