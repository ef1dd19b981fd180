"""Cboe-style chain snapshots of the S&P 500 index: one row per contract per day, Parquet or CSV.

Purpose: SPX (am-settled) and SPXW (pm-settled) chains whose `quote_date` is a date; the snapshot stood at
15:45 in New York unless the option `snapshot_time` says otherwise. European, US dollars, prices in money.
Sizes aren't in the file. Parquet files of this layout hold 32-bit floats; ingest reads those as the shortest
decimal that has their bits, so 2919.04 comes out as 2919.04 (pipelines/quote_rows.py). Invariants: a root
other than SPX and SPXW is quarantined (`unknown_root`), never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.layouts.base import Layout, refuse_unknown_options

OPTIONS = ("snapshot_time",)


def layout(options: Mapping[str, Any]) -> Layout:
    """Options: `snapshot_time`, local New York time of day, default "15:45"."""
    refuse_unknown_options("cboe_snapshot", options, OPTIONS)
    return Layout(
        name="cboe_snapshot",
        columns={
            "ts": "quote_date",
            "root": "root",
            "expiry": "expiration",
            "strike": "strike",
            "right": "cp",
            "bid": "bid",
            "ask": "ask",
            "underlying_price": "underlying_last",
            "volume": "volume",
            "open_interest": "open_interest",
        },
        constants={"underlying": "SPX", "style": "european", "currency": "USD", "price_unit": "money"},
        time_zone="America/New_York",
        snapshot_time=options.get("snapshot_time", "15:45"),
        settlement_by_root={"SPX": "am", "SPXW": "pm"},
    )
