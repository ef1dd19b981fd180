"""The sample market's summary and the text of its data card.

Data in: counts of one run. Data out: Markdown. Invariant: parameters in the card are read from the code
that used them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from pipelines import sample_chain as chain
from pipelines import sample_quotes as quotes
from pipelines import sample_state as state


@dataclass(frozen=True)
class SampleMarket:
    """What was written."""

    seed: int
    first_day: date
    last_day: date
    sessions: int
    files: dict[str, int]  # name -> bytes
    quotes_by_year: dict[int, int]
    expiries_per_session: tuple[int, float, int]  # fewest, mean, most, as listed
    strikes_per_expiry: tuple[int, float, int]
    damaged: dict[str, int]  # kind -> rows
    expiry_clock_deviation: float


DAMAGE = {
    "gap": "a listed contract without a quote (row absent); at least one a day",
    "expiry_gap": "rows absent because a whole expiry is missing that day",
    "stale": "bid and ask left from the session before (single quotes, and now and then a whole expiry)",
    "crossed": "bid above ask",
    "duplicate": "the same row twice, byte for byte",
    "not_a_number": "bid or ask is NaN",
    "negative": "bid with a minus sign",
    "expired": "an added row whose expiration lies one to seven days before its quote",
}


def render_card(result: SampleMarket) -> str:
    """The data card as Markdown."""
    rows = sum(result.quotes_by_year.values())
    in_file = sum(count for kind, count in result.damaged.items() if "gap" not in kind)
    in_file_share = in_file / rows
    damage = "\n".join(f"| {kind} | {result.damaged[kind]:,} | {text} |" for kind, text in DAMAGE.items())
    files = "\n".join(f"| `{name}` | {size:,} |" for name, size in result.files.items())
    years = ", ".join(f"{year}: {count:,}" for year, count in result.quotes_by_year.items())
    factors = "\n".join(
        f"| {factor.name} | {factor.half_life_sessions:g} | {factor.deviation:g} |" for factor in state.FACTORS
    )
    fewest, mean, most = result.expiries_per_session
    low, middle, high = result.strikes_per_expiry
    return f"""# Data card: the sample market

Made by `python -m pipelines.sample_market` (seed {result.seed}), the same bytes at every run in one environment
(another NumPy, PyArrow or processor may round a last digit the other way). It exists so that the whole path from
quotes to a released model runs on any machine without a data vendor.

**The index and the VIX are real. Every option quote is simulated. No claim of model quality rests on this
data.** A model that does well here has learnt a Bates model with a few hidden factors, not the options
market.

## What is real
- `underlying.csv`: S&P 500 daily bars, 1999-2018, and VIX closes from 2014-01-03 on (empty before), as
  shipped in the `arch` wheel, rounded to hundredths. Columns: `date,open,high,low,close,vix`. Index bars
  aren't adjusted for anything.
- `underlying_price` of every quote: that day's real close. `quote_time` is 15:45 in New York on every
  session, also on the few with an early close, so index and quote are nominally 15 minutes apart.
- The level of the surface: each day's model has exactly that day's real VIX.

## What is implied or simulated
- **Prices**: a Bates model (Heston with lognormal jumps), one per day, priced by the COS method. Its
  variance state is backed out of that day's VIX as the price of a 30-day log contract, jumps included. Mean
  reversion {state.MEAN_REVERSION_PER_YEAR:g} per year; jump mean {state.JUMP_MEAN_LOG:g}, deviation
  {state.JUMP_DEVIATION_LOG:g} (log); centre of correlation {state.CORRELATION:g}, of the volatility of
  variance {state.VOLATILITY_OF_VARIANCE:g}, of the jumps' share of VIX^2 {state.JUMP_SHARE:g}; long-run
  variance: half {state.LONG_RUN_VOLATILITY:g}^2, half a slow average of VIX^2.
- **What VIX doesn't explain**: seeded AR(1) factors (table), and a small common shift of each expiry's time
  to expiry (relative deviation {result.expiry_clock_deviation:g}). They are independent of returns; real
  ones aren't.
- **Carry**: a short rate after the bill yields of the period (0.1 % in 2014 to 2.4 % at the end of 2018)
  with an upward slope, and a dividend yield near {state.DIVIDEND_YIELD:.1%}, both with small noise; no
  discrete dividends.
- **Chain**: European options. SPX: third Fridays, settled at the open. SPXW: other Fridays and quarter
  ends, settled at the close. Weeklies within {chain.WEEKLY_DAYS} days, monthlies within
  {chain.MONTHLY_DAYS}, March-cycle months within {chain.QUARTERLY_DAYS}. Nothing is quoted on the day it
  expires. A selection of strikes from {chain.LOWER_WIDTHS:g} standard deviations below to
  {chain.UPPER_WIDTHS:g} above the index.
- **Quotes**: spreads grow with price and vega and vary by day; noise of the middle is
  {quotes.NOISE_OF_SPREAD:g} spreads; ticks of 0.05 below 3.00 and 0.10 from there; zero bids in far wings.
  Sizes, volume and open interest are decoration.

| factor | half-life, sessions | deviation (relative; absolute for correlation, rate, yield) |
|---|---|---|
{factors}

## Counts
{result.sessions:,} sessions, {result.first_day} to {result.last_day}; {rows:,} quotes ({years}).
Expiries listed per session: {fewest} to {most}, mean {mean}. Strikes per expiry: {low} to {high}, mean
{middle}; calls and puts.

| file | bytes |
|---|---|
{files}

## Planted damage
Each row is damaged in at most one way; {in_file:,} rows of the files ({in_file_share:.2%}) are affected,
drawn with fixed rates.

| kind | rows | what it is |
|---|---|---|
{damage}

## Columns of `quotes/<year>.parquet`
`quote_time` (UTC, us), `root` (SPX or SPXW), `expiration` (date), `strike` (index points), `cp` (C or P),
`bid`, `ask` (index points), `bid_size`, `ask_size`, `underlying_price`, `volume`, `open_interest`
(contracts). Sorted by time, expiration, root, strike, right.

## Licence
`arch` is under the NCSA licence; the index series it ships for its examples come from public sources. Simulated
quotes carry the licence of this repository.
"""
