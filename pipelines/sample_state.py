"""Market state of the sample market: what is real, and the daily Bates model that is implied from it.

Data in: the `arch` wheel's S&P 500 bars and VIX closes (real). Data out: `RealMarket` (all bars) and
`StatePath` (one Bates model, rate curve and dividend yield for each session of 2014-2018).
Invariants: every day's model has exactly that day's real VIX; a day's state depends on the seed and on real
data up to that day, never on the range of days asked for; the variance state stays above
`VARIANCE_FLOOR_SHARE` of VIX^2.
Six seeded AR(1) factors move what VIX doesn't fix (long-run variance, correlation, volatility of variance,
jump share, short rate, dividend yield), so that the surface isn't a function of VIX alone.
Sources: Bates (2000) and Andersen, Fusari, Todorov (2015) for sizes of parameters on S&P 500 options; US
Treasury bill yields of the period, in round numbers, for the path of the short rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import arch.data.sp500
import arch.data.vix
import numpy as np
from numpy.typing import NDArray

from pipelines.bates import VIX_TENOR_YEARS, BatesParameters, jump_log_variance, with_vix

Floats = NDArray[np.float64]

MEAN_REVERSION_PER_YEAR = 5.0
JUMP_MEAN_LOG = -0.085
JUMP_DEVIATION_LOG = 0.055
LONG_RUN_VOLATILITY = 0.185  # half of the long-run variance; the other half follows a slow average of VIX^2
LONG_RUN_AVERAGE_SESSIONS = 90  # e-folding time of that average
LISTING_AVERAGE_SESSIONS = 20  # e-folding time of the volatility that decides which strikes are listed
VARIANCE_FLOOR_SHARE = 0.30  # of the diffusive part of VIX^2; the long-run variance gives way to keep it
DIVIDEND_YIELD = 0.019
CURVE_SLOPE, CURVE_SCALE_YEARS = 0.0030, 0.7  # rate(tau) = short + slope (1 - exp(-tau / scale))
SHORT_RATE_KNOTS = (  # year-month-day, per year
    ("2014-01-01", 0.0010), ("2015-09-01", 0.0015), ("2015-12-16", 0.0040), ("2016-11-15", 0.0055),
    ("2016-12-15", 0.0070), ("2017-03-15", 0.0090), ("2017-06-15", 0.0110), ("2017-12-14", 0.0140),
    ("2018-03-22", 0.0170), ("2018-06-14", 0.0195), ("2018-09-27", 0.0220), ("2018-12-31", 0.0240),
)  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """A stationary AR(1) path x of unit variance: `mean + deviation * x` or `mean * exp(deviation * x)`."""

    name: str
    half_life_sessions: float
    deviation: float


FACTORS = (
    Factor("long_run_variance", 25.0, 0.14),
    Factor("correlation", 25.0, 0.045),
    Factor("volatility_of_variance", 20.0, 0.10),
    Factor("jump_share", 12.0, 0.22),
    Factor("short_rate", 30.0, 0.0003),
    Factor("dividend_yield", 40.0, 0.0008),
)
VOLATILITY_OF_VARIANCE = 0.80
CORRELATION = -0.74
JUMP_SHARE = 0.20  # of VIX^2


@dataclass(frozen=True)
class RealMarket:
    """S&P 500 daily bars and VIX closes (in points, NaN where the source has none). Nothing is simulated."""

    dates: NDArray[np.datetime64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    vix: Floats


@dataclass(frozen=True)
class StatePath:
    """One row per session that has a real VIX."""

    dates: NDArray[np.datetime64]
    spot: Floats
    vix: Floats  # decimal
    listing_volatility: Floats  # decimal, slow average of VIX
    models: tuple[BatesParameters, ...]
    short_rate: Floats
    dividend_yield: Floats

    def rate(self, session: int, tau_years: float) -> float:
        """Continuously compounded zero rate to the tenor, per year."""
        slope = CURVE_SLOPE * -math.expm1(-tau_years / CURVE_SCALE_YEARS)
        return float(self.short_rate[session]) + slope

    def carry(self, session: int, tau_years: float) -> float:
        """Rate less dividend yield, per year: forward = spot * exp(carry * tau)."""
        return self.rate(session, tau_years) - float(self.dividend_yield[session])


def load_real_market() -> RealMarket:
    """All S&P 500 bars of the wheel (1999-2018), joined with VIX (2014 on)."""
    bars = arch.data.sp500.load()
    vix = arch.data.vix.load()["vix"].reindex(bars.index)

    def column(values: Any) -> Floats:
        return np.asarray(np.round(np.asarray(values, dtype=np.float64), 2), dtype=np.float64)

    return RealMarket(
        dates=np.asarray(bars.index.to_numpy(), dtype="datetime64[D]"),
        open=column(bars["Open"]),
        high=column(bars["High"]),
        low=column(bars["Low"]),
        close=column(bars["Close"]),
        vix=column(vix),
    )


def generator(seed: int, purpose: str) -> np.random.Generator:
    """An independent stream per purpose, so that adding one use of chance never shifts another."""
    return np.random.default_rng([seed, *purpose.encode()])


def autoregression(innovations: Floats, half_life_sessions: float) -> Floats:
    """Stationary AR(1) of unit variance along axis 0, driven by standard normal innovations."""
    phi = 0.5 ** (1.0 / half_life_sessions)
    path = np.empty_like(innovations)
    path[0] = innovations[0]
    for step in range(1, len(innovations)):
        path[step] = phi * path[step - 1] + math.sqrt(1.0 - phi * phi) * innovations[step]
    return path


def exponential_average(values: Floats, sessions: float) -> Floats:
    """Exponentially weighted mean of values up to and including each session."""
    keep = math.exp(-1.0 / sessions)
    average = np.empty_like(values)
    average[0] = values[0]
    for step in range(1, len(values)):
        average[step] = keep * average[step - 1] + (1.0 - keep) * values[step]
    return average


def build_state_path(market: RealMarket, seed: int) -> StatePath:
    """A Bates model, rate and dividend yield for every session with a real VIX."""
    known = np.isfinite(market.vix)
    dates, spot, vix = market.dates[known], market.close[known], market.vix[known] / 100.0
    moves = {
        factor.name: factor.deviation
        * autoregression(
            generator(seed, f"factor/{factor.name}").standard_normal(len(dates)), factor.half_life_sessions
        )
        for factor in FACTORS
    }
    slow_variance = exponential_average(vix**2, LONG_RUN_AVERAGE_SESSIONS)
    long_run = (0.5 * LONG_RUN_VOLATILITY**2 + 0.5 * slow_variance) * np.exp(moves["long_run_variance"])
    sigma = VOLATILITY_OF_VARIANCE * np.exp(moves["volatility_of_variance"])
    correlation = np.clip(CORRELATION + moves["correlation"], -0.95, -0.3)
    share = np.clip(JUMP_SHARE * np.exp(moves["jump_share"]), 0.02, 0.5)
    models = tuple(
        daily_model(
            vix=float(v),
            long_run_variance=float(lr),
            volatility_of_variance=float(s),
            correlation=float(c),
            jump_share=float(j),
        )
        for v, lr, s, c, j in zip(vix, long_run, sigma, correlation, share, strict=True)
    )
    knots = np.array([date.fromisoformat(day).toordinal() for day, _ in SHORT_RATE_KNOTS], dtype=np.float64)
    days = np.array([day.toordinal() for day in dates.astype(datetime)], dtype=np.float64)
    base = np.interp(days, knots, [rate for _, rate in SHORT_RATE_KNOTS])
    return StatePath(
        dates=dates,
        spot=spot,
        vix=vix,
        listing_volatility=exponential_average(vix, LISTING_AVERAGE_SESSIONS),
        models=models,
        short_rate=np.maximum(base + moves["short_rate"], 0.0002),
        dividend_yield=DIVIDEND_YIELD + moves["dividend_yield"],
    )


def daily_model(
    *,
    vix: float,
    long_run_variance: float,
    volatility_of_variance: float,
    correlation: float,
    jump_share: float,
) -> BatesParameters:
    """The Bates model of one day: jumps carry `jump_share` of VIX^2, the variance state carries the rest."""
    unit = BatesParameters(
        variance=0.0,
        mean_reversion_per_year=MEAN_REVERSION_PER_YEAR,
        long_run_variance=0.0,
        volatility_of_variance=volatility_of_variance,
        correlation=correlation,
        jump_intensity_per_year=1.0,
        jump_mean_log=JUMP_MEAN_LOG,
        jump_deviation_log=JUMP_DEVIATION_LOG,
    )
    diffusive = (1.0 - jump_share) * vix**2
    reversion = MEAN_REVERSION_PER_YEAR * VIX_TENOR_YEARS
    weight = -math.expm1(-reversion) / reversion
    ceiling = diffusive * (1.0 - VARIANCE_FLOOR_SHARE * weight) / (1.0 - weight)
    template = BatesParameters(
        variance=0.0,
        mean_reversion_per_year=MEAN_REVERSION_PER_YEAR,
        long_run_variance=min(long_run_variance, ceiling),
        volatility_of_variance=volatility_of_variance,
        correlation=correlation,
        jump_intensity_per_year=jump_share * vix**2 / jump_log_variance(unit),
        jump_mean_log=JUMP_MEAN_LOG,
        jump_deviation_log=JUMP_DEVIATION_LOG,
    )
    return with_vix(template, vix)
