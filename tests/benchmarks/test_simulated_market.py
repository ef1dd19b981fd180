"""Simulated markets: laws of the paths, identities of the prices, listing, quotes, and the way through ingest."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated_market import (
    DAYS_PER_YEAR,
    Listing,
    MarketDay,
    Quoting,
    Setting,
    bates_days,
    black_scholes_days,
    chain,
    exact_prices,
    expiries,
    heston_days,
    quotes_around,
    strikes,
    write_quotes,
)
from pipelines.bates import BatesParameters, forward_prices
from pipelines.config import load_config
from serving import black76

HESTON = BatesParameters(
    variance=0.03, mean_reversion_per_year=4.0, long_run_variance=0.05, volatility_of_variance=0.6, correlation=-0.7
)
BATES = replace(HESTON, jump_intensity_per_year=20.0, jump_mean_log=-0.05, jump_deviation_log=0.04)


def ends(parameters: BatesParameters, count: int, paths: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Log spot over its start and variance at the end of many paths of `count` days, and the years between."""
    setting = Setting(spot=1.0, carry=0.03, premium_per_year=0.0)
    generator = np.random.default_rng(11)
    last, first = [], None
    for _ in range(paths):
        days = bates_days(count, parameters, generator=generator, setting=setting)
        first = days[0]
        last.append((math.log(days[-1].spot), days[-1].parameters.variance))
    assert first is not None
    years = float((days[-1].ts - first.ts) / np.timedelta64(1, "D")) / DAYS_PER_YEAR
    log_spot, variance = np.array(last).T
    return log_spot, variance, years


def within(sample: np.ndarray, expected: float, errors: float = 4.5) -> bool:
    """Whether the mean of a sample lies within so many standard errors of what it should be."""
    return bool(abs(sample.mean() - expected) <= errors * sample.std(ddof=1) / math.sqrt(sample.size))


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [HESTON, BATES], ids=["heston", "bates"])
def test_paths_follow_the_law_the_options_are_priced_with(parameters: BatesParameters) -> None:
    log_spot, variance, years = ends(parameters, count=16, paths=3000)
    decay = math.exp(-parameters.mean_reversion_per_year * years)
    theta = parameters.long_run_variance
    assert within(variance, theta + (parameters.variance - theta) * decay)
    assert within(np.exp(log_spot), math.exp(0.03 * years)), "the spot drifts by the carry"
    forward = math.exp(0.03 * years)
    for strike in (0.93, 1.0, 1.05):
        payoff = np.maximum(np.exp(log_spot) - strike, 0.0)
        assert within(payoff, float(forward_prices(parameters, forward, np.array([strike]), years).call[0]))


def test_variance_and_spot_move_against_each_other() -> None:
    days = heston_days(400, HESTON, generator=np.random.default_rng(2))
    log_spot = np.diff([math.log(day.spot) for day in days])
    variance = np.diff([day.parameters.variance for day in days])
    assert np.corrcoef(log_spot, variance)[0, 1] == pytest.approx(HESTON.correlation, abs=0.12)


def test_black_scholes_returns_are_normal_with_variance_in_calendar_time() -> None:
    days = black_scholes_days(2000, volatility=0.2, generator=np.random.default_rng(3))
    steps = np.diff([math.log(day.spot) for day in days])
    elapsed = np.diff([day.ts for day in days]) / np.timedelta64(1, "D")
    assert set(elapsed) == {1.0, 3.0}
    for gap in (1.0, 3.0):
        own = steps[elapsed == gap]
        assert own.std() == pytest.approx(0.2 * math.sqrt(gap / DAYS_PER_YEAR), rel=0.1)
    assert all(day.parameters == days[0].parameters for day in days)


def test_the_same_seed_gives_the_same_market_and_another_one_another() -> None:
    first, again, other = (heston_days(20, HESTON, generator=np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again
    assert first[-1].spot != other[-1].spot


def test_one_set_of_parameters_per_day_carries_the_variance_over() -> None:
    wild = replace(HESTON, variance=9.0, long_run_variance=0.5)
    days = heston_days(30, [HESTON] * 15 + [wild] * 15, generator=np.random.default_rng(1))
    assert [day.parameters.long_run_variance for day in days] == [0.05] * 15 + [0.5] * 15
    assert max(day.parameters.variance for day in days) < 2.0, "the second set's own start isn't used"
    late = np.mean([day.parameters.variance for day in days[-5:]])
    assert late > np.mean([day.parameters.variance for day in days[:15]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, HESTON), "count = 0"),
        ((3, [HESTON, HESTON]), "2 sets of parameters for 3 days"),
        ((2, replace(HESTON, long_run_variance=0.0)), "long_run_variance = 0"),
    ],
)
def test_what_has_no_path_is_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bates_days(*arguments, generator=np.random.default_rng(0))


def test_heston_refuses_jumps_and_settings_refuse_a_spot_of_nothing() -> None:
    with pytest.raises(ValueError, match="use bates_days"):
        heston_days(2, BATES, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="spot"):
        Setting(spot=0.0)


def a_day(parameters: BatesParameters = HESTON) -> MarketDay:
    return MarketDay(np.datetime64("2018-03-07T20:00:00", "ns"), 2950.0, parameters, 0.02, 0.005)


@pytest.mark.parametrize("parameters", [HESTON, BATES], ids=["heston", "bates"])
def test_exact_prices_keep_parity_and_the_exact_volatility_reprices_them(parameters: BatesParameters) -> None:
    table = chain(a_day(parameters))
    sign = np.where(table["right"].to_numpy() == "C", 1.0, -1.0)
    forward, strike, discount, price, tau, volatility = (
        table[name].to_numpy()
        for name in ("exact_forward", "strike", "exact_discount", "exact_price", "tau", "exact_volatility")
    )
    calls, puts = price[sign > 0], price[sign < 0]
    assert calls - puts == pytest.approx((discount * (forward - strike))[sign > 0], abs=1e-8)
    assert volatility[sign > 0] == pytest.approx(volatility[sign < 0])
    live = np.isfinite(volatility)
    assert live.mean() > 0.9
    again = black76.price(forward, strike, tau, volatility, discount, sign)
    assert again[live] == pytest.approx(price[live], abs=1e-8)


def test_constant_volatility_is_black_76_and_near_it_so_is_the_series() -> None:
    flat = BatesParameters(
        variance=0.04, mean_reversion_per_year=1.0, long_run_variance=0.04, volatility_of_variance=0.0, correlation=0.0
    )
    strike, tau = np.array([2800.0, 2950.0, 3100.0]), 30.0 / DAYS_PER_YEAR
    exact = exact_prices(a_day(flat), tau, strike, 1.0)
    day = a_day(flat)
    assert exact == pytest.approx(black76.price(day.forward(tau), strike, tau, 0.2, day.discount(tau), 1.0), rel=1e-14)
    nearly = replace(flat, long_run_variance=0.04 * (1.0 + 1e-12))  # priced by the series
    assert exact_prices(a_day(nearly), tau, strike, 1.0) == pytest.approx(exact, abs=1e-5)


def test_fridays_are_listed_and_third_fridays_further_out() -> None:
    listing = Listing(weekly_days=20, monthly_days=120)
    found = [str(expiry.astype("datetime64[D]")) for expiry in expiries(a_day().ts, listing)]
    assert found == ["2018-03-09", "2018-03-16", "2018-03-23", "2018-04-20", "2018-05-18", "2018-06-15"]
    friday = np.datetime64("2018-03-09T20:00:00", "ns")
    assert friday not in expiries(friday, listing), "nothing is quoted on the day it expires"


@settings(max_examples=60, deadline=None)
@given(forward=st.floats(50.0, 20_000.0), days=st.integers(1, 300))
def test_strikes_lie_in_their_range_on_the_grid_and_enough_of_them(forward: float, days: int) -> None:
    listing = Listing(base_step=forward / 5000.0)
    listed = strikes(forward, days / DAYS_PER_YEAR, listing)
    x = np.log(listed / forward) / math.sqrt(days / DAYS_PER_YEAR)
    assert (x >= -listing.lower_width - 1e-9).all()
    assert (x <= listing.upper_width + 1e-9).all()
    assert listed.size >= listing.fewest_strikes - 1
    assert (np.diff(listed) > 0).all()
    assert listed / listing.base_step == pytest.approx(np.round(listed / listing.base_step), abs=1e-6)


def test_contracts_stay_listed_from_day_to_day() -> None:
    days = black_scholes_days(40, volatility=0.16, generator=np.random.default_rng(4))
    tables = [chain(day).select("expiry", "strike", "right") for day in days]
    shared = [
        after.join(before, on=["expiry", "strike", "right"]).height / after.height for before, after in pairwise(tables)
    ]
    assert min(shared) > 0.6
    assert np.mean(shared) > 0.85


@settings(max_examples=60, deadline=None)
@given(price=st.floats(0.0, 900.0), tick=st.sampled_from([0.01, 0.05, 0.1, 0.25]))
def test_quotes_hold_the_exact_price_and_stand_on_the_tick(price: float, tick: float) -> None:
    bid, ask = quotes_around(np.array([price]), Quoting(tick=tick), None)
    assert 0.0 <= bid[0] <= price + 1e-9
    assert price - 1e-9 <= ask[0]
    assert ask[0] > bid[0]
    for side in (bid[0], ask[0]):
        assert side / tick == pytest.approx(round(side / tick), abs=1e-6)
    spread = 0.10 + 0.01 * price
    assert ask[0] - bid[0] <= spread + 2.0 * tick + 1e-9


def test_without_a_tick_the_mid_is_the_price_wherever_somebody_bids() -> None:
    price = np.array([0.01, 0.2, 5.0, 300.0])
    bid, ask = quotes_around(price, Quoting(tick=0.0), None)
    assert bid[0] == 0.0
    assert (0.5 * (bid + ask))[1:] == pytest.approx(price[1:], rel=1e-14)


def test_noise_needs_a_generator_and_moves_mids_by_its_size() -> None:
    quoting = Quoting(tick=0.0, noise=0.2)
    with pytest.raises(ValueError, match="generator"):
        quotes_around(np.array([10.0]), quoting, None)
    price = np.full(20_000, 10.0)
    bid, ask = quotes_around(price, quoting, np.random.default_rng(8))
    assert (0.5 * (bid + ask) - price).std() == pytest.approx(0.2 * 0.2, rel=0.03)


def test_quotes_without_a_spread_are_refused() -> None:
    with pytest.raises(ValueError, match="spread_floor"):
        Quoting(spread_floor=0.0)


def test_the_file_passes_through_ingest_and_every_surface_finds_the_truth_again(tmp_path: Path) -> None:
    from pipelines import ingest
    from pipelines.snapshots import read_snapshots
    from serving.surface import build_surface

    days = heston_days(3, HESTON, generator=np.random.default_rng(9))
    truth = write_quotes(days, tmp_path / "quotes.parquet", quoting=Quoting(tick=0.0))
    result = ingest.run(load_config(["data=generic", f"data.path={tmp_path / 'quotes.parquet'}", f"out={tmp_path}",
                                     "split=short", "split.test_from=2018-01-03"]))  # fmt: skip
    assert (result.quotes_in, result.kept) == (len(truth), len(truth))
    snapshots = list(read_snapshots(tmp_path / "ingest" / "quotes.parquet"))
    assert [quotes.ts for _, quotes in snapshots] == [day.ts for day in days]
    for (_, quotes), day in zip(snapshots, days, strict=True):
        surface = build_surface(quotes)
        assert len(surface.smiles) == len(expiries(day.ts, Listing()))
        for key, smile in surface.smiles.items():
            exact = truth.filter(
                (pl.col("ts") == day.ts) & (pl.col("expiry") == key.expiry) & (pl.col("right") == "C")
            ).join(pl.DataFrame({"strike": smile.strike, "found": smile.volatility}), on="strike")
            assert smile.tau == pytest.approx(exact["tau"][0], rel=1e-12)
            assert smile.forward == pytest.approx(exact["exact_forward"][0], rel=1e-9)
            assert exact["found"].to_numpy() == pytest.approx(exact["exact_volatility"].to_numpy(), abs=1e-5)
