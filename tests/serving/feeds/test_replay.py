"""Replay: what is scheduled, and that the ring's readers get the tape, all of it."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DataError
from serving.feeds.layouts import read_tape
from serving.feeds.replay import Pace, ReplayFeed, arrivals
from serving.feeds.tape import Tape
from serving.host.records import QUOTE, RECORD, Kind, QuoteFlags, Records
from serving.host.ring import RingReader, RingWriter
from tests.serving.feeds import tables
from tests.serving.feeds.tables import write

DEADLINE_S = 30.0
START = 123_456_789


def events(steps: list[tuple[int, int]]) -> Records:
    """Events so far apart (ns): one record, or a picture of several levels."""
    records = np.zeros(sum(levels for _, levels in steps), RECORD)
    at, now = 0, 1_700_000_000_000_000_000
    for gap, levels in steps:
        now += gap
        part = records[at : at + levels]
        part["event_ns"] = now
        part["kind"] = Kind.LEVEL if levels > 1 else Kind.TRADE
        part["flags"][:1] = QuoteFlags.FIRST if levels > 1 else 0
        at += levels
    return records


STEPS = st.lists(st.tuples(st.integers(-1000, 10**12), st.integers(1, 4)), min_size=1, max_size=20)


SOME_PACES = [("original", 1.0), ("scaled", 0.5), ("scaled", 8.0), ("scaled", 10.0), ("scaled", 3.0),
              ("events_per_second", 20_000.0), ("events_per_second", 1024.0)]  # fmt: skip


@given(STEPS, st.sampled_from(SOME_PACES))
def test_arrivals_are_exact(steps: list[tuple[int, int]], pace: tuple[str, float]) -> None:
    """In fractions: the floor of elapsed time over the factor, or of the event's place over the rate."""
    kind, value = pace
    records = events(steps)
    expected, elapsed = [], np.cumsum([0, *(gap for gap, _ in steps[1:])])
    for place, (_, levels) in enumerate(steps):
        past = place * 10**9 if kind == "events_per_second" else int(elapsed[: place + 1].max())
        expected += [START + math.floor(Fraction(past) / Fraction(value))] * levels
    assert arrivals(records, Pace(kind, value), START).tolist() == expected


@pytest.mark.parametrize("kind", ["scaled", "events_per_second"])
@pytest.mark.parametrize("value", [1e-9, 1e-300])
def test_a_pace_slower_than_time_lasts_never_arrives_rather_than_at_once(kind: str, value: float) -> None:
    found = arrivals(events([(0, 1), (10**12, 1), (10**12, 1)] + [(1, 1)] * 20), Pace(kind, value), START)
    assert found[0] == START
    assert (np.diff(found) >= 0).all()
    assert found[-1] > START + 10**18


def test_paces_that_cannot_be_are_refused() -> None:
    for kind, value in (("fast", 1.0), ("scaled", 0.0), ("scaled", float("nan")), ("events_per_second", -1.0),
                        ("original", 2.0), ("full", 3.0)):  # fmt: skip
        with pytest.raises(DataError, match="pace"):
            Pace(kind, value)
    with pytest.raises(DataError, match="full pace has no schedule"):
        arrivals(events([(0, 1)]), Pace("full"), 0)


def test_arrival_is_as_scheduled_however_late_the_ring_is_read(tmp_path: Path) -> None:
    """The ring is full before the reader begins: what is measured from arrival contains the wait."""
    records = events([(1000, 1)] * 64)
    with RingWriter(tmp_path / "ring", 16, lossless=True) as ring, RingReader(ring.path, lossless=True) as reader:
        feed = ReplayFeed(Tape(records, ()), Pace("original"))
        worker = threading.Thread(target=feed.run, args=(ring,))
        worker.start()
        deadline = time.monotonic() + DEADLINE_S
        while reader.behind < 16 and time.monotonic() < deadline:
            reader.wait(1000)
        got = [reader.read(1)]
        last_due_ns = int(got[0].view(QUOTE)["arrival_ns"][0]) + 63 * 1000
        while (blocked_ns := time.monotonic_ns()) <= last_due_ns:
            continue
        while sum(map(len, got)) < 64 and time.monotonic() < deadline:
            got.append(reader.read())
        worker.join(DEADLINE_S)
        arrival = np.concatenate(got).view(QUOTE)["arrival_ns"]
        assert np.diff(arrival).tolist() == [1000] * 63
        assert arrival[-1] < blocked_ns  # though it was written after that


@pytest.mark.parametrize("pace", [Pace("full"), Pace("events_per_second", 1e6)])
def test_a_reader_in_another_process_gets_the_whole_tape(tmp_path: Path, pace: Pace) -> None:
    files = [write(tmp_path / "t.csv", tables.trades(3000, aggressor=[1] * 3000)),
             write(tmp_path / "b.csv", tables.book(3000)), write(tmp_path / "q.csv", tables.bbo(3000))]  # fmt: skip
    tape = read_tape("binance_l2", files)
    code = """
import sys, time
from pathlib import Path
import numpy as np
from serving.host.ring import RingReader
path, count, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
with RingReader(path, lossless=True) as reader:
    print("ready", flush=True)
    got, deadline = [], time.monotonic() + 60
    while sum(map(len, got)) < count and time.monotonic() < deadline:
        got.append(reader.read())
        if not len(got[-1]):
            reader.wait(1000)
    out.write_bytes(b"".join(one.tobytes() for one in got))
    print(reader.lost, flush=True)
"""
    with RingWriter(tmp_path / "ring", 1024, lossless=True) as ring:
        arguments = [sys.executable, "-c", code, ring.path, str(len(tape.records)), str(tmp_path / "got")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            summary = ReplayFeed(tape, pace).run(ring)
            said, _ = reader.communicate(timeout=60)
    assert said == "0\n"
    assert summary.records == len(tape.records) == 36_000
    assert summary.counts["events"] == 9000
    assert summary.by_kind == tape.by_kind
    got = np.frombuffer((tmp_path / "got").read_bytes(), np.uint8).view(QUOTE)
    sent = tape.records.view(QUOTE)
    for field in ("event_ns", "sequence", "instrument", "kind", "flags", "bid", "bid_size", "ask", "ask_size"):
        assert (got[field] == sent[field]).all()
    arrival = got["arrival_ns"]
    assert (np.diff(arrival) >= 0).all()
    pictures = arrival[got["kind"] == Kind.LEVEL].reshape(-1, 10)
    assert (pictures == pictures[:, :1]).all()  # the records of a picture arrive together
    if pace.kind != "full":
        assert (arrival == arrivals(tape.records, pace, int(arrival[0]))).all()


def test_a_stopped_replay_ends_between_events(tmp_path: Path) -> None:
    hour = 3_600_000_000_000
    with RingWriter(tmp_path / "ring", 64) as ring, RingReader(ring.path) as reader:
        feed = ReplayFeed(Tape(events([(0, 3), (hour, 3)]), ()), Pace("original"), busy=False)
        done: list[int] = []
        worker = threading.Thread(target=lambda: done.append(feed.run(ring).records))
        worker.start()
        deadline = time.monotonic() + DEADLINE_S
        while reader.behind < 3 and time.monotonic() < deadline:
            reader.wait(1000)
        feed.stop()
        worker.join(DEADLINE_S)
        assert done == [3]
    with RingWriter(tmp_path / "ring", 64) as ring:
        stopped = ReplayFeed(Tape(events([(0, 1)]), ()), Pace("full"))
        stopped.stop()
        assert stopped.run(ring).records == 0


def test_a_full_ring_does_not_keep_a_stopped_replay(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "ring", 16, lossless=True) as ring, RingReader(ring.path, lossless=True) as reader:
        feed = ReplayFeed(Tape(events([(0, 1)] * 100), ()), Pace("full"))
        done: list[int] = []
        worker = threading.Thread(target=lambda: done.append(feed.run(ring).records))
        worker.start()
        deadline = time.monotonic() + DEADLINE_S
        while reader.behind < 16 and time.monotonic() < deadline:
            time.sleep(0.001)
        feed.stop()
        worker.join(DEADLINE_S)
        assert done == [16]
