"""Deribit's inverse options: prices in coin, strikes in US dollars, several coins and snapshots a day in one file.

Purpose: columns timestamp, currency (the coin: BTC, ETH, ...), expiry, strike, cp, bid_price, ask_price, forward_price,
index_price, open_interest, volume; others (mark_price, implied_volatility, ...) are ignored. Each coin is an underlying
of its own. Times are UTC; an expiry that is only a date is at 08:00. European, settled at an average of the index.
`forward_price` is the venue's forward for the expiry; the column, or values of it, may be missing. Prices become money
at the index (docs/conventions.md, Coin quotes).
Invariants: the index of a snapshot is the median of its rows; rows more than 0.5 % off it are quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.layouts.base import Layout, refuse_unknown_options

OPTIONS = ("snapshot_time",)
INDEX_TOLERANCE = 0.005  # rows of one snapshot may have been fetched some seconds apart


def layout(options: Mapping[str, Any]) -> Layout:
    """Options: `snapshot_time`, UTC time of day for timestamps that are only dates; without it those are refused."""
    refuse_unknown_options("deribit", options, OPTIONS)
    return Layout(
        name="deribit",
        columns={
            "ts": "timestamp",
            "underlying": "currency",
            "root": "currency",
            "expiry": "expiry",
            "strike": "strike",
            "right": "cp",
            "bid": "bid_price",
            "ask": "ask_price",
            "underlying_price": "index_price",
            "forward": "forward_price",
            "volume": "volume",
            "open_interest": "open_interest",
        },
        constants={"style": "european", "settlement": "am", "currency": "USD", "price_unit": "coin"},
        time_zone="UTC",
        snapshot_time=options.get("snapshot_time"),
        am_expiry_time="08:00",
        pm_expiry_time="08:00",
        may_lack=("forward_price", "volume", "open_interest"),
        underlying_tolerance=INDEX_TOLERANCE,
    )
