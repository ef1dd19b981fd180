"""What nobody should do to a loop: lose half a picture, scribble in its ring, send kills that count wrongly."""

from __future__ import annotations

import math
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving import native
from serving.host.loop import ControlCode, HotLoop, Rings
from serving.host.records import ORDER, Kind, OrderFlags, Records
from serving.host.reference.loop import ReferenceLoop
from serving.host.ring import RingReader, RingWriter
from serving.host.tick_features import tick_rows
from tests.serving.host.chains import table
from tests.serving.host.live import PATIENCE_S, Live, wait_until
from tests.serving.host.test_loop import loop_of
from tests.serving.host.worlds import (
    FIRST,
    HAS_ASK,
    HAS_BID,
    LAST,
    QUOTER,
    START_NS,
    UNLIMITED,
    engine_of,
    limits_of,
    record,
    records_of,
    spec_of,
    stream,
)

LEVELS = 4
KILLS = (math.nan, -1.0, 0.0, 0.5, 1e300, math.inf, float(2**53))


def pictures(*mids: float) -> Records:
    """A picture of `LEVELS` levels around each; records are numbered from 1."""
    parts = []
    for mid in mids:
        for place in range(LEVELS):
            flags = HAS_BID | HAS_ASK | FIRST * (place == 0) | LAST * (place == LEVELS - 1) | place << 4
            away = 0.01 * (1 + place)
            values = (mid - away, 1.0, mid + away, 1.0)
            parts.append(record(START_NS + len(parts), Kind.LEVEL, flags, values, sequence=len(parts) + 1))
    return records_of(parts)


def reference_of() -> ReferenceLoop:
    return ReferenceLoop(engine_of(), spec_of(), table(), limits_of(), QUOTER)


@pytest.mark.parametrize("kept", range(1, LEVELS))
def test_two_halves_of_pictures_are_no_picture(kept: int) -> None:
    """The head of one and the tail of another: levels in order, prices in order; a best price that is gone for long."""
    whole = pictures(100.0, 100.0, 100.0)
    torn = np.delete(whole, range(LEVELS + kept, 2 * LEVELS + kept))
    assert torn["event_ns"].shape == (2 * LEVELS,)
    loop, reference = loop_of(), reference_of()
    left = loop.process(torn)
    assert loop.board.number("gaps") == LEVELS
    assert loop.board.number("refused_books") == 1
    assert left.tobytes() == reference.process(torn).tobytes()
    assert reference.book.refused == 1
    assert tick_rows(torn, spec_of().step_ns).refused_books == 1  # for training it is none either


@pytest.mark.parametrize("count", KILLS)
def test_a_kill_that_counts_nothing_kills_now(count: float) -> None:
    records = stream(21, 60, garbage=0.0, controls=0.0)
    kill = records_of([record(START_NS, Kind.CONTROL, ControlCode.KILL, (math.nan, 0.0, 0.0, count))])
    loop = loop_of()
    loop.process(records)
    left = loop.process(kill)
    assert loop.board.read()["state"] == "halted"
    reference = reference_of()
    reference.process(records)
    assert left.tobytes() == reference.process(kill).tobytes()


def test_a_kill_before_an_order_that_left_long_ago_kills_now() -> None:
    loop = loop_of()
    loop.process(stream(21, 60, garbage=0.0, controls=0.0))
    assert loop.board.number("orders") > 2
    loop.process(records_of([record(START_NS, Kind.CONTROL, ControlCode.KILL, (1.0, 0.0, 0.0, 2.0))]))
    assert loop.board.read()["state"] == "halted"


@pytest.mark.parametrize("tighter", [{"order_quantity": 0.5}, {"position_quantity": 0.5}, {"collar_share": 0.0}])
def test_what_new_limits_forbid_does_not_rest(tighter: dict[str, float]) -> None:
    limits = limits_of(**UNLIMITED | {"collar_money": 0.0, "collar_share": 0.5})
    loop = loop_of(limits=limits)
    loop.process(pictures(100.0))
    assert loop.board.array("bid").max() > 0.0
    loop.set_limits(replace(limits, anomaly_score=7.0), 2)
    assert set(loop.process(records_of([]))["kind"].tolist()) == {Kind.SIGNAL}  # nothing that works breaks it
    loop.set_limits(replace(limits, **tighter), 3)
    left = loop.process(records_of([]))
    assert (left[left["kind"] == Kind.ORDER]["flags"] & OrderFlags.IS_CANCEL).all()
    assert loop.board.array("bid").max() == loop.board.array("ask").max() == 0.0


def scribble(ring: Path, slot: int, number: int) -> None:
    core = native.core()
    with ring.open("r+b") as file:
        file.seek(core.RING_HEADER_BYTES + slot * core.SLOT_BYTES)
        file.write(struct.pack("<Q", number))


@pytest.mark.parametrize("number", [2 * 1000 + 2, 2 * 1000 + 1, 2**64 - 1])
def test_a_scribble_in_a_ring_holds_no_reader(tmp_path: Path, number: int) -> None:
    """It says that the writer is far ahead, who isn't: nothing to read yet, and lost when the writer has gone on."""
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        scribble(tmp_path / "r", 0, number)
        assert len(reader.read()) == 0
        assert not reader.wait(1000)
        sent = stream(22, 40, garbage=0.0, controls=0.0)[:20]
        writer.write(sent)
        found = reader.read()
        assert reader.lost + len(found) == 20
        assert found.tobytes() == sent[-len(found) :].tobytes()


def test_a_reader_that_stands_still_holds_no_loop_that_must_end(tmp_path: Path) -> None:
    """A lossless loop waits for it, until it is stopped: then what works is cancelled, and the reader told its loss."""
    with RingWriter(tmp_path / "ticks", 1 << 12) as ticks:
        names = [tmp_path / name for name in ("ticks", "orders", "fills", "signals")]
        loop = HotLoop(
            engine_of(), spec_of(), table(), limits_of(**UNLIMITED), QUOTER, rings=Rings(*names, 16, lossless_out=True)
        )
        ends: list[str] = []
        with RingReader(tmp_path / "orders", "gateway", lossless=True) as gateway:
            running = threading.Thread(target=lambda: ends.append(loop.run(signals=False)))
            running.start()
            ticks.write(stream(24, 300, garbage=0.0, controls=0.0))
            wait_until(lambda: gateway.behind == 16, "a full ring")
            loop.stop()
            running.join(PATIENCE_S)
            assert ends == ["stopped"]
            left = gateway.read().view(ORDER)
            assert gateway.lost > 0
    both_sides = 2 * table().quoted
    cancelled = left[-both_sides:][(left[-both_sides:]["flags"] & OrderFlags.IS_CANCEL) > 0]
    assert len(cancelled) > 0
    assert loop.board.array("bid").max() == loop.board.array("ask").max() == 0.0


@pytest.mark.parametrize("sleep", [False, True])
def test_a_loop_hears_a_kill_whatever_its_ring_says(tmp_path: Path, sleep: bool) -> None:
    records = stream(23, 200, garbage=0.0, controls=0.0)
    live = Live(tmp_path)
    with live.running(sleep=sleep):
        live.write(records)
        wait_until(lambda: live.read_all() == len(records), "reading all records")
        scribble(tmp_path / "ticks", len(records), 2**60)
        live.loop.ask(ControlCode.KILL)
        wait_until(lambda: live.loop.board.read()["state"] == "halted", "the kill")
    assert live.ends == ["stopped"]
