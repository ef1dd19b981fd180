"""Scores of predictions where the truth is known: prices, volatilities and Greeks against the exact ones.

In: a table with a row per scored quote (`ts`, `expiry`, `tau`, `strike`, `sign` +1 call and -1 put, `underlying_price`,
`iv_market`, the host's `forward_model` and `discount_model`, `exact_price`, `exact_volatility`, `exact_forward`,
`exact_discount`, a column `iv_NAME` per predictor) and the `MarketDay`s. Out: a value per (predictor, metric); what the
metrics are stands in benchmarks/known_worlds.py.
Invariant: exact Greeks of Black-Scholes worlds come from prices alone, not from the formulas they judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.simulated_market import MarketDay, exact_prices, is_flat
from serving import black76

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

GREEKS = ("delta", "gamma", "vega", "theta")
NEGLIGIBLE = 0.01  # of the largest Greek of the day and expiry
NOTHING = 1e-4  # vol points; against a smaller attainable error a ratio says nothing


def scores(table: pl.DataFrame, days: Sequence[MarketDay]) -> dict[tuple[str, str], float]:
    """Every metric but `trust`, and those of the subject `attainable`."""
    names = [name[3:] for name in table.columns if name.startswith("iv_") and name != "iv_market"]
    exact, market = (table[name].to_numpy() for name in ("exact_volatility", "iv_market"))
    attainable = _rmse(exact - market)
    greeks, live = exact_greeks(table, days)
    out = {("attainable", "iv_rmse"): attainable, ("attainable", "price_mape"): 0.0}
    for name in names:
        volatility = table[f"iv_{name}"].to_numpy()
        host = host_values(table, volatility)
        out[name, "price_mape"] = 100.0 * float(np.mean(np.abs(host["price"] / table["exact_price"].to_numpy() - 1.0)))
        error = _rmse(volatility - market)
        out[name, "iv_rmse"], out[name, "iv_rmse_exact"] = error, _rmse(volatility - exact)
        out[name, "distance"] = error - attainable
        if attainable > NOTHING:
            out[name, "distance_ratio"] = error / attainable
        for greek in GREEKS:
            relative = 100.0 * np.abs(host[greek] / greeks[greek] - 1.0)[live[greek]]
            out[name, f"{greek}_error"] = float(relative.mean())
            out[name, f"{greek}_error_p99"] = float(np.quantile(relative, 0.99))
    return out


def _rmse(error: Array) -> float:
    return 100.0 * float(np.sqrt(np.mean(error**2)))


def host_values(table: pl.DataFrame, volatility: Array) -> dict[str, Array]:
    """Price and Greeks as a host gives them (serving/pricing.py): delta and gamma per unit of spot."""
    columns = ("forward_model", "strike", "tau", "discount_model", "sign", "underlying_price")
    forward, strike, tau, discount, sign, spot = (table[name].to_numpy() for name in columns)
    return _per_spot(black76.value(forward, strike, tau, volatility, discount, sign), forward / spot)


def _per_spot(worth: black76.Valuation, leverage: Array) -> dict[str, Array]:
    return {"price": worth.price, "delta": worth.delta * leverage, "gamma": worth.gamma * leverage**2,
            "vega": worth.vega, "theta": worth.theta}  # fmt: skip


def exact_greeks(
    table: pl.DataFrame, days: Sequence[MarketDay]
) -> tuple[dict[str, Array], dict[str, npt.NDArray[np.bool_]]]:
    """The exact Greeks of each row, and where each isn't negligible."""
    if all(is_flat(day.parameters) for day in days):
        greeks = _differences(table, {day.ts: day for day in days})
    else:
        columns = ("exact_forward", "strike", "tau", "exact_volatility", "exact_discount", "sign", "underlying_price")
        forward, strike, tau, volatility, discount, sign, spot = (table[name].to_numpy() for name in columns)
        greeks = _per_spot(black76.value(forward, strike, tau, volatility, discount, sign), forward / spot)
    live = {}
    for name in GREEKS:
        size = table.select("ts", "expiry", size=pl.Series(np.abs(greeks[name])))
        largest = size.select(pl.col("size").max().over("ts", "expiry")).to_series()
        live[name] = (size["size"] >= NEGLIGIBLE * largest).to_numpy()
    return greeks, live


def smiles(table: pl.DataFrame) -> Iterator[tuple[np.datetime64, Places, float, Array, Array]]:
    """Time, rows, tenor, strikes and signs of each day and expiry."""
    places = table.select("ts", "expiry", "tau", "strike", "sign").with_row_index("place")
    for _, rows in places.group_by(["ts", "expiry"], maintain_order=True):
        ts = rows["ts"].dt.replace_time_zone(None).to_numpy()[0]
        yield (ts, rows["place"].to_numpy().astype(np.intp), float(rows["tau"][0]), rows["strike"].to_numpy(),
               rows["sign"].to_numpy())  # fmt: skip


def _differences(table: pl.DataFrame, days: Mapping[np.datetime64, MarketDay]) -> dict[str, Array]:
    """Central differences of the exact price; theta at constant forward and rate, money per year."""
    out = {name: np.empty(len(table)) for name in GREEKS}
    for ts, rows, tau, strike, sign in smiles(table):
        day = days[ts]
        step, step_tau, step_volatility = 3e-4 * day.spot, 1e-4 * tau, 1e-4
        up, middle, down = (exact_prices(day, tau, strike, sign, spot=day.spot + move) for move in (step, 0.0, -step))
        out["delta"][rows], out["gamma"][rows] = (up - down) / (2.0 * step), (up - 2.0 * middle + down) / step**2
        longer, shorter = (
            exact_prices(day, tau + move, strike, sign, spot=day.spot * math.exp(-day.carry * move))
            for move in (step_tau, -step_tau)
        )
        out["theta"][rows] = (shorter - longer) / (2.0 * step_tau)
        more, less = (
            exact_prices(_with_volatility(day, move), tau, strike, sign) for move in (step_volatility, -step_volatility)
        )
        out["vega"][rows] = (more - less) / (2.0 * step_volatility)
    return out


def _with_volatility(day: MarketDay, move: float) -> MarketDay:
    variance = (math.sqrt(day.parameters.variance) + move) ** 2
    return replace(day, parameters=replace(day.parameters, variance=variance, long_run_variance=variance))
