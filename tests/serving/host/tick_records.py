"""Records of a market for tests: made by hand, and drawn by hypothesis, sane or garbage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from tests.serving.native.built import built_core

built_core()
from serving.host.records import RECORD  # noqa: E402  (its types are the built core's)

TRADE, QUOTE, LEVEL, HEARTBEAT = 1, 2, 3, 4
BID, ASK, FIRST, LAST = 1, 2, 4, 8
BUYER, SELLER = 1, 2
STEP_NS = 1000

Records = npt.NDArray[Any]
Row = tuple[int, int, int, Sequence[float]]  # event_ns, kind, flags, values


def trade(at: int, price: float, size: float, taker: int = 0) -> Row:
    return (at, TRADE, taker, (price, size))


def quote(at: int, bid: float, bid_size: float, ask: float, ask_size: float, sides: int = BID | ASK) -> Row:
    return (at, QUOTE, sides, (bid, bid_size, ask, ask_size))


def heartbeat(at: int) -> Row:
    return (at, HEARTBEAT, 0, ())


def picture(at: int, bids: Sequence[tuple[float, float]], asks: Sequence[tuple[float, float]]) -> list[Row]:
    """The levels of a whole book, one record each; sides may have different lengths."""
    count = max(len(bids), len(asks), 1)
    rows: list[Row] = []
    for number in range(count):
        flags = number << 4 | (FIRST if number == 0 else 0) | (LAST if number == count - 1 else 0)
        values = [0.0] * 4
        if number < len(bids):
            flags, values[:2] = flags | BID, bids[number]
        if number < len(asks):
            flags, values[2:] = flags | ASK, asks[number]
        rows.append((at, LEVEL, flags, values))
    return rows


def records_of(rows: Sequence[Row]) -> Records:
    records = np.zeros(len(rows), RECORD)
    for place, (at, kind, flags, values) in enumerate(rows):
        records[place] = (at, place + 1, 0, kind, flags, (*values, *([0.0] * (5 - len(values)))))
    return records


# Few prices and sizes, so that levels meet; multiples of powers of two, so that scaled and mirrored ones are exact.
CENTRE = 64.0
prices = st.integers(-40, 40).map(lambda ticks: CENTRE + ticks * 0.125)
sizes = st.integers(1, 12).map(lambda lots: lots * 0.25)


@st.composite
def markets(draw: st.DrawFn, most: int = 60, longest_wait: int = 3 * STEP_NS) -> list[Row]:
    """A sane market: time goes on, books aren't crossed, pictures are whole. It begins with a picture."""
    now, rows = 0, []
    waits = st.one_of(st.integers(0, STEP_NS // 4), st.integers(0, longest_wait))
    for number in range(draw(st.integers(1, most))):
        now += draw(waits)
        kind = draw(st.sampled_from([LEVEL, QUOTE, TRADE, TRADE, HEARTBEAT])) if number else LEVEL
        middle = CENTRE + draw(st.integers(-20, 20)) * 0.125
        if kind == TRADE:
            rows.append(trade(now, draw(prices), draw(sizes), draw(st.integers(0, 3))))
        elif kind == HEARTBEAT:
            rows.append(heartbeat(now))
        elif kind == QUOTE:
            bid, ask = (middle - draw(st.integers(1, 4)) * 0.125, middle + draw(st.integers(1, 4)) * 0.125)
            rows.append(quote(now, bid, draw(sizes), ask, draw(sizes)))
        else:
            sides = [
                [(middle + sign * 0.125 * (level + 1), draw(sizes)) for level in range(draw(st.integers(1, 10)))]
                for sign in (-1, 1)
            ]
            rows += picture(now, *sides)
    return rows


GARBAGE = [
    0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e-300, 1e-100, 1e100, 1e101, 1.7976931348623157e308, 1e-13
]  # fmt: skip
numbers = st.one_of(prices, sizes, st.sampled_from(GARBAGE), st.floats(width=64))
TIMES = [0, -1, STEP_NS, 2**63 - 1, -(2**63)]


@st.composite
def garbage(draw: st.DrawFn, most: int = 60) -> Records:
    """Records of anything, mixed with sane ones; time goes back and forth, pictures have holes."""
    rows: list[Row] = []
    now = 0
    for _ in range(draw(st.integers(0, most))):
        now += draw(st.integers(-STEP_NS, 2 * STEP_NS))
        at = draw(st.sampled_from(TIMES)) if draw(st.integers(0, 60)) == 0 else now
        what = draw(st.integers(0, 6))
        if what == 0:
            sane = draw(markets(most=4))
            rows += [(now + row[0], *row[1:]) for row in sane]
        elif what == 1:
            rows.append((at, draw(st.integers(0, 255)), draw(st.integers(0, 255)), draw(st.lists(numbers, max_size=5))))
        elif what == 2:
            rows.append((at, TRADE, draw(st.integers(0, 3)), [draw(numbers), draw(numbers)]))
        elif what == 3:
            whole = picture(at, [(63.0 - n, 1.0) for n in range(4)], [(65.0 + n, 2.0) for n in range(4)])
            rows += draw(st.permutations(whole)) if draw(st.booleans()) else whole[draw(st.integers(0, 3)) :]
        else:
            kind = draw(st.sampled_from([QUOTE, LEVEL]))
            rows.append((at, kind, draw(st.integers(0, 255)), [draw(numbers) for _ in range(4)]))
    records = records_of(rows)
    if len(records):
        records["instrument"] = np.where(np.arange(len(records)) % 17 == 16, 1, 0)
    return records
