"""Binance, as recorded by a receiver: ten-level books, best bids and offers, trades, spot and futures, any symbol.

Data in: Parquet or CSV tables of one instrument, told apart by their columns, not by their names:
    book     recv_ns, bid_px1.., bid_sz1.., ask_px1.., ask_sz1.. up to a depth of 1 to 10 (deeper levels aren't read:
             a host's book holds ten)                                      -> a picture: level records, first to last
    bbo      recv_ns, bid_px, bid_sz, ask_px, ask_sz                       -> a quote of both sides
    trades   recv_ns, price, qty, aggressor (1 the buyer, -1 the seller)   -> a trade
Other columns (exchange times, sums) are passed over. Names such as usdm_btcusdt_20240808_09_bbo.parquet say market and
symbol, which must agree among the files of one feed; a name of another form says nothing. Prices and sizes are taken as
they are: no tick size is assumed.
Data out: a `Part`; `event_ns` is the time of receipt, recv_ns: it is one clock for all three kinds, and what the
recorder could have known at that time; the exchange's stamps are of another clock, and 0 in spot quotes.
Invariants: an empty level or side is price and size 0 or nothing; a picture is kept whole or not at all.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.feeds.tape import PICTURE_RANK, QUOTE_RANK, TRADE_RANK, Bools, Part, Sieve, check_times, part_of
from serving.feeds.vendor_files import NO_NUMBER, ColumnKind, Columns, VendorFile, open_vendor_file
from serving.host.records import LEVEL_SHIFT, QUOTE, RECORD, TRADE, Kind, QuoteFlags, TradeFlags

Numbers = npt.NDArray[np.float64]

NAME = re.compile(r"(?P<market>[a-z]+)_(?P<symbol>[a-z0-9]+)_\d{8}(_[a-z0-9]+)*_(book\d*|bbo|trades)", re.IGNORECASE)
BBO = ("bid_px", "bid_sz", "ask_px", "ask_sz")
TRADES = ("price", "qty")
DEEPEST = 10


def read_binance(path: Path) -> Part:
    """One file of any of the three kinds."""
    file = open_vendor_file(path)
    if "bid_px1" in file.header:
        return _book(file)
    if set(BBO) <= set(file.header):
        return _quotes(file)
    if set(TRADES) <= set(file.header):
        return _trades(file)
    kinds = f"a book has bid_px1 and so on, best quotes {', '.join(BBO)}, trades {', '.join(TRADES)} and aggressor"
    raise DataError(f"{path}: isn't a Binance table: {kinds}; there are: {file.shown}")


def _identity(file: VendorFile) -> str:
    match = NAME.match(file.path.name)
    return f"{match['market']} {match['symbol']}".lower() if match else ""


def _read(file: VendorFile, numbers: tuple[str, ...], *whole: str) -> tuple[Columns, Sieve]:
    wanted: dict[str, ColumnKind] = {"recv_ns": "whole", **dict.fromkeys(whole, "whole")}
    wanted.update(dict.fromkeys(numbers, "number"))
    columns = file.columns(wanted)
    name, times = str(file.path), columns["recv_ns"]
    check_times(name, "recv_ns", times, times != NO_NUMBER)
    sieve = Sieve(name, len(times))
    sieve.refuse("no time", times == NO_NUMBER)
    return columns, sieve


def _cannot_be(*columns: Numbers) -> Bools:
    """Where a price or size is negative or infinite."""
    wrong: Bools = np.any((np.stack(columns) < 0) | np.isinf(np.stack(columns)), axis=0)
    return wrong


def _is_positive(column: Numbers) -> Bools:
    good: Bools = np.isfinite(column) & (column > 0)
    return good


def _trades(file: VendorFile) -> Part:
    columns, sieve = _read(file, TRADES, "aggressor")
    side = columns["aggressor"]
    sieve.refuse("price isn't positive", ~_is_positive(columns["price"]))
    sieve.refuse("size isn't positive", ~_is_positive(columns["qty"]))
    sieve.refuse("aggressor isn't 1, -1 or unknown", ~np.isin(side, (1, -1, 0, NO_NUMBER)))
    records = np.zeros(int(sieve.kept.sum()), TRADE)
    records["event_ns"], records["kind"] = columns["recv_ns"][sieve.kept], Kind.TRADE
    records["price"], records["size"] = columns["price"][sieve.kept], columns["qty"][sieve.kept]
    side = side[sieve.kept]
    records["flags"] = np.where(side == 1, TradeFlags.BUYER_TOOK, np.where(side == -1, TradeFlags.SELLER_TOOK, 0))
    return part_of(sieve, "trades", TRADE_RANK, _identity(file), records.view(RECORD))


def _quotes(file: VendorFile) -> Part:
    columns, sieve = _read(file, BBO)
    sieve.refuse("price or size can't be", _cannot_be(*(columns[name] for name in BBO)))
    bid, ask = (_is_positive(columns[name]) for name in ("bid_px", "ask_px"))
    sieve.refuse("no price", ~bid & ~ask)
    records = np.zeros(int(sieve.kept.sum()), QUOTE)
    records["event_ns"], records["kind"] = columns["recv_ns"][sieve.kept], Kind.QUOTE
    records["flags"] = QuoteFlags.HAS_BID | QuoteFlags.HAS_ASK
    for name, column in zip(("bid", "bid_size", "ask", "ask_size"), BBO, strict=True):
        records[name] = np.nan_to_num(columns[column][sieve.kept])
    return part_of(sieve, "bbo", QUOTE_RANK, _identity(file), records.view(RECORD))


def _depth(file: VendorFile) -> int:
    """How many levels there are, one after the other from 1."""
    depth = 1
    while depth < DEEPEST and any(f"{name}{depth + 1}" in file.header for name in BBO):
        depth += 1
    return depth


def _book(file: VendorFile) -> Part:
    depth = _depth(file)
    names = {name: tuple(f"{name}{level}" for level in range(1, depth + 1)) for name in BBO}
    columns, sieve = _read(file, sum(names.values(), ()))
    bid, bid_size, ask, ask_size = (np.stack([columns[one] for one in names[name]], axis=1) for name in BBO)
    has_bid, has_ask = _levels(sieve, bid, bid_size, -1), _levels(sieve, ask, ask_size, 1)
    kept = sieve.kept
    has_bid, has_ask = has_bid[kept], has_ask[kept]
    lengths = np.maximum(1, np.maximum(has_bid.sum(1), has_ask.sum(1)))  # an empty book is a picture too
    levels = np.zeros((int(kept.sum()), depth), QUOTE)
    levels["event_ns"], levels["kind"] = columns["recv_ns"][kept][:, None], Kind.LEVEL
    place = np.arange(depth)
    levels["flags"] = (
        np.where(has_bid, QuoteFlags.HAS_BID, 0) | np.where(has_ask, QuoteFlags.HAS_ASK, 0) | (place << LEVEL_SHIFT)
        | np.where(place == 0, QuoteFlags.FIRST, 0) | np.where(place == lengths[:, None] - 1, QuoteFlags.LAST, 0)
    )  # fmt: skip
    for name, values, there in (
        ("bid", bid, has_bid), ("bid_size", bid_size, has_bid), ("ask", ask, has_ask), ("ask_size", ask_size, has_ask)
    ):  # fmt: skip
        levels[name] = np.where(there, values[kept], 0.0)
    records = levels[place < lengths[:, None]].view(RECORD)
    return part_of(sieve, "book", PICTURE_RANK, _identity(file), records, lengths.astype(np.int64))


def _levels(sieve: Sieve, price: Numbers, size: Numbers, sign: int) -> Bools:
    """Which levels of a side are there; quarantines pictures whose levels aren't one after the other, best first."""
    there: Bools = _is_positive(price) & _is_positive(size)
    empty: Bools = ((price == 0) | np.isnan(price)) & ((size == 0) | np.isnan(size))
    sieve.refuse("price or size can't be", np.any(~(there | empty), axis=1))
    before, after = there[:, :-1], there[:, 1:]
    worse: Bools = sign * np.diff(price, axis=1) > 0
    sieve.refuse("a level is missing", np.any(~before & after, axis=1))
    sieve.refuse("levels out of order", np.any(after & ~worse, axis=1))
    return there
