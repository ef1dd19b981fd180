"""CSV in blocks of whole lines: header, lines, fields, and the lines that can't be split into fields.

Purpose: read a CSV or CSV.gz in bounded memory so that no line is lost or merged with another. Data in: a path. Data
out: column names; blocks of lines; per block its rows as text columns, their numbers, and the malformed lines.
Invariants: lines are counted apart from the parser, and lines = rows + malformed + blank. The parser only gets lines
whose quotes pair up into whole fields, so it can't read a line in more than one way, nor past its end; if a block has
others, or blank lines, its lines are looked at one by one first. What becomes of a line doesn't depend on the lines
around it. No value holds a line end; one quote without another makes its line malformed, also inside a field; an even
number of them inside an unquoted field is text.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from serving.errors import DataError

BLOCK_BYTES = 8 << 20
LONGEST_LINE_BYTES = 64 << 20
FIELD_BOUNDS = np.isin(np.arange(256), list(b',\r\n"'))  # by byte: may stand outside a quoted field, next to its quote


@dataclass(frozen=True)
class Malformed:
    """A line that is no row: its data row number, its text and what is wrong with it."""

    row: int
    text: str
    detail: str


@dataclass(frozen=True)
class Parsed:
    """A block's rows as text columns, the 1-based data row number of each, the malformed lines, the count of lines."""

    table: pl.DataFrame
    rows: NDArray[np.int64]
    malformed: list[Malformed]
    lines: int


@contextmanager
def _open_csv(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The text as bytes, and the file itself, whose position tells how much was read."""
    with path.open("rb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as text:
                yield cast(IO[bytes], text), raw
        else:
            yield raw, raw


def _read(path: Path, stream: IO[bytes], count: int) -> bytes:
    try:
        return stream.read(count)
    except EOFError as error:
        raise DataError(f"{path}: the gzip file ends too early, it is truncated; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again, or name it .csv") from error


def header(path: Path) -> list[str]:
    """The names in the first line."""
    with _open_csv(path) as (stream, _):
        start = _read(path, stream, 1 << 16)
    if not start:
        raise DataError(f"{path}: the file is empty, without even a header line; fetch it again or remove it")
    return _header_names(path, start.partition(b"\n")[0])


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


def line_blocks(path: Path) -> Iterator[tuple[bytes, float]]:
    """The file after its header, in blocks of whole lines, with the fraction of the file's bytes read so far."""
    size_bytes = max(path.stat().st_size, 1)
    with _open_csv(path) as (stream, raw):
        pending = b""
        header_seen = False
        while True:
            block = _read(path, stream, BLOCK_BYTES)
            fraction = raw.tell() / size_bytes
            pending += block
            if not header_seen and (b"\n" in pending or not block):
                pending = pending.partition(b"\n")[2]
                header_seen = True
            if not block:
                break
            end = pending.rfind(b"\n") + 1
            if end == 0 and len(pending) > LONGEST_LINE_BYTES:
                limit = LONGEST_LINE_BYTES >> 20
                raise DataError(f"{path}: no line end within {limit} MB; this is no CSV: fetch the file again")
            if end and header_seen:
                yield pending[:end], fraction
                pending = pending[end:]
        if pending:
            yield pending, 1.0


def parse(path: Path, block: bytes, names: list[str], first_row: int) -> Parsed:
    """Split a block of lines into fields; its first line is data row `first_row`."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    numbers = np.arange(first_row, first_row + lines, dtype=np.int64)
    malformed: list[Malformed] = []
    table: pa.Table | None = None
    refused: list[tuple[int, int, str]] = []
    misquoted = _misquoted_lines(block)
    if not misquoted and _is_plain_text(block):
        with suppress(pa.ArrowInvalid):  # "empty", if all lines are blank
            table, refused = _arrow_parse(block, names)
    if table is None or table.num_rows + len(refused) != lines:
        # blank lines, text that isn't UTF-8, stray quotes or carriage returns: sort the lines out first
        block, numbers, malformed = _sound_lines(block, names, first_row, misquoted)
        table, refused = _arrow_parse(block, names)
        if table.num_rows + len(refused) != len(numbers):
            last_row = first_row + lines - 1
            raise DataError(f"{path}: rows {first_row} to {last_row} can't be told apart; mend them")
    keep = np.ones(len(numbers), dtype=bool)
    keep[[number - 1 for number, _, _ in refused]] = False
    for number, found, text in refused:
        malformed.append(Malformed(int(numbers[number - 1]), text, _wrong_count(found, names)))
    malformed.sort(key=lambda line: line.row)
    return Parsed(pl.DataFrame(table), numbers[keep], malformed, lines)


def _is_plain_text(block: bytes) -> bool:
    """Whether it is UTF-8 without bare carriage returns, which the parser takes for line ends."""
    if block.count(b"\r") != block.count(b"\r\n"):
        return False
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _misquoted_lines(block: bytes) -> set[int]:
    """The lines, counted from 0, with a quote that neither encloses a whole field nor is doubled within such a field.

    A line's quotes open and close in turns (a doubled one closes and opens again). Each opening one must follow a
    field's start or a closing one, each closing one must precede a field's end or an opening one, and none stay open.
    """
    if b'"' not in block:
        return set()
    data = np.frombuffer(b"\n" + block + b"\n", dtype=np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    first_quote = np.searchsorted(quotes, np.flatnonzero(data == ord("\n")))
    counts = np.diff(first_quote)
    line = np.repeat(np.arange(len(counts)), counts)
    opens = (np.arange(len(quotes)) - first_quote[line]) % 2 == 0
    outside = data[np.where(opens, quotes - 1, quotes + 1)]
    return {*line[~FIELD_BOUNDS[outside]].tolist(), *np.flatnonzero(counts % 2).tolist()}


def _wrong_count(found: int, names: list[str]) -> str:
    return f"{found} fields, the header has {len(names)}"


def _arrow_parse(block: bytes, names: list[str]) -> tuple[pa.Table, list[tuple[int, int, str]]]:
    """A block of lines as text columns, and (line number in the block, fields found, text) of each line refused."""
    refused: list[tuple[int, int, str]] = []

    def refuse(row: Any) -> str:
        refused.append((row.number, row.actual_columns, row.text))
        return "skip"

    if not block:
        return pa.table({name: pa.array([], pa.string()) for name in names}), refused
    if block.startswith(codecs.BOM_UTF8):
        block = codecs.BOM_UTF8 + block  # the parser drops one at the start; here it belongs to the first field
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
    block: bytes, names: list[str], first_row: int, misquoted: set[int]
) -> tuple[bytes, NDArray[np.int64], list[Malformed]]:
    """The lines of a block that a parser can't mistake for more or fewer, their row numbers, and the other ones."""
    sound: list[bytes] = []
    numbers: list[int] = []
    malformed: list[Malformed] = []
    for index, line in enumerate(block.removesuffix(b"\n").split(b"\n")):
        row = first_row + index
        line = line.removesuffix(b"\r")
        if not line:
            continue
        try:
            text = line.decode()
            if "\r" in text:
                raise csv.Error("a carriage return inside the line")
            if index in misquoted:
                line = _requoted(text, names)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} isn't UTF-8 text; save the file as UTF-8"
            malformed.append(Malformed(row, line.decode(errors="backslashreplace"), detail))
        except csv.Error as error:
            malformed.append(Malformed(row, text, f"can't be split into fields: {error}"))
        else:
            sound.append(line)
            numbers.append(row)
    return b"\n".join(sound), np.array(numbers, dtype=np.int64), malformed


def _requoted(text: str, names: list[str]) -> bytes:
    """A line with every field quoted, so that no quote inside a field can be taken for an opening one."""
    if text.count('"') % 2:
        raise csv.Error("unbalanced quotes")
    fields = next(csv.reader([text], strict=True))
    if len(fields) != len(names):
        raise csv.Error(_wrong_count(len(fields), names))
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="").writerow(fields)
    return out.getvalue().encode()
