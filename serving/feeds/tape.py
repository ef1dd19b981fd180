"""A tape: what a vendor's files held, as records in the order in which a host would have seen them.

Data in: one `Part` for each file (serving/feeds/layouts_*.py). Data out: `Tape`: the records, merged, numbered from 1,
with heartbeats; and for each file what became of every row.
Invariants: each row of a file is kept or quarantined with one reason (the first that applies), so kept + quarantined =
rows; what is quarantined is named by its row. Merging is by event time; at the same time trades come before quotes and
these before pictures (a trade met the book that was there before the quotes of its moment), then files in the order
given, then rows in the file's order: rows that stood out of order are moved and counted. The records of one picture
stay together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.host.records import RECORD, Kind, Records

Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

TRADE_RANK, QUOTE_RANK, PICTURE_RANK = range(3)  # at the same time, in this order
EARLIEST_NS = 946_684_800_000_000_000  # 2000-01-01: what is earlier or later was counted in another unit
LATEST_NS = 4_102_444_800_000_000_000  # 2100-01-01


@dataclass(frozen=True)
class Heartbeats:
    """One at each boundary of the market step (a multiple of `step_ns` since 1970 UTC) after a record and at or before
    the next one. In a gap longer than `longest_gap_ns` (a night) only its first and its last boundary get one."""

    step_ns: int
    longest_gap_ns: int = 60_000_000_000

    def __post_init__(self) -> None:
        for name in ("step_ns", "longest_gap_ns"):
            if getattr(self, name) < 1:
                raise DataError(f"heartbeat: {name} is {getattr(self, name)}: a number of nanoseconds, 1 or more")


class Sieve:
    """Which rows of a file are market data, and why the others aren't."""

    def __init__(self, file: str, rows: int) -> None:
        self.file = file
        self.kept: Bools = np.ones(rows, np.bool_)
        self.refused: dict[str, Whole] = {}

    def refuse(self, reason: str, wrong: Bools) -> None:
        """Quarantine rows that nothing was said against yet."""
        fresh = np.flatnonzero(wrong & self.kept)
        if fresh.size:
            self.kept[fresh] = False
            self.refused[reason] = np.sort(np.r_[self.refused.get(reason, np.zeros(0, np.int64)), fresh + 1])

    def counts(self, kind: str, out_of_order: int) -> FileCount:
        """What became of every row."""
        count = FileCount(self.file, kind, len(self.kept), int(self.kept.sum()), dict(self.refused), out_of_order)
        assert count.kept + sum(map(len, count.quarantined.values())) == count.rows
        return count


@dataclass(frozen=True)
class FileCount:
    """What became of every row of a file; `quarantined`: rows (1 is the first below the header) by reason."""

    file: str
    kind: str
    rows: int
    kept: int
    quarantined: dict[str, Whole]
    out_of_order: int


@dataclass(frozen=True)
class Part:
    """One file's kept rows: `records`, of which each row has `lengths`; `identity`: of which instrument, "" unknown."""

    rank: int
    identity: str
    records: Records
    lengths: Whole
    count: FileCount


@dataclass(frozen=True)
class Tape:
    """Records in the order of a host, and where they came from."""

    records: Records
    files: tuple[FileCount, ...]
    heartbeats: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def quarantined(self) -> dict[str, int]:
        """Rows by reason, over all files."""
        total: Counter[str] = Counter()
        for file in self.files:
            total.update({reason: len(rows) for reason, rows in file.quarantined.items()})
        return dict(sorted(total.items()))


def part_of(sieve: Sieve, kind: str, rank: int, identity: str, records: Records, lengths: Whole | None = None) -> Part:
    """A part of a file's kept rows; a file of which nothing is kept is refused."""
    if not sieve.kept.any():
        told = ", ".join(f"{reason}: {len(rows)}" for reason, rows in sieve.refused.items())
        raise DataError(f"{sieve.file}: no row is market data ({told}): check what this file is")
    lengths = np.ones(len(records), np.int64) if lengths is None else lengths
    assert len(lengths) == sieve.kept.sum()
    assert lengths.sum() == len(records)
    times = records["event_ns"][np.cumsum(lengths) - lengths]
    return Part(rank, identity, records, lengths, sieve.counts(kind, int((np.diff(times) < 0).sum())))


def check_times(file: str, column: str, event_ns: Whole, known: Bools) -> None:
    """DataError if a time can't be nanoseconds since 1970 UTC of our century."""
    wrong = np.flatnonzero(known & ((event_ns < EARLIEST_NS) | (event_ns > LATEST_NS)))
    if wrong.size:
        row, value = int(wrong[0]), int(event_ns[wrong[0]])
        text = f"{file}: row {row + 1}, column {column}: found {value}, expected nanoseconds since 1970 UTC"
        raise DataError(f"{text} (2000 to 2100); {wrong.size} rows like this: convert the column")


def merged(parts: Sequence[Part], heartbeats: Heartbeats | None = None) -> Tape:
    """All parts in the order of a host."""
    named = sorted({part.identity for part in parts} - {""})
    if len(named) > 1:
        files = ", ".join(part.count.file for part in parts)
        raise DataError(f"{files}: these are files of {', '.join(named)}: a feed replays one instrument, give its own")
    records = np.concatenate([part.records for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    rank = np.concatenate([np.full(len(part.lengths), part.rank) for part in parts])
    starts = np.cumsum(lengths) - lengths
    order = np.lexsort((rank, records["event_ns"][starts]))  # stable: then by file and row
    inside = np.arange(len(records)) - np.repeat(np.cumsum(lengths[order]) - lengths[order], lengths[order])
    records = records[np.repeat(starts[order], lengths[order]) + inside]
    times = heartbeat_times(records["event_ns"], heartbeats)
    if times.size:
        beats = np.zeros(len(times), RECORD)
        beats["event_ns"], beats["kind"] = times, Kind.HEARTBEAT
        records = np.insert(records, np.searchsorted(records["event_ns"], times, side="left"), beats)
    records["sequence"] = np.arange(1, len(records) + 1, dtype=np.uint64).astype(np.uint32)
    return Tape(records.view(RECORD), tuple(part.count for part in parts), len(times), kinds_of(records))


def heartbeat_times(event_ns: Whole, heartbeats: Heartbeats | None) -> Whole:
    """When heartbeats are sent between records at these (ascending) times."""
    if heartbeats is None or len(event_ns) < 2:
        return np.zeros(0, np.int64)
    step = heartbeats.step_ns
    steps = event_ns // step
    count = np.diff(steps)  # boundaries after a record and at or before the next one
    at = np.flatnonzero(count)
    first, count = (steps[:-1][at] + 1) * step, count[at]
    long = (np.diff(event_ns)[at] > heartbeats.longest_gap_ns) & (count > 2)
    last = first + (count - 1) * step
    count = np.where(long, 2, count)
    index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    times = np.repeat(first, count) + index * step
    return np.where(np.repeat(long, count) & (index == 1), np.repeat(last, count), times)


def kinds_of(records: Records) -> dict[str, int]:
    """How many records there are of each kind."""
    found, counts = np.unique(records["kind"], return_counts=True)
    return {Kind(kind).name.lower(): int(count) for kind, count in zip(found, counts, strict=True)}
