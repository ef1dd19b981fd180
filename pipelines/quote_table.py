"""Quotes on their way to the table: spilled to disk by UTC date, judged against each other, put in order.

Purpose: what needs more than one row, in bounded memory. Data in: canonical columns as `pipelines.quote_rows`
makes them, each row with its ordinal (its place in the input). Data out: slices of the table in order, and
the ordinals refused, with reason.
Invariants: a slice holds whole timestamps of one UTC date, at most
`SLICE_ROWS` rows unless a single timestamp has more; slices come in time order. Of rows with one identity the
first of the input stays. Rules, in this order:
- `currency`: not the currency of most quotes of its underlying, counted over the whole input; a tie goes to
  the currency seen first.
- `underlying_price_conflict`: more than `UNDERLYING_TOLERANCE` off the price most quotes of its (ts,
  underlying) have; a tie goes to the price seen first. A layout whose prices jitter within a snapshot sets a wider
  tolerance, around the median (the lower of two). The others get that price: a snapshot has one.
- `duplicate`, `duplicate_conflict`: the identity of an earlier row, with the same values or with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from serving import schema

TABLE_REASONS = ("currency", "underlying_price_conflict", "duplicate", "duplicate_conflict")
CURRENCY, UNDERLYING, DUPLICATE, CONFLICT = range(4)  # indices into TABLE_REASONS
UNDERLYING_TOLERANCE = 1e-4  # relative
SPILL_ROWS = 1_000_000
SLICE_ROWS = 1_000_000
DAY_NS = 86_400 * 10**9

Columns = dict[str, NDArray[Any]]
_TYPES = {"timestamp": np.int64, "number": np.float64, "text": np.int32}
_DTYPES = {column.name: np.dtype(_TYPES[column.kind]) for column in schema.COLUMNS} | {"ordinal": np.dtype(np.int64)}


@dataclass(frozen=True)
class Settled:
    """A slice in table order without the rows refused; of each of those its ordinal, its reason (an index
    into `TABLE_REASONS`), the ordinal of the row that came first (-1: none), and the value expected (NaN:
    none)."""

    columns: Columns
    ordinals: NDArray[np.int64]
    reasons: NDArray[np.uint8]
    earlier: NDArray[np.int64]
    expected: NDArray[np.float64]


class Spool:
    """One temporary Arrow file of quotes, each of its batches within one UTC date."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in _DTYPES.items()])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema, options=options)
        self._pending: list[Columns] = []
        self._pending_rows = 0
        self._batches: dict[int, list[tuple[int, int, int, int]]] = {}  # date -> (batch, rows, first ts, last ts)
        self._count = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if not self._file.closed:
            self._writer.close()
            self._file.close()

    def add(self, columns: Columns) -> None:
        """Take rows, `ordinal` among their columns."""
        self._pending.append(columns)
        self._pending_rows += len(columns["ts"])
        if self._pending_rows >= SPILL_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        columns = _concatenate(self._pending)
        self._pending, self._pending_rows = [], 0
        dates = columns["ts"] // DAY_NS
        if np.any(dates[1:] < dates[:-1]):
            order = np.argsort(dates, kind="stable")
            columns, dates = {name: values[order] for name, values in columns.items()}, dates[order]
        starts = np.flatnonzero(np.r_[True, dates[1:] != dates[:-1]])
        for start, end in zip(starts, [*starts[1:], len(dates)], strict=True):
            arrays = [pa.array(columns[name][start:end]) for name in _DTYPES]
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
            times = columns["ts"][start:end]
            entry = (self._count, int(end - start), int(times.min()), int(times.max()))
            self._batches.setdefault(int(dates[start]), []).append(entry)
            self._count += 1

    def slices(self) -> Iterator[Columns]:
        """Everything spilled, slice by slice in time order, rows of a slice in the order they were added."""
        self._flush()
        self._close()
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_file(file) as reader:
            for date in sorted(self._batches):
                batches = self._batches[date]
                if sum(rows for _, rows, _, _ in batches) <= SLICE_ROWS:
                    ranges = [(min(entry[2] for entry in batches), max(entry[3] for entry in batches))]
                else:
                    ranges = _ranges(np.concatenate([_column(reader, entry[0], "ts") for entry in batches]))
                for first, last in ranges:
                    yield _gather(reader, batches, first, last)


def _gather(
    reader: pa.ipc.RecordBatchFileReader, batches: Sequence[tuple[int, int, int, int]], first: int, last: int
) -> Columns:
    """The rows with first <= ts <= last of these batches, filled into arrays of the size of all their rows."""
    total = sum(rows for _, rows, low, high in batches if low <= last and first <= high)
    columns = {name: np.empty(total, dtype=dtype) for name, dtype in _DTYPES.items()}
    filled = 0
    for entry in batches:
        part = _rows(reader, entry, first, last)
        count = len(part["ts"])
        for name, values in part.items():
            columns[name][filled : filled + count] = values
        filled += count
    return {name: values[:filled] for name, values in columns.items()}


def _column(reader: pa.ipc.RecordBatchFileReader, batch: int, name: str) -> NDArray[Any]:
    values: NDArray[Any] = reader.get_batch(batch).column(name).to_numpy()
    return values


def _rows(reader: pa.ipc.RecordBatchFileReader, entry: tuple[int, int, int, int], first: int, last: int) -> Columns:
    """The rows of a batch with first <= ts <= last."""
    number, _, batch_first, batch_last = entry
    if batch_last < first or last < batch_first:
        return {name: np.empty(0, dtype=dtype) for name, dtype in _DTYPES.items()}
    batch = reader.get_batch(number)
    columns = {name: batch.column(name).to_numpy() for name in _DTYPES}
    if first <= batch_first and batch_last <= last:
        return columns
    inside = (columns["ts"] >= first) & (columns["ts"] <= last)
    return {name: values[inside] for name, values in columns.items()}


def _ranges(times: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Closed ranges of whole timestamps, each of at most SLICE_ROWS rows unless one timestamp has more."""
    distinct, counts = np.unique(times, return_counts=True)
    ends = np.cumsum(counts)
    ranges, start = [], 0
    while start < len(distinct):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + SLICE_ROWS, side="right")))
        ranges.append((int(distinct[start]), int(distinct[stop - 1])))
        start = stop
    return ranges


def _concatenate(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _select(columns: Columns, selection: NDArray[Any]) -> None:
    """Keep these rows, in this order; column by column, so that no second copy of the slice is ever held."""
    for name in columns:
        columns[name] = columns[name][selection]


def settle(
    columns: Columns, texts: Mapping[str, Sequence[str]], currencies: Mapping[int, int], tolerance: float | None = None
) -> Settled:
    """Judge a slice and put it in order, in place. `texts` are the vocabularies, `currencies` maps each underlying to
    its currency, `tolerance` (relative) is for underlying prices that jitter around their median."""
    refused: list[Settled] = []

    def refuse(reason: int, holds: NDArray[np.bool_], earlier: NDArray[Any] | int, expected: NDArray[Any]) -> None:
        count = int(holds.sum())
        before = np.broadcast_to(earlier, holds.shape)[holds].astype(np.int64)
        values = expected[holds].astype(np.float64)
        refused.append(Settled({}, columns["ordinal"][holds], np.full(count, reason, np.uint8), before, values))

    expected = _expected_currency(columns, currencies)
    if (wrong := columns["currency"] != expected).any():
        refuse(CURRENCY, wrong, -1, expected)
        _select(columns, ~wrong)
    _select(columns, _order(columns, texts))
    prices = _expected_price(columns) if tolerance is None else _median_price(columns)
    allowed = UNDERLYING_TOLERANCE if tolerance is None else tolerance
    if (wrong := np.abs(columns["underlying_price"] - prices) > allowed * prices).any():
        refuse(UNDERLYING, wrong, -1, prices)
        _select(columns, ~wrong)
        prices = prices[~wrong]
    columns["underlying_price"] = prices
    starts = _starts(columns, schema.IDENTITY)
    if not starts.all():
        first = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
        alike = _alike(columns, first)
        earlier, none = columns["ordinal"][first], np.full(len(first), np.nan)
        refuse(DUPLICATE, ~starts & alike, earlier, none)
        refuse(CONFLICT, ~starts & ~alike, earlier, none)
        _select(columns, starts)
    return Settled(
        columns,
        np.concatenate([np.empty(0, np.int64), *(part.ordinals for part in refused)]),
        np.concatenate([np.empty(0, np.uint8), *(part.reasons for part in refused)]),
        np.concatenate([np.empty(0, np.int64), *(part.earlier for part in refused)]),
        np.concatenate([np.empty(0, np.float64), *(part.expected for part in refused)]),
    )


def _expected_currency(columns: Columns, currencies: Mapping[int, int]) -> NDArray[np.int32]:
    lookup = np.zeros(max(currencies) + 1, dtype=np.int32)
    for underlying, currency in currencies.items():
        lookup[underlying] = currency
    return lookup[columns["underlying"]]


def _order(columns: Columns, texts: Mapping[str, Sequence[str]]) -> NDArray[np.uint32]:
    """Row indices sorted by identity, text by its letters, rows of one identity in input order."""
    keys = dict(columns)
    for name in ("underlying", "root", "right"):
        rank = np.empty(len(texts[name]), dtype=np.int32)
        rank[sorted(range(len(rank)), key=texts[name].__getitem__)] = np.arange(len(rank), dtype=np.int32)
        keys[name] = rank[columns[name]]
    varying = [name for name in schema.IDENTITY if len(keys[name]) and np.any(keys[name] != keys[name][0])]
    frame = pl.DataFrame({name: keys[name] for name in (*varying, "ordinal")})
    return frame.select(pl.arg_sort_by(frame.columns)).to_series().to_numpy()


def _starts(columns: Columns, names: Sequence[str]) -> NDArray[np.bool_]:
    """Where a row differs from the one before in any of these columns."""
    starts = np.zeros(len(columns["ts"]), dtype=bool)
    starts[:1] = True
    for name in names:
        starts[1:] |= columns[name][1:] != columns[name][:-1]
    return starts


def _expected_price(columns: Columns) -> NDArray[np.float64]:
    """For each row the underlying price most rows of its (ts, underlying) have; rows are in table order."""
    prices: NDArray[np.float64] = columns["underlying_price"]
    group = np.cumsum(_starts(columns, ("ts", "underlying"))) - 1
    first = prices[np.flatnonzero(_starts(columns, ("ts", "underlying")))]
    expected: NDArray[np.float64] = first[group]
    if np.array_equal(expected, prices):
        return expected
    frame = pl.DataFrame({"group": group, "price": prices, "ordinal": columns["ordinal"]})
    counts = frame.group_by("group", "price").agg(pl.len().alias("count"), pl.col("ordinal").min())
    ranked = counts.sort("group", "count", "ordinal", descending=[False, True, False])
    best = ranked.group_by("group", maintain_order=True).first()["price"].to_numpy()
    typical: NDArray[np.float64] = best[group]
    return typical


def _median_price(columns: Columns) -> NDArray[np.float64]:
    """For each row the median underlying price of its (ts, underlying), the lower of two; rows are in table order."""
    group = np.cumsum(_starts(columns, ("ts", "underlying"))) - 1
    frame = pl.DataFrame({"group": group, "price": columns["underlying_price"]})
    median = pl.col("price").quantile(0.5, interpolation="lower").over("group")
    found: NDArray[np.float64] = frame.select(median).to_series().to_numpy()
    return found


def _alike(columns: Columns, first: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a row has all the values of the row at `first`; none equals none."""
    alike = np.ones(len(first), dtype=bool)
    for name in schema.NAMES:
        values, others = columns[name], columns[name][first]
        same = values == others
        if values.dtype.kind == "f":
            same |= np.isnan(values) & np.isnan(others)
        alike &= same
    return alike


def snapshot_count(columns: Columns) -> int:
    """Distinct (ts, underlying) in a slice in table order."""
    return int(_starts(columns, ("ts", "underlying")).sum())


def to_arrow(columns: Columns, texts: Mapping[str, Sequence[str]], start: int, end: int) -> pa.Table:
    """Rows of a slice as the canonical table: UTC timestamps, strings, numbers with null for none."""
    arrays = []
    for column in schema.COLUMNS:
        values = columns[column.name][start:end]
        if column.kind == "timestamp":
            arrays.append(pa.array(values.view("datetime64[ns]")).cast(pa.timestamp("ns", "UTC")))
        elif column.kind == "number":
            arrays.append(pa.array(values, from_pandas=True))
        else:
            vocabulary = pa.array(texts[column.name], pa.string())
            arrays.append(pa.DictionaryArray.from_arrays(pa.array(values), vocabulary).cast(pa.string()))
    return pa.table(arrays, schema=ARROW_SCHEMA)


_ARROW = {"timestamp": pa.timestamp("ns", "UTC"), "number": pa.float64(), "text": pa.string()}
ARROW_SCHEMA = pa.schema(
    [pa.field(column.name, _ARROW[column.kind], nullable=column.nullable) for column in schema.COLUMNS]
)
