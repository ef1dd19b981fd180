"""Who stops a loop: the kill switch three ways, controls in their order, and a replay that repeats what they did."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import HostError
from serving.host.loop import ControlCode, HotLoop, KillSource, SignalCode, with_controls
from serving.host.records import ORDER, SIGNAL, Kind, OrderFlags, Records
from tests.serving.host.chains import table
from tests.serving.host.live import Live, wait_until
from tests.serving.host.test_loop import loop_of, of_kind
from tests.serving.host.worlds import UNLIMITED, engine_of, limits_of, record, records_of, spec_of, stream

CALM = limits_of(**UNLIMITED | {"position_quantity": 1000.0})
HALTED, ACTIVE = "halted", "active"


def calm_stream(events: int = 400, seed: int = 1) -> Records:
    """Quotes and trades alone, times strictly ascending."""
    records = stream(seed, events, garbage=0.0, controls=0.0)
    records["event_ns"] += np.arange(len(records))
    return records


def kill_by_asking(live: Live) -> None:
    live.loop.ask(ControlCode.KILL)


def kill_by_signal(live: Live) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def kill_by_file(live: Live) -> None:
    (live.folder / "HALT").touch()


KILLS: dict[KillSource, Callable[[Live], None]] = {
    KillSource.ASKED: kill_by_asking,
    KillSource.SIGNAL: kill_by_signal,
    KillSource.FILE: kill_by_file,
}


def killed_or_about_to_be(live: Live) -> bool:
    return bool(live.loop.board.number("kill")) or live.loop.board.read()["state"] == HALTED


@pytest.mark.parametrize("sleep", [False, True])
@pytest.mark.parametrize("source", KillSource)
def test_nothing_written_after_a_kill_causes_an_order(tmp_path: Path, source: KillSource, sleep: bool) -> None:
    records = calm_stream()
    half = len(records) // 2
    live = Live(tmp_path, limits=CALM)
    with live.running(sleep=sleep, signals=True, halt_folder=tmp_path):
        live.write(records[:half])
        wait_until(lambda: live.loop.board.number("orders") > 0, "an order")
        KILLS[source](live)
        wait_until(lambda: killed_or_about_to_be(live), "the kill")
        live.write(records[half:])
        wait_until(lambda: live.read_all() == len(records), "reading all records")
    orders, told = live.left("orders").view(ORDER), live.left("signals").view(SIGNAL)
    asked = (orders["flags"] & OrderFlags.IS_CANCEL) == 0
    assert orders["event_ns"][asked].max() <= records["event_ns"][:half].max()
    assert working_after(orders, live.left("fills")) == {}
    acted = told[told["flags"] == SignalCode.CONTROL_ACTED]
    assert acted["value"][0, :2].tolist() == [ControlCode.KILL, source]
    state = told[told["flags"] == SignalCode.STATE]["value"][0]
    assert (int(state[0]), int(state[1])) == (2, 15)  # HALTED, kill_switch


def working_after(orders: Records, fills: Records) -> dict[tuple[int, bool], int]:
    """Order ids that still work, by contract and side."""
    working: dict[tuple[int, bool], int] = {}
    for order in orders.view(ORDER):
        key = (int(order["instrument"]), bool(order["flags"] & OrderFlags.IS_BUY))
        if order["flags"] & OrderFlags.IS_CANCEL:
            assert working.pop(key) == order["order_id"]
        else:
            working[key] = int(order["order_id"])
    filled = set(fills["values"][:, 0].view(np.uint64).tolist())
    return {key: order_id for key, order_id in working.items() if order_id not in filled}


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        live = Live(tmp_path)
        with live.running(signals=True):
            wait_until(lambda: live.loop.board.number("running"), "the start")
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: live.loop.board.read()["state"] == HALTED, "the halt")
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: heard, "Python's own handler")
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_by_signal_cancels_what_works(tmp_path: Path, number: int) -> None:
    live = Live(tmp_path, limits=CALM)
    with live.running(signals=True, idle_exit_s=20.0):
        live.write(calm_stream())
        wait_until(lambda: live.loop.board.number("orders") > 0, "an order")
        os.kill(os.getpid(), number)
    assert live.ends == ["stopped"]
    assert working_after(live.left("orders"), live.left("fills")) == {}
    assert live.loop.board.number("running") == 0


def test_two_loops_dont_share_the_signals(tmp_path: Path) -> None:
    first, second = (tmp_path / "1", tmp_path / "2")
    for folder in (first, second):
        folder.mkdir()
    one, other = Live(first), Live(second)
    with one.running(signals=True):
        wait_until(lambda: one.loop.board.number("running"), "the start")
        with pytest.raises(HostError, match="takes the signals already"):
            other.loop.run(signals=True, idle_exit_s=0.01)
    assert other.loop.run(signals=True, idle_exit_s=0.01) == "idle"


def test_a_loop_runs_once_at_a_time(tmp_path: Path) -> None:
    live = Live(tmp_path)
    with live.running():
        wait_until(lambda: live.loop.board.number("running"), "the start")
        with pytest.raises(HostError, match="runs already"):
            live.loop.run(signals=False, idle_exit_s=0.01)


def test_a_halt_file_that_is_there_starts_halted_and_nobody_resumes_before_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "HALT").touch()
    live = Live(tmp_path, limits=CALM)
    records = calm_stream()
    with live.running(halt_folder=tmp_path):
        wait_until(lambda: live.loop.board.read()["state"] == HALTED, "the halt")
        live.loop.ask(ControlCode.RESUME)
        wait_until(lambda: live.loop.board.number("controls_refused") == 1, "the refusal")
        live.write(records[:100])
        wait_until(lambda: live.read_all() == 100, "reading")
        assert live.loop.board.number("orders") == 0
        (tmp_path / "HALT").unlink()
        wait_until(lambda: not live.loop.board.number("halt_file"), "the file's end")
        assert live.loop.board.read()["state"] == HALTED
        live.loop.ask(ControlCode.RESUME)
        wait_until(lambda: live.loop.board.read()["state"] == ACTIVE, "the resumption")
        live.write(records[100:])
        wait_until(lambda: live.loop.board.number("orders") > 0, "an order")


def test_other_files_dont_halt_and_a_folder_that_goes_does(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    live = Live(tmp_path)
    with live.running(halt_folder=watched):
        wait_until(lambda: live.loop.board.number("running"), "the start")
        (watched / "HALT.txt").touch()
        (watched / "HALT.txt").unlink()
        (watched / "other").touch()
        (watched / "other").rename(tmp_path / "other")
        assert live.loop.board.number("controls") == 0
        watched.rmdir()
        wait_until(lambda: live.loop.board.read()["state"] == HALTED, "the halt")
    assert not live.loop.board.number("stop")


def test_a_file_moved_there_halts(tmp_path: Path) -> None:
    live = Live(tmp_path)
    with live.running(halt_folder=tmp_path):
        (tmp_path / "elsewhere").touch()
        (tmp_path / "elsewhere").rename(tmp_path / "HALT")
        wait_until(lambda: live.loop.board.read()["state"] == HALTED, "the halt")


def test_a_folder_that_isnt_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't be watched"):
        Live(tmp_path).loop.run(signals=False, halt_folder=tmp_path / "none", idle_exit_s=0.01)


def test_a_kill_wins_over_a_resume_that_waited_with_it() -> None:
    """Which of the two was asked first isn't known when the loop sees both."""
    loop = loop_of(limits=CALM)
    loop.process(calm_stream(20))
    loop.ask(ControlCode.RESUME)
    loop.ask(ControlCode.KILL)
    told = of_kind(loop.process(calm_stream(1)), Kind.SIGNAL).view(SIGNAL)
    assert told["flags"].tolist()[:2] == [SignalCode.CONTROL_REFUSED, SignalCode.CONTROL_ACTED]
    assert loop.board.read()["state"] == HALTED


@pytest.mark.parametrize("code", ControlCode)
def test_asked_or_in_the_records_is_the_same(code: ControlCode) -> None:
    """But for LIMITS, which is only told, and that a record says whose kill it was."""
    if code is ControlCode.LIMITS:
        with pytest.raises(HostError, match="no control 7"):
            loop_of().ask(code)
        return
    records = calm_stream()
    asking, reading = loop_of(limits=CALM), loop_of(limits=CALM)
    first = asking.process(records[:200])
    asking.ask(code, 7.5)
    asked = np.concatenate([first, asking.process(records[200:])])
    value = float(KillSource.ASKED) if code is ControlCode.KILL else 7.5
    control = records_of([record(0, Kind.CONTROL, int(code), (value,))])
    read = reading.process(np.concatenate([records[:200], control, records[200:]]))
    assert asked.tobytes() == read.tobytes()
    assert asked.tobytes() != loop_of(limits=CALM).process(records).tobytes()


def test_the_mailbox_is_bounded_and_keeps_its_order() -> None:
    loop = loop_of()
    for score in range(64):
        loop.ask(ControlCode.ANOMALY_SCORE, float(score))
    with pytest.raises(HostError, match="too many controls wait"):
        loop.ask(ControlCode.ANOMALY_SCORE, 64.0)
    loop.ask(ControlCode.KILL)  # always gets through
    told = loop.process(calm_stream(1)).view(SIGNAL)
    acted = told[told["flags"] == SignalCode.CONTROL_ACTED]["value"]
    assert acted[:64, 1].tolist() == list(range(64))
    assert acted[64, 0] == ControlCode.KILL


def test_many_threads_ask_and_nothing_is_lost() -> None:
    loop, each = loop_of(), 15
    threads = [
        threading.Thread(target=lambda base=base: [loop.ask(ControlCode.ANOMALY_SCORE, base + n) for n in range(each)])
        for base in (100.0, 200.0, 300.0, 400.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = loop.process(calm_stream(1)).view(SIGNAL)
    scores = told[told["flags"] == SignalCode.CONTROL_ACTED]["value"][:, 1]
    assert sorted(scores.tolist()) == [base + n for base in (100.0, 200.0, 300.0, 400.0) for n in range(each)]
    for base in (100.0, 200.0, 300.0, 400.0):
        assert (np.diff(scores[(scores >= base) & (scores < base + each)]) > 0).all()


def test_what_isnt_a_number_isnt_asked() -> None:
    with pytest.raises(HostError, match="found NaN"):
        loop_of().ask(ControlCode.ANOMALY_SCORE, float("nan"))


def test_limits_change_between_records_and_are_told() -> None:
    records, loop = calm_stream(), loop_of(limits=CALM)
    loop.process(records[:100])
    loop.set_limits(limits_of(**UNLIMITED | {"order_quantity": 0.5}), serial=12)
    with pytest.raises(HostError, match="aren't in force yet"):
        loop.set_limits(CALM, serial=13)
    left = loop.process(records[100:])
    told = left[left["kind"] == Kind.SIGNAL].view(SIGNAL)
    assert told[0]["value"].tolist() == [ControlCode.LIMITS, 12.0, 100.0, 0.0]
    orders = of_kind(left, Kind.ORDER)
    assert len(orders)
    assert (orders["flags"] & OrderFlags.IS_CANCEL).all()
    assert loop.board.refused_by()["order_size"] > 0
    with pytest.raises(HostError, match="restart"):
        loop.set_limits(limits_of(tick_money=0.02))


@pytest.mark.parametrize("seed", range(2))
def test_a_replay_repeats_what_operators_did(tmp_path: Path, seed: int) -> None:
    """Controls from another thread at any moment, also between two orders of one event: a replay leaves the same."""
    records, rng = calm_stream(3000, seed), np.random.default_rng(seed)
    live = Live(tmp_path, limits=limits_of())
    done = threading.Event()

    def operate() -> None:
        for _ in range(2000):  # what they bring about has room in the ring of signals
            if done.is_set():
                break
            asked = ControlCode(int(rng.integers(1, 7)))
            with contextlib.suppress(HostError):  # the mailbox is full: later
                live.loop.ask(asked, float(rng.integers(0, 2)))
                live.loop.ask(ControlCode.RESUME)
                live.loop.ask(ControlCode.MODEL_EXPIRED)

    with live.running():
        operator = threading.Thread(target=operate)
        operator.start()
        try:
            for piece in np.array_split(records, 50):
                live.write(piece)
            wait_until(lambda: live.read_all() == len(records), "reading all records")
        finally:
            done.set()
            operator.join()
    told = live.left("signals")
    assert (told["flags"] == SignalCode.CONTROL_ACTED).sum() > 50
    repeated = loop_of().process(with_controls(records, told))
    for name, kind in (("orders", Kind.ORDER), ("fills", Kind.FILL)):
        assert live.left(name).tobytes() == of_kind(repeated, kind).tobytes(), name
    kept = told[told["flags"] != SignalCode.CONTROL_REFUSED]  # what did nothing isn't repeated
    again = of_kind(repeated, Kind.SIGNAL)
    for field in ("event_ns", "flags", "instrument"):
        assert np.array_equal(kept[field], again[field])
    assert kept["values"].tobytes() == again["values"].tobytes()


def test_a_kill_between_two_orders_is_repeated_there() -> None:
    """Five contracts ask for ten orders at the first quote; the kill acts before the fourth."""
    records = calm_stream(50)
    first = of_kind(loop_of(limits=CALM).process(records), Kind.ORDER)
    assert (first["event_ns"][:10] == first["event_ns"][0]).all()
    control = records_of([record(0, Kind.CONTROL, ControlCode.KILL, (2.0, 0.0, 0.0, 4.0))])
    place = int(np.flatnonzero(records["event_ns"] == first["event_ns"][0])[-1])
    killed = loop_of(limits=CALM).process(np.insert(records, place, control[0]))
    orders = of_kind(killed, Kind.ORDER).view(ORDER)
    assert ((orders["flags"] & OrderFlags.IS_CANCEL) != 0).tolist() == [False] * 3 + [True] * 3
    told = of_kind(killed, Kind.SIGNAL).view(SIGNAL)["value"].tolist()
    assert told[0] == [ControlCode.KILL, 2.0, float(place), 4.0]
    again = loop_of(limits=CALM).process(with_controls(records, killed))
    assert again.tobytes() == killed.tobytes()


def test_a_loop_starts_as_its_engine_begins() -> None:
    """Whatever the engine was used for before."""
    engine: Any = engine_of()
    records = calm_stream()

    def told() -> bytes:
        return HotLoop(engine, spec_of(), table(), CALM, fair_values_every_ns=1).process(records).tobytes()

    expected = told()
    engine.advance(np.ones(engine.info().step_features, np.float32))
    assert told() == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="a real-time priority needs CAP_SYS_NICE")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is the loop's, another the test's")
def test_a_kill_file_is_heard_beside_a_loop_that_never_lets_go(tmp_path: Path) -> None:
    """The thread that watches would be on the loop's core behind its real-time priority, if it stayed where it was
    made."""
    live = Live(tmp_path, limits=CALM)

    def run() -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # this thread
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        live.loop.run(signals=False, halt_folder=tmp_path)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: live.loop.board.number("running"), "the loop")
        (tmp_path / "HALT").touch()
        wait_until(lambda: live.loop.board.read()["state"] == HALTED, "the halt")
    finally:
        live.loop.stop()
        thread.join(30.0)
    assert not thread.is_alive()
