"""historicaloptiondata.com, and sets made of it: US chains at the close, one row per contract per day.

Purpose: equity, ETF and index options whose `optionroot` is the whole contract symbol (SPY210129P00345000); the root is
what stands before date, right and strike. The quotes stand at 16:00 in New York unless the option `snapshot_time` says
otherwise. Index roots (pipelines/layouts/base.py) are European, others American; the monthly index roots settle in the
morning. US dollars, prices in money; sizes aren't in the files.
Invariants: an `optionroot` without such a tail is taken for the root itself; an expiry on a Saturday (monthly options
until February 2015) is that of the Friday before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipelines.layouts.base import (
    AM_SETTLED_ROOTS,
    EUROPEAN_ROOTS,
    NEW_YORK,
    Layout,
    friday_for_saturday,
    refuse_unknown_options,
)

OPTIONS = ("snapshot_time",)
COLUMNS = {
    "ts": "quotedate",
    "underlying": "underlying",
    "root": "root",
    "expiry": "expiry",
    "strike": "strike",
    "right": "type",
    "style": "style",
    "settlement": "settlement",
    "bid": "bid",
    "ask": "ask",
    "underlying_price": "underlying_last",
    "volume": "volume",
    "open_interest": "openinterest",
}
MADE = {"root": "optionroot", "expiry": "expiration"}  # columns that `_with_root` makes, and what of
MAY_LACK = ("volume", "openinterest")
SYMBOL_TAIL = r"\s*\d{6}[CP]\d{8}$"


def _with_root(table: pl.DataFrame) -> pl.DataFrame:
    root = pl.col("optionroot").cast(pl.String).str.strip_chars().str.replace(SYMBOL_TAIL, "")
    european, morning = root.is_in(EUROPEAN_ROOTS), root.is_in(AM_SETTLED_ROOTS)
    return table.with_columns(
        root=root,
        expiry=friday_for_saturday("expiration"),
        style=pl.when(european).then(pl.lit("european")).otherwise(pl.lit("american")),
        settlement=pl.when(morning).then(pl.lit("am")).otherwise(pl.lit("pm")),
    )


def layout(options: Mapping[str, Any]) -> Layout:
    """Options: `snapshot_time`, local New York time of day, default "16:00"."""
    refuse_unknown_options("historicaloptiondata", options, OPTIONS)
    not_in_file = {"root", "expiry", "style", "settlement", *MAY_LACK}
    return Layout(
        name="historicaloptiondata",
        columns=COLUMNS,
        constants={"currency": "USD", "price_unit": "money"},
        time_zone=NEW_YORK,
        snapshot_time=options.get("snapshot_time", "16:00"),
        unpivot=_with_root,
        file_columns=(*MADE.values(), *(vendor for vendor in COLUMNS.values() if vendor not in not_in_file)),
        may_lack=MAY_LACK,
    )
