"""Replay of a tape into a ring, at a pace.

Data in: a tape's records, a pace. Data out: the same records in the ring, in order, each with `arrival_ns`, the time at
which it was *scheduled* to arrive (CLOCK_MONOTONIC): a writer or reader that falls behind doesn't move the schedule, so
latencies measured from arrival have no coordinated omission.
Paces: `original` as the times of events lie; `scaled` so many times as fast; `events_per_second`, evenly; `full` as
fast as the ring takes them (a lossless ring: as its readers do; arrival is then the time of the offer). The records of
one picture of the book are one event and arrive together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import native
from serving.errors import DataError
from serving.feeds.feed import FeedSummary, native_ring
from serving.feeds.tape import Tape, kinds_of
from serving.host.records import Records
from serving.host.ring import RingWriter

LEAD_NS = 1_000_000  # from the call to the first arrival: the first event isn't late at once
PACES = {"original": "scaled", "scaled": "scaled", "events_per_second": "fixed", "full": "full"}  # the core's names


@dataclass(frozen=True)
class Pace:
    """How fast: `original`, `full`, or `scaled` or `events_per_second` with a positive `value`."""

    kind: str
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in PACES:
            raise DataError(f"pace {self.kind!r} isn't known: use {', '.join(PACES)}")
        if not 0 < self.value <= 1e12:
            raise DataError(f"pace {self.kind} {self.value!r}: the value must be above 0 and at most 1e12")
        if self.value != 1.0 and self.kind in ("original", "full"):
            raise DataError(f"pace {self.kind} has no value, found {self.value!r}: use scaled or events_per_second")

    @property
    def native_kind(self) -> str:
        """What the core calls it."""
        return PACES[self.kind]


class ReplayFeed:
    """A tape, replayed once."""

    def __init__(self, tape: Tape, pace: Pace, *, busy: bool = True) -> None:
        """`busy`: spin until each arrival; else sleep until shortly before it."""
        self._tape, self._pace, self._busy = tape, pace, busy
        self._native: Any = native.core().Pacer()

    def run(self, ring: RingWriter) -> FeedSummary:
        """Write the tape; returns early when stopped."""
        start_ns = time.monotonic_ns() + LEAD_NS
        pace = self._pace
        done = self._native.run(
            native_ring(ring), self._tape.records, pace.native_kind, pace.value, start_ns, self._busy
        )
        written = self._tape.records[: done["records"]]
        counts = {"events": done["events"], "longest_delay_ns": done["latest_ns"]}
        return FeedSummary(done["records"], counts, kinds_of(written), self._tape.quarantined())

    def stop(self) -> None:
        """End the replay."""
        self._native.stop()


def arrivals(records: Records, pace: Pace, start_ns: int) -> npt.NDArray[np.int64]:
    """When each record arrives at a pace whose first event arrives at `start_ns`; full pace has no schedule."""
    if pace.kind == "full":
        raise DataError("a replay at full pace has no schedule: use original, scaled or events_per_second")
    scheduled: npt.NDArray[np.int64] = native.core().feed_schedule(records, pace.native_kind, pace.value, start_ns)
    return scheduled
