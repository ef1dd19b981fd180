"""Read canonical quotes back, one snapshot of one underlying at a time, and the underlying's longer history.

In: `quotes.parquet` of ingest (sorted by ts, row groups within one UTC date); a CSV or Parquet of (date, close).
Out: an iterator of (underlying, `Quotes`), coin prices turned into money at the index. Memory holds one date.
Invariant: no quote is left out but those of underlyings that weren't asked for, which is said.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines.dated_tables import read_dated
from serving.errors import DataError
from serving.quotes import Quotes, is_split

COLUMNS = ["ts", "underlying", "root", "expiry", "strike", "right", "style", "bid", "ask", "underlying_price",
           "forward", "price_unit"]  # fmt: skip

logger = logging.getLogger(__name__)


def read_snapshots(quotes_path: Path, underlyings: Sequence[str] = ()) -> Iterator[tuple[str, Quotes]]:
    """Snapshots in order of time, then underlying; of `underlyings` only, if any are named.

    Raises DataError for a name that isn't among the quotes. Warns where an underlying seems to have been split.
    """
    file = pq.ParquetFile(quotes_path)
    if underlyings:
        _say_what_is_left_out(file, underlyings)
    before: dict[str, Quotes] = {}
    for underlying, quotes in _snapshots(file):
        if underlyings and underlying not in underlyings:
            continue
        if underlying in before and is_split(before[underlying], quotes):
            logger.warning(
                "%s: the price goes from %g to %g until %s and most strikes are others: a split; what was seen before "
                "it says nothing of what comes after",
                underlying, before[underlying].spot, quotes.spot, quotes.ts,
            )  # fmt: skip
        before[underlying] = quotes
        yield underlying, quotes


def _say_what_is_left_out(file: pq.ParquetFile, wanted: Sequence[str]) -> None:
    counts: Counter[str] = Counter()
    for group in range(file.num_row_groups):
        names, numbers = np.unique(file.read_row_group(group, columns=["underlying"])["underlying"], return_counts=True)
        counts.update({str(name): int(number) for name, number in zip(names, numbers, strict=True)})
    missing = [name for name in wanted if name not in counts]
    if missing:
        raise DataError(
            f"data.underlyings names {', '.join(missing)}, which the quotes don't hold; they hold {', '.join(counts)}"
        )
    left = ", ".join(f"{name} ({count} quotes)" for name, count in counts.items() if name not in wanted)
    logger.info("data.underlyings: left out %s", left or "nothing")


def _snapshots(file: pq.ParquetFile) -> Iterator[tuple[str, Quotes]]:
    pending: list[pl.DataFrame] = []
    for group in range(file.num_row_groups):
        table = pl.from_arrow(file.read_row_group(group, columns=COLUMNS))
        assert isinstance(table, pl.DataFrame)
        table = table.with_columns(date=pl.col("ts").dt.date())
        if pending and table["date"][0] != pending[0]["date"][0]:
            yield from _split(pl.concat(pending))
            pending = []
        pending.append(table)
    if pending:
        yield from _split(pl.concat(pending))


def _split(day: pl.DataFrame) -> Iterator[tuple[str, Quotes]]:
    for (_, underlying), rows in day.group_by(["ts", "underlying"], maintain_order=True):
        yield str(underlying), to_quotes(rows)


def to_quotes(rows: pl.DataFrame) -> Quotes:
    """Rows of one snapshot (canonical columns) as arrays."""
    spot = float(rows["underlying_price"][0])
    coin = rows["price_unit"].to_numpy() == "coin"
    unit = np.where(coin, spot, 1.0)
    american = rows["style"].to_numpy() == "american"
    forward = rows["forward"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return Quotes(
        ts=rows["ts"].cast(pl.Datetime("ns")).to_numpy()[0],
        spot=spot,
        root=rows["root"].to_numpy().astype(np.str_),
        expiry=rows["expiry"].cast(pl.Datetime("ns")).to_numpy(),
        strike=rows["strike"].to_numpy().astype(np.float64),
        right=np.where(rows["right"].to_numpy() == "C", 1.0, -1.0),
        bid=rows["bid"].to_numpy() * unit,
        ask=rows["ask"].to_numpy() * unit,
        american=american if american.any() else None,
        venue_forward=forward if np.isfinite(forward).any() else None,
        coin=bool(coin.any()),
    )


def read_history(path: Path, time_of_day: np.timedelta64) -> pl.DataFrame:
    """Columns `ts` (UTC) and `price` from a table with `date` and `close`; each date gets `time_of_day`.

    Raises SchemaError for missing columns, DataError for values that aren't dates and positive prices.
    """
    table = read_dated(path, "close", "data.history", typed=pl.Float64, rule="closes positive numbers",
                       usable=lambda close: (close > 0) & close.is_finite())  # fmt: skip
    ordered = table.sort("date")
    times = ordered["date"].to_numpy().astype("datetime64[ns]") + time_of_day
    return pl.DataFrame({"ts": times, "price": ordered["close"]})
