"""What a feed is: whatever writes market data into a host's ring.

Data in: files, a network, a card. Data out: records (serving/host/records.py) in a ring, and a `FeedSummary` at the
end.

The seam. A receiver fills one ring and nothing else; the loop reads that ring and knows no receiver. A receiver of
hardware (a card that decodes into memory of its own) fits in by doing what those here do:
    event_ns     from the data, UTC
    sequence     of its source, counted by one; a hole says what is lost
    arrival_ns   CLOCK_MONOTONIC: when the wire delivered it (stamps of the kernel or the card), or, of a replay,
                 when it was scheduled to arrive
    kinds        trade, quote, level, heartbeat only; the levels of a picture one after the other
In C++ the same seam is `RecordSink` (serving/native/feed/sink.hpp).
Invariants: `run` blocks until the feed ends or `stop` was called from another thread, and lets go of the interpreter's
lock while it works; nothing is lost without being counted in the summary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.host.ring import RingWriter


@dataclass(frozen=True)
class FeedSummary:
    """What went into the ring, and what didn't. `counts`: of this kind of feed, by name."""

    records: int
    counts: dict[str, int] = field(default_factory=dict)
    by_kind: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: one line for each kind of number."""
        told = [f"{self.records} records written"]
        for name, numbers in (("records", self.by_kind), ("quarantined", self.quarantined), ("feed", self.counts)):
            if numbers:
                told.append(f"{name}: " + ", ".join(f"{key} {number}" for key, number in numbers.items()))
        return told


class Feed(Protocol):
    """A source of market data."""

    def run(self, ring: RingWriter) -> FeedSummary:
        """Write records into a ring until the end, or until stopped."""

    def stop(self) -> None:
        """End `run`, from another thread; before `run` too."""


def native_ring(ring: RingWriter) -> Any:
    """The native side of a ring, for a native feed to write to; HostError where it was closed."""
    return ring.native
