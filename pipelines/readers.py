"""Streaming readers: CSV, CSV.gz and Parquet, a file or a folder of them, in batches of bounded size.

Purpose: hand on every row of every file exactly once, as read. Data in: paths. Data out: `Batch`es holding
all vendor columns (of a CSV as text, of a Parquet file as typed there), the rows' numbers, and the rows that
were no rows.
Invariants:
- Every file's header is read before any row; all problems of all files come in one error.
- Rows are numbered from 1 in each file. In a CSV, row r stands on line r + 1: a malformed or blank line keeps
  its number. A blank line is not a row; a line that can't be split into as many fields as the header has
  columns, isn't UTF-8, or has unbalanced quotes is a `Malformed` one. A quoted field can't span lines.
- How a CSV is cut into blocks makes no difference to any row or malformed line.
- Lines are counted apart from the parser: lines = rows + malformed + blank, or the reader stops.
- Memory is bounded by one block (CSV) or batch (Parquet), not by the file.
- A file that ends before its format says so (gzip, Parquet) is a `DataError`. A CSV can't say so: its last
  line may lack the line end, and is malformed if it lacks fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import csv_lines
from pipelines.csv_lines import Malformed
from serving.errors import DataError, SchemaError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
PARQUET_BATCH_ROWS = 131_072
PARQUET_BUFFER_BYTES = 1 << 20

ColumnCheck = Callable[[Mapping[str, str]], list[str]]
CleanName = Callable[[str], str]


@dataclass(frozen=True)
class Source:
    """One file whose header has been read; `columns` maps its columns, in the file's order, to their types ("text" in a
    CSV). Their names are the layout's, if it cleans them."""

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
class Batch:
    """Some rows of one file. `rows` holds the 1-based data row number of each row of `table`."""

    source: Source
    table: pl.DataFrame
    rows: NDArray[np.int64]
    malformed: list[Malformed] = field(default_factory=list)
    fraction_read: float = 1.0


def find_files(
    paths: str | Path | Sequence[str | Path], ignore: Sequence[str | Path] = (), extra_suffixes: Sequence[str] = ()
) -> list[Path]:
    """Files to read, folders expanded in name order. A folder may hold nothing else but README*, hidden files and
    those to `ignore`, each named (a price history kept beside the quotes, say). `extra_suffixes` are read as CSV."""
    suffixes = (*SUFFIXES, *extra_suffixes)
    ignored = {Path(path).resolve() for path in ignore}
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise DataError("no input: give a file or a folder")
    files: list[Path] = []
    problems: list[str] = []
    for path in given:
        if path.is_dir():
            found, foreign = _folder(path, ignored, suffixes)
            files += found
            problems += [
                f"{item}: not a data file ({', '.join(suffixes)}); move it out of the folder" for item in foreign
            ]
            if not found and not foreign:
                problems.append(f"{path}: the folder holds no data file ({', '.join(suffixes)})")
        elif not path.exists():
            problems.append(f"{path}: there is no such file or folder")
        elif not path.name.endswith(suffixes):
            problems.append(f"{path}: can't read this kind of file; it must end in {', '.join(suffixes)}")
        else:
            files.append(path)
    if problems:
        raise DataError("\n".join(["input files can't be used:", *(f"  - {problem}" for problem in problems)]))
    return files


def _folder(path: Path, ignored: set[Path], suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith((".", "README"))]
    entries = [entry for entry in entries if entry.resolve() not in ignored]
    found = [entry for entry in entries if entry.is_file() and entry.name.endswith(suffixes)]
    return found, [entry for entry in entries if entry not in found]


def open_sources(
    paths: str | Path | Sequence[str | Path],
    needed: Sequence[str],
    check: ColumnCheck | None = None,
    ignore: Sequence[str | Path] = (),
    *,
    clean_name: CleanName | None = None,
    extra_suffixes: Sequence[str] = (),
) -> list[Source]:
    """Read every file's header; one error names the problems of all of them. `check` judges the columns' types,
    `clean_name` makes a header's names into those that are `needed`."""
    sources: list[Source] = []
    unreadable: list[str] = []
    unsuitable: list[str] = []
    for path in find_files(paths, ignore, extra_suffixes):
        try:
            status = path.stat()
            names, types = _parquet_header(path) if path.name.endswith(".parquet") else _csv_header(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        except OSError as error:
            unreadable.append(f"{path}: can't be opened ({error}); check the file and its permissions")
            continue
        names = names if clean_name is None else [clean_name(name) for name in names]
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
            problems.append(
                f"column {name!r} is missing; {hint}; found: {found}. Mend the file or the layout's columns"
            )
    repeated = dict.fromkeys(name for name in names if names.count(name) > 1)
    problems += [f"column {name!r} appears {names.count(name)} times; rename all but one" for name in repeated]
    return problems


def read_batches(source: Source) -> Iterator[Batch]:
    """All rows of one file, in file order."""
    return _parquet_batches(source) if source.is_parquet else _csv_batches(source)


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
                table.columns = list(source.columns)
                rows = np.arange(row, row + table.height, dtype=np.int64)
                row += table.height
                yield Batch(source, table, rows, fraction_read=(row - 1) / max(total, 1))
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(source.path, error) from error
    if row - 1 != total:
        raise DataError(f"{source.path}: {row - 1} rows read of the {total} its footer tells; fetch the file again")


def _csv_header(path: Path) -> tuple[list[str], list[str]]:
    names = csv_lines.header(path)
    return names, ["text"] * len(names)


def _csv_batches(source: Source) -> Iterator[Batch]:
    next_row = 1
    for block, fraction in csv_lines.line_blocks(source.path):
        parsed = csv_lines.parse(source.path, block, list(source.columns), next_row)
        next_row += parsed.lines
        yield Batch(source, parsed.table, parsed.rows, parsed.malformed, fraction)
