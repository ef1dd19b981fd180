"""Tables in and out of a host: a chain, the underlying's path and the quotes of now; the priced chain.

Data in: CSV (also .csv.gz) or Parquet (extra `parquet`), columns by canonical name (serving/schema.py), any others
ignored, times ISO 8601 in UTC; or the demo arrays of a bundle. Data out: `Market`; a priced chain as CSV or Parquet.
    chain   CHAIN_COLUMNS; ordered by ts, a quote only once
    path    ts, price (or date, close: the close of a date is stamped with the chain's time of day and gives way to
            a snapshot of that date)
    now     CHAIN_COLUMNS, one ts; a row without root and strike carries only ts and underlying_price

Invariants: damaged input is refused, all problems of all files in one DataError (SchemaError if columns are
missing), each with file, row (1 is the first below the header), column, value and remedy. Files appear whole.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import itemgetter
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import BundleError, DataError, SchemaError
from serving.features import Path
from serving.normal import Array
from serving.surface import Bools, Quotes, Texts, Times

CHAIN_COLUMNS = ("ts", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "underlying_price")
PATH_COLUMNS = (("ts", "date"), ("price", "close"))  # either name will do
TIME_COLUMNS = frozenset({"ts", "expiry", "date"})
TEXT_COLUMNS = frozenset({"underlying", "root", "right"})
SIGN = {"C": 1.0, "P": -1.0}
SUFFIXES = (".csv", ".csv.gz", ".parquet")
CHUNK_ROWS = 20_000
LISTED = 10  # rows shown of one kind of problem; the others are counted
TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
YEARS = (1700, 2250)  # what nanoseconds in 64 bits can hold
REMEDIES = {
    "ts": "an ISO 8601 time in UTC such as 2018-12-31T20:45:00Z",
    "expiry": "an ISO 8601 time in UTC such as 2018-12-31T21:00:00Z",
    "underlying": "the underlying's name", "root": "the option root's name",
    "right": "C or P", "strike": "a positive number", "underlying_price": "a positive number",
    "price": "a positive number", "close": "a positive number", "date": "an ISO 8601 date such as 2018-12-31",
    "bid": "a number, 0 where nobody bids", "ask": "a number, 0 where nobody offers",
}  # fmt: skip


@dataclass(frozen=True)
class Market:
    """What is needed to price: past snapshots ascending, the path before now, the quotes of now."""

    underlying: str
    chain: list[Quotes]
    path: Path
    now: Quotes


@dataclass
class Column:
    """Values of one column, and where the file held something that can't be read as such (reported already)."""

    values: npt.NDArray[Any]
    damaged: Bools


@dataclass
class Table:
    """The wanted columns of one file; `row` counts from 1 below the header."""

    file: str
    row: npt.NDArray[np.int64]
    columns: dict[str, Column]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name].values

    def take(self, rows: Bools) -> Table:
        """The table with some of its rows."""
        kept = {name: Column(one.values[rows], one.damaged[rows]) for name, one in self.columns.items()}
        return Table(self.file, self.row[rows], kept)


class Problems:
    """Everything found wrong so far."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._counts: dict[tuple[str, str, str], int] = defaultdict(int)
        self._missing_columns = False

    def file(self, file: str, text: str, *, schema: bool = False) -> None:
        """Something about a whole file."""
        self._lines[file, "", text].append(f"{file}: {text}")
        self._missing_columns |= schema

    def rows(self, file: str, column: str, rows: Iterable[int], values: Iterable[Any], remedy: str) -> None:
        """Values of a column that can't be used."""
        key = (file, column, remedy)
        for row, value in zip(rows, values, strict=True):
            self._counts[key] += 1
            if self._counts[key] <= LISTED:
                self._lines[key].append(f"{file}: row {row}, column {column}: found {_shown(value)}, expected {remedy}")

    def raise_if_any(self) -> None:
        """One error with all of them."""
        lines = []
        for key, shown in self._lines.items():
            lines += shown
            more = self._counts[key] - LISTED
            if more > 0:
                lines.append(f"{key[0]}: column {key[1]}: {more} more rows like these")
        if lines:
            kind = SchemaError if self._missing_columns else DataError
            raise kind("\n".join(["the input can't be used; correct or remove:", *(f"  - {line}" for line in lines)]))


def _shown(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return iso(np.array([value]))[0] or "nothing"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return "nothing" if text in ("''", "nan", "None") else text if len(text) <= 60 else f"{text[:57]}..."


def iso(times: Times) -> list[str]:
    """ISO 8601 in UTC, to the second where that is exact; no time is empty text."""
    whole = bool((np.isnat(times) | (times == times.astype("datetime64[s]"))).all())
    texts = np.datetime_as_string(times, unit="s" if whole else "ns").tolist()
    return ["" if text == "NaT" else f"{text}Z" for text in texts]


def has_known_suffix(file: FilePath) -> bool:
    """Whether the name ends like a table that can be read and written here."""
    return file.name.lower().endswith(SUFFIXES)


def read_market(chain: FilePath, path: FilePath, now: FilePath, underlying: str | None = None) -> Market:
    """Read, check and fit together the three tables."""
    problems = Problems()
    chain_table, now_table, path_table = (
        _read(chain, CHAIN_COLUMNS, problems), _read(now, CHAIN_COLUMNS, problems), _read_path(path, problems)
    )  # fmt: skip
    if chain_table is not None:
        underlying = underlying or _only_underlying(chain_table, problems)
        chain_table = _checked(_of_underlying(chain_table, underlying, problems), problems)
    if now_table is not None:
        now_table = _checked(_of_underlying(now_table, underlying, problems), problems, may_lack_contract=True)
        if len(np.unique(now_table["ts"])) > 1:
            times = ", ".join(iso(np.unique(now_table["ts"]))[:3])
            problems.file(now_table.file, f"holds several times ({times}, ...): now is one time")
    if chain_table is not None and now_table is not None and len(chain_table.row) and len(now_table.row):
        last, first = np.max(chain_table["ts"]), np.min(now_table["ts"])
        if first <= last:
            text = f"now ({_shown(first)}) isn't after the chain's last snapshot ({_shown(last)})"
            problems.file(now_table.file, f"{text}: a chain is what was seen before")
    problems.raise_if_any()
    assert chain_table is not None
    assert now_table is not None
    assert path_table is not None
    assert underlying is not None
    snapshots, (quotes,) = _snapshots(chain_table), _snapshots(now_table)
    return Market(underlying, snapshots, _stamped(path_table, snapshots, quotes), quotes)


def _only_underlying(table: Table, problems: Problems) -> str | None:
    names = sorted(set(table["underlying"].tolist()) - {""})
    if len(names) > 1:
        problems.file(table.file, f"holds several underlyings ({', '.join(names)}): choose one with --underlying")
    return names[0] if len(names) == 1 else None


def _of_underlying(table: Table, underlying: str | None, problems: Problems) -> Table:
    """Rows of one underlying, and rows that name none (they are reported later)."""
    if underlying is None:
        return table
    kept = table.take((table["underlying"] == underlying) | (table["underlying"] == ""))
    if not len(kept.row):
        names = ", ".join(sorted(set(table["underlying"].tolist()))[:10])
        problems.file(table.file, f"holds nothing of underlying {underlying!r}; it holds {names}")
    return kept


def _checked(table: Table, problems: Problems, *, may_lack_contract: bool = False) -> Table:
    """Report what is wrong within a table of quotes; returns it."""
    if not len(table.row):
        return table
    strike = table["strike"]
    contract = np.ones(len(table.row), dtype=bool)
    if may_lack_contract:
        contract = ~((table["root"] == "") & np.isnan(strike) & ~table.columns["strike"].damaged)
    with np.errstate(invalid="ignore"):
        fine = {
            "ts": ~np.isnat(table["ts"]), "underlying": table["underlying"] != "",
            "underlying_price": np.isfinite(table["underlying_price"]) & (table["underlying_price"] > 0),
            "root": (table["root"] != "") | ~contract, "expiry": ~np.isnat(table["expiry"]) | ~contract,
            "strike": (np.isfinite(strike) & (strike > 0)) | ~contract,
            "right": np.isin(table["right"], list(SIGN)) | ~contract,
            "bid": (np.isfinite(table["bid"]) & (table["bid"] >= 0)) | ~contract,
            "ask": (np.isfinite(table["ask"]) & (table["ask"] >= 0)) | ~contract,
        }  # fmt: skip
    for name, good in fine.items():
        _report(table, name, ~good & ~table.columns[name].damaged, problems)
    ts = table["ts"]
    back = np.flatnonzero(np.r_[False, ts[1:] < ts[:-1]])
    problems.rows(table.file, "ts", table.row[back], ts[back], "times in ascending order: sort the rows by ts")
    same = np.r_[False, ts[1:] == ts[:-1]]
    moved = same & np.r_[False, np.diff(table["underlying_price"]) != 0]
    moved &= fine["underlying_price"] & np.r_[False, fine["underlying_price"][:-1]]
    _report(table, "underlying_price", moved, problems, "the same price in all rows of one ts")
    names = ("ts", "root", "expiry", "strike", "right")
    order = np.lexsort([np.unique(table[name], return_inverse=True)[1] for name in reversed(names)])
    again = np.logical_and.reduce([table[name][order][1:] == table[name][order][:-1] for name in names])
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:][again]] = True
    _report(table, "strike", repeated & contract, problems, "each contract once per ts: this one is repeated")
    return table


def _report(table: Table, name: str, wrong: Bools, problems: Problems, remedy: str | None = None) -> None:
    at = np.flatnonzero(wrong)
    problems.rows(table.file, name, table.row[at], table[name][at], remedy or REMEDIES[name])


def _snapshots(table: Table) -> list[Quotes]:
    """One `Quotes` per time; rows without a contract carry only time and price."""
    sign = np.where(table["right"] == "C", SIGN["C"], SIGN["P"])
    return split_quotes(
        table["ts"], table["underlying_price"], table["root"], table["expiry"], table["strike"], sign,
        table["bid"], table["ask"],
    )  # fmt: skip


def split_quotes(
    ts: Times, spot: Array, root: Texts, expiry: Times, strike: Array, right: Array, bid: Array, ask: Array
) -> list[Quotes]:
    """Snapshots of rows that ascend in time; rows with an empty root and NaN strike carry only time and price."""
    starts = np.flatnonzero(np.r_[True, ts[1:] != ts[:-1]])
    found = []
    for start, stop in zip(starts, np.r_[starts[1:], len(ts)], strict=True):
        rows = np.arange(start, stop)
        rows = rows[~((root[rows] == "") & np.isnan(strike[rows]))]
        found.append(Quotes(ts[start], float(spot[start]), root[rows], expiry[rows], strike[rows], right[rows],
                            bid[rows], ask[rows]))  # fmt: skip
    return found


def _read_path(file: FilePath, problems: Problems) -> Table | None:
    table = _read(file, PATH_COLUMNS, problems)
    if table is None:
        return None
    time, price = table.columns
    with np.errstate(invalid="ignore"):
        good = np.isfinite(table[price]) & (table[price] > 0)
    _report(table, price, ~good & ~table.columns[price].damaged, problems)
    _report(table, time, np.isnat(table[time]) & ~table.columns[time].damaged, problems)
    back = np.flatnonzero(np.r_[False, table[time][1:] <= table[time][:-1]])
    remedy = "times strictly ascending: sort, one row per time"
    problems.rows(table.file, time, table.row[back], table[time][back], remedy)
    return table


def _stamped(table: Table, chain: list[Quotes], now: Quotes) -> Path:
    """The path; closes of whole dates get the chain's time of day and give way to a snapshot of their date."""
    time, price = table.columns
    ts, prices = table[time], table[price]
    dates = ts.astype("datetime64[D]")
    if time == "date" and bool((ts == dates).all()):
        own = np.array([quotes.ts for quotes in (*chain, now)]).astype("datetime64[D]")
        free = ~np.isin(dates, own)
        ts, prices = dates[free] + (chain[0].ts - chain[0].ts.astype("datetime64[D]")), prices[free]
    if not len(ts):
        ts, prices = np.array([now.ts]), np.array([now.spot])
    return Path(ts.astype("datetime64[ns]"), prices)


# Files: text to typed columns.


def _read(file: FilePath, wanted: Sequence[str | tuple[str, ...]], problems: Problems) -> Table | None:
    """The wanted columns of a file (of a tuple, the first name that is there), or None: what is wrong is reported."""
    name = str(file)
    try:
        if file.name.lower().endswith(".parquet"):
            table = _read_parquet(file, wanted, problems)
        elif file.name.lower().endswith(SUFFIXES):
            table = _read_csv(file, wanted, problems)
        else:
            problems.file(name, f"unknown kind of file: use {', '.join(SUFFIXES)}")
            return None
    except FileNotFoundError:
        problems.file(name, "there is no such file: check the name")
        return None
    except UnicodeDecodeError as error:
        problems.file(name, f"isn't UTF-8 text ({error.reason} at byte {error.start}): export it again as CSV in UTF-8")
        return None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        problems.file(name, f"is truncated or not gzip ({error}): fetch it again")
        return None
    except csv.Error as error:
        problems.file(name, f"isn't CSV ({error}): export it again with commas and double quotes")
        return None
    except OSError as error:
        problems.file(name, f"can't be read: {error.strerror or error}")
        return None
    if table is not None and not len(table.row):
        problems.file(name, "has no rows")
        return None
    return table


def _choose(
    name: str, header: Sequence[str], wanted: Sequence[str | tuple[str, ...]], problems: Problems
) -> list[str] | None:
    """The header's names for what is wanted; None if anything is missing or double."""
    options = [(one,) if isinstance(one, str) else one for one in wanted]
    chosen = [next((name for name in names if name in header), None) for names in options]
    missing = [" or ".join(names) for names, found in zip(options, chosen, strict=True) if found is None]
    for text in missing:
        there = ", ".join(header) if len(header) <= 40 else f"{', '.join(header[:40])}, ..."
        problems.file(name, f"column {text} is missing; there are: {there}", schema=True)
    found = [one for one in chosen if one is not None]
    double = [one for one in found if header.count(one) > 1]
    for one in double:
        problems.file(name, f"column {one} is there twice: keep one", schema=True)
    return None if missing or double else found


def _read_csv(file: FilePath, wanted: Sequence[str | tuple[str, ...]], problems: Problems) -> Table | None:
    name = str(file)
    opened = gzip.open if file.name.lower().endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, None)
        if not header:
            problems.file(name, "is empty: a header and at least one row are needed")
            return None
        header = [one.strip() for one in header]
        chosen = _choose(name, header, wanted, problems)
        if chosen is None:
            return None
        parsers = {one: _Parser(one) for one in chosen}
        pick = itemgetter(*(header.index(one) for one in chosen))
        parts: list[tuple[npt.NDArray[np.int64], list[Column]]] = []
        for first, rows in _chunks(reader):
            row, rows = _whole_rows(name, first, rows, len(header), problems)
            if rows:
                texts = zip(*map(pick, rows), strict=True)
                parts.append((row, [parsers[one](name, row, text, problems)
                                    for one, text in zip(chosen, texts, strict=True)]))  # fmt: skip
    if not parts:
        return Table(name, np.zeros(0, np.int64), {})
    columns = {
        one: Column(np.concatenate([part[1][at].values for part in parts]),
                    np.concatenate([part[1][at].damaged for part in parts]))
        for at, one in enumerate(chosen)
    }  # fmt: skip
    return Table(name, np.concatenate([part[0] for part in parts]), columns)


def _chunks(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[list[str]]]]:
    first = 1
    while rows := list(islice(reader, CHUNK_ROWS)):
        yield first, rows
        first += len(rows)


def _whole_rows(
    name: str, first: int, rows: list[list[str]], width: int, problems: Problems
) -> tuple[npt.NDArray[np.int64], list[list[str]]]:
    """Rows as long as the header with their numbers; empty lines are skipped, others reported."""
    number = np.arange(first, first + len(rows))
    if set(map(len, rows)) == {width}:
        return number, rows
    good = np.array([len(row) == width for row in rows])
    ragged = [at for at in np.flatnonzero(~good).tolist() if rows[at]]
    fields = [f"{len(rows[at])} fields" for at in ragged]
    problems.rows(name, "(all)", number[ragged].tolist(), fields, f"{width} fields, as the header has")
    return number[good], [row for row in rows if len(row) == width]


class _Parser:
    """Text to the values of one column; times are parsed once per distinct text."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._times: dict[str, np.datetime64 | None] = {"": np.datetime64("NaT", "ns")}

    def __call__(self, file: str, row: npt.NDArray[np.int64], texts: Sequence[str], problems: Problems) -> Column:
        values: npt.NDArray[Any]
        if self.column in TEXT_COLUMNS:
            values = np.char.strip(np.array(texts, dtype=np.str_))
            return Column(values, np.zeros(len(values), dtype=bool))
        parsed = self._parse_times(texts) if self.column in TIME_COLUMNS else _numbers(texts)
        damaged = np.array([one is None for one in parsed])
        bad = np.flatnonzero(damaged)
        problems.rows(file, self.column, row[bad].tolist(), [texts[at] for at in bad.tolist()], REMEDIES[self.column])
        if self.column in TIME_COLUMNS:
            nothing = self._times[""]
            values = np.array([nothing if one is None else one for one in parsed], dtype="datetime64[ns]")
        else:
            values = np.array([np.nan if one is None else one for one in parsed], dtype=np.float64)
        return Column(values, damaged)

    def _parse_times(self, texts: Sequence[str]) -> list[np.datetime64 | None]:
        for text in set(texts) - self._times.keys():
            self._times[text] = _time(text.strip())
        return [self._times[text] for text in texts]


def _numbers(texts: Sequence[str]) -> Sequence[float | None]:
    try:
        return list(map(float, texts))
    except ValueError:
        return [_number(text) for text in texts]


def _number(text: str) -> float | None:
    try:
        return float(text) if text.strip() else np.nan
    except ValueError:
        return None


def _time(text: str) -> np.datetime64 | None:
    """A UTC time of ISO 8601 text (UTC if it names no offset); None if it isn't one."""
    match = TIME.fullmatch(text)
    if match is None or not YEARS[0] <= int(text[:4]) <= YEARS[1]:
        return None
    day, clock, offset = match.groups()
    try:
        time = np.datetime64(f"{day}T{clock}" if clock else day, "ns")
        if offset and offset != "Z":
            shift = datetime.strptime(offset.replace(":", ""), "%z").utcoffset() or timedelta()
            time -= np.timedelta64(int(shift.total_seconds()), "s")
    except ValueError:
        return None
    return time


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow: pip install 'strikeforge[parquet]', or use CSV") from error
    return pyarrow, pyarrow.parquet


def _read_parquet(file: FilePath, wanted: Sequence[str | tuple[str, ...]], problems: Problems) -> Table | None:
    arrow, parquet = _parquet()
    name = str(file)
    try:
        with parquet.ParquetFile(file) as source:
            chosen = _choose(name, source.schema_arrow.names, wanted, problems)
            if chosen is None:
                return None
            read = source.read(columns=chosen)
    except arrow.ArrowException as error:
        problems.file(name, f"is truncated or not Parquet ({error}): fetch it again")
        return None
    row = np.arange(1, read.num_rows + 1)
    columns = {one: _arrow_column(arrow, name, one, read.column(one), row, problems) for one in chosen}
    return Table(name, row, columns)


def _arrow_column(
    arrow: Any, file: str, name: str, column: Any, row: npt.NDArray[np.int64], problems: Problems
) -> Column:
    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    intact = np.zeros(len(row), dtype=bool)
    if arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_string_view(kind):
        texts = ["" if text is None else text for text in column.cast(arrow.string()).to_pylist()]
        return _Parser(name)(file, row, texts, problems)
    try:
        if name in TIME_COLUMNS and (arrow.types.is_timestamp(kind) or arrow.types.is_date(kind)):
            if arrow.types.is_timestamp(kind):  # with or without zone: the stored instant is UTC
                column = column.cast(arrow.timestamp("ns", kind.tz))
            instants = column.cast(arrow.timestamp("ns")).cast(arrow.int64())
            times: Times = _numbers_of(instants, np.int64, np.datetime64("NaT", "ns").astype(np.int64))
            return Column(times.astype("datetime64[ns]"), intact)
        number = arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)
        if name not in TIME_COLUMNS | TEXT_COLUMNS and number:
            return Column(_numbers_of(column.cast(arrow.float64()), np.float64, np.nan), intact)
    except arrow.ArrowException as error:
        problems.file(file, f"column {name} can't be converted ({error}): write it as {REMEDIES[name]}", schema=True)
    else:
        problems.file(file, f"column {name} has type {kind}: write it as {REMEDIES[name]}", schema=True)
    empty: dict[bool, npt.NDArray[Any]] = {
        True: np.full(len(row), "NaT", "datetime64[ns]"), False: np.full(len(row), np.nan)
    }  # fmt: skip
    values = np.full(len(row), "") if name in TEXT_COLUMNS else empty[name in TIME_COLUMNS]
    return Column(values, ~intact)


def _numbers_of(column: Any, kind: npt.DTypeLike, null: Any) -> npt.NDArray[Any]:
    """From buffers: `to_numpy` and `fill_null` import pandas wherever it is installed."""
    array = column.combine_chunks()
    valid, data = array.buffers()
    start, stop = array.offset, array.offset + len(array)
    if data is None:
        return np.full(len(array), null, kind)
    values = np.frombuffer(data, kind, stop)[start:].copy()
    if valid is not None:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[start:stop]
        values[bits == 0] = null
    return values


def write_table(file: FilePath, columns: dict[str, npt.NDArray[Any]]) -> None:
    """Write columns of one length as CSV or Parquet by suffix; times in UTC, NaN as nothing. Whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        try:
            if file.name.lower().endswith(".parquet"):
                _write_parquet(temporary, columns)
            else:
                _write_csv(temporary, columns, compressed=file.name.lower().endswith(".gz"))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{file}: can't be written: {error.strerror or error}") from error


def _write_csv(file: FilePath, columns: dict[str, npt.NDArray[Any]], *, compressed: bool) -> None:
    texts = [_texts(values) for values in columns.values()]
    with (gzip.open if compressed else open)(file, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*texts, strict=True))


def _texts(values: npt.NDArray[Any]) -> list[str]:
    if values.dtype.kind == "M":
        return iso(values)
    if values.dtype.kind == "f":
        return ["" if value != value else repr(value) for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def _write_parquet(file: FilePath, columns: dict[str, npt.NDArray[Any]]) -> None:
    arrow, parquet = _parquet()
    arrays = {name: _arrow_array(arrow, values) for name, values in columns.items()}
    parquet.write_table(arrow.table(arrays), file)


def _arrow_array(arrow: Any, values: npt.NDArray[Any]) -> Any:
    """From buffers: `pyarrow.array` imports pandas wherever it is installed."""
    count = len(values)
    if values.dtype.kind == "M":
        nanoseconds = np.ascontiguousarray(values.astype("datetime64[ns]").astype(np.int64))
        valid = arrow.py_buffer(np.packbits(~np.isnat(values), bitorder="little"))
        kind = arrow.timestamp("ns", "UTC")
        return arrow.Array.from_buffers(kind, count, [valid, arrow.py_buffer(nanoseconds)])
    if values.dtype.kind == "f":
        numbers = np.ascontiguousarray(values, dtype=np.float64)
        valid = arrow.py_buffer(np.packbits(~np.isnan(numbers), bitorder="little"))
        return arrow.Array.from_buffers(arrow.float64(), count, [valid, arrow.py_buffer(numbers)])
    texts = [text.encode("utf-8") for text in values.astype(np.str_).tolist()]
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return arrow.Array.from_buffers(
        arrow.string(), count, [None, arrow.py_buffer(ends), arrow.py_buffer(b"".join(texts))]
    )


# Demo inputs inside a bundle: npz arrays of numbers only. Times are int64 ns, texts uint8 [n, width] of UTF-8 padded
# with zeros; datetime64 and text arrays are read too.

DEMO_FILES = ("demo.npz", "golden.npz")  # the first that is there and holds a demo
DEMO_EXPECTED = "demo_iv"
DEMO_CHAIN = tuple(f"chain_{name}" for name in CHAIN_COLUMNS)
DEMO_NOW = tuple(f"now_{name}" for name in CHAIN_COLUMNS if name != "underlying")
DEMO_PATH = ("path_ts", "path_price")
NO_CONTRACT: dict[str, npt.NDArray[Any]] = {"root": np.array([""]), "expiry": np.array(["NaT"], "datetime64[ns]")}


def pack_demo(market: Market, expected_iv: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Arrays for an npz that `unpack_demo` reads back; `expected_iv` in the order of `PricedChain`."""
    packed = {"path_ts": _packed(market.path.ts), "path_price": market.path.price, DEMO_EXPECTED: expected_iv}
    for prefix, snapshots in (("chain", market.chain), ("now", [market.now])):
        rows = [max(len(quotes), 1) for quotes in snapshots]
        packed[f"{prefix}_ts"] = _packed(np.repeat(np.array([quotes.ts for quotes in snapshots]), rows))
        packed[f"{prefix}_underlying_price"] = np.repeat([quotes.spot for quotes in snapshots], rows)
        for name in ("root", "expiry", "strike", "right", "bid", "ask"):
            empty = NO_CONTRACT.get(name, np.array([np.nan]))
            parts = [getattr(quotes, name) if len(quotes) else empty for quotes in snapshots]
            packed[f"{prefix}_{name}"] = _packed(np.concatenate(parts))
    packed["chain_underlying"] = _packed(np.full(len(packed["chain_ts"]), market.underlying))
    return packed


def unpack_demo(arrays: dict[str, npt.NDArray[Any]], file: str) -> tuple[Market, Array]:
    """Inputs and expected volatilities of a bundle's demo; BundleError naming arrays that are missing or don't fit."""
    lengths = {
        part: {arrays[name].shape[0] for name in names if name in arrays and arrays[name].ndim}
        for part, names in (("chain", DEMO_CHAIN), ("now", DEMO_NOW), ("path", DEMO_PATH))
    }
    missing = [name for name in (*DEMO_CHAIN, *DEMO_NOW, *DEMO_PATH, DEMO_EXPECTED) if name not in arrays]
    if missing or any(len(found) != 1 or found == {0} for found in lengths.values()):
        what = f"lacks {', '.join(missing)}" if missing else f"a demo's arrays differ in length or are empty: {lengths}"
        raise BundleError(f"{file}: {what}; export the bundle again with a demo")
    parts = []
    for prefix in ("chain", "now"):
        get = {name: arrays[f"{prefix}_{name}"] for name in CHAIN_COLUMNS if f"{prefix}_{name}" in arrays}
        parts.append(
            split_quotes(
                _unpacked_times(get["ts"]), get["underlying_price"].astype(np.float64), _unpacked_texts(get["root"]),
                _unpacked_times(get["expiry"]), get["strike"].astype(np.float64), get["right"].astype(np.float64),
                get["bid"].astype(np.float64), get["ask"].astype(np.float64),
            )
        )  # fmt: skip
    path = Path(_unpacked_times(arrays["path_ts"]), arrays["path_price"].astype(np.float64))
    chain, (now,) = parts
    underlying = str(_unpacked_texts(arrays["chain_underlying"])[0])
    return Market(underlying, chain, path, now), arrays[DEMO_EXPECTED].astype(np.float64)


def _packed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "M":
        return values.astype("datetime64[ns]").astype(np.int64)
    if values.dtype.kind == "U":
        encoded = np.char.encode(values, "utf-8")
        encoded = encoded.astype(f"S{max(encoded.dtype.itemsize, 1)}")
        return np.frombuffer(encoded.tobytes(), np.uint8).reshape(len(values), -1)
    return values


def _unpacked_times(values: npt.NDArray[Any]) -> Times:
    return values.astype("datetime64[ns]")


def _unpacked_texts(values: npt.NDArray[Any]) -> Texts:
    if values.dtype == np.uint8 and values.ndim == 2:
        return np.char.decode(np.ascontiguousarray(values).view(f"S{values.shape[1]}")[:, 0], "utf-8")
    return values.astype(np.str_)
