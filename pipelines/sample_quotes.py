"""Quotes of the sample market: from fair prices to bids, asks, sizes and activity, and their damage.

Data in: `FairChain`, one row per listed contract and day, sorted by day, expiration, root, strike, right.
Data out: `Quotes`, the same rows less gaps plus duplicates and expired rows, and how many rows of each kind
were planted.
Invariants: an undamaged quote has 0 <= bid < ask, both on the tick grid (0.05 below 3.00, 0.10 from 3.00
on, as Cboe's SPX), and the fair price within half a spread and a tick of its middle; each row has at most
one kind of damage; row order is that of the input; the result depends on the chain and the seed only.
Sources: Cboe SPX and SPXW contract specifications (ticks); spreads are rough sizes seen in end-of-day SPX
data.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sample_state import autoregression, generator

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

TICK_BREAK = 3.0
TICK_BELOW, TICK_ABOVE = 0.05, 0.10
NOISE_OF_SPREAD = 0.10  # standard deviation of the middle around the fair price, in spreads
NOISE_LIMIT_OF_SPREAD = 0.35

RATE_OF_ROW = {  # probability of each kind of damage to one quote
    "gap": 0.004, "stale": 0.002, "crossed": 0.0008, "duplicate": 0.0010,
    "not_a_number": 0.00015, "negative": 0.00010, "expired": 0.00008,
}  # fmt: skip
RATE_OF_GAP_DAY = 0.03  # days on which one or two whole expiries are missing
RATE_OF_STALE_EXPIRY = 0.001  # per day and expiry: all its quotes are yesterday's
FEWEST_EXPIRIES = 10  # gaps never leave fewer


@dataclass(frozen=True)
class FairChain:
    """Fair prices of listed contracts; all arrays have one entry per contract and day."""

    day: Integers  # index into sessions
    expiry: Integers  # index into all expiries of the set
    strike: Integers  # index points
    is_call: Flags
    tau_years: Floats
    forward: Floats
    total_variance: Floats  # log-contract variance to expiry, not per year
    discount: Floats
    price: Floats  # discounted


@dataclass(frozen=True)
class Quotes:
    """Quotes in file order. `expired_days` > 0 marks a planted row, expired that long before its quote."""

    source: Integers  # row of the chain
    bid: Floats
    ask: Floats
    bid_size: Integers
    ask_size: Integers
    volume: Integers
    open_interest: Integers
    expired_days: Integers

    def take(self, rows: NDArray[Any]) -> Quotes:
        return Quotes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def tick_floor(price: Floats) -> Floats:
    """The nearest price on the tick grid at or below."""
    tick = np.where(price < TICK_BREAK, TICK_BELOW, TICK_ABOVE)
    return np.asarray(np.round(np.floor(price / tick + 1e-9) * tick, 2))


def tick_ceiling(price: Floats) -> Floats:
    """The nearest price on the tick grid at or above."""
    tick = np.where(price <= TICK_BREAK, TICK_BELOW, TICK_ABOVE)
    return np.asarray(np.round(np.ceil(price / tick - 1e-9) * tick, 2))


def make_quotes(chain: FairChain, seed: int) -> tuple[Quotes, dict[str, int]]:
    """Quotes of the whole chain, damaged, and the number of rows per kind of damage."""
    clean = clean_quotes(chain, seed)
    return plant_damage(chain, clean, seed)


def clean_quotes(chain: FairChain, seed: int) -> Quotes:
    """Two-sided quotes around fair prices, before any damage."""
    rows = len(chain.price)
    chance = generator(seed, "quotes/prices")
    moneyness = np.log(chain.strike / chain.forward) / np.sqrt(chain.total_variance)  # in standard deviations
    vega_per_point = 0.004 * chain.discount * chain.forward * np.exp(-0.5 * moneyness**2) * np.sqrt(chain.tau_years)
    days = int(chain.day.max()) + 1
    day_level = np.exp(0.15 * autoregression(chance.standard_normal(days), 10.0))
    spread = 0.10 + 0.028 * chain.price**0.75 + 0.25 * vega_per_point
    spread *= day_level[chain.day] * np.exp(0.20 * chance.standard_normal(rows))
    noise = np.clip(NOISE_OF_SPREAD * chance.standard_normal(rows), -NOISE_LIMIT_OF_SPREAD, NOISE_LIMIT_OF_SPREAD)
    middle = chain.price + noise * spread
    bid = tick_floor(np.maximum(middle - 0.5 * spread, 0.0))
    ask = np.maximum(tick_ceiling(middle + 0.5 * spread), np.round(bid + TICK_BELOW, 2))
    volume, open_interest = _activity(chain, moneyness, seed)
    sizes = generator(seed, "quotes/sizes")
    appetite = 3.6 - 0.35 * np.abs(moneyness)
    bid_size, ask_size = (
        np.ceil(np.exp(appetite + 0.8 * sizes.standard_normal(rows))).astype(np.int64) for _ in range(2)
    )
    bid_size[bid == 0.0] = 0
    return Quotes(
        source=np.arange(rows),
        bid=bid,
        ask=ask,
        bid_size=bid_size,
        ask_size=ask_size,
        volume=volume,
        open_interest=open_interest,
        expired_days=np.zeros(rows, dtype=np.int64),
    )


def _activity(chain: FairChain, moneyness: Floats, seed: int) -> tuple[Integers, Integers]:
    """Volume of the day, and open interest as of the morning: what earlier volume left behind."""
    chance = generator(seed, "quotes/activity")
    rows = len(chain.price)
    roundness = np.select([chain.strike % 100 == 0, chain.strike % 50 == 0, chain.strike % 25 == 0], [1.4, 0.9, 0.4])
    in_the_money = np.where(chain.is_call, -moneyness, moneyness).clip(0.0, None)
    level = 4.2 + roundness - 1.6 * in_the_money - 0.25 * moneyness**2 - 6.0 * np.sqrt(chain.total_variance)
    volume = np.floor(np.exp(level + 1.3 * chance.standard_normal(rows))).astype(np.int64)

    order, first, group = _by_contract(chain)
    opening = np.floor(np.exp(level[order][first] + 2.0 + 1.2 * chance.standard_normal(len(first))))
    kept = np.floor(0.3 * volume[order])
    before = np.cumsum(kept) - kept
    open_interest = np.empty(rows, dtype=np.int64)
    open_interest[order] = (opening[group] + before - before[first][group]).astype(np.int64)
    return volume, open_interest


def _by_contract(chain: FairChain) -> tuple[Integers, Integers, Integers]:
    """Row order by contract then day; in that order, where each contract starts and which one each row is."""
    key = (chain.expiry * 100_000 + chain.strike) * 2 + chain.is_call
    order = np.lexsort((chain.day, key))
    new = np.concatenate(([True], np.diff(key[order]) != 0))
    return order, np.flatnonzero(new), np.cumsum(new) - 1


def plant_damage(chain: FairChain, clean: Quotes, seed: int) -> tuple[Quotes, dict[str, int]]:
    """Damage a few quotes as real chains are damaged, each in at most one way."""
    chance = generator(seed, "quotes/damage")
    rows = len(chain.price)
    draw = chance.random(rows)
    kind = np.full(rows, "", dtype="U12")
    low = 0.0
    for name, rate in RATE_OF_ROW.items():
        kind[(draw >= low) & (draw < low + rate)] = name
        low += rate
    day_starts = np.flatnonzero(np.concatenate(([True], np.diff(chain.day) != 0)))
    kind[draw == np.repeat(np.minimum.reduceat(draw, day_starts), np.diff([*day_starts, rows]))] = "gap"
    previous = _previous_row(chain)
    kind[(kind == "") & _stale_expiries(chain, chance)] = "stale"
    kind[_missing_expiries(chain, day_starts, chance)] = "expiry_gap"
    unchanged = (clean.bid == clean.bid[previous]) & (clean.ask == clean.ask[previous])
    kind[(kind == "stale") & ((previous < 0) | unchanged)] = ""
    kind[(kind == "negative") & (clean.bid == 0.0)] = ""

    bid, ask = clean.bid.copy(), clean.ask.copy()
    stale = kind == "stale"
    bid[stale], ask[stale] = clean.bid[previous[stale]], clean.ask[previous[stale]]
    crossed = np.flatnonzero(kind == "crossed")
    bid[crossed] = tick_ceiling(ask[crossed] + TICK_ABOVE * chance.integers(1, 4, len(crossed)))
    broken = np.flatnonzero(kind == "not_a_number")
    bid_side = chance.random(len(broken)) < 0.5
    bid[broken[bid_side]], ask[broken[~bid_side]] = np.nan, np.nan
    negative = kind == "negative"
    bid[negative] = -bid[negative]

    copies = np.where((kind == "duplicate") | (kind == "expired"), 2, 1)
    copies[(kind == "gap") | (kind == "expiry_gap")] = 0
    taken = np.repeat(np.arange(rows), copies)
    second = np.concatenate(([False], np.diff(taken) == 0))
    expired_days = np.where(second & (kind[taken] == "expired"), chance.integers(1, 8, len(taken)), 0)
    damaged = Quotes(**{**vars(clean), "bid": bid, "ask": ask}).take(taken)
    counts = {name: int(np.count_nonzero(kind == name)) for name in (*RATE_OF_ROW, "expiry_gap")}
    return Quotes(**{**vars(damaged), "expired_days": expired_days}), counts


def _previous_row(chain: FairChain) -> Integers:
    """Row of the same contract on the session before, or -1."""
    order, _, group = _by_contract(chain)
    previous = np.full(len(order), -1, dtype=np.int64)
    follows = (np.diff(group) == 0) & (np.diff(chain.day[order]) == 1)
    previous[order[1:][follows]] = order[:-1][follows]
    return previous


def _stale_expiries(chain: FairChain, chance: np.random.Generator) -> Flags:
    pair = chain.day * (int(chain.expiry.max()) + 1) + chain.expiry
    pairs, of_row = np.unique(pair, return_inverse=True)
    return np.asarray((chance.random(len(pairs)) < RATE_OF_STALE_EXPIRY)[of_row])


def _missing_expiries(chain: FairChain, day_starts: Integers, chance: np.random.Generator) -> Flags:
    missing = np.zeros(len(chain.day), dtype=np.bool_)
    for start, stop in zip(day_starts, [*day_starts[1:], len(chain.day)], strict=True):
        if chance.random() >= RATE_OF_GAP_DAY:
            continue
        expiries = np.unique(chain.expiry[start:stop])
        count = min(int(chance.integers(1, 3)), len(expiries) - FEWEST_EXPIRIES)
        if count > 0:
            missing[start:stop] = np.isin(chain.expiry[start:stop], chance.choice(expiries, count, replace=False))
    return missing
