"""A stream sent over redundant multicast lines: a tape replayed for hosts elsewhere, and the other side of our tests.

Data in: records, in order. Data out: the same frames on every line (docs/feeds.md), numbered from 1 in a session whose
name is the UTC time at which it began; the last records kept for a recovery server.
Invariant: a line on which nothing was sent for `ALIVE_S` says which number comes next, so that the last records' loss
is noticed too.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from serving.errors import HostError
from serving.feeds.feed import FeedSummary
from serving.feeds.frames import MOST_RECORDS, frame
from serving.feeds.multicast import Line
from serving.feeds.recovery import Kept
from serving.feeds.replay import Pace, arrivals
from serving.feeds.tape import Tape, kinds_of
from serving.host.records import Records

KEPT_RECORDS = 1 << 20
ALIVE_S = 0.1


class Publisher:
    """Sends on all lines of a session."""

    def __init__(self, lines: Sequence[Line], *, session: int | None = None, kept_records: int = KEPT_RECORDS) -> None:
        self.session = time.time_ns() if session is None else session
        self.kept = Kept(self.session, kept_records)
        self.next = 1
        self._lines = [(line, _sender(line)) for line in lines]

    def send(self, records: Records, most: int = MOST_RECORDS) -> None:
        """Send the records that come next, on every line."""
        first = self.number(records)
        for start in range(0, len(records), most):
            for line in range(len(self._lines)):
                part = records[start : start + most]
                self.send_frame(line, frame(self.session, line, first + start, part))

    def number(self, records: Records) -> int:
        """Count and keep records that are sent by other means; the number of the first."""
        first = self.next
        self.kept.add(first, records)
        self.next += len(records)
        return first

    def send_frame(self, line: int, data: bytes) -> None:
        """One datagram on one line."""
        where, sender = self._lines[line]
        try:
            sender.sendto(data, (where.group, where.port))
        except OSError as error:
            raise HostError(f"line {where.group}:{where.port}: can't send: {error.strerror or error}") from error

    def alive(self, *, ends: bool = False) -> None:
        """Say on every line which number comes next, or that none will."""
        for line in range(len(self._lines)):
            self.send_frame(line, frame(self.session, line, self.next, ends=ends))

    def close(self) -> None:
        """Close the lines; `alive(ends=True)` says it to receivers."""
        for _, sender in self._lines:
            sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sender(line: Line) -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if line.interface:
            index = socket.if_nametoindex(line.interface)
            membership = struct.pack("@4s4si", b"\0" * 4, b"\0" * 4, index)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)  # never beyond the next router
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError as error:
        sender.close()
        raise HostError(f"line {line.group}:{line.port} on {line.interface!r}: {error.strerror or error}") from error
    return sender


class Republisher:
    """A tape sent over multicast at a pace, then the session's end."""

    def __init__(self, tape: Tape, pace: Pace, publisher: Publisher) -> None:
        self._tape, self._pace, self._publisher = tape, pace, publisher
        self._stop = threading.Event()

    def run(self) -> FeedSummary:
        """Send the tape; early, with what was sent told, when stopped."""
        records, publisher = self._tape.records, self._publisher
        due = (
            np.zeros(len(records), np.int64) if self._pace.kind == "full"
            else arrivals(records, self._pace, time.monotonic_ns())
        )  # fmt: skip
        sent, said = 0, time.monotonic()
        while sent < len(records) and not self._stop.is_set():
            ready = int(np.searchsorted(due, time.monotonic_ns(), side="right"))
            if ready > sent:
                ready = min(ready, sent + MOST_RECORDS)
                publisher.send(records[sent:ready])
                sent, said = ready, time.monotonic()
                continue
            left = (int(due[sent]) - time.monotonic_ns()) / 1e9
            self._stop.wait(min(max(left, 0.0), ALIVE_S))
            if time.monotonic() - said >= ALIVE_S:
                publisher.alive()
                said = time.monotonic()
        for _ in range(3):  # datagrams get lost; this one ends receivers
            publisher.alive(ends=True)
        return FeedSummary(sent, {}, kinds_of(records[:sent]), self._tape.quarantined())

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()
