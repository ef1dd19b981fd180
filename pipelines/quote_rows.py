"""One batch of a vendor's rows into canonical quotes, and a reason for each row that is none.

Purpose: parse and validate what can be judged from a row alone; what needs other rows (duplicates, mixed
currencies, disagreeing underlyings) is judged by pipelines/quote_table.py. Data in: a batch as read and a
`Layout`. Data out: `Quotes`: per canonical column an array as long as the batch, and the rows refused with
reason and detail. Invariants: no row is dropped or changed; a row has at most one reason, the first of
`ROW_REASONS` that holds; a number is what the text says, and a 32-bit float is the shortest decimal with its
bits (2919.04, not 2919.0400390625).

Timestamps are int64 ns since 1970 UTC, numbers float64 with NaN for none, text int32 codes into `Vocabulary`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.layouts.base import Layout, parse_time_of_day
from pipelines.quote_times import instants
from serving import schema

ROW_REASONS = (
    "missing_value",
    "bad_timestamp",
    "bad_expiry",
    "bad_number",
    "bad_right",
    "bad_value",
    "unknown_root",
    "strike_not_positive",
    "underlying_price_not_positive",
    "forward_not_positive",
    "expired",
    "no_price",
    "negative_price",
    "negative_quantity",
    "crossed",
)
MISSING_TEXTS = ("", "nan", "na", "n/a", "null", "none")  # a number's absence, in any case
QUANTITIES = tuple(name for name in schema.NULLABLE if name != "forward")
RIGHTS = {"c": "C", "p": "P", "call": "C", "put": "P"}
NO_TEXT, WRONG_TEXT = -1, -2  # codes that stand for no entry of the vocabulary

_TEXT_TYPES = r"text|(large_)?string(_view)?|dictionary<.*|null"
USABLE_TYPES = {
    "number": rf"u?int\d+|float|double|halffloat|decimal.*|{_TEXT_TYPES}",
    "timestamp": rf"timestamp.*|date\d+.*|u?int\d+|double|{_TEXT_TYPES}",
    "text": rf"u?int\d+|{_TEXT_TYPES}",
}

Mask = NDArray[np.bool_]


class Vocabulary:
    """The distinct texts of one column, numbered in order of appearance."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The text's number, a new one if it has none yet."""
        if text not in self._codes:
            self._codes[text] = len(self.texts)
            self.texts.append(text)
        return self._codes[text]


@dataclass(frozen=True)
class Refusal:
    """A row of a batch (0-based index) that is no usable quote."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Quotes:
    """A batch in canonical columns; `kept` is False where `refusals` says why."""

    columns: dict[str, NDArray[Any]]
    kept: Mask
    refusals: list[Refusal]


def type_problems(layout: Layout, columns: Mapping[str, str]) -> list[str]:
    """Columns of a file that are there but of a type that can't be read as what the layout maps them to."""
    problems = []
    for vendor, found in columns.items():
        for kind in sorted(layout.kinds_of(vendor)):
            if not re.fullmatch(USABLE_TYPES[kind], found):
                problems.append(f"column {vendor!r} has type {found}, which can't be read as a {kind}; convert it")
    return problems


class RowReader:
    """Turns batches of one layout into quotes; keeps the vocabularies between batches."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.vocabularies = {name: Vocabulary() for name in schema.of_kind("text")}

    def read(self, table: pl.DataFrame) -> Quotes:
        """Parse and validate one batch."""
        columns: dict[str, NDArray[Any]] = {}
        garbled: dict[str, Mask] = {}
        for name in schema.of_kind("number"):
            columns[name], garbled[name] = self._number(table, name)
        for name in schema.of_kind("text"):
            columns[name] = self._text(table, name)
        columns["ts"] = self._instants(table, "ts", self.layout.timestamp_format, self.layout.snapshot_time)
        am, pm = (
            self._instants(table, "expiry", self.layout.expiry_format, time)
            for time in (self.layout.am_expiry_time, self.layout.pm_expiry_time)
        )
        am_code = self.vocabularies["settlement"].code("am")
        columns["expiry"] = np.where(columns["settlement"] == am_code, am, pm)
        ordered = {name: columns[name] for name in schema.NAMES}
        return _Judge(self.layout, table, ordered, garbled).verdict()

    def _number(self, table: pl.DataFrame, name: str) -> tuple[NDArray[np.float64], Mask]:
        """Values with NaN for none, and where there is something that is no finite number."""
        vendor = self.layout.columns.get(name)
        if vendor in self.layout.may_lack and vendor not in table.columns:
            return np.full(table.height, np.nan), np.zeros(table.height, dtype=bool)
        if vendor is None:
            value = float(self.layout.constants.get(name, np.nan))
            return np.full(table.height, value), np.zeros(table.height, dtype=bool)
        return read_numbers(table[vendor])

    def _text(self, table: pl.DataFrame, name: str) -> NDArray[np.int32]:
        vocabulary = self.vocabularies[name]
        vendor = self.layout.columns.get(name)
        if name == "settlement" and self.layout.settlement_by_root:
            if "root" not in self.layout.columns:
                settlement = self.layout.settlement_by_root[str(self.layout.constants["root"])]
                return np.full(table.height, vocabulary.code(settlement), dtype=np.int32)
            roots = table[self.layout.columns["root"]]
            return _codes(roots, self.layout.settlement_by_root.get, vocabulary)
        if vendor is None:
            return np.full(table.height, vocabulary.code(str(self.layout.constants[name])), dtype=np.int32)
        return _codes(table[vendor], _normaliser(name), vocabulary)

    def _instants(self, table: pl.DataFrame, name: str, time_format: str, time_of_day: str | None) -> NDArray[np.int64]:
        """Nanoseconds, `NO_INSTANT` where unreadable."""
        midnight = parse_time_of_day(time_of_day)

        def convert(values: pl.Series) -> pl.Series:
            return instants(values, time_format, self.layout.time_zone, midnight)

        return _map_distinct(table[self.layout.columns[name]], convert).fill_null(NO_INSTANT).to_numpy()


NO_INSTANT = np.iinfo(np.int64).min


def read_numbers(values: pl.Series) -> tuple[NDArray[np.float64], Mask]:
    """Values as float64 with NaN for none, and where there is something that is no finite number."""
    if values.dtype == pl.Float32:
        values = values.cast(pl.String)  # the shortest decimal that has these bits
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    numbers = values.cast(pl.Float64, strict=False)
    if values.dtype == pl.String and numbers.null_count():
        values = values.str.strip_chars()
        numbers = values.cast(pl.Float64, strict=False)
        absent = values.is_null() | values.str.to_lowercase().is_in(MISSING_TEXTS)
        garbled = (numbers.is_null() & ~absent).to_numpy()
    else:
        garbled = np.zeros(len(values), dtype=bool)
    found = numbers.fill_null(np.nan).to_numpy()
    return found, garbled | np.isinf(found)


def _normaliser(name: str) -> Callable[[str], str | None]:
    """What a text column's entry means; None where it means nothing."""
    allowed = schema.BY_NAME[name].allowed
    if name == "right":
        return lambda text: RIGHTS.get(text.lower())
    if name == "currency":
        return lambda text: text.upper() if re.fullmatch(r"[A-Za-z0-9]{2,10}", text) else None
    if allowed:
        return lambda text: text.lower() if text.lower() in allowed else None
    return lambda text: text


def _codes(values: pl.Series, normalise: Callable[[str], str | None], vocabulary: Vocabulary) -> NDArray[np.int32]:
    def convert(distinct: pl.Series) -> pl.Series:
        codes = []
        for text in distinct.cast(pl.String).str.strip_chars().to_list():
            meant = normalise(text) if text else None
            codes.append(NO_TEXT if not text else WRONG_TEXT if meant is None else vocabulary.code(meant))
        return pl.Series(codes, dtype=pl.Int32)

    return _map_distinct(values, convert).to_numpy()


def _map_distinct(values: pl.Series, convert: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """`convert` applied to the distinct values only, for columns that repeat a few of them many times."""
    distinct = values.unique(maintain_order=True)
    if 2 * len(distinct) > len(values):
        return convert(values)
    pairs = pl.DataFrame({"value": distinct, "meaning": convert(distinct)})
    frame = pl.DataFrame({"value": values})
    return frame.join(pairs, on="value", how="left", nulls_equal=True, maintain_order="left")["meaning"]


class _Judge:
    """Gives each row of a batch the first reason that holds."""

    def __init__(
        self,
        layout: Layout,
        table: pl.DataFrame,
        columns: dict[str, NDArray[Any]],
        garbled: Mapping[str, Mask],
    ) -> None:
        self.layout = layout
        self.table = table
        self.columns = columns
        self.garbled = garbled
        self.kept = np.ones(table.height, dtype=bool)
        self.refusals: list[Refusal] = []

    def verdict(self) -> Quotes:
        """Apply every rule in the order of `ROW_REASONS`."""
        self._missing()
        self._unreadable()
        self._out_of_range()
        self.refusals.sort(key=lambda refusal: refusal.index)
        return Quotes(self.columns, self.kept, self.refusals)

    def _missing(self) -> None:
        for name in schema.REQUIRED:
            vendor = self.layout.columns.get(name)
            if vendor is None or name in ("bid", "ask"):
                continue
            kind = schema.BY_NAME[name].kind
            if kind == "number":
                absent = np.isnan(self.columns[name]) & ~self.garbled[name]
            elif kind == "text":
                absent = self.columns[name] == NO_TEXT
            else:
                absent = self.columns[name] == NO_INSTANT
                if absent.any():
                    absent &= _is_blank(self.table[vendor])
            self._refuse("missing_value", absent, [name], "a quote needs it")

    def _unreadable(self) -> None:
        columns = self.columns
        zone, snapshot_time = self.layout.time_zone, self.layout.snapshot_time
        remark = f"no {self.layout.timestamp_format} time in {zone}"
        remark += "" if snapshot_time else ", or only a date and the layout has no snapshot_time"
        self._refuse("bad_timestamp", columns["ts"] == NO_INSTANT, ["ts"], remark)
        remark = f"no {self.layout.expiry_format} date or time in {zone}"
        self._refuse("bad_expiry", columns["expiry"] == NO_INSTANT, ["expiry"], remark)
        for name, garbled in self.garbled.items():
            self._refuse("bad_number", garbled, [name], "not a finite number")
        self._refuse("bad_right", columns["right"] == WRONG_TEXT, ["right"], "must be C, P, call or put")
        for name in ("style", "settlement", "currency", "price_unit"):
            if name in self.layout.columns:
                allowed = ", ".join(schema.BY_NAME[name].allowed) or "a currency code such as USD"
                self._refuse("bad_value", columns[name] == WRONG_TEXT, [name], f"must be {allowed}")
        known = ", ".join(self.layout.settlement_by_root)
        remark = f"settlement_by_root of layout {self.layout.name} knows {known}"
        self._refuse("unknown_root", columns["settlement"] == WRONG_TEXT, ["root"], remark)

    def _out_of_range(self) -> None:
        columns = self.columns
        self._refuse("strike_not_positive", columns["strike"] <= 0, ["strike"], "must be above 0")
        price = columns["underlying_price"]
        self._refuse("underlying_price_not_positive", price <= 0, ["underlying_price"], "must be above 0")
        self._refuse("forward_not_positive", columns["forward"] <= 0, ["forward"], "must be above 0, or nothing")
        past = columns["expiry"] <= columns["ts"]
        self._refuse("expired", past, ["ts", "expiry"], "the contract's expiry isn't after the quote")
        bid, ask = columns["bid"], columns["ask"]
        for name in ("bid", "ask"):
            self._refuse("no_price", np.isnan(columns[name]), [name], "no price")
        for name in ("bid", "ask"):
            self._refuse("negative_price", columns[name] < 0, [name], "must be 0 or more")
        for name in QUANTITIES:
            self._refuse("negative_quantity", columns[name] < 0, [name], "must be 0 or more")
        self._refuse("crossed", bid > ask, ["bid", "ask"], "the bid is above the ask")

    def _refuse(self, reason: str, holds: Mask, names: Sequence[str], remark: str) -> None:
        """Refuse the rows where a rule holds that have no reason yet; `names` are the columns to blame."""
        indices = np.flatnonzero(holds & self.kept)
        if not indices.size:
            return
        self.kept[indices] = False
        blamed = [(name, self.layout.columns.get(name)) for name in names]
        values = [
            self.table[vendor].gather(indices).to_list()
            if vendor is not None
            else [self.layout.constants[name]] * indices.size
            for name, vendor in blamed
        ]
        for index, *found in zip(indices.tolist(), *values, strict=True):
            said = ", ".join(
                f"{vendor or name} is {_shown(value)}" for (name, vendor), value in zip(blamed, found, strict=True)
            )
            self.refusals.append(Refusal(index, reason, f"{said}: {remark}"))


def _is_blank(values: pl.Series) -> Mask:
    """Null, NaN, or text that stands for nothing."""
    if values.dtype.is_float():
        return values.fill_nan(None).is_null().to_numpy()
    if not isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum):
        return values.is_null().to_numpy()
    text = values.cast(pl.String).str.strip_chars().str.to_lowercase()
    return (text.is_null() | text.is_in(MISSING_TEXTS)).to_numpy()


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return value.isoformat(sep=" ") if isinstance(value, datetime) else repr(value)
