"""Streaming readers: CSV, CSV.gz and Parquet, a file or a folder of them, in batches of bounded size.

Purpose: hand on every row of every file exactly once, as read. Data in: paths. Data out: `Batch`es holding all vendor
columns (of a CSV as text, of a Parquet file as typed there), the rows' numbers, and the rows that were no rows.
Invariants:
- Every file's header is read before any row; all problems of all files come in one error.
- Rows are numbered from 1 in each file. In a CSV, row r stands on line r + 1: a malformed or blank line keeps its
  number. A blank line is not a row; a line that can't be split into as many fields as the header has columns, isn't
  UTF-8, or has unbalanced quotes is a `Malformed` one. A quoted field can't span lines.
- Lines are counted apart from the parser: lines = rows + malformed + blank, or the reader stops.
- Memory is bounded by one block (CSV) or batch (Parquet), not by the file.
- A file that ends before its format says so (gzip, Parquet) is a `DataError`. A CSV can't say so: its last line may
  lack the line end, and is malformed if it lacks fields.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.errors import DataError, SchemaError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
CSV_BLOCK_BYTES = 8 << 20
CSV_LONGEST_LINE_BYTES = 64 << 20
PARQUET_BATCH_ROWS = 131_072
PARQUET_BUFFER_BYTES = 1 << 20

ColumnCheck = Callable[[Mapping[str, str]], list[str]]


@dataclass(frozen=True)
class Source:
    """One file whose header has been read; `columns` maps its columns to their types ("text" in a CSV)."""

    path: Path
    columns: Mapping[str, str]
    size_bytes: int
    modified_ns: int

    @property
    def is_parquet(self) -> bool:
        return self.path.name.endswith(".parquet")

    def refuse_if_changed(self) -> None:
        """Raise if the file was written to since its header was read."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size_bytes, self.modified_ns):
            raise DataError(f"{self.path}: the file changed while it was being read; run again when it is complete")


@dataclass(frozen=True)
class Malformed:
    """A line that is no row: its data row number, its text and what is wrong with it."""

    row: int
    text: str
    detail: str


@dataclass(frozen=True)
class Batch:
    """Some rows of one file. `rows` holds the 1-based data row number of each row of `table`."""

    source: Source
    table: pl.DataFrame
    rows: NDArray[np.int64]
    malformed: list[Malformed] = field(default_factory=list)
    fraction_read: float = 1.0


def find_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files to read, folders expanded in name order; a folder may hold nothing but data, README* and hidden files."""
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise DataError("no input: give a file or a folder")
    files: list[Path] = []
    problems: list[str] = []
    for path in given:
        if path.is_dir():
            found, foreign = _folder(path)
            files += found
            problems += [f"{item}: not a data file ({', '.join(SUFFIXES)}); move it elsewhere" for item in foreign]
            if not found and not foreign:
                problems.append(f"{path}: the folder holds no data file ({', '.join(SUFFIXES)})")
        elif not path.exists():
            problems.append(f"{path}: there is no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            problems.append(f"{path}: can't read this kind of file; it must end in {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    if problems:
        raise DataError("\n".join(["input files can't be used:", *(f"  - {problem}" for problem in problems)]))
    return files


def _folder(path: Path) -> tuple[list[Path], list[Path]]:
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith((".", "README"))]
    found = [entry for entry in entries if entry.is_file() and entry.name.endswith(SUFFIXES)]
    return found, [entry for entry in entries if entry not in found]


def open_sources(
    paths: str | Path | Sequence[str | Path], needed: Sequence[str], check: ColumnCheck | None = None
) -> list[Source]:
    """Read the header of every file; one error names the problems of all of them. `check` judges column types."""
    sources: list[Source] = []
    unreadable: list[str] = []
    unsuitable: list[str] = []
    for path in find_files(paths):
        try:
            status = path.stat()
            names, types = _parquet_header(path) if path.name.endswith(".parquet") else _csv_header(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        columns = dict(zip(names, types, strict=True))
        problems = _column_problems(names, needed)
        if check is not None:
            problems += check(columns)
        unsuitable += [f"{path}: {problem}" for problem in problems]
        sources.append(Source(path, columns, status.st_size, status.st_mtime_ns))
    lines = [f"  - {line}" for line in (*unreadable, *unsuitable)]
    if unsuitable:
        raise SchemaError("\n".join(["columns don't fit the layout; nothing was read:", *lines]))
    if unreadable:
        raise DataError("\n".join(["files can't be read; nothing was ingested:", *lines]))
    return sources


def _column_problems(names: Sequence[str], needed: Sequence[str]) -> list[str]:
    problems = []
    for name in needed:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
            hint = f"closest: {', '.join(map(repr, close))}" if close else "nothing like it"
            found = ", ".join(map(repr, names))
            problems.append(f"column {name!r} is missing; {hint}; found: {found}. Mend the file or the layout's columns")
    repeated = dict.fromkeys(name for name in names if names.count(name) > 1)
    problems += [f"column {name!r} appears {names.count(name)} times; rename all but one" for name in repeated]
    return problems


def read_batches(source: Source) -> Iterator[Batch]:
    """All rows of one file, in file order."""
    return _parquet_batches(source) if source.is_parquet else _csv_batches(source)


# Parquet ------------------------------------------------------------------------------------------------------


def _parquet_header(path: Path) -> tuple[list[str], list[str]]:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); fetch it again or remove it")
    try:
        parquet_schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(path, error) from error
    return list(parquet_schema.names), [str(kind) for kind in parquet_schema.types]


def _damaged_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a complete Parquet file ({error}); it is truncated or damaged: fetch it again")


def _parquet_batches(source: Source) -> Iterator[Batch]:
    row = 1
    try:
        with pq.ParquetFile(
            source.path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            total = file.metadata.num_rows
            for arrow_batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, use_threads=False):
                table = pl.DataFrame(arrow_batch)
                rows = np.arange(row, row + table.height, dtype=np.int64)
                row += table.height
                yield Batch(source, table, rows, fraction_read=(row - 1) / total)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(source.path, error) from error
    if row - 1 != total:
        raise DataError(f"{source.path}: {row - 1} rows read of the {total} its footer tells; fetch the file again")


# CSV ----------------------------------------------------------------------------------------------------------


def _open_csv(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _read(path: Path, stream: IO[bytes], count: int) -> bytes:
    try:
        return stream.read(count)
    except EOFError as error:
        raise DataError(f"{path}: the gzip file ends too early, it is truncated; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again, or name it .csv") from error


def _csv_header(path: Path) -> tuple[list[str], list[str]]:
    with _open_csv(path) as stream:
        start = _read(path, stream, 1 << 16)
    if not start:
        raise DataError(f"{path}: the file is empty, without even a header line; fetch it again or remove it")
    names = _header_names(path, start.partition(b"\n")[0])
    return names, ["text"] * len(names)


def _header_names(path: Path, line: bytes) -> list[str]:
    remedy = "the first line must name the columns, in UTF-8 text separated by commas"
    try:
        text = line.decode("utf-8-sig").rstrip("\r")
        if not text.isprintable():
            raise DataError(f"{path}: line 1 isn't text, it starts with {line[:16]!r}; {remedy}")
        names = next(csv.reader([text], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: line 1 can't be read ({error}), it starts with {line[:16]!r}; {remedy}") from error
    if not any(names):
        raise DataError(f"{path}: line 1 is blank; {remedy}")
    return names


def _csv_batches(source: Source) -> Iterator[Batch]:
    names = list(source.columns)
    next_row = 1
    for block, fraction in _line_blocks(source):
        table, rows, malformed, lines = _parse_block(source, block, names, next_row)
        next_row += lines
        yield Batch(source, table, rows, malformed, fraction)


def _line_blocks(source: Source) -> Iterator[tuple[bytes, float]]:
    """The file after its header, in blocks of whole lines, with the fraction of the file's bytes read so far."""
    path = source.path
    with path.open("rb") as raw, _open_csv(path) if path.name.endswith(".gz") else raw as stream:
        pending = b""
        header_seen = False
        while True:
            block = _read(path, stream, CSV_BLOCK_BYTES)
            fraction = (stream.fileobj if isinstance(stream, gzip.GzipFile) else raw).tell() / source.size_bytes
            pending += block
            if not header_seen and (b"\n" in pending or not block):
                pending = pending.partition(b"\n")[2]
                header_seen = True
            if not block:
                break
            end = pending.rfind(b"\n") + 1
            if end == 0 and len(pending) > CSV_LONGEST_LINE_BYTES:
                limit = CSV_LONGEST_LINE_BYTES >> 20
                raise DataError(f"{path}: no line end within {limit} MB; this is no CSV: fetch the file again")
            if end and header_seen:
                yield pending[:end], fraction
                pending = pending[end:]
        if pending:
            yield pending, 1.0


def _parse_block(
    source: Source, block: bytes, names: list[str], first_row: int
) -> tuple[pl.DataFrame, NDArray[np.int64], list[Malformed], int]:
    """Rows, their numbers, malformed lines and the number of lines of a block that starts at data row `first_row`."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        table, refused = _arrow_parse(block, names)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        table, refused = None, []
    if table is not None and table.num_rows + len(refused) == lines:
        numbers = np.arange(first_row, first_row + lines, dtype=np.int64)
    else:  # blank lines, bad text or quotes that swallow lines: sort the lines out first
        block, numbers, malformed = _sound_lines(block, names, first_row)
        table, refused = _arrow_parse(block, names)
        if table.num_rows + len(refused) != len(numbers):
            raise DataError(f"{source.path}: rows {first_row} to {first_row + lines - 1} can't be told apart; mend them")
        keep = np.ones(len(numbers), dtype=bool)
        keep[[number - 1 for number, _, _ in refused]] = False
        listed = [_wrong_count(int(numbers[number - 1]), text, found, names) for number, found, text in refused]
        merged = sorted([*malformed, *listed], key=lambda item: item.row)
        return pl.DataFrame(table), numbers[keep], merged, lines
    keep = np.ones(lines, dtype=bool)
    keep[[number - 1 for number, _, _ in refused]] = False
    malformed = [_wrong_count(first_row + number - 1, text, found, names) for number, found, text in refused]
    return pl.DataFrame(table), numbers[keep], malformed, lines


def _wrong_count(row: int, text: str, found: int, names: list[str]) -> Malformed:
    return Malformed(row, text, f"{found} fields, the header has {len(names)}")


def _arrow_parse(block: bytes, names: list[str]) -> tuple[pa.Table, list[tuple[int, int, str]]]:
    """A block of lines as text columns, and (line number in the block, fields found, text) of each line refused."""
    refused: list[tuple[int, int, str]] = []

    def refuse(row: Any) -> str:
        refused.append((row.number, row.actual_columns, row.text))
        return "skip"

    if not block:
        return pa.table({name: pa.array([], pa.string()) for name in names}), refused
    table = arrow_csv.read_csv(
        pa.BufferReader(block),
        read_options=arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
        parse_options=arrow_csv.ParseOptions(invalid_row_handler=refuse),
        convert_options=arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=False
        ),
    )
    return table, refused


def _sound_lines(
    block: bytes, names: list[str], first_row: int
) -> tuple[bytes, NDArray[np.int64], list[Malformed]]:
    """The lines of a block that a parser can't mistake for more or fewer, their row numbers, and the other ones."""
    sound: list[bytes] = []
    numbers: list[int] = []
    malformed: list[Malformed] = []
    for row, line in enumerate(block.removesuffix(b"\n").split(b"\n"), start=first_row):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        try:
            text = line.decode()
            if "\r" in text:
                raise csv.Error("a carriage return inside the line")
            if '"' in text:
                line = _requoted(text)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} isn't UTF-8 text; save the file as UTF-8"
            malformed.append(Malformed(row, line.decode(errors="backslashreplace"), detail))
        except csv.Error as error:
            malformed.append(Malformed(row, text, f"can't be split into fields: {error}"))
        else:
            sound.append(line)
            numbers.append(row)
    return b"\n".join(sound), np.array(numbers, dtype=np.int64), malformed


def _requoted(line: str) -> bytes:
    """The same fields, every one quoted, so that stray quotes can't be taken for opening ones."""
    fields = next(csv.reader([line], strict=True))
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="").writerow(fields)
    return out.getvalue().encode()
