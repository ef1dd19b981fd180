"""Hourly quotes of US equity options in one table, as made of QuantConnect Lean's option data: American, US dollars.

Purpose: columns symbol, date (YYYYMMDD), hour_start_et, expiry, strike, cp, bid, bid_size, ask, ask_size,
underlying_close. A row holds the quote with which its hour ended, and the underlying's last price of that hour: it
stands at the end of the hour, in New York time. Prices and strikes are those of the day: across a split both change
(docs/layouts.md).
Invariants: an expiry on a Saturday (monthly options until February 2015) is that of the Friday before, 16:00.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipelines.layouts.base import NEW_YORK, Layout, friday_for_saturday, refuse_unknown_options

COLUMNS = {
    "ts": "hour_end",
    "underlying": "symbol",
    "root": "symbol",
    "expiry": "expiry",
    "strike": "strike",
    "right": "cp",
    "bid": "bid",
    "ask": "ask",
    "bid_size": "bid_size",
    "ask_size": "ask_size",
    "underlying_price": "underlying_close",
}


def _with_time(table: pl.DataFrame) -> pl.DataFrame:
    """Adds `hour_end` ("20140606 10:00"; what can't be read stays in it), and puts Saturdays' expiries on Fridays."""
    day = pl.col("date").cast(pl.String).str.strip_chars().str.replace_all("-", "")
    start = pl.col("hour_start_et").cast(pl.String).str.strip_chars()
    end = start.cast(pl.Int64, strict=False) + 1
    written = pl.coalesce(end.cast(pl.String).str.zfill(2), start)
    return table.with_columns(
        hour_end=pl.concat_str(day, written, separator=" ") + ":00", expiry=friday_for_saturday("expiry")
    )


def layout(options: Mapping[str, Any]) -> Layout:
    """No options."""
    refuse_unknown_options("lean_hourly", options, ())
    return Layout(
        name="lean_hourly",
        columns=COLUMNS,
        constants={"style": "american", "settlement": "pm", "currency": "USD", "price_unit": "money"},
        time_zone=NEW_YORK,
        timestamp_format="%Y%m%d %H:%M",
        unpivot=_with_time,
        file_columns=(
            "symbol", "date", "hour_start_et", "expiry", "strike", "cp", "bid", "ask", "bid_size", "ask_size",
            "underlying_close",
        ),
    )  # fmt: skip
