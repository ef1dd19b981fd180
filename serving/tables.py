"""A host's market: a chain, the underlying's path and the quotes of now, read from three tables and fitted together.

Data in: CSV or Parquet, columns by canonical name (serving/schema.py), any others ignored, times ISO 8601 in UTC.
Data out: `Market`.
    chain   CHAIN_COLUMNS and those of OPTIONAL_COLUMNS there are; ordered by ts, a quote only once
    path    ts, price (or date, close: the close of a date is stamped with the chain's time of day and gives way to
            a snapshot of that date)
    now     the same columns, one ts; a row without root and strike carries only ts and underlying_price
Without `style` quotes are European; `forward` is the venue's for the row's expiry; quotes whose `price_unit` is coin
become money at underlying_price, and so do the prices made of them.

Invariants: damaged input is refused, all problems of all files in one DataError (SchemaError if columns are
missing), each with file, row (1 is the first below the header), column, value and remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from serving.features import Path
from serving.normal import Array
from serving.problems import Problems, iso, shown
from serving.surface import Bools, Quotes, Texts, Times
from serving.table_files import REMEDIES, SIGN, Table, Wanted, read_table

CHAIN_COLUMNS = ("ts", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "underlying_price")
OPTIONAL_COLUMNS = ("currency", "price_unit", "style", "forward")
QUOTE_COLUMNS: tuple[Wanted, ...] = (*CHAIN_COLUMNS, *((name, None) for name in OPTIONAL_COLUMNS))
PATH_COLUMNS = (("ts", "date"), ("price", "close"))  # either name will do


@dataclass(frozen=True)
class Market:
    """What is needed to price: past snapshots ascending, the path before now, the quotes of now."""

    underlying: str
    chain: list[Quotes]
    path: Path
    now: Quotes


def read_market(chain: FilePath, path: FilePath, now: FilePath, underlying: str | None = None) -> Market:
    """Read, check and fit together the three tables."""
    problems = Problems()
    chain_table, now_table, path_table = (
        read_table(chain, QUOTE_COLUMNS, problems), read_table(now, QUOTE_COLUMNS, problems), _read_path(path, problems)
    )  # fmt: skip
    if chain_table is not None:
        underlying = underlying or _only_underlying(chain_table, problems)
        chain_table = _checked(_of_underlying(chain_table, underlying, problems), problems)
    if now_table is not None:
        now_table = _checked(_of_underlying(now_table, underlying, problems), problems, may_lack_contract=True)
        if len(np.unique(now_table["ts"])) > 1:
            times = ", ".join(iso(np.unique(now_table["ts"]))[:3])
            problems.file(now_table.file, f"holds several times ({times}, ...): now is one time")
    if chain_table is not None and now_table is not None and len(chain_table.row) and len(now_table.row):
        last, first = np.max(chain_table["ts"]), np.min(now_table["ts"])
        if first <= last:
            text = f"now ({shown(first)}) isn't after the chain's last snapshot ({shown(last)})"
            problems.file(now_table.file, f"{text}: a chain is what was seen before")
        _check_same(chain_table, now_table, problems)
    problems.raise_if_any()
    assert chain_table is not None
    assert now_table is not None
    assert path_table is not None
    assert underlying is not None
    snapshots, (quotes,) = _snapshots(chain_table), _snapshots(now_table)
    return Market(underlying, snapshots, _stamped(path_table, snapshots, quotes), quotes)


def read_chain(chain: FilePath, underlying: str | None = None) -> tuple[str, list[Quotes]]:
    """Read and check a chain alone: the underlying's name and its snapshots, ascending in time."""
    problems = Problems()
    table = read_table(chain, QUOTE_COLUMNS, problems)
    if table is not None:
        underlying = underlying or _only_underlying(table, problems)
        table = _checked(_of_underlying(table, underlying, problems), problems)
    problems.raise_if_any()
    assert table is not None
    assert underlying is not None
    return underlying, _snapshots(table)


def _only_underlying(table: Table, problems: Problems) -> str | None:
    names = sorted(set(table["underlying"].tolist()) - {""})
    if len(names) > 1:
        problems.file(table.file, f"holds several underlyings ({', '.join(names)}): choose one with --underlying")
    return names[0] if len(names) == 1 else None


def _of_underlying(table: Table, underlying: str | None, problems: Problems) -> Table:
    """Rows of one underlying, and rows that name none (they are reported later)."""
    if underlying is None:
        return table
    kept = table.take((table["underlying"] == underlying) | (table["underlying"] == ""))
    if not len(kept.row):
        names = ", ".join(sorted(set(table["underlying"].tolist()))[:10])
        problems.file(table.file, f"holds nothing of underlying {underlying!r}; it holds {names}")
    return kept


def _checked(table: Table, problems: Problems, *, may_lack_contract: bool = False) -> Table:
    """Report what is wrong within a table of quotes; returns it."""
    if not len(table.row):
        return table
    _check_units(table, problems)
    strike = table["strike"]
    contract = np.ones(len(table.row), dtype=bool)
    if may_lack_contract:
        contract = ~((table["root"] == "") & np.isnan(strike) & ~table.columns["strike"].damaged)
    with np.errstate(invalid="ignore"):
        fine = {
            "ts": ~np.isnat(table["ts"]), "underlying": table["underlying"] != "",
            "underlying_price": np.isfinite(table["underlying_price"]) & (table["underlying_price"] > 0),
            "root": (table["root"] != "") | ~contract, "expiry": ~np.isnat(table["expiry"]) | ~contract,
            "strike": (np.isfinite(strike) & (strike > 0)) | ~contract,
            "right": np.isin(table["right"], list(SIGN)) | ~contract,
            "bid": (np.isfinite(table["bid"]) & (table["bid"] >= 0)) | ~contract,
            "ask": (np.isfinite(table["ask"]) & (table["ask"] >= 0)) | ~contract,
        }  # fmt: skip
    for name, good in fine.items():
        _report(table, name, ~good & ~table.columns[name].damaged, problems)
    ts = table["ts"]
    back = np.flatnonzero(np.r_[False, ts[1:] < ts[:-1]])
    problems.rows(table.file, "ts", table.row[back], ts[back], "times in ascending order: sort the rows by ts")
    same = np.r_[False, ts[1:] == ts[:-1]]
    moved = same & np.r_[False, np.diff(table["underlying_price"]) != 0]
    moved &= fine["underlying_price"] & np.r_[False, fine["underlying_price"][:-1]]
    _report(table, "underlying_price", moved, problems, "the same price in all rows of one ts")
    names = ("ts", "root", "expiry", "strike", "right")
    order = np.lexsort([np.unique(table[name], return_inverse=True)[1] for name in reversed(names)])
    again = np.logical_and.reduce([table[name][order][1:] == table[name][order][:-1] for name in names])
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:][again]] = True
    _report(table, "strike", repeated & contract, problems, "each contract once per ts: this one is repeated")
    return table


def _check_units(table: Table, problems: Problems) -> None:
    """Report units and styles that are none, or several of what may only be one; each column may be absent."""
    for name, allowed in (("price_unit", ("", "coin", "money")), ("style", ("", "american", "european"))):
        if name in table.columns:
            _report(table, name, ~np.isin(table[name], allowed), problems)
    for name in ("currency", "price_unit"):
        if name in table.columns:
            named = table[name][table[name] != ""]
            if named.size:
                _report(table, name, (table[name] != named[0]) & (table[name] != ""), problems)
    if "forward" in table.columns:
        with np.errstate(invalid="ignore"):
            wrong = ~(np.isnan(table["forward"]) | ((table["forward"] > 0) & np.isfinite(table["forward"])))
        _report(table, "forward", wrong, problems)


def _check_same(chain: Table, now: Table, problems: Problems) -> None:
    """Report units and currencies in which the two tables differ; a table that names no unit is in money."""
    if not np.isfinite(now["strike"]).any():  # it holds no quote
        return
    for name, usual in (("price_unit", {"money"}), ("currency", set())):
        said = [set(table[name].tolist()) - {""} if name in table.columns else set() for table in (chain, now)]
        before, here = (one or usual for one in said)
        if before and here and before != here:
            words = [", ".join(sorted(one)) for one in (before, here)]
            problems.file(now.file, f"{name} is {words[1]} here and {words[0]} in {chain.file}: give both the same")


def _report(table: Table, name: str, wrong: Bools, problems: Problems, remedy: str | None = None) -> None:
    at = np.flatnonzero(wrong)
    problems.rows(table.file, name, table.row[at], table[name][at], remedy or REMEDIES[name])


def _snapshots(table: Table) -> list[Quotes]:
    """One `Quotes` per time; rows without a contract carry only time and price. Coin becomes money."""
    sign = np.where(table["right"] == "C", SIGN["C"], SIGN["P"])
    coin = "price_unit" in table.columns and bool((table["price_unit"] == "coin").any())
    unit = table["underlying_price"] if coin else 1.0
    american = table["style"] == "american" if "style" in table.columns else None
    forward = table["forward"] if "forward" in table.columns else None
    return split_quotes(
        table["ts"], table["underlying_price"], table["root"], table["expiry"], table["strike"], sign,
        table["bid"] * unit, table["ask"] * unit, american=american, venue_forward=forward, coin=coin,
    )  # fmt: skip


def split_quotes(
    ts: Times, spot: Array, root: Texts, expiry: Times, strike: Array, right: Array, bid: Array, ask: Array, *,
    american: Bools | None = None, venue_forward: Array | None = None, coin: bool = False,
) -> list[Quotes]:  # fmt: skip
    """Snapshots of rows that ascend in time; rows with an empty root and NaN strike carry only time and price."""
    starts = np.flatnonzero(np.r_[True, ts[1:] != ts[:-1]])
    found = []
    for start, stop in zip(starts, np.r_[starts[1:], len(ts)], strict=True):
        rows = np.arange(start, stop)
        rows = rows[~((root[rows] == "") & np.isnan(strike[rows]))]
        found.append(Quotes(
            ts[start], float(spot[start]), root[rows], expiry[rows], strike[rows], right[rows], bid[rows], ask[rows],
            american[rows] if american is not None and american[rows].any() else None,
            None if venue_forward is None else venue_forward[rows], coin,
        ))  # fmt: skip
    return found


def _read_path(file: FilePath, problems: Problems) -> Table | None:
    table = read_table(file, PATH_COLUMNS, problems)
    if table is None:
        return None
    time, price = table.columns
    with np.errstate(invalid="ignore"):
        good = np.isfinite(table[price]) & (table[price] > 0)
    _report(table, price, ~good & ~table.columns[price].damaged, problems)
    _report(table, time, np.isnat(table[time]) & ~table.columns[time].damaged, problems)
    back = np.flatnonzero(np.r_[False, table[time][1:] <= table[time][:-1]])
    remedy = "times strictly ascending: sort, one row per time"
    problems.rows(table.file, time, table.row[back], table[time][back], remedy)
    return table


def _stamped(table: Table, chain: list[Quotes], now: Quotes) -> Path:
    """The path; closes of whole dates get the chain's time of day and give way to a snapshot of their date."""
    time, price = table.columns
    ts, prices = table[time], table[price]
    dates = ts.astype("datetime64[D]")
    if time == "date" and bool((ts == dates).all()):
        own = np.array([quotes.ts for quotes in (*chain, now)]).astype("datetime64[D]")
        free = ~np.isin(dates, own)
        ts, prices = dates[free] + (chain[0].ts - chain[0].ts.astype("datetime64[D]")), prices[free]
    if not len(ts):
        ts, prices = np.array([now.ts]), np.array([now.spot])
    return Path(ts.astype("datetime64[ns]"), prices)
