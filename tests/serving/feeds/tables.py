"""Vendors' files for tests, as the vendors write them: from columns to .csv, .csv.gz or .parquet."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_NS = 1_700_000_000_000_000_123  # digits that a float would lose


def write(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A table; None is an empty cell."""
    if file.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
        return file
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    with opener(file, "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def trades(count: int = 3, **changed: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Binance trades, a microsecond apart."""
    return {
        "recv_ns": [START_NS + 1000 * at for at in range(count)], "event_ms": [0] * count,
        "price": [100.0 + at for at in range(count)], "qty": [0.5] * count, "aggressor": [1, -1, 0][:count],
        **changed,
    }  # fmt: skip


def bbo(count: int = 3, **changed: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Binance best bids and offers, a microsecond apart."""
    return {
        "recv_ns": [START_NS + 1000 * at for at in range(count)],
        "bid_px": [99.5] * count, "bid_sz": [1.0] * count, "ask_px": [100.5] * count, "ask_sz": [2.0] * count,
        **changed,
    }  # fmt: skip


def book(count: int = 3, depth: int = 10, **changed: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Binance books, a microsecond apart."""
    columns: dict[str, Sequence[Any]] = {"recv_ns": [START_NS + 1000 * at for at in range(count)]}
    for level in range(1, depth + 1):
        columns[f"bid_px{level}"] = [100.0 - level] * count
        columns[f"bid_sz{level}"] = [1.0 * level] * count
        columns[f"ask_px{level}"] = [100.0 + level] * count
        columns[f"ask_sz{level}"] = [2.0 * level] * count
    return {**columns, **changed}


def lean_quotes(count: int = 2, **changed: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """One-sided Lean quotes, bid and ask in turn."""
    return {
        "date": ["20131007"] * count, "ms": [34_200_000 + at for at in range(count)],
        "bid": [180.0 if at % 2 == 0 else 0.0 for at in range(count)],
        "bid_size": [100 if at % 2 == 0 else 0 for at in range(count)],
        "ask": [181.0 if at % 2 else 0.0 for at in range(count)],
        "ask_size": [200 if at % 2 else 0 for at in range(count)],
        "exchange": ["N"] * count, "condition": ["1"] * count, "suspicious": [0] * count, **changed,
    }  # fmt: skip


def lean_trades(count: int = 2, **changed: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Lean trades."""
    return {
        "date": ["20131007"] * count, "ms": [34_200_000 + at for at in range(count)],
        "price": [180.5] * count, "size": [100] * count, "exchange": ["N"] * count, "condition": ["20"] * count,
        "suspicious": [0] * count, **changed,
    }  # fmt: skip
