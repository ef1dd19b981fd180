"""When a run ends and what it says, around a stand-in for the loop whose numbers the test sets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serving.native.built import built_core

built_core()

from serving import native  # noqa: E402
from serving.host import supervisor as module  # noqa: E402
from serving.host.config import read_config  # noqa: E402
from serving.host.host_log import HostLog  # noqa: E402
from serving.host.loop import ControlCode  # noqa: E402
from serving.host.supervisor import Ended, Supervisor  # noqa: E402

EXAMPLE = Path(__file__).parents[3] / "serving" / "host" / "host.example.toml"
DEADLINE_S = 20.0
MARKET_MOVE = next(reason for reason in range(99) if native.core().reason_name(reason) == "market_move")


@dataclass
class StandIn:
    """A loop that reads as many records as it is told to, until it is stopped."""

    numbers: dict[str, float] = field(
        default_factory=lambda: {
            "state": 0,
            "why": 0,
            "records": 0,
            "lost": 0,
            "running": 1,
            "profit": 0,
            "event_ns": 0,
        }
    )
    stopped: threading.Event = field(default_factory=threading.Event)
    asked: list[ControlCode] = field(default_factory=list)
    looks: int = 0

    @property
    def board(self) -> Any:
        return SimpleNamespace(number=self.number)

    def number(self, name: str) -> float:
        self.looks += name == "records"
        return self.numbers[name]

    def run(self, **_: Any) -> str:
        self.stopped.wait(DEADLINE_S)
        return "stopped"

    def ask(self, code: ControlCode, _value: float = 0.0) -> None:
        self.asked.append(code)
        self.numbers["state"] = 2  # of a kill

    def stop(self) -> None:
        self.stopped.set()


@contextmanager
def watched(
    tmp_path: Path, loop: StandIn, feed: Any, written: int, *, lag_s: float | None = None
) -> Iterator[list[Ended]]:
    """A supervisor that watches in a thread; what it found is there afterwards."""
    found: list[Ended] = []
    config = read_config(EXAMPLE)
    config = replace(config, feed=replace(config.feed, lag_s=lag_s))
    with HostLog(tmp_path / "log") as log:
        supervisor = Supervisor(config, loop, log, None)  # type: ignore[arg-type]
        supervisor.start()
        ticks: Any = SimpleNamespace(behind=written)
        watching = threading.Thread(target=lambda: found.append(supervisor.watch(feed, ticks)))
        watching.start()
        try:
            yield found
            watching.join(DEADLINE_S)
        finally:
            supervisor.close()


def feed_that_ended(code: int | None) -> Any:
    return SimpleNamespace(ended=lambda: code)


def after_looks(loop: StandIn, count: int) -> None:
    """Once the supervisor has looked so many times more."""
    until, waiting = loop.looks + 2 * count, threading.Event()
    for _ in range(int(DEADLINE_S / 0.005)):
        if loop.looks >= until:
            return
        waiting.wait(0.005)
    raise AssertionError("the supervisor doesn't look")


def test_a_replay_has_ended_when_all_of_it_was_read(tmp_path: Path) -> None:
    loop = StandIn()
    with watched(tmp_path, loop, feed_that_ended(0), 100) as found:
        for records in (40, 99):
            loop.numbers["records"] = records
            after_looks(loop, 2)
            assert not loop.stopped.is_set()
        loop.numbers["records"] = 100
    assert found == [Ended("the replay ended")]


def test_what_was_lost_counts_as_dealt_with(tmp_path: Path) -> None:
    loop = StandIn()
    loop.numbers |= {"records": 90, "lost": 10}
    with watched(tmp_path, loop, feed_that_ended(0), 100) as found:
        pass
    assert found == [Ended("the replay ended")]


def test_a_loop_that_reads_no_further_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERYTHING_READ_S", 0.1)
    loop = StandIn()
    loop.numbers["records"] = 40
    with watched(tmp_path, loop, feed_that_ended(0), 100) as found:
        pass
    assert found == [Ended("the replay ended", "60 records of the replay were never read")]


@pytest.mark.parametrize(("code", "said"), [(-9, "was killed by SIGKILL"), (3, "ended with exit code 3")])
def test_a_feed_that_fails_ends_the_run(tmp_path: Path, code: int, said: str) -> None:
    with watched(tmp_path, StandIn(), feed_that_ended(code), 100) as found:
        pass
    assert found == [Ended("the feed ended", f"the feed {said}; the loop was stopped, what worked was cancelled")]


def test_a_loop_that_fails_is_told_as_it_failed(tmp_path: Path) -> None:
    class Failing(StandIn):
        def run(self, **_: Any) -> str:
            raise ValueError("a defect")

    loop = Failing()
    loop.numbers["running"] = 0
    with pytest.raises(ValueError, match="a defect"), watched(tmp_path, loop, feed_that_ended(None), 0):
        pass


def test_a_state_is_told_with_its_own_reason(tmp_path: Path) -> None:
    class Changing(StandIn):
        def number(self, name: str) -> float:
            if name == "why" and self.numbers["records"] == 0:  # the loop tells between two reads
                self.numbers |= {"state": 1, "why": MARKET_MOVE, "records": 1}
            return super().number(name)

    loop = Changing()
    with watched(tmp_path, loop, feed_that_ended(None), 0):
        after_looks(loop, 3)
        loop.stopped.set()
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["state"], line["why"]) for line in told] == [("reducing", "market_move")]


@pytest.mark.parametrize(("ahead_s", "killed"), [(-1e9, False), (50, False), (70, True), (1e9, True)])
def test_event_time_far_in_the_future_kills(tmp_path: Path, ahead_s: float, killed: bool) -> None:
    loop = StandIn()
    loop.numbers["event_ns"] = time.time_ns() + ahead_s * 1e9
    with watched(tmp_path, loop, feed_that_ended(None), 0):
        after_looks(loop, 3)
        loop.stopped.set()
    assert loop.asked == [ControlCode.KILL] * killed
    assert ("event time is in the future" in (tmp_path / "log").read_text()) == killed


@pytest.mark.parametrize(
    ("lag_s", "ahead_s", "killed"),
    [(600.0, -1, False), (600.0, -700, True), (None, -700, False), (600.0, 1, False), (600.0, None, False)],
)
def test_event_time_far_behind_kills_where_asked_for(
    tmp_path: Path, lag_s: float | None, ahead_s: float | None, killed: bool
) -> None:
    loop = StandIn()
    loop.numbers["event_ns"] = 0 if ahead_s is None else time.time_ns() + ahead_s * 1e9
    with watched(tmp_path, loop, feed_that_ended(None), 0, lag_s=lag_s):
        after_looks(loop, 3)
        loop.stopped.set()
    assert loop.asked == [ControlCode.KILL] * killed
    assert ("too far behind" in (tmp_path / "log").read_text()) == killed


def test_a_signal_stops_it_from_outside(tmp_path: Path) -> None:
    loop = StandIn()
    with watched(tmp_path, loop, feed_that_ended(None), 0) as found:
        loop.stopped.set()
    assert found == [Ended("a signal asked for it")]
