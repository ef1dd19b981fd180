"""A made-up market of inverse options, written as Deribit's layout has it: prices in coin on the exchange's tick.

Two coins at 50 to 80 % volatility whose level, skew and term structure move, three snapshots a day, weekly and monthly
expiries at 08:00 UTC on Fridays, forwards of which some are missing, contracts nobody bids for, an index that jitters
from row to row. Deterministic in `seed`.
"""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl

from serving import black76

START = np.datetime64("2024-03-04T00:00", "s")  # a Monday
HOURS = (4, 12, 20)
COINS = {"BTC": (62_000.0, 0.58, 2_000.0), "ETH": (3_400.0, 0.66, 100.0)}  # price, volatility, step between strikes
CARRY, FORWARDS_MISSING = 0.09, 0.15  # per year; share of expiries whose forward a snapshot lacks
TICK, SMALL_TICK, SMALL_BELOW = 0.0005, 0.0001, 0.005  # coin


def expiries(now: np.datetime64) -> list[np.datetime64]:
    """The next four Fridays and the last Fridays of the next months, 08:00 UTC."""
    day = now.astype("datetime64[D]")
    fridays = np.busday_offset(day + 1, np.arange(40), roll="forward", weekmask="Fri")
    months = fridays.astype("datetime64[M]")
    monthly = fridays[np.r_[months[1:] != months[:-1], False]]
    return [date.astype("datetime64[s]") + np.timedelta64(8, "h") for date in np.union1d(fridays[:4], monthly[:6])]


def on_tick(price: np.ndarray, *, up: bool) -> np.ndarray:
    """Coin prices on the exchange's tick, away from the middle."""
    tick = np.where(price < SMALL_BELOW, SMALL_TICK, TICK)
    return np.round((np.ceil if up else np.floor)(price / tick + (-1e-9 if up else 1e-9)) * tick, 6)


def market(days: int = 45, *, seed: int = 11, coins: tuple[str, ...] = ("BTC", "ETH")) -> pl.DataFrame:
    """The rows of the file, in order of time."""
    generator = np.random.default_rng(seed)
    state = {coin: np.array([COINS[coin][0], COINS[coin][1], -0.04, 0.0]) for coin in coins}  # spot, level, skew, term
    frames = []
    for day in range(days):
        for hour in HOURS:
            now = START + np.timedelta64(day, "D") + np.timedelta64(hour, "h")
            for coin in coins:
                state[coin] = _moved(state[coin], COINS[coin][1], generator)
                frames += [_chain(coin, now, expiry, state[coin], generator) for expiry in expiries(now)]
    return pl.concat(frames)


def _moved(state: np.ndarray, usual: float, generator: np.random.Generator) -> np.ndarray:
    """Eight hours later."""
    spot, level, skew, term = state
    shock = generator.standard_normal(4)
    step = level * np.sqrt(8.0 / (24.0 * 365.0)) * shock[0]
    level += 0.03 * (usual - level) + 0.012 * shock[1] - 0.15 * step
    skew += 0.05 * (-0.04 - skew) + 0.006 * shock[2] + 0.2 * step
    term += -0.05 * term + 0.006 * shock[3]
    return np.array([spot * np.exp(step), np.clip(level, 0.5, 0.8), skew, term])


def _chain(
    coin: str, now: np.datetime64, expiry: np.datetime64, state: np.ndarray, generator: np.random.Generator
) -> pl.DataFrame:
    spot, level, skew, term = state
    tau = float((expiry - now) / np.timedelta64(1, "s")) / (365.0 * 86400.0)
    forward = spot * np.exp(CARRY * tau)
    width, step = 1.4 * level * np.sqrt(tau) + 0.05, COINS[coin][2]
    step *= max(1.0, np.round(spot * width / (12 * step)))
    strike = np.arange(np.ceil(spot * (1 - width) / step), np.floor(spot * (1 + width) / step) + 1) * step
    strike = strike[strike > 0]
    x = np.log(strike / forward) / np.sqrt(tau)
    volatility = level + term * np.log(tau / 0.1) + skew * x + 0.06 * x**2 + 0.003 * generator.standard_normal(len(x))
    given = generator.random() > FORWARDS_MISSING
    frames = []
    for right, sign in (("C", 1.0), ("P", -1.0)):
        mark = black76.price(forward, strike, tau, volatility, 1.0, sign) / forward
        half = 0.012 * mark + 0.0001 + 0.0004 * np.minimum(mark / 0.01, 1.0)
        bid, ask = on_tick(np.maximum(mark - half, 0.0), up=False), on_tick(mark + half, up=True)
        frames.append(pl.DataFrame({
            "timestamp": str(now) + "Z", "currency": coin, "expiry": str(expiry) + "Z", "strike": strike, "cp": right,
            "bid_price": np.where(bid > 0, bid, np.nan), "ask_price": ask, "mark_price": np.round(mark, 6),
            "forward_price": round(float(forward), 2) if given else None,
            "index_price": np.round(spot * (1.0 + 2e-5 * generator.standard_normal(len(strike))), 2),
            "implied_volatility": np.round(volatility, 4), "open_interest": 10.5, "volume": 0.1,
        }, schema_overrides={"forward_price": pl.Float64}))  # fmt: skip
    return pl.concat(frames).with_columns(pl.col("bid_price").fill_nan(None))


def first_day() -> datetime.date:
    """Of the market."""
    day: datetime.date = START.astype("datetime64[D]").astype(object)
    return day
