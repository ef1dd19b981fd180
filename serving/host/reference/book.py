"""The slow reference of the book, from docs/host-rules.md ("Book") and docs/host-features.md ("The book, ...").

In: records (serving/host/records.py), one by one, and the time at which each counts. Out: two lists of (price, size),
best first. Plain Python; nothing is shared with the native one.
"""

from __future__ import annotations

import math
from typing import Any

TRADE, QUOTE, LEVEL, HEARTBEAT, CONTROL = 1, 2, 3, 4, 8
HAS_BID, HAS_ASK, FIRST, LAST = 1, 2, 4, 8
DEPTH = 10

Levels = list[tuple[float, float]]


def ends_event(record: Any) -> bool:
    """Whether an event ends with this record."""
    kind = int(record["kind"])
    return kind in (TRADE, QUOTE, HEARTBEAT) or (kind == LEVEL and bool(int(record["flags"]) & LAST))


def _is_level(price: float, size: float) -> bool:
    return math.isfinite(price) and price > 0 and math.isfinite(size) and size > 0


class Book:
    """Bids and asks of one instrument."""

    def __init__(self) -> None:
        self.bids: Levels = []
        self.asks: Levels = []
        self.changed_ns = 0
        self.changes = 0
        self.refused = 0
        self._picture: list[tuple[int, float, float, float, float]] | None = None  # flags and numbers of its levels
        self._begun = False  # the picture has its first level, and all since
        self._expected: int | None = None  # number of the next record

    @property
    def usable(self) -> bool:
        """Both sides there, and not crossed."""
        return bool(self.bids and self.asks and self.bids[0][0] < self.asks[0][0])

    @property
    def mid(self) -> float:
        """Between the best prices; only of a usable book."""
        return 0.5 * (self.bids[0][0] + self.asks[0][0])

    def apply(self, record: Any, now_ns: int) -> bool:
        """Take a record; True if it ended an event."""
        kind, flags = int(record["kind"]), int(record["flags"])
        bid, bid_size, ask, ask_size = (float(value) for value in record["values"][:4])
        if kind == LEVEL:
            if flags & FIRST:
                if self._picture is not None:
                    self.refused += 1
                self._picture, self._begun = [], True
            elif self._picture is None:
                self._picture, self._begun = [], False
            self._picture.append((flags, bid, bid_size, ask, ask_size))
            if flags & LAST:
                self._end_picture(now_ns)
        elif kind in (QUOTE, TRADE):
            if self._picture is not None:
                self.refused += 1
                self._picture = None
            if kind == QUOTE:
                self._take_quote(flags, (bid, bid_size), (ask, ask_size), now_ns)
        return ends_event(record)

    def follow(self, sequence: int) -> None:
        """The next number of the stream, whatever record has it: a hole breaks the picture being collected."""
        expected, self._expected = self._expected, (sequence + 1) % 2**32
        hole = expected is not None and 0 < (sequence - expected) % 2**32 < 2**31
        if hole and self._picture is not None:
            self._begun = False

    def _end_picture(self, now_ns: int) -> None:
        picture, self._picture = self._picture, None
        assert picture is not None
        bids: Levels = []
        asks: Levels = []
        good = self._begun and all(flags >> 4 == number for number, (flags, *_) in enumerate(picture))
        for flags, bid, bid_size, ask, ask_size in picture[:DEPTH]:
            if flags & HAS_BID and _is_level(bid, bid_size):
                good = good and (not bids or bid < bids[-1][0])
                bids.append((bid, bid_size))
            if flags & HAS_ASK and _is_level(ask, ask_size):
                good = good and (not asks or ask > asks[-1][0])
                asks.append((ask, ask_size))
        if not good:
            self.refused += 1
            return
        self.bids, self.asks = bids, asks
        self._changed(now_ns)

    def _take_quote(self, flags: int, bid: tuple[float, float], ask: tuple[float, float], now_ns: int) -> None:
        if not flags & (HAS_BID | HAS_ASK):
            self.refused += 1
            return
        if flags & HAS_BID:
            kept = [level for level in self.bids if level[0] < bid[0]]
            self.bids = [bid, *kept][:DEPTH] if _is_level(*bid) else []
        if flags & HAS_ASK:
            kept = [level for level in self.asks if level[0] > ask[0]]
            self.asks = [ask, *kept][:DEPTH] if _is_level(*ask) else []
        self._changed(now_ns)

    def _changed(self, now_ns: int) -> None:
        self.changed_ns = now_ns
        self.changes += 1
