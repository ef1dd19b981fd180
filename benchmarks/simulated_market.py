"""Simulated option markets whose every price is known: paths (Black-Scholes, Heston, Bates) and listed-like chains.

In: `BatesParameters`, a number of days, a random generator. Out: `MarketDay`s; of a day, its chain of quotes beside the
exact price, forward, discount and volatility; a Parquet file of quotes as `data=generic` reads it.

Conventions: one snapshot per business day (Monday to Friday, no holidays) at 20:00 UTC; expiries are Fridays at 20:00
UTC, so that whole calendar days / 365 is the exact time. Calendar time runs through weekends. F = S exp(carry tau),
D = exp(-rate tau). Variance and jumps follow the same law in the path as in the prices (no premium for either); the
spot alone drifts, by carry + `premium_per_year`.

Invariants: the same generator state gives the same days and quotes; strikes lie on grids that contain one another, so a
contract stays listed while it lies in the range; bid <= exact price <= ask wherever the quotes carry no noise.
Sources: Heston (1993); Bates (1996); Broadie and Kaya (2006) for the exact law of the variance; Andersen (2008),
"Simple and efficient simulation of the Heston model", eq. 33 for the log price given the variance, integrated by the
trapezoid rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.bates import BatesParameters, forward_prices
from serving import black76

Floats = npt.NDArray[np.float64]

DAYS_PER_YEAR = 365.0
QUOTE_HOUR = np.timedelta64(20, "h")
STEPS_PER_DAY = 24  # of the variance path
UNDERLYING = "SIM"
QUOTE_COLUMNS = ("ts", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "underlying_price")


@dataclass(frozen=True)
class MarketDay:
    """The whole state of one simulated day; `rate` and `carry` per year, continuously compounded."""

    ts: np.datetime64
    spot: float
    parameters: BatesParameters
    rate: float
    carry: float

    def forward(self, tau_years: float) -> float:
        """Forward to a tenor, money."""
        return self.spot * math.exp(self.carry * tau_years)

    def discount(self, tau_years: float) -> float:
        """Discount factor to a tenor."""
        return math.exp(-self.rate * tau_years)


@dataclass(frozen=True)
class Setting:
    """What a path begins with; `rate`, `carry` and `premium_per_year` per year, continuously compounded."""

    first_day: str = "2018-01-02"  # or the first business day after it
    spot: float = 3000.0
    rate: float = 0.02
    carry: float = 0.005
    premium_per_year: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spot) and self.spot > 0):
            raise ValueError(f"spot = {self.spot!r} is not positive")


@dataclass(frozen=True)
class Listing:
    """Which contracts are listed. Widths are |ln(K/F)|/sqrt(tau)."""

    weekly_days: int = 35  # Fridays up to so many calendar days ahead
    monthly_days: int = 200  # third Fridays
    base_step: float = 5.0  # money; steps are this times a power of two
    lower_width: float = 0.5
    upper_width: float = 0.4
    inner_width: float = 0.1  # strikes are four times as dense this near to the forward
    fewest_strikes: int = 14  # of the outer grid; the coarsest step that lists so many is taken


@dataclass(frozen=True)
class Quoting:
    """From a fair price to bid and ask, money. `tick` 0: no rounding. `noise`: deviation of the mid, in spreads."""

    tick: float = 0.05
    spread_floor: float = 0.10
    spread_of_price: float = 0.01
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.tick < 0 or self.spread_floor <= 0 or self.spread_of_price < 0 or self.noise < 0:
            raise ValueError(f"{self}: spread_floor must be positive, the others not negative")


def black_scholes_days(
    count: int, *, volatility: float, generator: np.random.Generator, setting: Setting | None = None
) -> list[MarketDay]:
    """Days of a lognormal path with one constant volatility (per square root of a year), exact in law."""
    flat = BatesParameters(
        variance=volatility**2, mean_reversion_per_year=1.0, long_run_variance=volatility**2,
        volatility_of_variance=0.0, correlation=0.0,
    )  # fmt: skip
    return bates_days(count, flat, generator=generator, setting=setting)


def heston_days(
    count: int,
    parameters: BatesParameters | Sequence[BatesParameters],
    *,
    generator: np.random.Generator,
    setting: Setting | None = None,
) -> list[MarketDay]:
    """`bates_days` without jumps; ValueError where the parameters have any."""
    for place, one in enumerate([parameters] if isinstance(parameters, BatesParameters) else parameters):
        if one.jump_intensity_per_year > 0:
            raise ValueError(
                f"parameters[{place}]: jump_intensity_per_year = {one.jump_intensity_per_year} isn't Heston's: "
                "use bates_days"
            )
    return bates_days(count, parameters, generator=generator, setting=setting)


def bates_days(
    count: int,
    parameters: BatesParameters | Sequence[BatesParameters],
    *,
    generator: np.random.Generator,
    setting: Setting | None = None,
) -> list[MarketDay]:
    """Days of a Bates path.

    `parameters` is one set, or one per day (a world that changes its regime): day i is priced with set i, and the path
    from day i to i + 1 follows it. The variance state carries over; only the first set's `variance` is used, as start.
    The variance takes `STEPS_PER_DAY` steps a calendar day from its exact noncentral chi-squared law.
    """
    setting = setting or Setting()
    sets = [parameters] * count if isinstance(parameters, BatesParameters) else list(parameters)
    problems = [f"count = {count} isn't positive"] if count < 1 else []
    if len(sets) != max(count, 0):
        problems.append(f"{len(sets)} sets of parameters for {count} days: give one, or one per day")
    problems += [
        f"parameters[{place}]: long_run_variance = 0 has no law of the variance with volatility_of_variance > 0"
        for place, one in enumerate(sets)
        if one.long_run_variance == 0 and one.volatility_of_variance > 0
    ]
    if problems:
        raise ValueError("; ".join(problems))
    times = business_times(setting.first_day, count)
    days: list[MarketDay] = []
    spot, variance = setting.spot, sets[0].variance
    for place, (ts, model) in enumerate(zip(times, sets, strict=True)):
        state = replace(model, variance=variance)
        days.append(MarketDay(ts, spot, state, setting.rate, setting.carry))
        if place + 1 < count:
            elapsed = int((times[place + 1] - ts) / np.timedelta64(1, "D"))
            log_return, variance = _advance(state, elapsed, setting.carry + setting.premium_per_year, generator)
            spot *= math.exp(log_return)
    return days


def business_times(first_day: str, count: int) -> list[np.datetime64]:
    """20:00 UTC of `count` business days."""
    first = np.busday_offset(np.datetime64(first_day, "D"), 0, roll="forward")
    days = np.busday_offset(first, np.arange(count))
    return list((days.astype("datetime64[ns]") + QUOTE_HOUR).astype("datetime64[ns]"))


def _advance(
    model: BatesParameters, elapsed_days: int, drift: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Log return over whole calendar days and the variance at their end."""
    kappa, theta, sigma, rho = (
        model.mean_reversion_per_year, model.long_run_variance, model.volatility_of_variance, model.correlation,
    )  # fmt: skip
    tau = elapsed_days / DAYS_PER_YEAR
    steps = elapsed_days * STEPS_PER_DAY
    h = tau / steps
    decay = math.exp(-kappa * h)
    path = np.empty(steps + 1)
    path[0] = model.variance
    for step in range(steps):
        if sigma == 0.0:
            path[step + 1] = theta + (path[step] - theta) * decay
        else:
            scale = sigma**2 * (1.0 - decay) / (4.0 * kappa)
            freedom, away = 4.0 * kappa * theta / sigma**2, path[step] * decay / scale
            path[step + 1] = scale * generator.noncentral_chisquare(freedom, away)
    integrated = h * float(path[:-1].sum() + path[1:].sum()) / 2.0
    shared = 0.0 if sigma == 0.0 else rho / sigma * (path[-1] - path[0] - kappa * (theta * tau - integrated))
    own = math.sqrt(max(0.0, (1.0 - rho**2) * integrated)) if sigma > 0.0 else math.sqrt(integrated)
    log_return = drift * tau - 0.5 * integrated + shared + own * generator.standard_normal()
    if model.jump_intensity_per_year > 0:
        jumps = int(generator.poisson(model.jump_intensity_per_year * tau))
        log_return += jumps * model.jump_mean_log
        log_return += math.sqrt(jumps) * model.jump_deviation_log * generator.standard_normal()
        log_return -= model.jump_intensity_per_year * model.mean_jump_return * tau
    return float(log_return), float(path[-1])


def expiries(ts: np.datetime64, listing: Listing) -> list[np.datetime64]:
    """Listed expiries of a day, nearest first: Fridays, further out third Fridays; none of today."""
    today = ts.astype("datetime64[D]")
    reach = max(listing.weekly_days, listing.monthly_days)
    days = today + np.arange(1, reach + 1)
    fridays = days[np.is_busday(days, weekmask="Fri")]
    of_month = (fridays - fridays.astype("datetime64[M]")).astype(int) + 1
    third = (of_month >= 15) & (of_month <= 21)
    ahead = (fridays - today).astype(int)
    listed = fridays[(ahead <= listing.weekly_days) | (third & (ahead <= listing.monthly_days))]
    return list(listed.astype("datetime64[ns]") + QUOTE_HOUR)


def strikes(forward: float, tau_years: float, listing: Listing) -> Floats:
    """Listed strikes of one expiry, ascending: multiples of the base step times a power of two, denser near F."""
    root = math.sqrt(tau_years)
    low, high = forward * math.exp(-listing.lower_width * root), forward * math.exp(listing.upper_width * root)
    power = math.floor(math.log2(max((high - low) / listing.fewest_strikes / listing.base_step, 1.0)))
    outer = listing.base_step * 2.0**power
    inner = max(outer / 4.0, listing.base_step)
    near = forward * np.exp(listing.inner_width * root * np.array([-1.0, 1.0]))
    return np.union1d(_multiples(low, high, outer), _multiples(near[0], near[1], inner))


def _multiples(low: float, high: float, step: float) -> Floats:
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1, dtype=np.float64) * step


def exact_prices(
    day: MarketDay, tau_years: float, strike: npt.ArrayLike, right: npt.ArrayLike, *, spot: float | None = None
) -> Floats:
    """Discounted prices, money, given the true state, of one expiry; `right` +1 call, -1 put.

    `spot` stands in for the day's, for finite differences. Constant volatility is priced by Black-76, all else by COS.
    """
    day = day if spot is None else replace(day, spot=spot)
    strike, right = np.broadcast_arrays(np.asarray(strike, np.float64), np.asarray(right, np.float64))
    model, forward, discount = day.parameters, day.forward(tau_years), day.discount(tau_years)
    if is_flat(model):
        return black76.price(forward, strike, tau_years, math.sqrt(model.variance), discount, right)
    both = forward_prices(model, forward, strike, tau_years)
    return np.asarray(discount * np.where(right > 0, both.call, both.put))


def is_flat(model: BatesParameters) -> bool:
    """Whether the model is Black-Scholes with a constant volatility."""
    constant = model.volatility_of_variance == 0 and model.variance == model.long_run_variance
    return constant and model.jump_intensity_per_year == 0


def chain(
    day: MarketDay,
    *,
    listing: Listing | None = None,
    quoting: Quoting | None = None,
    generator: np.random.Generator | None = None,
) -> pl.DataFrame:
    """Quotes of one day: `QUOTE_COLUMNS`, then the truth: `tau`, `exact_price` (money), `exact_forward`,
    `exact_discount`, `exact_volatility` (Black-76's at the exact price; NaN where the price holds no time value).

    `generator` is needed where `quoting.noise` isn't zero (ValueError).
    """
    listing, quoting = listing or Listing(), quoting or Quoting()
    blocks = []
    for expiry in expiries(day.ts, listing):
        tau = float((expiry - day.ts) / np.timedelta64(1, "D")) / DAYS_PER_YEAR
        forward, discount = day.forward(tau), day.discount(tau)
        listed = strikes(forward, tau, listing)
        strike, right = np.repeat(listed, 2), np.tile([1.0, -1.0], listed.size)
        price = exact_prices(day, tau, strike, right)
        volatility = _exact_volatility(day.parameters, price, forward, strike, tau, discount, right)
        bid, ask = quotes_around(price, quoting, generator)
        blocks.append(
            pl.DataFrame({
                "expiry": np.full(strike.size, expiry), "strike": strike, "right": np.where(right > 0, "C", "P"),
                "bid": bid, "ask": ask, "tau": np.full(strike.size, tau), "exact_price": price,
                "exact_forward": np.full(strike.size, forward), "exact_discount": np.full(strike.size, discount),
                "exact_volatility": volatility,
            })
        )  # fmt: skip
    table = pl.concat(blocks).with_columns(
        ts=pl.lit(day.ts).cast(pl.Datetime("ns")), underlying=pl.lit(UNDERLYING), root=pl.lit(UNDERLYING),
        underlying_price=pl.lit(day.spot), expiry=pl.col("expiry").cast(pl.Datetime("ns")),
    )  # fmt: skip
    return table.select(*QUOTE_COLUMNS, "tau", "exact_price", "exact_forward", "exact_discount", "exact_volatility")


def _exact_volatility(
    model: BatesParameters, price: Floats, forward: float, strike: Floats, tau: float, discount: float, right: Floats
) -> Floats:
    """Of the out-of-the-money price at each strike, where digits are; call and put of a strike share it."""
    if is_flat(model):
        return np.full(strike.size, math.sqrt(model.variance))
    outside = np.where(strike >= forward, 1.0, -1.0)
    other = price - discount * right * (forward - strike)  # the twin's price, by parity
    volatility, _ = black76.implied_volatility(
        np.where(right == outside, price, other), forward, strike, tau, discount, outside
    )
    return volatility


def quotes_around(price: Floats, quoting: Quoting, generator: np.random.Generator | None) -> tuple[Floats, Floats]:
    """Bids and asks, money: the spread around the (noisy) price, bids rounded down and asks up to the tick.

    Where the price is below half a spread nobody bids, as on an exchange: the bid is 0.
    """
    spread = quoting.spread_floor + quoting.spread_of_price * price
    middle = price
    if quoting.noise > 0:
        if generator is None:
            raise ValueError(f"quoting.noise = {quoting.noise} needs a generator")
        middle = price + spread * quoting.noise * np.clip(generator.standard_normal(price.size), -3.0, 3.0)
    bid, ask = np.maximum(middle - 0.5 * spread, 0.0), middle + 0.5 * spread
    if quoting.tick == 0:
        return bid, ask
    bid = np.floor(bid / quoting.tick + 1e-9) * quoting.tick
    ask = np.ceil(ask / quoting.tick - 1e-9) * quoting.tick
    return np.asarray(np.round(bid, 10)), np.asarray(np.round(np.maximum(ask, bid + quoting.tick), 10))


def write_quotes(
    days: Iterable[MarketDay],
    path: Path,
    *,
    listing: Listing | None = None,
    quoting: Quoting | None = None,
    generator: np.random.Generator | None = None,
) -> pl.DataFrame:
    """Write the quotes of all days as Parquet that `data=generic data.path=PATH` reads; return them with the truth."""
    table = pl.concat(chain(day, listing=listing, quoting=quoting, generator=generator) for day in days)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.select(QUOTE_COLUMNS).write_parquet(path)
    return table
