"""optionsdx.com chains: one row per strike and expiry, call and put side by side, upper-case names in square brackets.

Purpose: text or CSV files with a header such as `[QUOTE_UNIXTIME], [QUOTE_READTIME], [UNDERLYING_LAST], [C_BID], ...`;
blanks around names and values, and missing brackets, make no difference. Each row becomes a call and a put; quotes are
counted after that. QUOTE_UNIXTIME (seconds, UTC) is the instant, EXPIRE_DATE the expiry at 16:00 in New York.
The files don't name their underlying: the option `constants` does (`underlying`, SPX unless given). Style is European
for index roots (pipelines/layouts/base.py) and American for others, settlement pm, unless `constants` says otherwise.
Invariants: the columns of NEEDED must be there; C_SIZE ("bid x ask"), C_VOLUME and their puts may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipelines.layouts.base import (
    EUROPEAN_ROOTS,
    NEW_YORK,
    Layout,
    merged_constants,
    refuse_unknown_options,
)

OPTIONS = ("constants",)
CHANGEABLE = ("underlying", "root", "style", "settlement", "currency")
SHARED = ("QUOTE_UNIXTIME", "UNDERLYING_LAST", "EXPIRE_DATE", "STRIKE")
NEEDED = (*SHARED, "C_BID", "C_ASK", "P_BID", "P_ASK")
COLUMNS = {
    "ts": "QUOTE_UNIXTIME",
    "expiry": "EXPIRE_DATE",
    "strike": "STRIKE",
    "right": "RIGHT",
    "bid": "BID",
    "ask": "ASK",
    "bid_size": "BID_SIZE",
    "ask_size": "ASK_SIZE",
    "underlying_price": "UNDERLYING_LAST",
    "volume": "VOLUME",
}
SIZES = r"^\s*(\S+)\s*[xX]\s*(\S+)\s*$"


def _bare(name: str) -> str:
    return name.strip().strip("[]").strip()


def _two_quotes(table: pl.DataFrame) -> pl.DataFrame:
    """Each row twice: with what concerns the call, and with what concerns the put."""
    shared = [name for name in table.columns if not name.startswith(("C_", "P_"))]
    return pl.concat([table.select(*shared, *_side(table, right)) for right in ("C", "P")])


def _side(table: pl.DataFrame, right: str) -> list[pl.Expr]:
    nothing = pl.lit(None, dtype=pl.String)
    volume, size = f"{right}_VOLUME", f"{right}_SIZE"
    both = pl.col(size).cast(pl.String) if size in table.columns else nothing
    return [
        pl.lit(right).alias("RIGHT"), pl.col(f"{right}_BID").alias("BID"), pl.col(f"{right}_ASK").alias("ASK"),
        (pl.col(volume) if volume in table.columns else nothing).alias("VOLUME"),
        both.str.extract(SIZES, 1).alias("BID_SIZE"), both.str.extract(SIZES, 2).alias("ASK_SIZE"),
    ]  # fmt: skip


def layout(options: Mapping[str, Any]) -> Layout:
    """Options: `constants`, a mapping with any of underlying, root, style, settlement, currency."""
    refuse_unknown_options("optionsdx", options, OPTIONS)
    defaults = {"underlying": "SPX", "settlement": "pm", "currency": "USD", "price_unit": "money"}
    constants = merged_constants("optionsdx", options, defaults, CHANGEABLE)
    constants.setdefault("root", constants["underlying"])
    constants.setdefault("style", "european" if constants["root"] in EUROPEAN_ROOTS else "american")
    return Layout(
        name="optionsdx",
        columns=COLUMNS,
        constants=constants,
        time_zone=NEW_YORK,
        timestamp_format="epoch_s",
        unpivot=_two_quotes,
        file_columns=NEEDED,
        clean_name=_bare,
        extra_suffixes=(".txt",),
    )
