"""A small market as the three files a host reads, and ways to change them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.surface import Quotes
from serving.table_files import write_table
from serving.tables import CHAIN_COLUMNS, Market
from tests.serving.test_pricing import small_market

Columns = dict[str, Any]
Edit = Callable[[list[dict[str, str]]], object]


def quote_columns(snapshots: list[Quotes], underlying: str = "SPX") -> Columns:
    """Canonical columns; a snapshot without contracts becomes one row that carries time and price."""
    parts: dict[str, list[Any]] = {name: [] for name in CHAIN_COLUMNS}
    for quotes in snapshots:
        count = max(len(quotes), 1)
        nothing = not len(quotes)
        values = {
            "ts": np.full(count, quotes.ts), "underlying": np.full(count, underlying),
            "root": np.array([""]) if nothing else quotes.root,
            "expiry": np.array(["NaT"], "datetime64[ns]") if nothing else quotes.expiry,
            "right": np.array([""]) if nothing else np.where(quotes.right > 0, "C", "P"),
            "underlying_price": np.full(count, quotes.spot),
            **{name: np.array([np.nan]) if nothing else getattr(quotes, name) for name in ("strike", "bid", "ask")},
        }  # fmt: skip
        for name in CHAIN_COLUMNS:
            parts[name].append(values[name])
    return {name: np.concatenate(values) for name, values in parts.items()}


def write_market(folder: Path, market: Market, suffix: str = ".csv") -> tuple[Path, Path, Path]:
    """The three files of a market."""
    files = tuple(folder / f"{name}{suffix}" for name in ("chain", "path", "now"))
    write_table(files[0], quote_columns(market.chain, market.underlying))
    write_table(files[1], {"ts": market.path.ts, "price": market.path.price})
    now = quote_columns([market.now], market.underlying)
    if suffix == ".parquet" and not len(market.now):
        now = {name: values for name, values in now.items() if name != "expiry"}
        now["expiry"] = np.array(["NaT"], "datetime64[ns]")
    write_table(files[2], now)
    return files  # type: ignore[return-value]


def same(left: Market, right: Market) -> bool:
    def quotes(one: Quotes, other: Quotes) -> bool:
        pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Quotes))
        return all(
            np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")
            for left, right in pairs
        )

    pairs = list(zip(left.chain, right.chain, strict=True))
    return (
        left.underlying == right.underlying
        and np.array_equal(left.path.ts, right.path.ts)
        and np.array_equal(left.path.price, right.path.price)
        and all(quotes(*pair) for pair in [*pairs, (left.now, right.now)])
    )


def edited(file: Path, edit: Edit) -> Path:
    """Rewrite a CSV with its rows changed in place."""
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        names = list(reader.fieldnames or [])
    edit(rows)
    names += [name for name in rows[0] if name not in names] if rows else []
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture
def market() -> Market:
    return small_market(3, strikes=np.array([90.0, 100.0, 110.0]))


@pytest.fixture
def files(market: Market, tmp_path: Path) -> tuple[Path, Path, Path]:
    return write_market(tmp_path, market)


def special(market: Market) -> Market:
    """The same market, half American, with the venue's forwards for one expiry, its prices made of coin."""

    def change(quotes: Quotes) -> Quotes:
        american = np.arange(len(quotes)) % 2 == 0
        forward = np.where(quotes.expiry == quotes.expiry.max(), quotes.spot * 1.01, np.nan)
        return dataclasses.replace(quotes, american=american, venue_forward=forward, coin=True)

    return dataclasses.replace(market, chain=[change(one) for one in market.chain], now=change(market.now))


def same_contracts(left: Market, right: Market) -> bool:
    return [len(quotes) for quotes in left.chain] == [len(quotes) for quotes in right.chain]
