"""QuantConnect Lean's US equity ticks: quotes and trades of any symbol and date, as tables.

Data in: Parquet or CSV tables of one symbol, told apart by their columns:
    quotes   date (20131007), ms (since midnight in New York), bid, bid_size, ask, ask_size, condition, suspicious; a
             row speaks of the sides whose price isn't 0, usually of one                            -> a quote
    trades   date, ms, price, size, condition, suspicious                                           -> a trade
`exchange` and other columns are passed over. Names such as ibm_quotes.parquet say the symbol, which must agree among
the files of one feed. Prices are money and taken as they are.
Data out: a `Part`; `event_ns` is the exchange's time in UTC (New York's clock with its summer time; of an hour that
comes twice the first is meant). Nobody is said to have taken: the data doesn't tell.
Invariants: a row that isn't a firm quote or a trade at its moment's price is quarantined under the name of its
condition. Conditions are hexadecimal flags; their meaning: Lean, Common/Data/Auxiliary/{Trade,Quote}ConditionFlags.cs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.feeds.tape import QUOTE_RANK, TRADE_RANK, Part, Sieve, Whole, part_of
from serving.feeds.vendor_files import ColumnKind, Columns, VendorFile, Words, open_vendor_file
from serving.host.records import QUOTE, RECORD, TRADE, Kind, QuoteFlags

ZONE = "America/New_York"
NAME = re.compile(r"(?P<symbol>[a-z0-9.]+?)(_\d{8})?_(quotes?|trades?)\b", re.IGNORECASE)
DAY_MS, HOUR_MS, MS_NS, HOURS = 86_400_000, 3_600_000, 1_000_000, 24
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2099, 12, 31)
COMMON: dict[str, ColumnKind] = {"date": "text", "ms": "whole", "condition": "text", "suspicious": "whole"}
QUOTES = ("bid", "bid_size", "ask", "ask_size")
TRADES = ("price", "size")

# Flags of trades that weren't made at the market's price of their time, or aren't trades.
REFUSED_TRADES = {
    1: "cash settlement", 2: "next day settlement", 3: "seller's option", 9: "derivatively priced",
    10: "form T, late", 11: "sold last, reported late", 14: "out of sequence", 16: "acquisition",
    18: "stock-option trade", 19: "distribution", 20: "average price", 22: "price variation",
    24: "official close, no trade", 25: "prior reference price", 26: "official open, no trade",
}  # fmt: skip
# Extended hours, odd lots and sweeps among them.
TAKEN_TRADES = (0, 4, 5, 6, 7, 8, 12, 13, 15, 17, 21, 23, 27, 28, 29, 31)
# Flags of quotes under which nobody has to trade.
REFUSED_QUOTES = {
    2: "gap, not firm", 4: "halt, news", 5: "halt, news pending", 6: "trading range indication",
    7: "halt, order imbalance", 8: "closed market maker", 9: "volatility trading pause", 10: "not firm",
    12: "halt, related security", 13: "resume", 14: "halt, in view of common", 15: "halt, equipment changeover",
    16: "halt, sub-penny trading", 17: "no open, no resume", 18: "price band", 19: "price band, republished",
    22: "halt, order influx",
}  # fmt: skip
TAKEN_QUOTES = (0, 1, 3, 11, 20, 21)  # regular, slow, closing, opening, manual, fast trading


def read_lean(path: Path) -> Part:
    """One file of either kind."""
    file = open_vendor_file(path)
    if set(QUOTES) <= set(file.header):
        return _quotes(file)
    if set(TRADES) <= set(file.header):
        return _trades(file)
    kinds = f"quotes have {', '.join(QUOTES)}, trades {', '.join(TRADES)}, both {', '.join(COMMON)}"
    raise DataError(f"{path}: isn't a table of Lean ticks: {kinds}; there are: {file.shown}")


def _identity(file: VendorFile) -> str:
    match = NAME.match(file.path.name)
    return match["symbol"].lower() if match else ""


def _read(
    file: VendorFile, numbers: tuple[str, ...], refused: Mapping[int, str], taken: tuple[int, ...]
) -> tuple[Columns, Sieve, Whole]:
    columns = file.columns({**COMMON, **dict.fromkeys(numbers, "number")})
    name, ms = str(file.path), columns["ms"]
    sieve = Sieve(name, len(ms))
    sieve.refuse("ms isn't a time of day", (ms < 0) | (ms >= DAY_MS))
    event_ns = _utc(name, columns["date"], np.where(sieve.kept, ms, 0))
    sieve.refuse("suspicious", columns["suspicious"] != 0)
    flags = _conditions(name, columns["condition"])
    for bit, reason in refused.items():
        sieve.refuse(reason, (flags >> np.uint64(bit)) & np.uint64(1) != 0)
    known = sum(1 << bit for bit in (*refused, *taken))
    sieve.refuse("condition of no known meaning", flags & ~np.uint64(known) != 0)
    return columns, sieve, event_ns


def _utc(file: str, dates: Words, ms: Whole) -> Whole:
    """New York's wall clock to UTC, nanoseconds; each hour of each date is looked up once."""
    try:
        zone = ZoneInfo(ZONE)
    except ZoneInfoNotFoundError as error:
        raise DataError(f"{file}: this machine doesn't know {ZONE}: install tzdata (system or pip)") from error
    hours, which = np.unique(dates.codes * HOURS + ms // HOUR_MS, return_inverse=True)
    days = {code: _day(file, dates, code) for code in np.unique(hours // HOURS).tolist()}
    start_ns = [int(_instant(days[hour // HOURS], hour % HOURS, zone)) * 1_000_000_000 for hour in hours.tolist()]
    return np.array(start_ns, np.int64)[which] + ms % HOUR_MS * MS_NS


def _instant(day: date, hour: int, zone: ZoneInfo) -> float:
    return datetime(day.year, day.month, day.day, hour, tzinfo=zone).timestamp()


def _day(file: str, dates: Words, code: int) -> date:
    text = dates.texts[code]
    try:
        day = datetime.strptime(text.replace("-", ""), "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        day = date.min
    if not FIRST_DAY <= day <= LAST_DAY:
        row = dates.first_row(code)
        raise DataError(f"{file}: row {row}, column date: found {text!r}, expected a date such as 20131007")
    return day


def _conditions(file: str, words: Words) -> npt.NDArray[np.uint64]:
    """Flags; nothing is no condition."""
    flags = []
    for code, word in enumerate(words.texts):
        if not re.fullmatch(r"[0-9A-Fa-f]{0,16}", word):
            row = words.first_row(code)
            raise DataError(f"{file}: row {row}, column condition: found {word!r}, expected hexadecimal flags as 2000")
        flags.append(int(word or "0", 16))
    return np.array(flags, np.uint64)[words.codes]


def _trades(file: VendorFile) -> Part:
    columns, sieve, event_ns = _read(file, TRADES, REFUSED_TRADES, TAKEN_TRADES)
    for name in TRADES:
        sieve.refuse(f"{name} isn't positive", ~(np.isfinite(columns[name]) & (columns[name] > 0)))
    records = np.zeros(int(sieve.kept.sum()), TRADE)
    records["event_ns"], records["kind"] = event_ns[sieve.kept], Kind.TRADE
    records["price"], records["size"] = columns["price"][sieve.kept], columns["size"][sieve.kept]
    return part_of(sieve, "trades", TRADE_RANK, _identity(file), records.view(RECORD))


def _quotes(file: VendorFile) -> Part:
    columns, sieve, event_ns = _read(file, QUOTES, REFUSED_QUOTES, TAKEN_QUOTES)
    speaks = {}
    for side in ("bid", "ask"):
        price, size = (np.nan_to_num(columns[name], posinf=np.inf) for name in (side, f"{side}_size"))
        sieve.refuse("price or size can't be", (price < 0) | (size < 0) | np.isinf(price) | np.isinf(size))
        sieve.refuse("price without size", (price > 0) != (size > 0))
        speaks[side] = price > 0
    sieve.refuse("no price", ~speaks["bid"] & ~speaks["ask"])
    kept = sieve.kept
    records = np.zeros(int(kept.sum()), QUOTE)
    records["event_ns"], records["kind"] = event_ns[kept], Kind.QUOTE
    records["flags"] = (
        np.where(speaks["bid"], QuoteFlags.HAS_BID, 0)[kept] | np.where(speaks["ask"], QuoteFlags.HAS_ASK, 0)[kept]
    )
    for side in ("bid", "ask"):
        for name in (side, f"{side}_size"):
            records[name] = np.where(speaks[side], columns[name], 0.0)[kept]
    return part_of(sieve, "quotes", QUOTE_RANK, _identity(file), records.view(RECORD))
