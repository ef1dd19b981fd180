"""What the rings carry, as NumPy sees it: 56 bytes in one of a few shapes (serving/native/transport/records.hpp).

Data out: structured dtypes of the same size, whose offsets and formats are the compiled core's own
(`record_layout`), so they can't drift from it. `RECORD` is any record, its payload as five plain doubles; the others
name the payload's fields, and an array of one is seen as another with `records.view(TRADE)`, without a copy.

Header of all: `event_ns` market time, nanoseconds since 1970 UTC; `sequence` of its source, counted by one;
`instrument` 0 the underlying, 1... the quoted contracts in order; `kind` (Kind); `flags` (below). Payload: prices in
money, sizes and quantities in units, 0 where a side isn't spoken of; `arrival_ns`, `sent_ns` CLOCK_MONOTONIC of this
machine, which nothing is decided by.

- TRADE: price, size. QUOTE, also of a LEVEL record: bid, bid_size, ask, ask_size.
- ORDER: order_id (of the session, from 1), price, quantity, sent_ns. FILL: order_id, price, quantity, underlying (the
  price of the trade that printed through it).
- SIGNAL, CONTROL: value [4]; what they mean is said by the code in `flags`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import native

Records = npt.NDArray[np.void]  # [N] of any dtype below


class Kind(IntEnum):
    """`kind` of a record."""

    NONE = 0
    TRADE = 1  # somebody traded
    QUOTE = 2  # the best bid, the best ask, or both
    LEVEL = 3  # one level of a picture of the book, both sides
    HEARTBEAT = 4  # time passed; the feed lives
    ORDER = 5  # what left us: new, replace, cancel
    FILL = 6  # what was done of our order
    SIGNAL = 7  # what the loop has to tell
    CONTROL = 8  # what an operator asks


class TradeFlags(IntFlag):
    """Who crossed the spread; neither: unknown."""

    BUYER_TOOK = 1
    SELLER_TOOK = 2


class QuoteFlags(IntFlag):
    """The sides that a quote or level speaks of; a level also says whether it begins or ends its picture."""

    HAS_BID = 1
    HAS_ASK = 2
    FIRST = 4
    LAST = 8


class OrderFlags(IntFlag):
    """Of orders and fills."""

    IS_BUY = 1
    IS_NEW = 2
    IS_REPLACE = 4
    IS_CANCEL = 8


LEVEL_SHIFT = 4  # flags >> LEVEL_SHIFT: which level, 0 is the best


def _dtypes() -> dict[str, np.dtype[np.void]]:
    core: Any = native.core()
    made = {}
    for shape, layout in core.record_layout().items():
        formats, offsets = zip(*layout.values(), strict=True)
        described: Any = {"names": list(layout), "formats": formats, "offsets": offsets, "itemsize": core.RECORD_BYTES}
        made[shape] = np.dtype(described, align=True)
    return made


_DTYPES = _dtypes()
RECORD = _DTYPES["RECORD"]
TRADE, QUOTE, ORDER = _DTYPES["TRADE"], _DTYPES["QUOTE"], _DTYPES["ORDER"]
FILL, SIGNAL, CONTROL = _DTYPES["FILL"], _DTYPES["SIGNAL"], _DTYPES["CONTROL"]
ALL = tuple(_DTYPES.values())
# The named shape of each kind of record.
SHAPES = {
    Kind.TRADE: TRADE,
    Kind.QUOTE: QUOTE,
    Kind.LEVEL: QUOTE,
    Kind.ORDER: ORDER,
    Kind.FILL: FILL,
    Kind.SIGNAL: SIGNAL,
    Kind.CONTROL: CONTROL,
}


def new_records(count: int, kind: Kind = Kind.NONE) -> Records:
    """[N] zeroed records of that kind, in its named shape (RECORD where it has none)."""
    made = np.zeros(count, SHAPES.get(kind, RECORD))
    made["kind"] = kind
    return made
