"""Rings between processes, and what remains when one of them is killed at any instruction."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from serving.errors import HostError
from tests.serving.native.built import built_core

CORE = built_core()

from serving.host.ring import RingReader, RingWriter  # noqa: E402
from tests.serving.host.ring_pattern import (  # noqa: E402
    DEADLINE_SECONDS,
    PATTERN,
    assert_pattern,
    forked,
    killed,
    read_in_steps,
    until,
    write_pattern,
    write_until_killed,
)

KILLS = 100


def _read_all(path: Path, count: int, report: Connection) -> None:
    """Reads until record `count`, checking each; reports how many came and were lost."""
    came = 0
    with RingReader(path, lossless=True) as reader:
        report.send("joined")
        while reader.position < count:
            assert reader.wait(int(DEADLINE_SECONDS * 1e6))
            got, first = read_in_steps(reader)
            assert_pattern(got, first)
            came += len(got)
        report.send((came, reader.lost))


def test_every_lossless_reader_gets_everything(tmp_path: Path) -> None:
    """Three processes, a ring a hundred times smaller than what goes through it."""
    path, count = tmp_path / "r", 200_000
    with RingWriter(path, 2048, lossless=True) as writer:
        pipes = [Pipe(duplex=False) for _ in range(3)]
        children = [forked(_read_all, path, count, send) for _, send in pipes]
        for receive, _ in pipes:
            assert receive.poll(DEADLINE_SECONDS)
            assert receive.recv() == "joined"
        write_pattern(writer, count)
        for receive, _ in pipes:
            assert receive.poll(DEADLINE_SECONDS)
            assert receive.recv() == (count, 0)
        for child in children:
            child.join(DEADLINE_SECONDS)
            assert child.exitcode == 0


def _torn(path: Path, capacity: int) -> int:
    """Slots that hold half a record: their number is odd."""
    slots = np.fromfile(path, np.uint64, offset=CORE.RING_HEADER_BYTES).reshape(capacity, 8)
    return int((slots[:, 0] % 2).sum())


@pytest.mark.parametrize("capacity", [4, 1024])
def test_a_killed_writer_leaves_no_half_record(tmp_path: Path, capacity: int) -> None:
    """Every record that any reader gets is whole and in its place, through all writers; some died within a record."""
    path = tmp_path / "r"
    RingWriter(path, capacity).close()
    torn = checked = kill = 0
    rng = np.random.default_rng(capacity)
    with RingReader(path) as reader, RingReader(path, "named") as named:
        while kill < KILLS or (torn == 0 and kill < 100 * KILLS):
            kill += 1
            child = forked(write_until_killed, path, capacity)
            until(lambda writers=kill + 1: reader.writers == writers, "the next writer")
            for _ in range(int(rng.integers(1, 30))):
                assert reader.wait(int(DEADLINE_SECONDS * 1e6))
                got, first = read_in_steps(reader)
                assert_pattern(got, first)
                checked += len(got)
            killed(child)
            torn += _torn(path, capacity)
            lost, before, behind = reader.lost, reader.position, reader.behind
            got, first = read_in_steps(reader, capacity)
            assert_pattern(got, first)
            assert first - before == reader.lost - lost
            assert len(got) >= min(behind, capacity) - 1  # all but the one that was being overwritten
            assert reader.behind == 0
            checked += len(got)
            assert reader.position == checked + reader.lost  # each record came or was counted as lost
            if kill % 20 == 0:
                got, first = read_in_steps(named, capacity)
                assert_pattern(got, first)
    assert torn > 0, "no kill hit a record: this test has shown nothing"
    assert checked > 0, "no record was read: this test has shown nothing"


def test_a_writer_goes_on_after_the_last_whole_record(tmp_path: Path) -> None:
    """Nothing is lost between writers, nor written twice, whichever instruction the one before died at."""
    path = tmp_path / "r"
    for kill in range(KILLS // 2):
        with RingWriter(path, 1024) as writer, RingReader(path, "all") as reader:
            assert writer.writers == 2 * kill + 1
            write_pattern(writer, 10)
            got, first = read_in_steps(reader)
            assert_pattern(got, first)
            assert (reader.position, reader.behind) == (writer.written, 0)
        with RingReader(path) as reader:
            child = forked(write_until_killed, path, 1024)
            until(lambda reader=reader: reader.behind > 50, "records")
            killed(child)


@pytest.mark.parametrize("at_number", [0, 5, 15, 16, 37])
def test_a_record_that_was_begun_is_written_anew(tmp_path: Path, at_number: int) -> None:
    """The slot's number is odd and its words are another's: no reader takes it, the next writer begins there."""
    path, capacity = tmp_path / "r", 16
    with RingWriter(path, capacity) as writer:
        write_pattern(writer, at_number)
    with path.open("r+b") as file:
        file.seek(CORE.RING_HEADER_BYTES + at_number % capacity * CORE.SLOT_BYTES)
        file.write((2 * at_number + 1).to_bytes(8, "little") + b"\xff" * 20)
    with RingReader(path) as reader:
        assert (reader.position, len(reader.read())) == (at_number, 0)
        with RingWriter(path, capacity) as writer:
            assert writer.written == at_number
            write_pattern(writer, 3)
        assert_pattern(reader.read(), at_number)


def test_a_record_that_was_whole_counts(tmp_path: Path) -> None:
    """Killed between the slot and the count of records: a reader may have had it, so it stays."""
    path = tmp_path / "r"
    with RingWriter(path, 16) as writer:
        write_pattern(writer, 20)
    with path.open("r+b") as file:
        file.seek(192)
        file.write((19).to_bytes(8, "little"))
    with RingWriter(path, 16) as writer, RingReader(path) as reader:
        assert (writer.written, reader.position) == (20, 20)


def test_there_is_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RingWriter(path, 16), pytest.raises(HostError, match=rf"living writer \(process {os.getpid()}\)"):
        RingWriter(path, 16)
    child = forked(write_until_killed, path, 16)
    with RingReader(path) as reader:
        until(lambda: reader.writers == 2, "the child's writer")
        with pytest.raises(HostError, match=rf"living writer \(process {child.pid}\).*stop that one"):
            RingWriter(path, 16)
        assert reader.writer_lives
        killed(child)
        assert not reader.writer_lives
        with RingWriter(path, 16) as writer:
            assert (writer.writers, reader.writers, reader.writer_lives) == (3, 3, True)


def _race(path: Path, gate: Connection, report: Connection) -> None:
    gate.recv()
    try:
        writer = RingWriter(path, 16)
    except HostError as error:
        report.send(str(error))
    else:
        report.send("writes")
        gate.recv()
        writer.close()


def test_of_many_that_make_it_at_once_one_writes(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / str(attempt)
        gates, reports = [Pipe() for _ in range(4)], [Pipe(duplex=False) for _ in range(4)]
        children = [forked(_race, path, gate[1], report[1]) for gate, report in zip(gates, reports, strict=True)]
        for gate in gates:
            gate[0].send("go")
        answers = [report[0].recv() for report in reports]
        assert answers.count("writes") == 1
        assert sum("living writer" in answer for answer in answers) == 3
        for child in children:
            killed(child)


def _make_and_remove(path: Path, times: int, report: Connection) -> None:
    made = 0
    while made < times:
        try:
            writer = RingWriter(path, 2)
        except HostError:
            continue  # another has it
        made += 1
        try:
            with RingReader(path) as reader:
                assert reader.writer_lives
            path.unlink()
        except (AssertionError, HostError, FileNotFoundError) as error:
            report.send(f"wrote to a file that had been removed: {error!r}")
            return
        writer.close()
    report.send("always had the ring of that name")


def test_a_writer_never_takes_a_removed_file(tmp_path: Path) -> None:
    """Two that make the ring, remove it and let go, each as often as it can: whoever has it has what the name says."""
    pipes = [Pipe(duplex=False) for _ in range(2)]
    children = [forked(_make_and_remove, tmp_path / "r", 2000, send) for _, send in pipes]
    for receive, _ in pipes:
        assert receive.poll(DEADLINE_SECONDS)
        assert receive.recv() == "always had the ring of that name"
    for child in children:
        killed(child)


def _read_until_killed(path: Path, report: Connection) -> None:
    with RingReader(path, "worker") as reader:
        while True:
            reader.wait(1_000_000)
            got, first = read_in_steps(reader, 7)
            if len(got):
                report.send((first, len(got)))


def test_a_killed_reader_s_name_goes_on_where_it_stood(tmp_path: Path) -> None:
    """Nothing is left out; only what the last read gave comes twice."""
    path = tmp_path / "r"
    reached = 0
    with RingWriter(path, 4096) as writer:
        RingReader(path, "worker").close()
        for kill in range(20):
            receive, send = Pipe(duplex=False)
            write_pattern(writer, 100)
            child = forked(_read_until_killed, path, send)
            for _ in range(kill % 7 + 1):
                assert receive.poll(DEADLINE_SECONDS)
                first, count = receive.recv()
                assert reached - 7 <= first <= reached
                reached = first + count
            killed(child)
            while receive.poll():
                first, count = receive.recv()
                assert first == reached
                reached += count
        with RingReader(path, "worker") as reader:
            assert reached - 7 <= reader.position <= reached
            begin = reader.position
            assert_pattern(reader.read(4096), begin)
            assert (reader.position, reader.lost) == (writer.written, 0)


def test_a_name_has_one_living_reader(tmp_path: Path) -> None:
    path = tmp_path / "r"
    receive, send = Pipe(duplex=False)
    with RingWriter(path, 16) as writer:
        RingReader(path, "worker").close()
        write_pattern(writer, 1)
        child = forked(_read_until_killed, path, send)
        assert receive.poll(DEADLINE_SECONDS)
        with pytest.raises(HostError, match=rf"living reader 'worker' \(process {child.pid}\).*another name"):
            RingReader(path, "worker")
        killed(child)
        RingReader(path, "worker").close()


def _join_and_stop(path: Path, name: str, report: Connection) -> None:
    reader = RingReader(path, name, lossless=True)
    report.send("joined")
    os.kill(os.getpid(), signal.SIGSTOP)
    reader.close()


@pytest.mark.parametrize("name", ["", "named"])
def test_a_lossless_writer_waits_for_the_living_alone(tmp_path: Path, name: str) -> None:
    """A reader that stopped holds it up as long as it lives; killed, it is forgotten, and told later what it lost."""
    path, capacity = tmp_path / "r", 16
    with RingWriter(path, capacity, lossless=True) as writer:
        receive, send = Pipe(duplex=False)
        child = forked(_join_and_stop, path, name, send)
        assert receive.poll(DEADLINE_SECONDS)
        thread = threading.Thread(target=write_pattern, args=(writer, 5 * capacity))
        thread.start()
        until(lambda: writer.waits == 1, "the writer to find the ring full")
        assert writer.written == capacity
        killed(child)
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
        assert writer.written == 5 * capacity
        with RingReader(path, name) as reader:
            assert reader.lost == (4 * capacity if name else 0)


def test_a_lossless_reader_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 16, lossless=True) as writer:
        reader = RingReader(tmp_path / "r", lossless=True)
        write_pattern(writer, 16)
        reader.close()
        write_pattern(writer, 100)
        assert writer.waits == 0


def test_a_lossless_reader_that_comes_back_loses_nothing_more(tmp_path: Path) -> None:
    """Also where the writer had already seen that it need not look at readers for a while."""
    path = tmp_path / "r"
    with RingWriter(path, 16, lossless=True) as writer:
        RingReader(path, "name", lossless=True).close()
        write_pattern(writer, 20)
        with RingReader(path, "name", lossless=True) as reader:
            assert (reader.lost, reader.behind) == (4, 16)
            thread = threading.Thread(target=write_pattern, args=(writer, 5))
            thread.start()
            until(lambda: writer.waits == 1, "the writer to find the ring full")
            assert writer.written == 20
            assert_pattern(reader.read(10), 4)
            reader.read(0)  # deals with them
            thread.join(DEADLINE_SECONDS)
            assert_pattern(reader.read(100), 14)
            assert (reader.position, reader.lost) == (25, 4)


def test_a_lossless_reader_may_come_at_any_time(tmp_path: Path) -> None:
    """Whatever it joined at, from there on it misses nothing."""
    path = tmp_path / "r"
    child = forked(write_until_killed, path, 64, True)
    until(path.exists, "the ring")
    for _ in range(50):
        with RingReader(path, lossless=True) as reader:
            for _ in range(20):
                assert reader.wait(int(DEADLINE_SECONDS * 1e6))
                got, first = read_in_steps(reader, 50)
                assert_pattern(got, first)
            assert reader.lost == 0
    killed(child)


def test_a_waiting_writer_can_be_interrupted(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 16, lossless=True) as writer, RingReader(tmp_path / "r", lossless=True):
        interrupt = threading.Thread(
            target=lambda: (until(lambda: writer.waits == 1, "a wait"), os.kill(os.getpid(), signal.SIGINT))
        )
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            write_pattern(writer, 17)
        interrupt.join()
        assert writer.written == 16


def _echo(there: Path, back: Path) -> None:
    with RingReader(there, "echo") as reader, RingWriter(back, 16) as writer:
        while reader.wait(int(DEADLINE_SECONDS * 1e6)):
            writer.write(reader.read())


def test_sleepers_are_woken(tmp_path: Path) -> None:
    """Two processes that sleep until the other writes, two thousand times; a sleep that isn't ended takes 50 ms."""
    end = time.monotonic() + DEADLINE_SECONDS
    there, back = tmp_path / "there", tmp_path / "back"
    with RingWriter(there, 16) as writer:
        child = forked(_echo, there, back)
        until(back.exists, "the echo's ring")
        with RingReader(back) as reader:
            for number in range(2000):
                writer.write(PATTERN[number])
                assert reader.wait(int(DEADLINE_SECONDS * 1e6))
                assert_pattern(reader.read(), number)
                assert time.monotonic() < end
        killed(child)


def _use_of_the_parent(ends: tuple[RingWriter, RingReader], report: Connection) -> None:
    said = []
    for use in (lambda: ends[0].write(PATTERN[:1]), ends[1].read, lambda: ends[1].wait(0), lambda: ends[1].skip(1)):
        try:
            use()
            said.append("nothing")
        except HostError as error:
            said.append(str(error))
    report.send(said)
    signal.pause()


def test_a_forked_child_owns_nothing_of_its_parent_s(tmp_path: Path) -> None:
    """It can't write to its parent's ring, and holds neither the writer's place nor a name when the parent lets go."""
    path = tmp_path / "r"
    writer, reader = RingWriter(path, 16), RingReader(path, "name")
    receive, send = Pipe(duplex=False)
    child = forked(_use_of_the_parent, (writer, reader), send)
    assert receive.poll(DEADLINE_SECONDS)
    assert all("opened before fork()" in said for said in receive.recv())
    assert (writer.written, reader.position) == (0, 0)
    writer.close()
    reader.close()
    with RingWriter(path, 16), RingReader(path, "name"):
        killed(child)
