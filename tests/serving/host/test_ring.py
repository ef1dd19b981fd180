"""What goes into a ring comes out of it: order, wrap, places, exact losses, views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import HostError
from tests.serving.native.built import built_core

built_core()

from serving.host.records import RECORD, TRADE, Kind, new_records  # noqa: E402
from serving.host.ring import RingReader, RingWriter  # noqa: E402
from tests.serving.host.ring_pattern import PATTERN, assert_pattern, words, write_pattern  # noqa: E402


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    """Any bits: NaN payloads too."""
    sent = np.random.default_rng(1).integers(0, 2**64, (1000, 7), dtype=np.uint64).view(RECORD)[:, 0]
    with RingWriter(tmp_path / "r", 1024) as writer, RingReader(tmp_path / "r") as reader:
        writer.write(sent)
        got = reader.read(2000)
    assert (words(got) == words(sent)).all()
    assert len(got) == len(sent)


def test_order_over_many_turns_of_the_ring(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        for turn in range(500):
            write_pattern(writer, turn % 9)
            begin = reader.position
            got = reader.read(turn % 9 + 1)
            assert len(got) == turn % 9
            assert_pattern(got, begin)
        assert reader.lost == reader.behind == 0


def test_an_empty_ring_gives_nothing(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        assert len(reader.read()) == 0
        assert not reader.wait(0)
        assert not reader.wait(1000)
        writer.write(PATTERN[:1])
        assert reader.wait(0)
        assert reader.wait(1000)
        assert len(reader.read()) == 1
        assert len(reader.read()) == 0


def test_one_record_may_come_as_any_shape(tmp_path: Path) -> None:
    made = new_records(3, Kind.TRADE)
    made["price"] = [1, 2, 3]
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        writer.write(made[0])
        writer.write(made[1:2].view(RECORD))
        writer.write(made[2].reshape(()))
        writer.write(made[:0])
        assert reader.read().view(TRADE)["price"].tolist() == [1, 2, 3]


def test_a_new_reader_begins_with_the_next_record(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer:
        write_pattern(writer, 5)
        with RingReader(tmp_path / "r") as reader:
            write_pattern(writer, 2)
            assert reader.position == 5
            assert_pattern(reader.read(), 5)


def test_an_overtaken_reader_counts_what_it_lost(tmp_path: Path) -> None:
    """All that the ring still holds is read, and nothing that it doesn't is left out of the count."""
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        write_pattern(writer, 8)
        assert len(reader.read(3)) == 3
        write_pattern(writer, 3)
        assert (reader.behind, reader.lost) == (8, 0)
        write_pattern(writer, 1)
        assert (reader.behind, reader.lost) == (9, 0)
        got = reader.read()
        assert (len(got), reader.lost) == (8, 1)
        assert_pattern(got, 4)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["write", "read", "skip", "restart_reader", "restart_writer"]), st.integers(0, 20)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(capacity=st.sampled_from([2, 4, 16]), operations=OPERATIONS)
def test_against_a_list(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, operations: list[tuple[str, int]]
) -> None:
    """A ring is a list of which the last `capacity` remain: the same records, positions and losses whatever is done."""
    path = tmp_path_factory.mktemp("ring") / "r"
    writer, reader = RingWriter(path, capacity), RingReader(path, "named")
    written = position = lost = 0
    writers = 1
    for name, count in operations:
        if name == "write":
            write_pattern(writer, count)
            written += count
        elif name == "read":
            if count:
                oldest = max(position, written - capacity)
                lost, position = lost + oldest - position, oldest
            got = reader.read(count)
            assert len(got) == min(count, written - position)
            assert_pattern(got, position)
            position += len(got)
        elif name == "skip":
            reader.skip(count)
            position += min(count, written - position)
        elif name == "restart_reader":
            reader.close()
            reader = RingReader(path, "named")
            oldest = max(position, written - capacity)
            lost, position = oldest - position, oldest
        else:
            writer.close()
            writer = RingWriter(path, capacity)
            writers += 1
        assert (writer.written, reader.position, reader.lost) == (written, position, lost)
        assert (reader.behind, reader.writers, writer.writers) == (written - position, writers, writers)
    reader.close()
    writer.close()


def test_readers_are_independent(tmp_path: Path) -> None:
    with (
        RingWriter(tmp_path / "r", 16) as writer,
        RingReader(tmp_path / "r") as quick,
        RingReader(tmp_path / "r", "slow") as slow,
    ):
        for _ in range(10):
            write_pattern(writer, 4)
            assert len(quick.read()) == 4
        assert (quick.lost, slow.lost) == (0, 0)
        assert_pattern(slow.read(), 24)
        assert (quick.lost, slow.lost) == (0, 24)


def test_a_view_is_the_ring_s_memory_until_it_is_overwritten(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        write_pattern(writer, 6)
        view = reader.view(4)
        assert view.first == 0
        assert_pattern(view.records, 0)
        assert len(view.records) == 4
        with pytest.raises(ValueError, match="read-only"):
            view.records["sequence"] = 1
        assert view.still_valid()
        write_pattern(writer, 2)
        assert view.still_valid()
        reader.skip(4)
        assert_pattern(reader.view().records, 4)
        write_pattern(writer, 1)
        assert not view.still_valid()
        assert_pattern(view.records[:1], 8)  # the same memory, no copy


def test_views_cover_a_wrapped_ring_in_two(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer, RingReader(tmp_path / "r") as reader:
        write_pattern(writer, 6)
        reader.skip(6)
        write_pattern(writer, 5)
        for first, count in ((6, 2), (8, 3), (11, 0)):
            view = reader.view()
            assert (view.first, len(view.records)) == (first, count)
            assert_pattern(view.records, first)
            reader.skip(count)


def test_a_view_outlives_its_reader(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "r", 8) as writer:
        reader = RingReader(tmp_path / "r", "name", lossless=True)
        write_pattern(writer, 3)
        view = reader.view()
        reader.close()
        with RingReader(tmp_path / "r", "name"):  # the name is free though the view lives
            assert_pattern(view.records, 0)


def test_closed_ends_refuse(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "r", 8)
    reader = RingReader(tmp_path / "r")
    assert writer.native.written == 0
    writer.close()
    writer.close()
    reader.close()
    reader.close()
    with pytest.raises(HostError, match="was closed: open it anew"):
        _ = writer.native
    with pytest.raises(HostError, match="was closed: open it anew"):
        writer.write(PATTERN[:1])
    with pytest.raises(HostError, match="was closed: open it anew"):
        reader.read()


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros(3), "float64"),
        (np.zeros((2, 2), RECORD), r"shape \(2, 2\)"),
        (np.zeros(4, RECORD)[::2], r"shape \(2,\)"),
        (np.zeros(3, np.dtype("V56")), "V56"),
        (np.zeros(3, RECORD.newbyteorder(">")), ">f8"),
        ([1, 2, 3], "found list"),
    ],
)
def test_what_are_no_records_is_refused(tmp_path: Path, wrong: np.ndarray, found: str) -> None:
    with RingWriter(tmp_path / "r", 8) as writer, pytest.raises(HostError, match=found):
        writer.write(wrong)


def test_reading_into_what_can_t_be_written_is_refused(tmp_path: Path) -> None:
    fixed = np.zeros(3, RECORD)
    fixed.flags.writeable = False
    with RingWriter(tmp_path / "r", 8), RingReader(tmp_path / "r") as reader:
        with pytest.raises(HostError, match="writable"):
            reader.read_into(fixed)
        with pytest.raises(HostError, match="found list"):
            reader.read_into([1])  # type: ignore[arg-type]
