"""What a vendor's file looks like, declared: which of its columns is which canonical one, and what it doesn't say.

Purpose: everything ingest needs to know of a vendor, in one frozen value. Data in: keyword arguments. Data
out: a `Layout`, or one `ConfigError` naming every problem of it. Invariants: every required canonical column
has exactly one origin: a vendor column, a constant, or (for `settlement`) the root. Nullable ones may have
none and are then null.

Times. A value with an offset (or `Z`) is that instant. A value without one is local time in `time_zone`. A
value that is only a date (a date, or a local midnight) becomes a time of day in `time_zone`: `snapshot_time`
for `ts`, `am_expiry_time` or `pm_expiry_time` for `expiry`, by the row's settlement. A layout without
`snapshot_time` refuses dates in `ts` (reason `bad_timestamp`) and takes a midnight for what it is. Formats:
"iso" (2019-04-25, 20190425, with or without a time after `T` or a space), "epoch_s", "epoch_ms", "epoch_us",
"epoch_ns", or a strptime pattern.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from serving import schema
from serving.errors import ConfigError

ROW_COLUMN = "__row"  # 1-based data row in the file; an `unpivot` hook must carry it along
NEW_YORK = "America/New_York"
AM_SETTLED_ROOTS = ("SPX", "NDX", "RUT", "DJX", "VIX", "VIXW")  # US index options, the monthly ones
EUROPEAN_ROOTS = (*AM_SETTLED_ROOTS, "SPXW", "SPXPM", "NDXP", "RUTW", "XSP", "XEO")
WHOLE_DAY = r"^(\d{4}-?\d\d-?\d\d)(?:[T ]00:00(?::00(?:\.0+)?)?)?$"
EPOCH_UNITS = {"epoch_s": 10**9, "epoch_ms": 10**6, "epoch_us": 10**3, "epoch_ns": 1}  # name -> ns per unit
Unpivot = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One vendor's layout. `columns` maps canonical to vendor names, `constants` canonical names to values.

    `settlement_by_root` gives the settlement of each root; a row with another root is quarantined. `unpivot`
    turns a batch with several quotes in a row into one with a quote in each, before anything else looks at
    it; `columns` then names the columns it makes, and `file_columns` those the files must hold. It may also make
    columns for a vendor that has one quote in a row, such as a time out of a date and an hour. `clean_name` makes the
    names of a file's header into those used here; files with one of `extra_suffixes` are read as CSV. Columns in
    `may_lack` are of nullable canonical columns; a file without them holds none of their values.
    `underlying_tolerance` (relative) is for vendors whose underlying price jitters within a snapshot: the median
    counts, and rows further off are quarantined; without it nearly all rows of a snapshot must agree.
    """

    name: str
    columns: Mapping[str, str]
    time_zone: str
    constants: Mapping[str, str | float] = field(default_factory=dict)
    snapshot_time: str | None = None
    timestamp_format: str = "iso"
    expiry_format: str = "iso"
    settlement_by_root: Mapping[str, str] = field(default_factory=dict)
    am_expiry_time: str = "09:30"
    pm_expiry_time: str = "16:00"
    unpivot: Unpivot | None = None
    file_columns: tuple[str, ...] = ()
    clean_name: Callable[[str], str] | None = None
    extra_suffixes: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    underlying_tolerance: float | None = None

    def __post_init__(self) -> None:
        problems = [*self._origin_problems(), *self._constant_problems(), *self._time_problems()]
        if self.unpivot is not None and not self.file_columns:
            problems.append("unpivot needs file_columns: the columns a file must hold")
        required = {vendor for name, vendor in self.columns.items() if name in schema.REQUIRED}
        problems += [f"may_lack has {vendor!r}, which a quote needs" for vendor in self.may_lack if vendor in required]
        tolerance = self.underlying_tolerance
        if tolerance is not None and not 0.0 < tolerance < 1.0:
            problems.append(f"underlying_tolerance must lie between 0 and 1, found {tolerance!r}")
        if problems:
            raise ConfigError([f"layout {self.name!r}: {problem}" for problem in problems])

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Vendor columns every file must hold, in canonical order, each once."""
        mapped = dict.fromkeys(self.columns[name] for name in self._mapped())
        return self.file_columns or tuple(vendor for vendor in mapped if vendor not in self.may_lack)

    def kinds_of(self, vendor_column: str) -> set[str]:
        """The canonical kinds a vendor column is read as."""
        return {schema.BY_NAME[name].kind for name in self._mapped() if self.columns[name] == vendor_column}

    def _mapped(self) -> list[str]:
        return [name for name in schema.NAMES if name in self.columns]

    def _origin_problems(self) -> list[str]:
        problems = []
        for where, names in (("columns", self.columns), ("constants", self.constants)):
            for name in names:
                if name not in schema.BY_NAME:
                    close = difflib.get_close_matches(str(name), schema.NAMES, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"canonical columns: {', '.join(schema.NAMES)}"
                    problems.append(f"{where} has {name!r}, which is no canonical column; {hint}")
        for name in schema.NAMES:
            origins = [
                where for where, names in (("columns", self.columns), ("constants", self.constants)) if name in names
            ]
            if name == "settlement" and self.settlement_by_root:
                origins.append("settlement_by_root")
            if len(origins) > 1:
                problems.append(f"{name} is given twice, by {' and '.join(origins)}; keep one")
            if not origins and name in schema.REQUIRED:
                problems.append(f"{name} has no origin; map it in columns or give it in constants")
        problems += [
            f"columns.{name} must be a vendor column's name, found {vendor!r}"
            for name, vendor in self.columns.items()
            if not isinstance(vendor, str) or not vendor
        ]
        return problems

    def _constant_problems(self) -> list[str]:
        problems = []
        for name, value in self.constants.items():
            column = schema.BY_NAME.get(name)
            if column is None:
                continue
            if column.kind == "timestamp":
                problems.append(f"constants.{name} can't be a constant; map a column")
            elif column.kind == "number" and (
                isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            ):
                problems.append(f"constants.{name} must be a finite number, found {value!r}")
            elif column.kind == "text" and (not isinstance(value, str) or not value):
                problems.append(f"constants.{name} must be text, found {value!r}")
            elif column.allowed and value not in column.allowed:
                problems.append(f"constants.{name} must be one of {', '.join(column.allowed)}, found {value!r}")
        allowed = schema.BY_NAME["settlement"].allowed
        problems += [
            f"settlement_by_root.{root} must be one of {', '.join(allowed)}, found {settlement!r}"
            for root, settlement in self.settlement_by_root.items()
            if settlement not in allowed
        ]
        root = self.constants.get("root")
        if root is not None and self.settlement_by_root and root not in self.settlement_by_root:
            problems.append(f"settlement_by_root has no entry for the constant root {root!r}")
        return problems

    def _time_problems(self) -> list[str]:
        problems = []
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
            problems.append(f"time_zone {self.time_zone!r} is unknown; use a name such as America/New_York or UTC")
        for key in ("snapshot_time", "am_expiry_time", "pm_expiry_time"):
            value = getattr(self, key)
            if value is not None and parse_time_of_day(value) is None:
                problems.append(f"{key} must be a time of day such as '15:45' (in quotes in YAML), found {value!r}")
        for key in ("timestamp_format", "expiry_format"):
            value = getattr(self, key)
            if not isinstance(value, str) or (value != "iso" and value not in EPOCH_UNITS and "%" not in value):
                known = ", ".join(["iso", *EPOCH_UNITS])
                problems.append(f"{key} must be one of {known} or a strptime pattern, found {value!r}")
        return problems


def parse_time_of_day(text: object) -> time | None:
    """'HH:MM' or 'HH:MM:SS' as a time, None if it is neither."""
    if not isinstance(text, str) or not re.fullmatch(r"\d\d:\d\d(:\d\d)?", text):
        return None
    try:
        return time.fromisoformat(text)
    except ValueError:
        return None


def merged_constants(
    name: str, options: Mapping[str, Any], defaults: Mapping[str, str], changeable: tuple[str, ...]
) -> dict[str, str]:
    """A layout's constants with those of the option `constants`; `ConfigError` for one that can't be changed."""
    given = options.get("constants", {})
    if not isinstance(given, Mapping):
        raise ConfigError([f"layout {name!r}: constants must be a mapping, found {given!r}"])
    takes = ", ".join(changeable) if changeable else "none"
    problems = [
        f"layout {name!r}: constants.{key} can't be given, the layout knows it; it takes: {takes}"
        for key in given
        if key not in changeable
    ]
    if problems:
        raise ConfigError(problems)
    return {**defaults, **given}


def friday_for_saturday(column: str) -> pl.Expr:
    """A column of dates (YYYYMMDD or YYYY-MM-DD) as text, a Saturday as the Friday before; the rest stays as it is.

    Until February 2015 US monthly options expired on the Saturday after the Friday on which they last traded and their
    payoff was fixed.
    """
    text = pl.col(column).cast(pl.String).str.strip_chars()
    day = text.str.extract(WHOLE_DAY, 1).str.replace_all("-", "").str.to_date("%Y%m%d", strict=False)
    friday = day.dt.offset_by("-1d").dt.to_string("%Y-%m-%d")
    return pl.when(day.dt.weekday() == 6).then(friday).otherwise(text)


def refuse_unknown_options(name: str, options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` naming every option a layout doesn't take."""
    unknown = [key for key in options if key not in allowed]
    if unknown:
        takes = ", ".join(allowed) if allowed else "none"
        raise ConfigError([f"layout {name!r} has no option {key!r}; it takes: {takes}" for key in unknown])
