"""The canonical quote table: the one table everything downstream of ingest reads, whatever vendor it came from.

    column            kind       unit                          null  allowed
    ----------------  ---------  ----------------------------  ----  -------------------------------------------
    ts                timestamp  UTC, ns since 1970                  when the quote stood
    underlying        text                                           any name, not empty
    root              text                                           option root, e.g. SPX or SPXW
    expiry            timestamp  UTC, ns since 1970                  after ts; the instant the payoff is fixed
    strike            number     currency per unit                   > 0
    right             text                                           C, P
    style             text                                           european, american
    settlement        text                                           am, pm
    bid               number     price_unit                          >= 0; 0 means nobody bids
    ask               number     price_unit                          >= bid; 0 means nobody offers
    bid_size          number     contracts                     yes   >= 0
    ask_size          number     contracts                     yes   >= 0
    underlying_price  number     currency per unit                   > 0, one per (ts, underlying)
    forward           number     currency per unit             yes   > 0; what the venue gives for the expiry
    volume            number     contracts, this day so far    yes   >= 0
    open_interest     number     contracts                     yes   >= 0
    currency          text       ISO 4217 or coin code               one per underlying
    price_unit        text                                           money; coin for inverse options

Purpose: name the columns, their kinds and their limits once, for ingest (which enforces them), features and
hosts. Data in: a mapping of column name to NumPy array. Data out: nothing, or one `SchemaError` naming every
problem. Invariants: a quote is identified by `IDENTITY`, no two rows of a table share it, and a table is
sorted by it. Sizes, volume and open interest are numbers, not integers, because coin venues trade fractions
of a contract. Where a nullable number is absent it is NaN in NumPy and null in Parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serving.errors import SchemaError

Kind = Literal["timestamp", "text", "number"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table; `allowed` is empty where any value of the kind will do."""

    name: str
    kind: Kind
    unit: str = ""
    nullable: bool = False
    allowed: tuple[str, ...] = ()


COLUMNS: tuple[Column, ...] = (
    Column(name="ts", kind="timestamp", unit="UTC, ns"),
    Column(name="underlying", kind="text"),
    Column(name="root", kind="text"),
    Column(name="expiry", kind="timestamp", unit="UTC, ns"),
    Column(name="strike", kind="number", unit="currency per unit"),
    Column(name="right", kind="text", allowed=("C", "P")),
    Column(name="style", kind="text", allowed=("european", "american")),
    Column(name="settlement", kind="text", allowed=("am", "pm")),
    Column(name="bid", kind="number", unit="price_unit"),
    Column(name="ask", kind="number", unit="price_unit"),
    Column(name="bid_size", kind="number", unit="contracts", nullable=True),
    Column(name="ask_size", kind="number", unit="contracts", nullable=True),
    Column(name="underlying_price", kind="number", unit="currency per unit"),
    Column(name="forward", kind="number", unit="currency per unit", nullable=True),
    Column(name="volume", kind="number", unit="contracts", nullable=True),
    Column(name="open_interest", kind="number", unit="contracts", nullable=True),
    Column(name="currency", kind="text", unit="ISO 4217 or coin code"),
    Column(name="price_unit", kind="text", allowed=("money", "coin")),
)
NAMES: tuple[str, ...] = tuple(column.name for column in COLUMNS)
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}
REQUIRED: tuple[str, ...] = tuple(column.name for column in COLUMNS if not column.nullable)
NULLABLE: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.nullable)
IDENTITY: tuple[str, ...] = ("ts", "underlying", "root", "expiry", "strike", "right")


def of_kind(kind: Kind) -> tuple[str, ...]:
    """Names of the columns of one kind, in table order."""
    return tuple(column.name for column in COLUMNS if column.kind == kind)


def check(table: Mapping[str, NDArray[Any]]) -> None:
    """Raise one `SchemaError` naming everything wrong with a table: columns, kinds, lengths, nulls, values.

    Timestamps are datetime64 or int64 nanoseconds; text is any string array or objects holding str.
    """
    problems = [f"column {name!r} is missing" for name in NAMES if name not in table]
    problems += [f"column {name!r} isn't part of the quote table" for name in table if name not in BY_NAME]
    present = {name: np.asarray(table[name]) for name in NAMES if name in table}
    lengths = {values.shape for values in present.values()}
    if len(lengths) > 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in present.items())
        problems.append(f"columns differ in shape: {shapes}")
    for name, values in present.items():
        problems += _column_problems(BY_NAME[name], values)
    if problems:
        raise SchemaError("\n".join(["not a quote table (serving/schema.py):", *(f"  - {line}" for line in problems)]))


def _column_problems(column: Column, values: NDArray[Any]) -> list[str]:
    kinds = {"timestamp": "Mi", "number": "fiu", "text": "UTO"}[column.kind]
    if values.dtype.kind not in kinds:
        return [f"column {column.name!r} must be {column.kind}, found dtype {values.dtype}"]
    if column.kind == "text":
        return _text_problems(column, values)
    if column.kind == "timestamp":
        nulls = np.isnat(values) if values.dtype.kind == "M" else np.zeros(values.shape, dtype=bool)
    else:
        nulls = ~np.isfinite(values)
    if column.nullable:
        nulls = np.isinf(values)
    if not nulls.any():
        return []
    row = int(np.flatnonzero(nulls)[0])
    return [f"column {column.name!r} has {int(nulls.sum())} unusable values, first {values[row]} at row {row}"]


def _text_problems(column: Column, values: NDArray[Any]) -> list[str]:
    for row, value in enumerate(values.tolist()):
        if not isinstance(value, str) or not value:
            return [f"column {column.name!r} must hold text, found {value!r} at row {row}"]
        if column.allowed and value not in column.allowed:
            allowed = ", ".join(column.allowed)
            return [f"column {column.name!r} has {value!r} at row {row}; allowed: {allowed}"]
    return []
