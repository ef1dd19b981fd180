"""Merging and heartbeats, against slow references."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DataError
from serving.feeds.tape import (
    PICTURE_RANK,
    QUOTE_RANK,
    TRADE_RANK,
    Heartbeats,
    Part,
    Sieve,
    heartbeat_times,
    merged,
    part_of,
)  # fmt: skip
from serving.host.records import RECORD, Kind

BASE = 1_700_000_000_000_000_000
KINDS = {TRADE_RANK: Kind.TRADE, QUOTE_RANK: Kind.QUOTE, PICTURE_RANK: Kind.LEVEL}


def part(rank: int, rows: list[tuple[int, int]]) -> Part:
    """A part whose rows are (time, number of records); `instrument` marks the row, `flags` the place in it."""
    lengths = np.array([count for _, count in rows], np.int64)
    records = np.zeros(int(lengths.sum()), RECORD)
    records["kind"] = KINDS[rank]
    records["event_ns"] = np.repeat([BASE + time for time, _ in rows], lengths)
    records["instrument"] = np.repeat(np.arange(len(rows)), lengths)
    records["flags"] = np.concatenate([np.arange(count) for count in lengths])
    return part_of(Sieve("file", len(rows)), "kind", rank, "", records, lengths)


ROWS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=8)


@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), ROWS), min_size=1, max_size=4))
def test_merging_is_a_stable_sort_of_rows(described: list[tuple[int, list[tuple[int, int]]]]) -> None:
    rows = [
        (time, rank, at, row, count)
        for at, (rank, listed) in enumerate(described)
        for row, (time, count) in enumerate(listed)
    ]
    expected = [(time, rank, row, place) for time, rank, _, row, count in sorted(rows) for place in range(count)]
    tape = merged([part(rank, listed) for rank, listed in described])
    ranks = {kind: rank for rank, kind in KINDS.items()}
    found = [
        (int(one["event_ns"]) - BASE, ranks[one["kind"]], int(one["instrument"]), int(one["flags"]))
        for one in tape.records
    ]
    assert found == expected
    assert tape.records["sequence"].tolist() == list(range(1, len(expected) + 1))


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=20).map(sorted), st.integers(1, 60), st.integers(1, 200),
    st.integers(0, 59),
)  # fmt: skip
def test_heartbeats_come_at_boundaries_between_records(times: list[int], step: int, gap: int, base: int) -> None:
    shifted = [time + base for time in times]
    expected = []
    for before, after in pairwise(shifted):
        inside = [at * step for at in range(before // step + 1, after // step + 1)]
        expected += [inside[0], inside[-1]] if after - before > gap and len(inside) > 2 else inside
    assert heartbeat_times(np.array(shifted, np.int64), Heartbeats(step, gap)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 3)), min_size=2, max_size=8), st.integers(1, 20))
def test_no_heartbeat_stands_inside_a_picture_or_after_its_boundary(rows: list[tuple[int, int]], step: int) -> None:
    beats = Heartbeats(step)
    tape = merged([part(PICTURE_RANK, rows)], beats)
    records = tape.records
    assert (np.diff(records["event_ns"]) >= 0).all()
    is_beat = records["kind"] == Kind.HEARTBEAT
    assert tape.heartbeats == is_beat.sum()
    assert (records["event_ns"][is_beat] % step == 0).all()
    without = records[~is_beat]
    starts = np.flatnonzero(without["flags"] == 0)
    for place in np.flatnonzero(is_beat):
        following = records[place + 1 :][~is_beat[place + 1 :]]
        assert len(following)  # never after the last record
        assert following[0]["flags"] == 0  # the next record begins a picture
        earlier = records[:place][~is_beat[:place]]
        assert earlier[-1]["event_ns"] < records[place]["event_ns"] <= following[0]["event_ns"]
    steps = without["event_ns"][starts] // step
    if (np.diff(without["event_ns"][starts]) <= beats.longest_gap_ns).all():
        assert tape.heartbeats == steps[-1] - steps[0]  # one for each boundary passed


def test_a_night_has_two_heartbeats() -> None:
    night = 16 * 3_600_000_000_000
    times = np.array([BASE, BASE + night], np.int64)
    found = heartbeat_times(times, Heartbeats(1_000_000_000, 60_000_000_000)).tolist()
    assert found == [BASE + 1_000_000_000, BASE + night]
    assert len(heartbeat_times(times, Heartbeats(1_000_000_000, night))) == night // 1_000_000_000


@pytest.mark.parametrize("name", ["step_ns", "longest_gap_ns"])
def test_impossible_heartbeats_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is 0"):
        replace(Heartbeats(1), **{name: 0})


def test_a_sieve_counts_each_row_once() -> None:
    sieve = Sieve("file", 5)
    sieve.refuse("first", np.array([True, False, True, False, False]))
    sieve.refuse("second", np.array([True, True, False, False, False]))
    sieve.refuse("first", np.array([False, False, False, False, True]))
    count = sieve.counts("kind", 0)
    assert {reason: rows.tolist() for reason, rows in count.quarantined.items()} == {"first": [1, 3, 5], "second": [2]}
    assert (count.rows, count.kept) == (5, 1)
