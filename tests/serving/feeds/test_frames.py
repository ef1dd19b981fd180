"""Frames to a stream: any interleaving of two lines gives it in order; what else arrives is counted and forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import native
from serving.feeds.frames import HEADER, MAGIC, MOST_RECORDS, VERSION, FrameStream, frame
from serving.host.records import QUOTE, RECORD, Kind, Records

SESSION = 1_700_000_000_000_000_000
WINDOW = 16
OPTIONS = {"capacity": 64, "reorder_records": WINDOW, "reorder_ns": 10**15, "recovery_ns": 0}


def records(count: int, first: int = 1) -> Records:
    """Quotes whose price is their number."""
    made = np.zeros(count, QUOTE)
    made["kind"] = Kind.QUOTE
    made["bid"] = np.arange(first, first + count)
    return made.view(RECORD)


def numbers(stream: FrameStream) -> list[int]:
    """Numbers of what left, checked to be the record's own."""
    got = stream.take().view(QUOTE)
    assert got["bid"].tolist() == got["sequence"].tolist()
    return [int(one) for one in got["sequence"]]


def one(number: int, line: int = 0, session: int = SESSION) -> bytes:
    return frame(session, line, number, records(1, number))


Arrivals = list[tuple[int, float, int, int]]  # time, which of those at that time, line, number


@st.composite
def two_lines(draw: Any) -> tuple[int, list[int], Arrivals]:
    """A stream's length, the numbers that neither line brings, and what comes when.

    A number is due at its own time and up to half the window later, on either line, so none is overtaken by more than
    the window; numbers are dropped by one line or by both, and some come twice on one line.
    """
    length = draw(st.integers(1, 60))
    dropped = [draw(st.sets(st.integers(1, length))) for _ in range(2)]
    lost = {number for number in dropped[0] & dropped[1] if number > 1 and draw(st.booleans())}
    arrivals = []
    for line, missing in enumerate(dropped):
        both = dropped[0] & dropped[1] - lost if line == 0 else set()  # of these, line A brings one after all
        sent = [number for number in range(1, length + 1) if number not in missing or number in both]
        sent += draw(st.lists(st.sampled_from(sent), max_size=5)) if sent else []
        arrivals += [
            (number + draw(st.integers(0, WINDOW // 2)), draw(st.floats(0, 1)), line, number) for number in sent
        ]
    return length, sorted(lost), sorted(arrivals)


@given(two_lines())
def test_any_two_lines_give_the_stream(case: tuple[int, list[int], Arrivals]) -> None:
    length, lost, together = case
    stream = FrameStream({**OPTIONS, "first": 1})
    for _, _, line, number in together:
        assert stream.native.datagram(one(number, line), number, number) == ""
    stream.native.datagram(frame(SESSION, 0, length + 1, ends=True), 0, 0)
    stream.native.finish()
    assert numbers(stream) == [number for number in range(1, length + 1) if number not in lost]
    counts = stream.native.counts
    holes = [number for number in lost if number - 1 not in lost]
    assert counts["gaps"] == len(holes)
    assert counts["lost"] == counts["gap_records"] == len(lost)
    assert counts["duplicates"] + counts["late"] == len(together) - (length - len(lost))
    assert counts["late"] == 0
    assert stream.native.ended


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, MOST_RECORDS)), max_size=40), st.integers(1, 40))
def test_numbers_leave_in_order_and_are_accounted_for(frames: list[tuple[int, int]], first: int) -> None:
    """Whatever comes, in any order, far beyond the window too."""
    stream = FrameStream({"capacity": 16, "reorder_records": 4, "reorder_ns": 10**15, "first": first})
    came = 0
    for start, count in frames:
        stream.native.datagram(frame(SESSION, 0, start, records(count, start)), 0, 0)
        came += count
    stream.native.finish()
    left = numbers(stream)
    assert left == sorted(set(left))
    counts = stream.native.counts
    assert counts["records"] == len(left)
    assert came == counts["records"] + counts["duplicates"] + counts["late"]
    if frames:
        end = max(start + count for start, count in frames)
        expected = max(0, end - first)
        assert counts["records"] + counts["lost"] == expected
        assert counts["gap_records"] == counts["lost"]


def test_a_hole_waits_for_its_time_and_no_longer() -> None:
    stream = FrameStream({**OPTIONS, "reorder_ns": 1000})
    for number, now in ((1, 0), (3, 100)):
        stream.native.datagram(one(number), now, now)
    stream.native.tick(1099)
    assert numbers(stream) == [1]
    stream.native.tick(1100)
    assert numbers(stream) == [3]
    stream.native.datagram(one(2), 1200, 1200)
    counts = stream.native.counts
    assert (counts["gaps"], counts["lost"], counts["late"], counts["duplicates"]) == (1, 1, 1, 0)


def test_the_last_records_are_missed_when_a_line_says_what_comes_next() -> None:
    stream = FrameStream({**OPTIONS, "reorder_ns": 1000})
    stream.native.datagram(one(1), 0, 0)
    stream.native.datagram(frame(SESSION, 0, 4), 0, 0)
    stream.native.tick(1000)
    assert stream.native.counts["lost"] == 2


def recovering() -> FrameStream:
    """1 and 5 came, 2 to 4 were asked for at time 10."""
    stream = FrameStream({**OPTIONS, "reorder_ns": 10, "recovery_ns": 100})
    for number in (1, 5):
        stream.native.datagram(one(number), 0, 0)
    assert stream.native.request() is None
    stream.native.tick(10)
    assert stream.native.request() == (SESSION, 2, 3)
    assert stream.native.request() is None
    assert numbers(stream) == [1]
    return stream


def test_recovery_fills_a_gap() -> None:
    stream = recovering()
    stream.native.datagram(one(3, 1), 20, 20)  # the other line was late, and helps
    stream.native.recovered(SESSION, 2, records(3, 2), 30)
    assert numbers(stream) == [2, 3, 4, 5]
    counts = stream.native.counts
    assert (counts["gaps"], counts["gap_records"], counts["recovered"], counts["lost"]) == (1, 3, 2, 0)


def test_what_recovery_lacks_is_lost_at_once() -> None:
    stream = recovering()
    stream.native.unavailable(SESSION, 2, 2, 30)
    assert numbers(stream) == []
    stream.native.recovered(SESSION, 4, records(1, 4), 31)
    assert numbers(stream) == [4, 5]
    assert stream.native.counts["lost"] == 2


def test_recovery_that_takes_too_long_is_given_up() -> None:
    stream = recovering()
    stream.native.tick(109)
    assert numbers(stream) == []
    stream.native.tick(110)
    assert numbers(stream) == [5]
    stream.native.recovered(SESSION, 2, records(3, 2), 111)  # too late: nobody waits any more
    assert numbers(stream) == []
    assert stream.native.counts["lost"] == 3


@given(st.integers(0, 10), st.integers(0, 12), st.sampled_from([SESSION, SESSION + 1, 0]))
def test_answers_that_nobody_asked_for_change_nothing_else(first: int, count: int, session: int) -> None:
    stream = recovering()
    stream.native.recovered(session, first, records(count, first), 20)
    stream.native.tick(200)
    left = numbers(stream)
    came = set(range(first, first + count)) & {2, 3, 4} if session == SESSION else set()
    assert left == sorted(came | {5})
    assert stream.native.counts["recovered"] == len(came)


def test_a_newer_session_is_followed_an_older_one_ignored() -> None:
    stream = FrameStream(OPTIONS)
    stream.native.datagram(one(7), 0, 0)
    stream.native.datagram(one(9), 0, 0)
    stream.native.datagram(one(2, session=SESSION + 1), 0, 0)  # 8 is lost, then 1 of the new one is waited for
    stream.native.datagram(one(10), 0, 0)
    stream.native.datagram(one(1, session=SESSION + 1), 0, 0)
    assert numbers(stream) == [7, 9, 1, 2]
    counts = stream.native.counts
    assert (counts["sessions"], counts["old_session"], counts["lost"]) == (2, 1, 1)
    pinned = FrameStream({**OPTIONS, "session": SESSION})
    pinned.native.datagram(one(1, session=SESSION + 1), 0, 0)
    pinned.native.datagram(one(1), 0, 0)
    assert numbers(pinned) == [1]


def test_a_jump_is_not_believed_until_it_goes_on() -> None:
    stream = FrameStream({**OPTIONS, "jump_records": 1000, "jump_frames": 3})
    stream.native.datagram(one(1), 0, 0)
    far = 10**12
    for number in (far, 10**15, far + 77):  # unrelated: a defect or an attack
        stream.native.datagram(one(number), 0, 0)
    stream.native.datagram(one(2), 0, 0)
    assert numbers(stream) == [1, 2]
    for number in (far, far, far + 1, far + 2):  # line B's copy in between
        stream.native.datagram(frame(SESSION, 0, number, records(1, number)), 0, 0)
    got = stream.take().view(QUOTE)
    assert got["bid"].tolist() == [float(far + 2)]
    counts = stream.native.counts
    assert counts["jumped"] == 6
    assert counts["lost"] == far + 2 - 3


def test_a_gap_larger_than_what_is_held_keeps_the_newest() -> None:
    stream = FrameStream({**OPTIONS, "recovery_ns": 10**12})
    stream.native.datagram(one(1), 0, 0)
    for number in range(100, 200):
        stream.native.datagram(one(number), 0, 0)
    assert numbers(stream) == [1, *range(100, 200)]
    counts = stream.native.counts
    assert (counts["gaps"], counts["gap_records"], counts["lost"]) == (1, 98, 98)


def test_a_gap_that_does_not_fit_is_asked_for_as_far_as_it_does() -> None:
    stream = FrameStream({**OPTIONS, "recovery_ns": 10**12})
    for number in (1, 100):
        stream.native.datagram(one(number), 0, 0)
    assert stream.native.request() == (SESSION, 37, 63)  # 100 and what is held before it: 64 records
    stream.native.recovered(SESSION, 37, records(63, 37), 1)
    assert numbers(stream) == [1, *range(37, 101)]
    counts = stream.native.counts
    assert (counts["gaps"], counts["gap_records"], counts["lost"], counts["recovered"]) == (1, 98, 35, 63)


GOOD = HEADER.pack(MAGIC, VERSION, 0, 1, SESSION, 5) + records(1, 5).tobytes()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "too_short"), (GOOD[:23], "too_short"), (b"SFEE" + GOOD[4:], "wrong_magic"),
        (GOOD[:4] + b"\2" + GOOD[5:], "wrong_version"), (GOOD[:-1], "wrong_length"), (GOOD + b"x", "wrong_length"),
        (HEADER.pack(MAGIC, VERSION, 0, 26, SESSION, 5) + records(26).tobytes(), "wrong_length"),
        (HEADER.pack(MAGIC, VERSION, 0, 0xFFFE, SESSION, 5), "wrong_length"),
        (HEADER.pack(MAGIC, VERSION, 0, 0xFFFF, SESSION, 5) + records(1).tobytes(), "wrong_length"),
        (HEADER.pack(MAGIC, VERSION, 0, 1, SESSION, 0) + records(1).tobytes(), "wrong_number"),
        (HEADER.pack(MAGIC, VERSION, 0, 1, SESSION, 2**64 - 1) + records(1).tobytes(), "wrong_number"),
        (HEADER.pack(MAGIC, VERSION, 0, 1, 0, 5) + records(1).tobytes(), "wrong_number"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_told_apart(data: bytes, problem: str) -> None:
    stream = FrameStream(OPTIONS)
    assert stream.native.datagram(data, 0, 0) == problem
    assert numbers(stream) == []
    assert stream.native.datagram(GOOD, 0, 0) == ""
    assert numbers(stream) == [5]


def test_only_market_data_comes_from_outside() -> None:
    """An order, fill or control record that came over a network would be believed by the loop."""
    market_data = {Kind.TRADE, Kind.QUOTE, Kind.LEVEL, Kind.HEARTBEAT}
    for kind in range(256):
        stream, sent = FrameStream(OPTIONS), records(3)
        sent["kind"][1] = kind
        expected = "" if kind in market_data else "wrong_kind"
        assert stream.native.datagram(frame(SESSION, 0, 1, sent), 0, 0) == expected, kind
        assert numbers(stream) == ([1, 2, 3] if kind in market_data else []), kind


HEADERS = st.tuples(
    st.sampled_from([MAGIC, b"SFEE"]), st.integers(0, 2), st.integers(0, 255), st.integers(0, 0xFFFF),
    st.integers(0, 2**64 - 1) | st.just(SESSION), st.integers(0, 2**64 - 1) | st.integers(0, 200),
).map(lambda fields: HEADER.pack(*fields))  # fmt: skip
NEARLY = st.tuples(HEADERS, st.binary(max_size=200)).map(b"".join)
FRAMES = (st.integers(1, 2**62) | st.integers(1, 50)).map(one)


@given(st.lists(st.binary(max_size=1500) | NEARLY | FRAMES, max_size=30))
def test_no_bytes_do_harm(datagrams: list[bytes]) -> None:
    """Nothing crashes; what leaves is in order within its session; the memory held is what was made at the start."""
    stream = FrameStream({**OPTIONS, "session": SESSION, "first": 1, "jump_records": 1000})
    for data in datagrams:
        stream.native.datagram(data, 0, 0)
        assert stream.native.counts["records"] >= 0
    stream.native.finish()
    got = stream.take()
    assert (np.diff(got["sequence"].astype(np.int64)) > 0).all()


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"capacity": 3}, {"capacity": 2**30}, {"capacity": 16, "reorder_records": 17}, {"jump_frames": 0},
                    {"reorder_ns": -1}, {"what": 1}):  # fmt: skip
        with pytest.raises(ValueError, match=r"capacity|reorder|jump|what"):
            native.core().FrameStream(options)


def test_both_sides_mean_the_same_layout() -> None:
    core = native.core()
    assert (HEADER.size, MOST_RECORDS) == (core.FRAME_HEADER_BYTES, core.MOST_FRAME_RECORDS)
    assert (RECORD.itemsize, len(records(1).tobytes())) == (core.RECORD_BYTES, core.RECORD_BYTES)
