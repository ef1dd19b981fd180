"""A vendor's times into instants: nanoseconds since 1970 UTC.

Purpose: the rules of pipelines/layouts/base.py, "Times". Data in: a column of any type a time may have, its
format, the zone of local times, and the time of day that stands for a whole date. Data out: int64, null where
unreadable. Invariants: nothing is guessed. A local time that a clock change skips or repeats, a date without
a time of day to stand for it, and a year outside 1970-2199 are unreadable.
"""

from __future__ import annotations

import re
from datetime import time

import polars as pl

from pipelines.layouts.base import EPOCH_UNITS

YEARS = r"^(19[789]\d|20\d\d|21\d\d)"  # int64 nanoseconds end in 2262
FIRST_US, LAST_US = 0, 7_258_118_400_000_000  # 1970-01-01 to 2200-01-01
DATE = YEARS + r"-\d\d-\d\d$"
COMPACT_DATE = YEARS + r"\d{4}$"
LOCAL = YEARS + r"-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?$"
OFFSET = YEARS + r"-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?[+-]\d\d:\d\d$"
TIME_PATTERN = re.compile(r"%[HIklTRXcsr+]")  # a strptime pattern without any of these holds only a date
WITHOUT_SECONDS = r"T\d\d:\d\d($|[+-])"


def instants(values: pl.Series, time_format: str, zone: str, time_of_day: time | None) -> pl.Series:
    """int64 nanoseconds UTC per value; `time_of_day` (local) stands for a date without a time."""
    values = values.alias("value")
    if time_format in EPOCH_UNITS:
        return _from_epoch(values, EPOCH_UNITS[time_format])
    if values.dtype == pl.Date:
        return _localise(values.cast(pl.Datetime("ns")), values.is_not_null(), zone, time_of_day)
    if isinstance(values.dtype, pl.Datetime):
        return _from_datetime(values, zone, time_of_day)
    text = values.cast(pl.String).str.strip_chars()
    if time_format != "iso":
        if time_of_day is None and not TIME_PATTERN.search(time_format):
            return pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
        parsed = text.str.to_datetime(time_format, strict=False, time_unit="us")
        return _from_datetime(parsed, zone, time_of_day)
    return _from_iso(text, zone, time_of_day)


def _from_epoch(values: pl.Series, nanoseconds: int) -> pl.Series:
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    count = values.cast(pl.Int64, strict=False)
    if values.dtype == pl.String and nanoseconds == EPOCH_UNITS["epoch_s"]:  # "1577998800.0", as some tools write it
        count = count.fill_null(values.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False))
    first, last = FIRST_US * 1000 // nanoseconds, LAST_US * 1000 // nanoseconds
    sound = count.is_between(first, last, closed="left")
    return _where(sound, count) * nanoseconds


def _from_datetime(values: pl.Series, zone: str, time_of_day: time | None) -> pl.Series:
    microseconds = values.dt.timestamp("us")
    values = _where(microseconds.is_between(FIRST_US, LAST_US, closed="left"), values)
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is not None:
        return values.dt.convert_time_zone("UTC").dt.timestamp("ns")
    local = values.dt.cast_time_unit("ns")
    if time_of_day is None:
        return _localise(local, pl.Series([False]).new_from_index(0, len(local)), zone, None)
    return _localise(local, local == local.dt.truncate("1d"), zone, time_of_day)


def _from_iso(text: pl.Series, zone: str, time_of_day: time | None) -> pl.Series:
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"Z$", "+00:00")
    text = text.str.replace(r"(T.*[+-]\d\d)(\d\d)$", "${1}:${2}")
    text = _where(text.str.contains(COMPACT_DATE), text.str.replace(r"^(\d{4})(\d\d)(\d\d)$", "$1-$2-$3"), text)
    dates = _where(text.str.contains(DATE), text).str.to_datetime("%Y-%m-%d", strict=False, time_unit="ns")
    short = text.str.contains(WITHOUT_SECONDS)
    text = _where(short, text.str.replace(r"(T\d\d:\d\d)", "${1}:00"), text)
    pattern = "%Y-%m-%dT%H:%M:%S%.f"
    locals_ = _where(text.str.contains(LOCAL), text).str.to_datetime(pattern, strict=False, time_unit="ns")
    offsets = _where(text.str.contains(OFFSET), text)
    aware = offsets.str.to_datetime(pattern + "%z", strict=False, time_unit="ns").dt.timestamp("ns")
    is_date = dates.is_not_null()
    if time_of_day is not None:
        is_date |= (locals_ == locals_.dt.truncate("1d")).fill_null(False)
    local = _localise(_where(dates.is_not_null(), dates, locals_), is_date, zone, time_of_day)
    return _where(local.is_not_null(), local, aware)


def _localise(local: pl.Series, is_date: pl.Series, zone: str, time_of_day: time | None) -> pl.Series:
    """Local wall-clock times as instants; where `is_date`, at `time_of_day` of that date."""
    if time_of_day is None:
        local = _where(~is_date, local)
    else:
        seconds = time_of_day.hour * 3600 + time_of_day.minute * 60 + time_of_day.second
        local = _where(is_date, local.dt.offset_by(f"{seconds}s"), local)
    placed = local.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    return placed.dt.convert_time_zone("UTC").dt.timestamp("ns")


def _where(holds: pl.Series, values: pl.Series, otherwise: pl.Series | None = None) -> pl.Series:
    """`values` where the mask holds, elsewhere `otherwise` or null; a null mask doesn't hold."""
    frame = pl.DataFrame({"holds": holds.fill_null(False), "values": values})
    other: pl.Expr | pl.Series = pl.lit(None, dtype=values.dtype) if otherwise is None else otherwise
    return frame.select(pl.when("holds").then("values").otherwise(other).alias("values")).to_series()
