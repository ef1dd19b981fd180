"""A stream received from redundant multicast lines, with recovery of what both of them lost.

Data in: datagrams (docs/feeds.md) of one or two lines, from sockets or, where the system allows it, from packet rings;
a recovery server's answers. Data out: records in a ring in the order of their numbers, `arrival_ns` by the kernel's
stamp; counts of everything else. The thread that calls `run` receives, in native code; a second one asks the server.
Invariants: serving/native/feed/arbiter.hpp. What recovery doesn't bring in time is lost: the stream goes on, and the
hole in the records' `sequence` tells the ring's readers. Heartbeats are the sender's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving import native
from serving.errors import HostError
from serving.feeds.feed import FeedSummary, native_ring
from serving.feeds.recovery import Missing, ask
from serving.host.ring import RingWriter

RECEIVE_BUFFER_BYTES = 1 << 23
MOST_LINES = 8


@dataclass(frozen=True)
class Line:
    """Where a line is: an IPv4 multicast group, a UDP port, the interface to join on ("": the system's choice)."""

    group: str
    port: int
    interface: str = ""


@dataclass(frozen=True)
class Arbitration:
    """When a hole is one, and how long to wait for it; serving/native/feed/arbiter.hpp.

    A hole is declared when a number `reorder_records` beyond it is known, or after `reorder_ns`; with recovery the
    stream then waits up to `recovery_ns`, holding at most `capacity` records. `jump_records` ahead of what is known a
    frame isn't believed until `jump_frames` in a row go on from one another. `session`: this one alone, 0: the newest.
    `first`: the number to begin with (what came before is recovered), 0: what comes next.
    """

    capacity: int = 1 << 16
    reorder_records: int = 8192
    reorder_ns: int = 2_000_000
    recovery_ns: int = 50_000_000
    jump_records: int = 1 << 20
    jump_frames: int = 8
    session: int = 0
    first: int = 0


class MulticastFeed:
    """Lines into a ring."""

    def __init__(
        self, lines: Sequence[Line], *, recovery: tuple[str, int] | None = None, arbitration: Arbitration | None = None,
        packet_ring: bool = False, busy: bool = False, until_end: bool = False,
    ) -> None:  # fmt: skip
        """Listens from here on. HostError says what a line, or the right to open it, lacks."""
        if not 1 <= len(lines) <= MOST_LINES:
            raise HostError(f"a multicast feed has {len(lines)} lines: give 1 to {MOST_LINES}, usually two")
        for line in lines:
            if not 0 < line.port < 65536:
                raise HostError(f"line {line.group}:{line.port}: a port is a number from 1 to 65535")
        arbitration = arbitration or Arbitration()
        options = {**asdict(arbitration), **({} if recovery else {"recovery_ns": 0})}
        told = [{"group": line.group, "port": str(line.port), "interface": line.interface} for line in lines]
        kind = "packet" if packet_ring else "multicast"
        try:
            self._native: Any = native.core().open_receiver(kind, told, options, RECEIVE_BUFFER_BYTES, busy, until_end)
        except ValueError as error:
            raise HostError(f"multicast feed: {error}") from error
        self._recovery, self._timeout_s = recovery, max(arbitration.recovery_ns / 1e9, 0.001)
        self._failed = 0

    def run(self, ring: RingWriter) -> FeedSummary:
        """Receive until stopped, or to the end of the session if that was asked for; once."""
        asker = threading.Thread(target=self._recover, name="recovery", daemon=True)
        asker.start()
        try:
            self._native.run(native_ring(ring))
        finally:
            self._native.stop()
            asker.join()
        counts = self.counts()
        return FeedSummary(counts.pop("records"), counts)

    def stop(self) -> None:
        """End `run`."""
        self._native.stop()

    def counts(self) -> dict[str, int]:
        """By name, also while it runs; docs/feeds.md says what each counts."""
        return {**self._native.counts, "recovery_failed": self._failed}

    def _recover(self) -> None:
        while self._native.running:
            asked = self._native.wait_request(100_000)
            if asked is None or self._recovery is None:
                continue
            missing = Missing(*asked)
            try:
                first, records = ask(self._recovery, missing, self._timeout_s)
            except HostError:
                self._failed += 1
                self._native.cannot(*asked)
                continue
            stop, end = first + len(records), missing.first + missing.count
            if not len(records):
                self._native.cannot(*asked)
                continue
            if first > missing.first:
                self._native.cannot(missing.session, missing.first, first - missing.first)
            self._native.give(missing.session, first, records)
            if stop < end:
                self._native.cannot(missing.session, stop, end - stop)
