"""Metrics: identities first, then slow independent computations, then what is refused."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines import metrics
from serving import black76
from serving.errors import DataError, SchemaError

NAMES = ("model", "sticky_strike", "flat")
FIRST_DAY = datetime(2019, 6, 3, 20, 0, tzinfo=UTC)
EXPIRIES_DAYS = (10, 45, 200)


def predictions(dates: int = 6, strikes: int = 9, seed: int = 0, error: float = 0.01) -> pl.DataFrame:
    """A small noisy table: `strikes` strikes around 100 for three expiries on each date; spreads of 0.2."""
    rng = np.random.default_rng(seed)
    frames = []
    for day in range(dates):
        ts = FIRST_DAY + timedelta(days=day)
        for days in EXPIRIES_DAYS:
            tau, forward, discount = days / 365, 100.0 + day, math.exp(-0.02 * days / 365)
            strike = forward * np.exp(0.3 * math.sqrt(tau) * np.linspace(-1.5, 1, strikes + day % 3))
            count = len(strike)
            right = np.where(strike >= forward, 1.0, -1.0)
            iv = 0.2 - 0.1 * np.log(strike / forward) / math.sqrt(tau)
            mid = black76.price(forward, strike, tau, iv, discount, right)
            frame = {
                "ts": [ts] * count, "underlying": ["SPX"] * count, "root": ["SPXW"] * count,
                "expiry": [ts + timedelta(days=days)] * count, "strike": strike,
                "right": np.where(right > 0, "C", "P"), "tau": [tau] * count, "bid": mid - 0.1, "ask": mid + 0.1,
                "forward": [forward] * count, "discount": [discount] * count, "forward_model": [forward] * count,
                "discount_model": [discount] * count, "iv_market": iv,
            }  # fmt: skip
            for place, name in enumerate(NAMES):
                guess = iv + (1 + place) * error * (rng.normal(size=count) + rng.normal())
                frame[f"iv_{name}"] = guess
                frame[f"price_{name}"] = black76.price(forward, strike, tau, np.abs(guess), discount, right)
            frames.append(pl.DataFrame(frame))
    return pl.concat(frames)


def with_predictor(table: pl.DataFrame, name: str, shift: float) -> pl.DataFrame:
    """A predictor that is off by `shift` in IV (fraction) and by `shift` in price everywhere."""
    mid = 0.5 * (pl.col("bid") + pl.col("ask"))
    return table.with_columns((pl.col("iv_market") + shift).alias(f"iv_{name}"), (mid + shift).alias(f"price_{name}"))


def test_perfect_predictor_has_no_error_and_is_always_inside() -> None:
    score = metrics.scores(with_predictor(predictions(), "model", 0.0))["model"]
    assert [score[key] for key in ("iv_rmse", "iv_mae", "price_rmse", "price_mae")] == [0.0] * 4
    assert score["inside_spread"] == 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_shift_of_one_vol_point_is_an_error_of_one(sign: float) -> None:
    score = metrics.scores(with_predictor(predictions(), "model", sign * 0.01))["model"]
    assert score["iv_rmse"] == pytest.approx(1.0, abs=1e-12)
    assert score["iv_mae"] == pytest.approx(1.0, abs=1e-12)
    assert score["price_rmse"] == pytest.approx(0.01, abs=1e-12)


def test_price_on_the_quote_is_inside_and_beyond_it_is_not() -> None:
    table = predictions()
    on_ask = table.with_columns(price_model=pl.col("ask"), price_flat=pl.col("bid"))
    beyond = table.with_columns(price_model=pl.col("ask") + 1e-9)
    assert metrics.scores(on_ask)["model"]["inside_spread"] == 1.0
    assert metrics.scores(on_ask)["flat"]["inside_spread"] == 1.0
    assert metrics.scores(beyond)["model"]["inside_spread"] == 0.0


def test_scores_agree_with_plain_loops() -> None:
    table = predictions(seed=3)
    for name, score in metrics.scores(table).items():
        squares = absolutes = money = inside = 0.0
        dates = set()
        for row in table.iter_rows(named=True):
            error = 100 * (row[f"iv_{name}"] - row["iv_market"])
            squares, absolutes = squares + error * error, absolutes + abs(error)
            money += (row[f"price_{name}"] - (row["bid"] + row["ask"]) / 2) ** 2
            inside += row["bid"] <= row[f"price_{name}"] <= row["ask"]
            dates.add(row["ts"].date())
        assert score["rows"] == table.height
        assert score["dates"] == len(dates) == 6
        assert score["iv_rmse"] == pytest.approx(math.sqrt(squares / table.height), rel=1e-12)
        assert score["iv_mae"] == pytest.approx(absolutes / table.height, rel=1e-12)
        assert score["price_rmse"] == pytest.approx(math.sqrt(money / table.height), rel=1e-12)
        assert score["inside_spread"] == pytest.approx(inside / table.height, rel=1e-12)


@pytest.mark.parametrize("grouped", [metrics.by_date, metrics.by_bucket], ids=["by_date", "by_bucket"])
def test_pooled_is_the_weighted_mean_of_the_groups(grouped: object) -> None:
    table = predictions(seed=4)
    assert callable(grouped)
    groups = grouped(table)
    for name, score in metrics.scores(table).items():
        mine = groups.filter(pl.col("predictor") == name)
        weight = mine["rows"].to_numpy() / table.height
        assert mine["rows"].sum() == table.height
        for key in ("iv_mae", "price_mae", "inside_spread"):
            assert score[key] == pytest.approx(float(weight @ mine[key].to_numpy()), rel=1e-12)
        for key in ("iv_rmse", "price_rmse"):
            assert score[key] ** 2 == pytest.approx(float(weight @ mine[key].to_numpy() ** 2), rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_rows_changes_nothing(seed: int) -> None:
    table = predictions(seed=5)
    mixed = table.sample(fraction=1.0, shuffle=True, seed=seed)
    assert metrics.scores(mixed) == metrics.scores(table)
    assert metrics.by_date(mixed).equals(metrics.by_date(table))
    assert metrics.by_bucket(mixed).equals(metrics.by_bucket(table))
    assert metrics.shape_violations(mixed).equals(metrics.shape_violations(table))
    assert metrics.diebold_mariano(mixed, "model", "flat") == metrics.diebold_mariano(table, "model", "flat")


def test_diebold_mariano_agrees_with_plain_loops_and_with_a_t_test() -> None:
    table = predictions(dates=11, seed=6)
    sums: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in table.iter_rows(named=True):
        day = sums[row["ts"].date()]
        day[0] += (100 * (row["iv_model"] - row["iv_market"])) ** 2
        day[1] += (100 * (row["iv_flat"] - row["iv_market"])) ** 2
        day[2] += 1
    gains = [(flat - model) / count for model, flat, count in sums.values()]
    n = len(gains)
    mean = sum(gains) / n
    gamma = sum((gain - mean) ** 2 for gain in gains) / n
    plain = mean / math.sqrt(gamma / n)
    corrected = plain * math.sqrt((n + 1 - 2 * 1 + 1 * (1 - 1) / n) / n)
    test = metrics.diebold_mariano(table, "model", "flat")
    assert test.t == pytest.approx(corrected, rel=1e-10)
    assert test.mean_difference == pytest.approx(mean, rel=1e-10)
    assert test.dates == n == 11
    reference = stats.ttest_1samp(gains, 0.0)
    assert test.t == pytest.approx(reference.statistic, rel=1e-10)
    assert test.p == pytest.approx(reference.pvalue, rel=1e-8)


def test_diebold_mariano_is_antisymmetric_and_positive_where_the_first_is_better() -> None:
    table = predictions(dates=8, seed=7)
    forth, back = (metrics.diebold_mariano(table, *pair) for pair in (("model", "flat"), ("flat", "model")))
    assert forth.t == -back.t
    assert forth.mean_difference == -back.mean_difference
    assert forth.p == back.p
    assert metrics.scores(table)["model"]["iv_rmse"] < metrics.scores(table)["flat"]["iv_rmse"]
    assert forth.t > 0


@pytest.mark.parametrize(("dates", "reason"), [(1, "1 date"), (2, "at least 3"), (5, "don't vary")])
def test_no_test_is_a_nan_with_a_reason(dates: int, reason: str) -> None:
    table = with_predictor(with_predictor(predictions(dates=dates), "model", 0.0), "flat", 0.01)
    test = metrics.diebold_mariano(table, "model", "flat")
    assert math.isnan(test.t)
    assert math.isnan(test.p)
    assert test.mean_difference == pytest.approx(1.0)
    assert reason in test.reason
    itself = metrics.diebold_mariano(table, "flat", "flat")
    assert math.isnan(itself.t)
    assert itself.mean_difference == 0.0


def test_a_date_is_one_observation_however_many_snapshots_it_has() -> None:
    table = predictions(dates=4)
    later = table.with_columns(ts=pl.col("ts") + timedelta(hours=1))
    assert metrics.diebold_mariano(pl.concat([table, later]), "model", "flat").dates == 4


def test_buckets_hold_their_lower_edges_and_whole_days() -> None:
    days, forward = np.array([14, 15, 30, 31, 60, 61, 120, 121]), 100.0
    table = pl.DataFrame({"tau": days / 365, "strike": [forward] * 8, "forward": [forward] * 8})
    tenors = metrics.with_buckets(table)
    assert tenors["tenor"].to_list() == [label for label in metrics.TENOR_LABELS for _ in range(2)][1:-1]
    assert set(tenors["moneyness"]) == {"0 to 0.1"}
    at = np.array([-0.5, -0.3, -0.15, -0.05, 0.05, 0.15, 0.4])
    smile = pl.DataFrame({"tau": [0.25] * 7, "strike": forward * np.exp(at * 0.5), "forward": [forward] * 7})
    assert metrics.with_buckets(smile)["moneyness"].to_list() == list(metrics.MONEYNESS_LABELS)


def test_best_baseline_is_never_the_model() -> None:
    pooled = metrics.scores(predictions())
    assert pooled["model"]["iv_rmse"] < pooled["sticky_strike"]["iv_rmse"] < pooled["flat"]["iv_rmse"]
    assert metrics.best_baseline(pooled) == "sticky_strike"
    assert metrics.best_baseline({"model": pooled["model"]}) is None


def test_model_comes_first_and_iv_market_is_no_predictor() -> None:
    table = predictions().select(pl.exclude("iv_model", "price_model"), "iv_model", "price_model")
    assert metrics.predictors(table) == ["model", "sticky_strike", "flat"]


def test_smooth_market_breaks_nothing_and_constant_volatility_neither() -> None:
    table = with_predictor(predictions(), "flat", 0.0).with_columns(iv_flat=pl.lit(0.2))
    shape = metrics.shape_violations(table)
    assert shape["predictor"].to_list() == ["market", *NAMES]
    for name in ("market", "flat"):
        row = shape.row(by_predicate=pl.col("predictor") == name, named=True)
        assert (row["monotone"], row["butterfly"], row["calendar"], row["any"]) == (0, 0, 0, 0)
        assert (row["rows"], row["smiles"]) == (table.height, 18)


def test_one_spike_breaks_convexity_at_its_strike_only() -> None:
    table = predictions(dates=1).sort("expiry", "strike").with_row_index("place")
    spiked = table.with_columns(iv_model=pl.col("iv_market") + pl.when(pl.col("place") == 4).then(0.3).otherwise(0.0))
    shape = metrics.shape_violations(spiked).row(1, named=True)
    assert shape["butterfly"] == 1 / 27  # the spike itself lies above the line through its neighbours
    assert shape["monotone"] > 0
    assert metrics.shape_violations(spiked).row(0, named=True)["any"] == 0.0


def test_calendar_violations_agree_with_plain_loops() -> None:
    table = predictions(dates=2).with_columns(
        iv_model=pl.when(pl.col("tau") > 0.5).then(0.05).otherwise(pl.col("iv_market"))
    )
    broken = 0
    for _, day in table.group_by("ts"):
        expiries = sorted(set(day["expiry"]))
        for earlier, later in pairwise(expiries):
            known = day.filter(pl.col("expiry") == earlier).sort("strike")
            at = np.log(known["strike"].to_numpy() / known["forward"].to_numpy())
            variance = known["iv_model"].to_numpy() ** 2 * known["tau"].to_numpy()
            for row in day.filter(pl.col("expiry") == later).iter_rows(named=True):
                x = math.log(row["strike"] / row["forward"])
                if at[0] <= x <= at[-1]:
                    broken += row["iv_model"] ** 2 * row["tau"] < np.interp(x, at, variance) * (1 - 1e-9)
    assert broken > 0
    assert metrics.shape_violations(table).row(1, named=True)["calendar"] == broken / table.height


def test_dates_and_roots_are_not_mixed_in_the_calendar_check() -> None:
    calm, wild = predictions(dates=1), predictions(dates=1).with_columns(iv_market=pl.col("iv_market") * 3)
    later = wild.with_columns(pl.col("ts", "expiry") + timedelta(days=1))
    same_day = wild.with_columns(root=pl.lit("SPX")).filter(pl.col("tau") > 0.5)
    assert metrics.shape_violations(pl.concat([later, calm])).row(0, named=True)["calendar"] == 0.0
    assert metrics.shape_violations(pl.concat([calm, same_day])).row(0, named=True)["calendar"] == 0.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table.drop("tau", "bid"), SchemaError, "tau, bid"),
        (lambda table: table.drop("price_flat"), SchemaError, "price_flat"),
        (lambda table: table.drop("iv_flat"), SchemaError, "iv_flat"),
        (lambda table: table.clear(), DataError, "no rows"),
        (lambda table: table.with_columns(iv_flat=pl.lit(None, pl.Float64)), DataError, "iv_flat in 180 of 180"),
        (lambda table: table.with_columns(price_model=pl.lit(math.nan)), DataError, "price_model"),
        (lambda table: pl.concat([table, table.head(2)]), DataError, "2 rows repeat"),
    ],
)
def test_unusable_tables_are_refused_by_name(change: object, error: type[Exception], message: str) -> None:
    assert callable(change)
    with pytest.raises(error, match=message):
        metrics.scores(change(predictions()))


def test_unknown_predictor_is_refused() -> None:
    with pytest.raises(DataError, match="no predictor oracle; there are model, sticky_strike, flat"):
        metrics.diebold_mariano(predictions(), "model", "oracle")
