"""Files of rows to typed columns and back: CSV (also .csv.gz) and Parquet (extra `parquet`).

In: a file and the columns wanted. Out: a `Table` of typed columns, damaged values marked and noted in `Problems`; or a
file, written whole or not at all. Invariant: no value is guessed: what can't be read is reported with its row.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import itemgetter
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.disk import sync_file
from serving.errors import DataError
from serving.problems import Problems, iso
from serving.surface import Bools, Times

TIME_COLUMNS = frozenset({"ts", "expiry", "date"})
TEXT_COLUMNS = frozenset({"underlying", "root", "right", "currency", "price_unit", "style"})
Wanted = str | tuple[str | None, ...]  # of a tuple the first name that is there; with None among them, none may be
SIGN = {"C": 1.0, "P": -1.0}
SUFFIXES = (".csv", ".csv.gz", ".parquet")
CHUNK_ROWS = 20_000
TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
YEARS = (1700, 2250)  # what nanoseconds in 64 bits can hold
REMEDIES = {
    "ts": "an ISO 8601 time in UTC such as 2018-12-31T20:45:00Z",
    "expiry": "an ISO 8601 time in UTC such as 2018-12-31T21:00:00Z",
    "underlying": "the underlying's name", "root": "the option root's name",
    "right": "C or P", "strike": "a positive number", "underlying_price": "a positive number",
    "price": "a positive number", "close": "a positive number", "date": "an ISO 8601 date such as 2018-12-31",
    "currency": "one currency throughout", "price_unit": "money or coin, one unit throughout",
    "style": "european or american", "forward": "the positive forward of the expiry, nothing where there is none",
    "bid": "a number, 0 where nobody bids", "ask": "a number, 0 where nobody offers",
}  # fmt: skip


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


def has_known_suffix(file: FilePath) -> bool:
    """Whether the name ends like a table that can be read and written here."""
    return file.name.lower().endswith(SUFFIXES)


def read_table(file: FilePath, wanted: Sequence[Wanted], problems: Problems) -> Table | None:
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


def _choose(name: str, header: Sequence[str], wanted: Sequence[Wanted], problems: Problems) -> list[str] | None:
    """The header's names for what is wanted; None if anything is missing (unless it may be) or double."""
    options = [(one,) if isinstance(one, str) else one for one in wanted]
    chosen = [next((name for name in names if name in header), None) for names in options]
    pairs = zip(options, chosen, strict=True)
    missing = [" or ".join(filter(None, names)) for names, found in pairs if found is None and None not in names]
    for text in missing:
        there = ", ".join(header) if len(header) <= 40 else f"{', '.join(header[:40])}, ..."
        problems.file(name, f"column {text} is missing; there are: {there}", schema=True)
    found = [one for one in chosen if one is not None]
    double = [one for one in found if header.count(one) > 1]
    for one in double:
        problems.file(name, f"column {one} is there twice: keep one", schema=True)
    return None if missing or double else found


def _read_csv(file: FilePath, wanted: Sequence[Wanted], problems: Problems) -> Table | None:
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


def _read_parquet(file: FilePath, wanted: Sequence[Wanted], problems: Problems) -> Table | None:
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
            times: Times = numbers_of(instants.combine_chunks(), np.int64, np.datetime64("NaT", "ns").astype(np.int64))
            return Column(times.astype("datetime64[ns]"), intact)
        number = arrow.types.is_floating(kind) or arrow.types.is_integer(kind) or arrow.types.is_decimal(kind)
        if name not in TIME_COLUMNS | TEXT_COLUMNS and number:
            return Column(numbers_of(column.cast(arrow.float64()).combine_chunks(), np.float64, np.nan), intact)
    except arrow.ArrowException as error:
        problems.file(file, f"column {name} can't be converted ({error}): write it as {REMEDIES[name]}", schema=True)
    else:
        problems.file(file, f"column {name} has type {kind}: write it as {REMEDIES[name]}", schema=True)
    empty: dict[bool, npt.NDArray[Any]] = {
        True: np.full(len(row), "NaT", "datetime64[ns]"), False: np.full(len(row), np.nan)
    }  # fmt: skip
    values = np.full(len(row), "") if name in TEXT_COLUMNS else empty[name in TIME_COLUMNS]
    return Column(values, ~intact)


def numbers_of(array: Any, kind: npt.DTypeLike, null: Any) -> npt.NDArray[Any]:
    """Of an Arrow array, from its buffers: `to_numpy` and `fill_null` import pandas wherever it is installed."""
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
            sync_file(temporary)
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
