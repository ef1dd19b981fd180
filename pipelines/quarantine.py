"""The quarantine file, and what it takes to fill it with rows whose refusal is known only after the input was read.

Purpose: no refused row is lost. Data in: file, row, reason, detail and raw row of each. Data out:
`quarantine.parquet` with these columns. Invariants: memory holds `QUARANTINE_ROWS` rows at most; a row
refused by other rows is kept as 25 bytes (`Late`) until a second pass over the input supplies its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.quote_table import Settled

QUARANTINE_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string()), ("raw", pa.string())]
)
QUARANTINE_ROWS = 65_536  # rows held before they are written


@dataclass
class Late:
    """Rows refused by other rows, as compact arrays; see `Settled`."""

    parts: list[Settled] = field(default_factory=list)
    ordinals: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    reasons: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    earlier: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    expected: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))

    def add(self, settled: Settled) -> None:
        if len(settled.ordinals):
            self.parts.append(replace(settled, columns={}))

    def sealed(self) -> Late:
        """All of them, in input order."""
        if not self.parts:
            return self
        ordinals = np.concatenate([part.ordinals for part in self.parts])
        order = np.argsort(ordinals, kind="stable")
        return Late(
            ordinals=ordinals[order],
            reasons=np.concatenate([part.reasons for part in self.parts])[order],
            earlier=np.concatenate([part.earlier for part in self.parts])[order],
            expected=np.concatenate([part.expected for part in self.parts])[order],
        )


class Locations:
    """File and row of some ordinals, filled in as the input passes by."""

    def __init__(self, ordinals: NDArray[np.int64]) -> None:
        self._ordinals = np.unique(ordinals[ordinals >= 0])
        self._rows = np.zeros(len(self._ordinals), dtype=np.int64)
        self._file_of = np.zeros(len(self._ordinals), dtype=np.int32)
        self._files: list[str] = []

    def visit(self, start: int, rows: NDArray[np.int64], file: str) -> None:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        low, high = np.searchsorted(self._ordinals, [start, start + len(rows)])
        self._rows[low:high] = rows[self._ordinals[low:high] - start]
        self._file_of[low:high] = len(self._files) - 1

    def find(self, ordinal: int) -> tuple[int, str]:
        place = int(np.searchsorted(self._ordinals, ordinal))
        return int(self._rows[place]), self._files[self._file_of[place]]


class Quarantine:
    """Writes refused rows and counts them; keeps the first of each reason as an example."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, QUARANTINE_SCHEMA, compression="zstd")
        self._pending: list[tuple[str, int, str, str, str]] = []
        self._counts: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, int, str]] = {}

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, file: str, row: int, reason: str, detail: str, raw: str) -> None:
        self._counts[reason] += 1
        self.examples.setdefault(reason, (file, row, detail))
        self._pending.append((file, row, reason, detail, raw))
        if len(self._pending) >= QUARANTINE_ROWS:
            self._flush()

    def counted(self, reasons: Sequence[str]) -> dict[str, int]:
        """Rows per reason, in this order, those that have any."""
        return {reason: self._counts[reason] for reason in reasons if self._counts[reason]}

    def _flush(self) -> None:
        if self._pending:
            columns = [list(column) for column in zip(*self._pending, strict=True)]
            self._writer.write_table(pa.table(columns, schema=QUARANTINE_SCHEMA))
            self._pending = []


def as_json(table: pl.DataFrame, indices: list[int]) -> list[str]:
    """Rows of a batch as JSON text; NaN becomes null."""
    if not indices:
        return []
    return table[indices].select(pl.struct(pl.all()).struct.json_encode()).to_series().to_list()
