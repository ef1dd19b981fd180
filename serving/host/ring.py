"""Rings of records in shared memory: one writer, any number of readers in other processes, each at its own place.

Data in and out: arrays [N] of serving.host.records (56 bytes each). The file holds two pages of header and `capacity`
slots of 64 bytes; it belongs under /dev/shm (on a disk's file system the kernel's write-back stalls the writer now and
then), has the mode 0600 and stays when its processes end: remove it when nobody uses it.

Invariants: records come in the order written; none is ever seen half written, whoever is killed and when. The writer
waits for nobody, unless it and a reader are `lossless`. A reader that is overtaken counts what it lost (`lost`) and
goes on with the oldest record there is. A writer that comes after another goes on after its last whole record
(`writers` grows). A reader with a name goes on where that name stood; what the last read gave counts as dealt with when
the next is asked for, so a reader that was killed in between gets it once more.

Limits: a writer or reader is used by one thread at a time, and only by the process that opened it: in a child made by
fork() it refuses. Who shortens the file under a living process kills that (SIGBUS).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from serving import native
from serving.errors import HostError
from serving.host.records import ALL, RECORD, Records

DEFAULT_CAPACITY = 65_536  # records: 4 MB
_KNOWN = frozenset(ALL)


class RingWriter:
    """The writing side of the ring `path`: made if it isn't there, taken over if its writer is gone.

    `capacity`: records, a power of two; `lossless`: wait for lossless readers instead of overtaking them. HostError if
    another writer lives or the file is no such ring.
    """

    def __init__(
        self, path: str | os.PathLike[str], capacity: int = DEFAULT_CAPACITY, *, lossless: bool = False
    ) -> None:
        core: Any = native.core()
        self.path = os.fspath(path)
        self._ring: Any = core.RingWriter(self.path, capacity, lossless)

    def write(self, records: Records | np.void) -> None:
        """Write one record ([] or a scalar) or all of [N], in order; a lossless writer may wait (Ctrl-C interrupts)."""
        known = type(records) is np.ndarray and records.dtype in _KNOWN
        self._ring.write(records if known else _records_of(records))

    @property
    def native(self) -> Any:
        """The core's own RingWriter, for what writes natively (a feed); HostError if this one was closed."""
        if isinstance(self._ring, _Closed):
            raise self._ring.error()
        return self._ring

    @property
    def written(self) -> int:
        """Records since the ring was made, by all its writers."""
        return int(self._ring.written)

    @property
    def waits(self) -> int:
        """How often this lossless writer found the ring full."""
        return int(self._ring.waits)

    @property
    def writers(self) -> int:
        """How many writers the ring has had, this one included."""
        return int(self._ring.writers)

    @property
    def capacity(self) -> int:
        """Slots."""
        return int(self._ring.capacity)

    def close(self) -> None:
        """Give the ring free for another writer; the file stays."""
        self._ring = _Closed(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class View:
    """Records in the ring's own memory, from number `first`; worth something only if `still_valid()` afterwards.

    `records` [N] of RECORD, read only, 64 bytes apart: the writer may overwrite them at any time.
    """

    records: Records
    first: int
    _ring: Any

    def still_valid(self) -> bool:
        """Whether none was overwritten since: ask after their last use, and drop what was made of them if not."""
        return bool(self._ring.still_there(self.first, len(self.records)))


class RingReader:
    """The reading side of the ring `path`, from the next record written, or from where the reader `name` stood.

    `lossless`: a lossless writer waits for it as long as its process lives. HostError if there is no such ring, or a
    reader of that name lives.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "", *, lossless: bool = False) -> None:
        core: Any = native.core()
        self.path, self.name = os.fspath(path), name
        self._ring: Any = core.RingReader(self.path, name, lossless)
        slot = np.dtype(
            {
                "names": ["record"],
                "formats": [RECORD],
                "offsets": [core.SLOT_RECORD_OFFSET],
                "itemsize": core.SLOT_BYTES,
            }
        )
        self._slots: Records | None = self._ring.slots().view(slot)["record"]

    def read(self, limit: int = 1024) -> Records:
        """Up to `limit` records [N] of RECORD that are there now, maybe none; never waits.

        They follow each other without a gap, the last is number `position - 1`: what was lost lay before the first.
        """
        out = np.empty(limit, RECORD)
        return out[: self.read_into(out)]

    def read_into(self, out: Records) -> int:
        """Fill `out` [N] with what is there now; how many. Never waits, allocates nothing."""
        known = type(out) is np.ndarray and out.dtype in _KNOWN
        return int(self._ring.read(out if known else _records_of(out)))

    def wait(self, timeout_us: int) -> bool:
        """Sleep until a record can be read (True), or so many microseconds have passed."""
        return bool(self._ring.wait(timeout_us))

    def view(self, limit: int = 1024) -> View:
        """Up to `limit` records that are there now, in place; `skip` what was dealt with."""
        ring = self._ring
        ring.wait(0)  # passes over what was overwritten
        assert self._slots is not None
        begin = ring.position % ring.capacity
        count = min(limit, ring.behind, ring.capacity - begin)
        return View(self._slots[begin : begin + count], ring.position, ring)

    def skip(self, count: int) -> None:
        """Deal with the next `count` records without reading them; at most `behind`."""
        self._ring.skip(count)

    @property
    def position(self) -> int:
        """Number of the next record, counted from 0 since the ring was made."""
        return int(self._ring.position)

    @property
    def lost(self) -> int:
        """Records that were overwritten before this reader read them."""
        return int(self._ring.lost)

    @property
    def behind(self) -> int:
        """Records written and not yet read; those overwritten since count until a read has noticed."""
        return int(self._ring.behind)

    @property
    def writers(self) -> int:
        """How many writers the ring has had: it grows when one restarts."""
        return int(self._ring.writers)

    @property
    def writer_lives(self) -> bool:
        """Whether a process writes to it now."""
        return bool(self._ring.writer_lives)

    @property
    def capacity(self) -> int:
        """Slots."""
        return int(self._ring.capacity)

    def close(self) -> None:
        """Leave the ring: what was read counts as dealt with, and no writer waits any more. Views keep its memory."""
        if self._slots is not None:
            self._ring.leave()
        self._ring, self._slots = _Closed(self.path), None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Closed:
    """What takes the place of a ring's end that was closed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def error(self) -> HostError:
        return HostError(f"ring {self.path!r}: it was closed: open it anew")

    def __getattr__(self, name: str) -> Any:
        raise self.error()


def _records_of(given: object) -> Records:
    """What isn't plainly an array of records, as one: a single record, or one of an equal dtype."""
    records = np.asarray(given) if isinstance(given, np.void) else given
    if not isinstance(records, np.ndarray) or records.dtype not in _KNOWN:
        found = records.dtype if isinstance(records, np.ndarray) else type(records).__name__
        raise HostError(f"records: expected an array of serving.host.records.RECORD or a view of it, found {found}")
    return records
