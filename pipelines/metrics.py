"""How well option predictions match the market: errors, buckets, dates, Diebold-Mariano tests, arbitrage violations.

In: `predictions`, a table with one row per scored quote: `ts`, `expiry` (UTC), `underlying`, `root`, `strike`,
`right` (C/P), `tau` [years], `bid`, `ask`, `forward`, `discount`, `forward_model`, `discount_model`, `iv_market`, and
`iv_<name>`, `price_<name>` of each predictor; "model" is ours, every other name a baseline. IVs are fractions, prices
money per unit of the underlying.
Out: small tables and mappings. IV errors are in vol points (100 x the difference of IVs), price errors in money
against the market mid (bid + ask) / 2; `inside_spread` is the share of rows with bid <= price <= ask.

Invariants: every predictor is scored on the same rows (a missing number is an error, never a dropped row); the order
of the rows changes nothing. Sources: F. Diebold, R. Mariano, "Comparing predictive accuracy", J. Business & Economic
Statistics 13 (1995); D. Harvey, S. Leybourne, P. Newbold, "Testing the equality of prediction mean squared errors",
Int. J. Forecasting 13 (1997).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

import numpy as np
import polars as pl
from scipy import stats

from serving import black76
from serving.errors import DataError, SchemaError
from serving.normal import Array
from serving.surface import BROKEN_CONVEX, BROKEN_MONOTONE, DAYS_PER_YEAR, Bools, arbitrage_flags

MODEL = "model"
MARKET = "market"
SMILE = ("underlying", "ts", "root", "expiry")
ROW = (*SMILE, "strike", "right")
NUMBERS = ("strike", "tau", "bid", "ask", "forward", "discount", "forward_model", "discount_model", "iv_market")

MONEYNESS_EDGES = (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2)  # of ln(K/F)/sqrt(tau); a bucket holds its lower edge
MONEYNESS_LABELS = ("below -0.4", "-0.4 to -0.2", "-0.2 to -0.1", "-0.1 to 0", "0 to 0.1", "0.1 to 0.2", "0.2 and up")
TENOR_EDGES_DAYS = (15, 31, 61, 121)  # whole calendar days; a bucket holds its lower edge
TENOR_LABELS = ("up to 14 days", "15-30 days", "31-60 days", "61-120 days", "over 120 days")

FEWEST_DATES = 3
ROUNDING = 1e-12  # of the daily errors: a spread of their differences below this is rounding


class Score(TypedDict):
    """Errors of one predictor over some rows (units: see the module)."""

    iv_rmse: float
    iv_mae: float
    price_rmse: float
    price_mae: float
    inside_spread: float
    rows: int
    dates: int


class DieboldMariano(NamedTuple):
    """A test of equal daily mean squared IV errors of `a` and `b`. **Positive `t`: `a` is better than `b`.**

    `mean_difference` is the mean over dates of (error of b - error of a), in squared vol points; `p` is two-sided.
    Where no test is possible `t` and `p` are NaN and `reason` says why; it is empty otherwise.
    """

    t: float
    p: float
    mean_difference: float
    dates: int
    reason: str = ""


def predictors(table: pl.DataFrame) -> list[str]:
    """Names with both `iv_<name>` and `price_<name>`: "model" first, then the others in the order of the columns."""
    names = [column[3:] for column in table.columns if column.startswith("iv_") and column != "iv_market"]
    lonely = [f"price_{name}" for name in names if f"price_{name}" not in table.columns]
    lonely += [
        f"iv_{column[6:]}" for column in table.columns if column.startswith("price_") and column[6:] not in names
    ]
    if lonely:
        raise SchemaError(f"predictions: column(s) {', '.join(lonely)} missing; each predictor needs iv_ and price_")
    return sorted(names, key=lambda name: name != MODEL)


def checked(table: pl.DataFrame) -> pl.DataFrame:
    """The table in its canonical order of rows; refuses missing columns, missing numbers and repeated quotes."""
    names = predictors(table)
    missing = [column for column in dict.fromkeys((*ROW, *NUMBERS)) if column not in table.columns]
    if missing or not names:
        raise SchemaError(f"predictions: missing {', '.join(missing) or 'every predictor (iv_<name>, price_<name>)'}")
    if table.is_empty():
        raise DataError("predictions: no rows; widen the test window or the scored range")
    numbers = [*NUMBERS, *(f"{kind}_{name}" for name in names for kind in ("iv", "price"))]
    bad = table.select(
        (~pl.col(column).cast(pl.Float64).is_finite()).fill_null(value=True).sum().alias(column) for column in numbers
    ).row(0, named=True)
    holes = [f"{column} in {count}" for column, count in bad.items() if count]
    if holes:
        raise DataError(
            f"predictions: not a finite number: {', '.join(holes)} of {table.height} rows; all predictors are scored "
            "on the same rows, so leave these rows or this predictor out of the table"
        )
    repeated = table.height - table.select(ROW).n_unique()
    if repeated:
        raise DataError(f"predictions: {repeated} rows repeat another row's {', '.join(ROW)}; keep one of each")
    return table.sort(ROW).rechunk()


def _grouped(table: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Long table of scores: one row per group and predictor, groups in ascending order."""
    mid = 0.5 * (pl.col("bid") + pl.col("ask"))
    frames = []
    names = predictors(table)
    for place, name in enumerate(names):
        iv_error = 100.0 * (pl.col(f"iv_{name}") - pl.col("iv_market"))
        price = pl.col(f"price_{name}")
        inside = (price >= pl.col("bid")) & (price <= pl.col("ask"))
        columns = [
            pl.lit(name).alias("predictor"),
            iv_error.pow(2).mean().sqrt().alias("iv_rmse"),
            iv_error.abs().mean().alias("iv_mae"),
            (price - mid).pow(2).mean().sqrt().alias("price_rmse"),
            (price - mid).abs().mean().alias("price_mae"),
            inside.mean().alias("inside_spread"),
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("ts").dt.date().n_unique().cast(pl.Int64).alias("dates"),
            pl.lit(place).alias("place"),
        ]
        frames.append(table.group_by(keys, maintain_order=True).agg(columns) if keys else table.select(columns))
    return pl.concat(frames).sort([*keys, "place"]).drop("place")


def scores(table: pl.DataFrame) -> dict[str, Score]:
    """Errors pooled over all rows, by predictor."""
    rows = _grouped(checked(table), [])
    return {
        row["predictor"]: Score(
            iv_rmse=row["iv_rmse"],
            iv_mae=row["iv_mae"],
            price_rmse=row["price_rmse"],
            price_mae=row["price_mae"],
            inside_spread=row["inside_spread"],
            rows=row["rows"],
            dates=row["dates"],
        )
        for row in rows.iter_rows(named=True)
    }


def by_date(table: pl.DataFrame) -> pl.DataFrame:
    """`date`, `predictor` and the scores of that UTC date."""
    return _grouped(checked(table).with_columns(date=pl.col("ts").dt.date()), ["date"])


def with_buckets(table: pl.DataFrame) -> pl.DataFrame:
    """The table with `tenor` and `moneyness` buckets (ordered enums), from tau and ln(K/F)/sqrt(tau)."""
    moneyness = (pl.col("strike") / pl.col("forward")).log() / pl.col("tau").sqrt()
    values = table.select(days=(pl.col("tau") * DAYS_PER_YEAR).round(), moneyness=moneyness)
    tenor = np.searchsorted(TENOR_EDGES_DAYS, values["days"].to_numpy(), side="right")
    place = np.searchsorted(MONEYNESS_EDGES, values["moneyness"].to_numpy(), side="right")
    return table.with_columns(
        pl.Series("tenor", np.array(TENOR_LABELS)[tenor], dtype=pl.Enum(TENOR_LABELS)),
        pl.Series("moneyness", np.array(MONEYNESS_LABELS)[place], dtype=pl.Enum(MONEYNESS_LABELS)),
    )


def by_bucket(table: pl.DataFrame, by: Sequence[str] = ("tenor", "moneyness")) -> pl.DataFrame:
    """`tenor`, `moneyness` (or one of them), `predictor` and the scores of that bucket; empty buckets have no row."""
    return _grouped(with_buckets(checked(table)), list(by))


def diebold_mariano(table: pl.DataFrame, a: str, b: str) -> DieboldMariano:
    """Are the daily mean squared IV errors of `a` and `b` equal? Positive t: **a is better than b**.

    One-day horizon, no lags; with the Harvey-Leybourne-Newbold factor sqrt((n - 1) / n) and Student's t with n - 1
    degrees of freedom, where n is the number of dates.
    """
    names = predictors(table)
    unknown = [name for name in (a, b) if name not in names]
    if unknown:
        raise DataError(f"predictions: no predictor {', '.join(unknown)}; there are {', '.join(names)}")
    daily = by_date(table).pivot(on="predictor", index="date", values="iv_rmse").sort("date")
    error_a, error_b = daily[a].to_numpy() ** 2, daily[b].to_numpy() ** 2
    difference = error_b - error_a
    count = len(difference)
    mean = float(difference.mean())
    if count < FEWEST_DATES:
        return DieboldMariano(math.nan, math.nan, mean, count, f"{count} date(s), at least {FEWEST_DATES} needed")
    deviation = math.sqrt(float(np.mean((difference - mean) ** 2)))
    if deviation <= ROUNDING * float(np.maximum(error_a, error_b).max()):
        return DieboldMariano(math.nan, math.nan, mean, count, "the daily differences don't vary")
    t = mean / (deviation / math.sqrt(count)) * math.sqrt((count - 1) / count)
    return DieboldMariano(t, float(2.0 * stats.t.sf(abs(t), count - 1)), mean, count)


def best_baseline(pooled: Mapping[str, Score]) -> str | None:
    """Baseline of the lowest pooled IV RMSE (of equals the first), or None where there is none."""
    names = [name for name in pooled if name != MODEL]
    return min(names, key=lambda name: pooled[name]["iv_rmse"]) if names else None


def shape_violations(table: pl.DataFrame) -> pl.DataFrame:
    """Share of rows whose smile breaks a no-arbitrage condition, for the market's mids and each predictor.

    Columns: `predictor` ("market" first), `rows`, `smiles`, and the shares `monotone` (call prices rise in strike or
    fall faster than the discount), `butterfly` (call prices not convex in strike), `calendar` (total variance below
    that of the expiry before, at equal ln(K/F)), `any`. Call prices come from the IVs at the rows' strikes: the
    market's with the forward and discount of t, a predictor's with those it prices with (`forward_model`,
    `discount_model`). Where a strike has a call and a put row the call's counts.
    """
    rows = checked(table).unique([*SMILE, "strike"], keep="first", maintain_order=True)
    rows = rows.sort(["underlying", "ts", "expiry", "root", "strike"])
    starts = _starts(rows, SMILE)
    days = _starts(rows, ("underlying", "ts"))
    strike, tau = rows["strike"].to_numpy(), rows["tau"].to_numpy()
    result = []
    for name in [MARKET, *predictors(table)]:
        suffix = "" if name == MARKET else "_model"
        forward, discount = rows["forward" + suffix].to_numpy(), rows["discount" + suffix].to_numpy()
        volatility = rows[f"iv_{name}"].to_numpy()
        call = black76.price(forward, strike, tau, np.maximum(volatility, 0.0), discount, 1.0)
        flags = np.concatenate(
            [arbitrage_flags(strike[s], call[s], float(discount[s][0])) for s in _slices(starts, rows.height)]
        )
        monotone, butterfly = (flags & BROKEN_MONOTONE) > 0, (flags & BROKEN_CONVEX) > 0
        log_strike, variance = np.log(strike / forward), np.maximum(volatility, 0.0) ** 2 * tau
        calendar = _calendar_broken(log_strike, variance, tau, starts, days)
        result.append(
            {
                "predictor": name,
                "rows": rows.height,
                "smiles": len(starts),
                "monotone": float(monotone.mean()),
                "butterfly": float(butterfly.mean()),
                "calendar": float(calendar.mean()),
                "any": float((monotone | butterfly | calendar).mean()),
            }
        )
    return pl.DataFrame(result)


def _starts(rows: pl.DataFrame, keys: Sequence[str]) -> list[int]:
    """First row of each run of equal keys."""
    differs = pl.any_horizontal(pl.col(key).ne_missing(pl.col(key).shift()) for key in keys)
    changed = rows.select(differs).to_series().to_numpy()
    return sorted({0, *(int(place) for place in np.flatnonzero(changed))})


def _slices(starts: Sequence[int], end: int) -> list[slice]:
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def _calendar_broken(
    log_strike: Array, variance: Array, tau: Array, starts: Sequence[int], days: Sequence[int]
) -> Bools:
    """Rows with less total variance than the expiry before has at equal ln(K/F), between its strikes."""
    broken = np.zeros(len(tau), dtype=np.bool_)
    first_of_day = set(days)
    smiles = _slices(starts, len(tau))
    for earlier, later in pairwise(smiles):
        if later.start in first_of_day or tau[later.start] == tau[earlier.start]:
            continue
        at, known = log_strike[later], log_strike[earlier]
        before = np.interp(at, known, variance[earlier])
        inside = (at >= known[0]) & (at <= known[-1])
        broken[later] = inside & (variance[later] < before * (1.0 - 1e-9))
    return broken
