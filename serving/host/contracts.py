"""The contracts of a host around one underlying: what is known of each before the first tick.

Data in: a CSV file, one contract a row, or `listed_chain`. Data out: `ContractTable`, arrays [N] of doubles; the first
`quoted` are quoted, all are swept. Columns: `strike` (money), `right` (C or P), `carry` (forward = carry * spot),
`discount` (factor), `last_volatility` (fraction), `tau_years` or `expiry` (ISO 8601, UTC), optionally `quoted` (1, 0).
Invariants: a table that breaks a rule can't be made, and every row's problem is told at once; tau is fixed for the
session (an expiry's is counted from `at`, in years of 365 days).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ConfigError
from serving.normal import Array

MOST_QUOTED = 64
YEAR_SECONDS = 365 * 86400.0
COLUMNS = ("strike", "tau_years", "carry", "discount", "right", "last_volatility")
RIGHTS = {"C": 1.0, "P": -1.0}
MOST_PROBLEMS = 50  # told of one table


@dataclass(frozen=True)
class ContractTable:
    """Arrays [N]; `right` +1 for a call, -1 for a put; `reference_spot`: the underlying when volatilities were seen."""

    strike: Array
    tau_years: Array
    carry: Array
    discount: Array
    right: Array
    last_volatility: Array
    quoted: int
    reference_spot: float

    def __post_init__(self) -> None:
        for name in COLUMNS:
            values = np.array(getattr(self, name), dtype=np.float64, order="C")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if problems := list(_problems(self)):
            raise ConfigError(_bounded(problems))

    def __len__(self) -> int:
        return len(self.strike)

    @property
    def names(self) -> list[str]:
        """For people, e.g. "61500 C 30d": as many digits as keep two contracts apart."""
        rights, days = ["C" if right > 0 else "P" for right in self.right], self.tau_years * 365
        for digits in range(3, 18):
            names = [
                f"{strike:.{max(digits, 6)}g} {right} {day:.{digits}g}d"
                for strike, right, day in zip(self.strike, rights, days, strict=True)
            ]
            if len(set(names)) == len(names):
                break
        return names


def read_contracts(
    path: Path, reference_spot: float, *, quoted: int | None = None, at: datetime | None = None
) -> ContractTable:
    """The table of a CSV file; ConfigError lists every row's problems.

    `quoted`: how many from the top are quoted, where the file has no such column (with both, they must agree). `at`:
    the session's time, from which expiries count.
    """
    rows, columns = _rows(path)
    problems = list(_column_problems(columns, quoted, at))
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    values: dict[str, list[float]] = {name: [] for name in COLUMNS}
    keys: list[tuple[float, ...]] = []
    marked: list[bool] = []
    for line, row in rows:
        told = len(problems)
        numbers = _numbers(row, line, at, problems)
        for name, number in numbers.items():
            values[name].append(number)
        keys.append(_key(numbers) if len(problems) == told else (line,))  # one that can't be read is like no other
        if "quoted" in columns:
            text = (row["quoted"] or "").strip()
            if text not in ("0", "1"):
                problems.append(f"line {line}: quoted: must be 1 or 0, found {text!r}")
            marked.append(text == "1")
    for again, first in _repeats(keys):
        problems.append(f"line {rows[again][0]}: is line {rows[first][0]} once more (strike, expiry and right)")
    count = quoted if quoted is not None else sum(marked)
    if marked and [place < count for place in range(len(marked))] != marked:
        said = f"{sum(marked)} rows are marked as quoted, and {count} are asked for"
        problems.append(f"quoted: {said}; they must be the first rows of the file")
    problems += _whole_problems(len(rows), count, reference_spot)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in _bounded(problems)])
    return ContractTable(**{name: np.array(of) for name, of in values.items()}, quoted=count,
                         reference_spot=reference_spot)  # fmt: skip


def write_contracts(path: Path, table: ContractTable) -> None:
    """A CSV file that `read_contracts` reads back to the same doubles."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "quoted"])
        for place in range(len(table)):
            row = {name: repr(float(getattr(table, name)[place])) for name in COLUMNS}
            row["right"] = "C" if table.right[place] > 0 else "P"
            writer.writerow([*row.values(), int(place < table.quoted)])


def listed_chain(
    reference_spot: float, *, quoted: int = 8, expiry_days: Sequence[float] = (1, 2, 7, 14, 30, 60, 90, 180),
    quoted_days: float = 30, rate: float = 0.03, volatility: float = 0.55, widest: float = 3.0,
) -> ContractTable:  # fmt: skip
    """A chain as exchanges list it: calls and puts at round strikes, denser and narrower where the expiry is near.

    Strikes reach `widest` standard deviations; volatilities have a term structure, a skew and a smile around
    `volatility`. Quoted are calls and puts nearest the money of the expiry nearest `quoted_days`, in pairs.
    """
    chosen = min(expiry_days, key=lambda days: abs(days - quoted_days))
    rows: list[tuple[float, ...]] = []
    for days in expiry_days:
        tau = days * 86400 / YEAR_SECONDS
        carry, discount = math.exp(rate * tau), math.exp(-rate * tau)
        deviation = volatility * math.sqrt(tau)
        step = _round_step(reference_spot * deviation / 12)
        first = math.ceil(reference_spot * math.exp(-widest * deviation) / step)
        last = math.floor(reference_spot * math.exp(widest * deviation) / step)
        for strike in (step * number for number in range(max(first, 1), last + 1)):
            m = math.log(strike / (carry * reference_spot)) / math.sqrt(tau)
            level = volatility * (1 + 0.08 * math.exp(-tau * 12)) - 0.06 * math.tanh(m) + 0.12 * m * m / (1 + abs(m))
            rows += [(strike, tau, carry, discount, right, max(level, 0.05)) for right in (1.0, -1.0)]
    tau_chosen = chosen * 86400 / YEAR_SECONDS
    near = sorted(
        (place for place, row in enumerate(rows) if row[1] == tau_chosen),
        key=lambda place: (abs(rows[place][0] - reference_spot), rows[place][0], -rows[place][4]),
    )[:quoted]
    ordered = [rows[place] for place in near] + [row for place, row in enumerate(rows) if place not in set(near)]
    strike, tau_years, carry, discount, right, volatilities = np.array(ordered).T
    return ContractTable(strike, tau_years, carry, discount, right, volatilities, quoted, reference_spot)


def _round_step(about: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, the next one from below."""
    power = 10.0 ** math.floor(math.log10(about))
    return max(step for step in (1.0, 2.0, 2.5, 5.0) if step * power <= about * (1 + 1e-12)) * power


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            return [(reader.line_num, row) for row in reader], columns
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"{path}: can't be read as CSV: {error}"]) from error


def _column_problems(columns: list[str], quoted: int | None, at: datetime | None) -> Iterator[str]:
    known = {*COLUMNS, "expiry", "quoted"}
    for name in sorted({*columns} - known):
        yield f"unknown column {name!r}; known are {', '.join(sorted(known))}"
    yield from (f"column {name!r} is there twice" for name in sorted({n for n in columns if columns.count(n) > 1}))
    needed = [name for name in COLUMNS if name != "tau_years"]
    yield from (f"column {name!r} is missing" for name in needed if name not in columns)
    if ("tau_years" in columns) == ("expiry" in columns):
        yield "exactly one of the columns 'tau_years' and 'expiry' must be there"
    if "expiry" in columns and at is None:
        yield "expiries count from the session's time, which isn't given: give `at`, or a column 'tau_years'"
    if quoted is None and "quoted" not in columns:
        yield "how many contracts are quoted isn't said: give `quoted`, or a column 'quoted'"
    if at is not None and at.tzinfo is None:
        yield f"the session's time {at.isoformat()} has no time zone"


def _numbers(row: Mapping[str, Any], line: int, at: datetime | None, problems: list[str]) -> dict[str, float]:
    """The row's numbers, NaN where one can't be read, which is then in `problems`."""
    if None in row or None in row.values():
        problems.append(f"line {line}: has not as many fields as there are columns")
        return dict.fromkeys(COLUMNS, 1.0)
    out: dict[str, float] = {}
    for name in COLUMNS:
        text = row.get(name, row.get("expiry", "")).strip()
        try:
            if name == "right":
                out[name] = RIGHTS[text.upper()]
            elif name in row:
                out[name] = float(text)
            else:
                assert at is not None
                out[name] = _years(text, at)
        except (ValueError, KeyError):
            expected = {"right": "C or P"}.get(name, "a number" if name in row else "a time like 2024-09-27T08:00:00Z")
        else:
            if name == "right" or (math.isfinite(out[name]) and out[name] > 0):
                continue
            expected = "above 0" if name in row or at is None else f"after {at.isoformat()}, the session's time"
        problems.append(f"line {line}: {name if name in row else 'expiry'}: must be {expected}, found {text!r}")
        out[name] = 1.0
    return out


def _years(text: str, at: datetime) -> float:
    expiry = datetime.fromisoformat(text)
    if expiry.tzinfo is None:
        expiry = expiry.replace(tzinfo=UTC)
    return (expiry - at).total_seconds() / YEAR_SECONDS


def _problems(table: ContractTable) -> Iterator[str]:
    count = table.strike.size
    shapes = {name: getattr(table, name).shape for name in COLUMNS}
    if any(shape != (count,) for shape in shapes.values()) or not count:
        yield f"columns must be arrays of one length, at least 1; found {shapes}"
        return
    for name in COLUMNS:
        values = getattr(table, name)
        good = np.abs(values) == 1 if name == "right" else np.isfinite(values) & (values > 0)
        expected = "+1 or -1 (C or P)" if name == "right" else "above 0"
        for row in np.flatnonzero(~good).tolist():
            yield f"contract {row + 1}: {name}: must be {expected}, found {values[row]}"
    keys = [_key({name: float(getattr(table, name)[row]) for name in COLUMNS}) for row in range(count)]
    for again, first in _repeats(keys):
        yield f"contract {again + 1}: is contract {first + 1} once more (strike, expiry and right)"
    yield from _whole_problems(count, table.quoted, table.reference_spot)


def _whole_problems(count: int, quoted: int, reference_spot: float) -> Iterator[str]:
    if not count:
        yield "there is no contract"
    elif not 1 <= quoted <= min(MOST_QUOTED, count):
        yield f"quoted: must be 1 to {min(MOST_QUOTED, count)}, found {quoted}"
    if not (math.isfinite(reference_spot) and reference_spot > 0):
        yield f"reference_spot: must be above 0, found {reference_spot}"


def _key(contract: Mapping[str, float]) -> tuple[float, ...]:
    return contract["strike"], contract["tau_years"], contract["right"]


def _repeats(keys: Sequence[tuple[float, ...]]) -> Iterator[tuple[int, int]]:
    """(row, an earlier one of the same key)."""
    seen: dict[tuple[float, ...], int] = {}
    for row, key in enumerate(keys):
        if key in seen:
            yield row, seen[key]
        seen.setdefault(key, row)


def _bounded(problems: list[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS
    return problems if more <= 0 else [*problems[:MOST_PROBLEMS], f"and {more} more"]
