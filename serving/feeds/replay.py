"""Replay of a tape into a ring, at a pace.

Data in: a tape's records, a pace. Data out: the same records in the ring, in order, each with `arrival_ns`, the time at
which it was *scheduled* to arrive (CLOCK_MONOTONIC): a writer or reader that falls behind doesn't move the schedule, so
latencies measured from arrival have no coordinated omission.
Paces: `original` as the times of events lie; `x10` ten times as fast (any positive number); `20000/s` so many events a
second; `full` as fast as the ring takes them (with a lossless ring: as its readers do; arrival is then the time at
which an event was offered). The records of one picture of the book are one event and arrive together.
"""

from __future__ import annotations

import re
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

PACE = re.compile(r"x(?P<scaled>[0-9.]+)|(?P<fixed>[0-9.]+)/s", re.ASCII)
LEAD_NS = 1_000_000  # from the call to the first arrival: the first event isn't late at once


@dataclass(frozen=True)
class Pace:
    """`kind` full, scaled (`value` times as fast as the original) or fixed (`value` events a second)."""

    kind: str
    value: float = 1.0


def parse_pace(text: str) -> Pace:
    """`original`, `full`, `x10`, `20000/s`."""
    if text == "original":
        return Pace("scaled")
    if text == "full":
        return Pace("full")
    match = PACE.fullmatch(text)
    if match:
        try:
            value = float(match["scaled"] or match["fixed"])
        except ValueError:
            value = 0.0
        if 0 < value <= 1e9:
            return Pace("scaled" if match["scaled"] else "fixed", value)
    raise DataError(f"pace {text!r} isn't known: original, full, x10 (times as fast) or 20000/s (events a second)")


class ReplayFeed:
    """A tape, replayed once."""

    def __init__(self, tape: Tape, pace: Pace, *, busy: bool = True) -> None:
        """`busy`: spin until each arrival; else sleep until shortly before it."""
        self._tape, self._pace, self._busy = tape, pace, busy
        self._native: Any = native.core().Pacer()

    def run(self, ring: RingWriter) -> FeedSummary:
        """Write the tape; returns early, between two events, when stopped."""
        start_ns = time.monotonic_ns() + LEAD_NS
        pace = self._pace
        done = self._native.run(native_ring(ring), self._tape.records, pace.kind, pace.value, start_ns, self._busy)
        written = self._tape.records[: done["records"]]
        counts = {"events": done["events"], "longest_delay_ns": done["latest_ns"]}
        return FeedSummary(done["records"], counts, kinds_of(written), self._tape.quarantined())

    def stop(self) -> None:
        """End the replay."""
        self._native.stop()


def arrivals(records: Records, pace: Pace, start_ns: int) -> npt.NDArray[np.int64]:
    """When each record arrives at a scaled or fixed pace whose first event arrives at `start_ns`."""
    if pace.kind == "full":
        raise DataError("a replay at full pace has no schedule: use original, x10 or 20000/s")
    scheduled: npt.NDArray[np.int64] = native.core().feed_schedule(records, pace.kind, pace.value, start_ns)
    return scheduled
