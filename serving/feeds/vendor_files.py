"""Columns of vendors' files as they are: whole numbers exactly (nanoseconds don't fit a float), Parquet and CSV alike.

Data in: one file (.parquet, which needs the extra `parquet`; .csv; .csv.gz) and the columns wanted, each with its kind.
Data out: NumPy arrays by name; what a cell leaves empty is NaN, `NO_NUMBER` or "". serving/table_files.py reads quote
tables, whose columns have fixed names and whose numbers are all floats; these are neither.
Invariants: a file that can't be read as said is refused with a DataError that tells file, column, row, value and remedy
of everything found, not of the first thing alone; columns that nobody asked for are passed over unread.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from serving.errors import DataError
from serving.problems import Problems
from serving.table_files import SUFFIXES, numbers_of

ColumnKind = Literal["whole", "number", "text"]
Columns = dict[str, Any]  # NumPy arrays, of text columns `Words`
T = TypeVar("T")
NO_NUMBER = np.iinfo(np.int64).min  # an empty cell of a column of whole numbers
CHUNK_ROWS = 20_000
EXPECTED = {"whole": "a whole number", "number": "a number", "text": "text"}
DTYPES: dict[str, npt.DTypeLike] = {"whole": np.int64, "number": np.float64, "text": np.int64}


@dataclass(frozen=True)
class Words:
    """A column of text: the distinct texts, and which of them each row has. Files hold few texts in very many rows."""

    texts: list[str]
    codes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def first_row(self, text: int) -> int:
        """The first row (from 1) with the text of that code."""
        return int(np.argmax(self.codes == text)) + 1


@dataclass(frozen=True)
class VendorFile:
    """A file that is there, and the names of its columns."""

    path: Path
    header: tuple[str, ...]

    def columns(self, wanted: Mapping[str, ColumnKind]) -> Columns:
        """The wanted columns, all of one length, at least one row."""
        problems = Problems()
        name = str(self.path)
        for column in wanted:
            if self.header.count(column) != 1:
                found = "is there twice: keep one" if column in self.header else f"is missing; there are: {self.shown}"
                problems.file(name, f"column {column} {found}", schema=True)
        problems.raise_if_any()
        read = _parquet_columns if _is_parquet(self.path) else _csv_columns
        columns = _reading(self.path, lambda: read(self, wanted, problems))
        problems.raise_if_any()
        if not len(next(iter(columns.values()))):
            raise DataError(f"{name}: has no rows: fetch it again, or leave it out")
        return columns

    @property
    def shown(self) -> str:
        """The header as a message shows it."""
        return ", ".join(self.header[:40]) + (", ..." if len(self.header) > 40 else "")


def open_vendor_file(path: Path) -> VendorFile:
    """Read a file's header."""
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: unknown kind of file: use {', '.join(SUFFIXES)}")
    header = _reading(path, lambda: _parquet_header(path) if _is_parquet(path) else _csv_header(path))
    if not header:
        raise DataError(f"{path}: is empty: a header and at least one row are needed")
    return VendorFile(path, tuple(header))


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(".parquet")


def _reading(path: Path, read: Callable[[], T]) -> T:
    """`read`, its errors in our words."""
    try:
        return read()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file: check the name") from None
    except UnicodeDecodeError as error:
        text = f"isn't UTF-8 text ({error.reason} at byte {error.start}): export it again as CSV in UTF-8"
        raise DataError(f"{path}: {text}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: is truncated or not gzip ({error}): fetch it again") from error
    except csv.Error as error:
        raise DataError(f"{path}: isn't CSV ({error}): export it again with commas and double quotes") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def _opened(path: Path) -> Any:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _csv_header(path: Path) -> list[str]:
    with _opened(path) as stream:
        return [name.strip() for name in next(csv.reader(stream, strict=True), [])]


def _csv_columns(file: VendorFile, wanted: Mapping[str, ColumnKind], problems: Problems) -> Columns:
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in wanted}
    words: dict[str, dict[str, int]] = {name: {} for name in wanted}
    place = {name: file.header.index(name) for name in wanted}
    width, row = len(file.header), 1
    with _opened(file.path) as stream:
        reader = csv.reader(stream, strict=True)
        next(reader)
        while rows := list(islice(reader, CHUNK_ROWS)):
            numbers = range(row, row + len(rows))
            row += len(rows)
            ragged = [at for at, cells in enumerate(rows) if len(cells) != width]
            if ragged:
                found = [f"{len(rows[at])} fields" for at in ragged]
                remedy = f"{width} fields, as the header has"
                problems.rows(str(file.path), "(all)", [numbers[at] for at in ragged], found, remedy)
                continue
            for name, kind in wanted.items():
                texts = [cells[place[name]].strip() for cells in rows]
                if kind == "text":
                    known = words[name]
                    parts[name].append(np.array([known.setdefault(text, len(known)) for text in texts], np.int64))
                else:
                    parts[name].append(_parsed(str(file.path), name, kind, numbers, texts, problems))
    columns: Columns = {}
    for name, part in parts.items():
        array = np.concatenate([np.zeros(0, DTYPES[wanted[name]]), *part])
        columns[name] = Words(list(words[name]), array) if wanted[name] == "text" else array
    return columns


def _parsed(
    file: str, name: str, kind: ColumnKind, rows: Sequence[int], texts: list[str], problems: Problems
) -> npt.NDArray[Any]:
    parse: Callable[[str], Any] = int if kind == "whole" else float
    empty = NO_NUMBER if kind == "whole" else np.nan
    values, bad = [], []
    for at, text in enumerate(texts):
        value = empty
        if text:
            try:
                value = parse(text)
            except ValueError:
                bad.append(at)
            else:
                if kind == "whole" and abs(value) > -(NO_NUMBER + 1):
                    bad.append(at)
                    value = empty
        values.append(value)
    problems.rows(file, name, [rows[at] for at in bad], [texts[at] for at in bad], EXPECTED[kind])
    return np.array(values, DTYPES[kind])


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow: pip install 'strikeforge[parquet]', or use CSV") from error
    return pyarrow, pyarrow.parquet


def _parquet_header(path: Path) -> list[str]:
    arrow, parquet = _arrow()
    try:
        return list(parquet.read_schema(path).names)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: is truncated or not Parquet ({error}): fetch it again") from error


def _parquet_columns(file: VendorFile, wanted: Mapping[str, ColumnKind], problems: Problems) -> Columns:
    arrow, parquet = _arrow()
    try:
        with parquet.ParquetFile(file.path) as source:
            table = source.read(columns=list(wanted))
            return {name: _of_arrow(arrow, str(file.path), name, kind, table.column(name), problems)
                    for name, kind in wanted.items()}  # fmt: skip
    except arrow.ArrowException as error:
        raise DataError(f"{file.path}: is truncated or not Parquet ({error}): fetch it again") from error


def _of_arrow(arrow: Any, file: str, name: str, kind: ColumnKind, column: Any, problems: Problems) -> Any:
    types = arrow.types
    stored = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_text = types.is_string(stored) or types.is_large_string(stored) or types.is_string_view(stored)
    fits = {
        "whole": types.is_integer(stored) or types.is_boolean(stored),
        "number": types.is_integer(stored) or types.is_floating(stored) or types.is_decimal(stored),
        "text": is_text or types.is_integer(stored) or types.is_date32(stored),
    }
    if not fits[kind]:
        remedy = "int64, which holds nanoseconds exactly" if kind == "whole" else EXPECTED[kind]
        problems.file(file, f"column {name} has type {stored}: write it as {remedy}", schema=True)
        return np.zeros(len(column), DTYPES[kind])
    if kind == "text":
        return _words(arrow, column)
    try:
        column = column.cast(arrow.int64() if kind == "whole" else arrow.float64())
    except arrow.ArrowException as error:
        problems.file(file, f"column {name}: {error}: write it as {'int64' if kind == 'whole' else 'double'}")
        return np.zeros(len(column), DTYPES[kind])
    return numbers_of(column.combine_chunks(), DTYPES[kind], NO_NUMBER if kind == "whole" else np.nan)


def _words(arrow: Any, column: Any) -> Words:
    coded = column.combine_chunks()
    if not arrow.types.is_dictionary(coded.type):
        coded = coded.cast(arrow.string()).dictionary_encode()
    texts = ["" if one is None else one for one in coded.dictionary.cast(arrow.string()).to_pylist()]
    return Words([*texts, ""], numbers_of(coded.indices.cast(arrow.int64()), np.int64, len(texts)))
