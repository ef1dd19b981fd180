"""A small chain as rows of text, the layout that reads it, and damage to single fields."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.ingest import IngestResult
from pipelines.layouts import Layout, load

HEADER = "date,under,root,expiry,strike,cp,bid,ask,bs,as,spot,vol,oi,ccy"


def plain_layout() -> Layout:
    """One row per quote with every canonical column in the file but style, settlement and price unit."""
    return load(
        "generic",
        {
            "columns": {
                "ts": "date", "underlying": "under", "root": "root", "expiry": "expiry", "strike": "strike",
                "right": "cp", "bid": "bid", "ask": "ask", "bid_size": "bs", "ask_size": "as",
                "underlying_price": "spot", "volume": "vol", "open_interest": "oi", "currency": "ccy",
            },
            "constants": {"style": "european", "settlement": "pm", "price_unit": "money"},
            "time_zone": "America/New_York",
            "snapshot_time": "15:45",
        },
    )  # fmt: skip


@pytest.fixture
def layout() -> Layout:
    return plain_layout()


def chain(days: int = 2, strikes: int = 5) -> list[list[str]]:
    """A clean chain as fields of text, in table order."""
    return [
        f"2021-03-0{day},AB,AB,2021-04-16,{90 + strike},{right},1.25,1.5,10,,95.5,7,0,USD".split(",")
        for day in range(1, days + 1)
        for strike in range(strikes)
        for right in "CP"
    ]  # fmt: skip


def write(path: Path, rows: list[list[str]], extra: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *(",".join(row) for row in rows)]) + "\n" + extra)
    return path


def quarantine(result: IngestResult) -> list[tuple[int, str, str]]:
    return pl.read_parquet(result.quarantine_path).select("row", "reason", "detail").rows()


def changed(rows: list[list[str]], row: int, **fields: str) -> list[list[str]]:
    """A copy with some fields of one row (1-based) replaced."""
    names = HEADER.split(",")
    rows = [list(fields_of) for fields_of in rows]
    for name, value in fields.items():
        rows[row - 1][names.index(name)] = value
    return rows
