"""The ring's native ends as threads of one process, where the thread sanitizer sees both (`make sanitize-thread`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import HostError
from tests.serving.native.built import built_core

CORE = built_core()
COUNT = 60_000
PATIENCE_NS = 20_000_000_000


def opened(path: Path, capacity: int, lossless: bool, names: list[str]) -> tuple[Any, list[Any]]:
    writer = CORE.RingWriter(str(path), capacity, lossless)
    return writer, [CORE.RingReader(str(path), name, lossless) for name in names]


@pytest.mark.parametrize(("capacity", "lossless"), [(2, False), (64, False), (64, True)])
def test_one_writer_and_readers(tmp_path: Path, capacity: int, lossless: bool) -> None:
    """Each record that a reader got is the one its position says, in all its words; what it lost fills the rest."""
    writer, readers = opened(tmp_path / "r", capacity, lossless, ["", "named"])
    with ThreadPoolExecutor() as threads:
        receiving = [threads.submit(reader.receive_stamped, COUNT, False, PATIENCE_NS) for reader in readers]
        writer.send_stamped(COUNT, 0)
        for received in receiving:
            received.result()
    for reader in readers:
        assert (reader.position, reader.behind) == (COUNT, 0)
        if lossless:
            assert reader.lost == 0


def test_sleeping_readers(tmp_path: Path) -> None:
    writer, readers = opened(tmp_path / "r", 1024, False, ["", "named"])
    out = [np.zeros(1, "V56") for _ in readers]

    def read_asleep(reader: Any, into: Any) -> int:
        while reader.position < 500:
            assert reader.wait(20_000_000)
            reader.read(into)
        return int(reader.lost)

    with ThreadPoolExecutor() as threads:
        reading = [threads.submit(read_asleep, *pair) for pair in zip(readers, out, strict=True)]
        writer.send_stamped(500, 20_000)
        assert [done.result() for done in reading] == [0, 0]


def test_readers_that_come_and_go(tmp_path: Path) -> None:
    """Joining, leaving and the search for the dead meet a writer that waits for the living."""
    writer, (steady,) = opened(tmp_path / "r", 8, True, [""])
    out = np.zeros(3, "V56")

    def come_and_go(number: int) -> int:
        lost = 0
        for _ in range(40):
            reader = CORE.RingReader(str(tmp_path / "r"), f"reader{number}" if number else "", True)
            for _ in range(5):
                reader.read(out)
            lost += reader.lost if number == 0 else 0
            reader.leave()
        return lost

    with ThreadPoolExecutor() as threads:
        received = threads.submit(steady.receive_stamped, COUNT // 4, False, PATIENCE_NS)
        coming = [threads.submit(come_and_go, number) for number in range(3)]
        writer.send_stamped(COUNT // 4, 0)
        received.result()
        assert [done.result() for done in coming] == [0, 0, 0]
    assert (steady.position, steady.lost) == (COUNT // 4, 0)


def test_a_ring_allocates_nothing_once_it_is_open(tmp_path: Path) -> None:
    writer, (plain, named) = opened(tmp_path / "r", 64, False, ["", "named"])
    records, out = np.zeros(40, "V56"), np.zeros(100, "V56")
    before = CORE.allocation_count()
    for _ in range(1000):
        writer.write(records)
        plain.read(out)
        named.read(out[:7])
        named.wait(0)
    assert CORE.allocation_count() == before
    assert named.lost > 0


def test_latencies_are_of_every_record(tmp_path: Path) -> None:
    writer, (reader,) = opened(tmp_path / "r", 1024, False, [""])
    writer.send_stamped(100, 1000)
    elapsed, latencies = reader.receive_stamped(100, True, PATIENCE_NS)
    assert latencies.shape == (100,)
    assert (latencies > 0).all()
    assert elapsed > 0


def test_timing_refuses_what_it_can_t_time(tmp_path: Path) -> None:
    writer, (reader, late) = opened(tmp_path / "r", 2, False, ["", ""])
    writer.send_stamped(3, 1000)
    with pytest.raises(HostError, match="1 records were lost"):
        reader.receive_stamped(3, True, PATIENCE_NS)
    with pytest.raises(HostError, match="3 of 4 records came, then none for 1 ms"):
        late.receive_stamped(4, False, 1_000_000)
    writer.send_stamped(1, 0)
    with pytest.raises(HostError, match="record 3 came as 0 with price 0"):
        late.receive_stamped(4, False, PATIENCE_NS)


def test_an_idle_loop_takes_events_of_the_market_and_says_what_is_absent(tmp_path: Path) -> None:
    writer, (reader, late) = opened(tmp_path / "r", 64, False, ["", ""])
    writer.send_stamped(5, 1000)
    taken = reader.read_idly(5, 200_000, PATIENCE_NS)
    assert taken.shape == (5,)
    assert (np.diff(taken) > 20_000).all()  # they came within microseconds; each waits for the work on those before it
    with pytest.raises(HostError, match="5 of 6 events came, then none for 1 ms"):
        late.read_idly(6, 0, 1_000_000)


def test_an_idle_loop_refuses_a_loss(tmp_path: Path) -> None:
    writer, (reader,) = opened(tmp_path / "r", 2, False, [""])
    writer.send_stamped(5, 0)
    with pytest.raises(HostError, match="idle loop: 3 records were lost"):
        reader.read_idly(2, 0, PATIENCE_NS)
