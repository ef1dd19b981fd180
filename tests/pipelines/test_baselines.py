"""The baselines are the published ones: the June figures of SPX 2019 come out, a refit is a refit, and no label of a
row's own or of a later date reaches its prediction."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import baselines, features, ingest, metrics
from pipelines.baselines import FLOOR, predict_all, regression_columns
from pipelines.config import load_config
from pipelines.dataset import FeatureStore
from pipelines.tasks import pricing_evaluation
from pipelines.tasks.evaluation import IDENTITY
from pipelines.tasks.pricing_evaluation import KEPT, baseline_columns
from serving.features import CONTRACT_FEATURES
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

SPX = Path(__file__).parents[2].parent / "shared/data/spx_options_2019/spx_options_20190425_20190628.parquet"
JUNE_DATES, JUNE_ROWS = 17, 72_255
JUNE = {  # IV RMSE in vol points, price RMSE in money
    "flat": (5.28, 13.7), "sticky_moneyness": (0.597, 1.61), "sticky_strike": (0.492, 0.773),
    "anchored_sticky_strike": (0.389, 0.367), "regression_anchored": (0.355, 0.345),
    "lightgbm_anchored": (0.347, 0.339),
}  # fmt: skip
FITTED = ("regression_anchored", "lightgbm_anchored")
BOOSTED = ("lightgbm_anchored", "lightgbm_same_inputs")


@pytest.fixture
def store(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """The tiny run's features; LightGBM with leaves and trees for so few, so that it learns something at all."""
    for trees in ("LIGHTGBM_TREES", "SAME_INPUTS_TREES"):
        monkeypatch.setattr(baselines, trees, 20)
    for settings in (baselines.LIGHTGBM, baselines.SAME_INPUTS):
        monkeypatch.setitem(settings, "min_data_in_leaf", 20)
    return FeatureStore.open(tiny_run.out / "features")


@pytest.fixture
def rows(store: FeatureStore) -> pl.DataFrame:
    return store.rows


def with_columns(store: FeatureStore, where: pl.Expr, *names: str) -> FeatureStore:
    """The store with other values of these columns where `where` holds."""
    other = [pl.when(where).then(pl.col(name) * 1.7 + 0.1).otherwise(pl.col(name)).alias(name) for name in names]
    return dataclasses.replace(store, rows=store.rows.with_columns(other))


def test_plain_baselines_are_what_they_say(store: FeatureStore) -> None:
    test = store.rows.filter(pl.col("split") == "test")
    found = predict_all(store, seed=7)
    sticky = test["last_volatility"].to_numpy()
    np.testing.assert_array_equal(found["sticky_strike"], sticky)
    for name in ("anchored_sticky_strike", "anchored_at_their_forward"):
        np.testing.assert_array_equal(found[name], sticky + test["shift"].to_numpy())
    assert set(baselines.SAME_FORWARD) < set(found)
    flat = test.with_columns(found=pl.Series(found["flat"]))
    for smile in flat.partition_by("ts", "underlying", "root", "expiry"):
        assert smile["found"].unique().to_list() == [smile["last_volatility"].median()]
    assert all(len(values) == len(test) and (values >= FLOOR).all() for values in found.values())
    realised = found["black_scholes_realised"]
    assert len(np.unique(realised)) == test["ts"].n_unique()


def test_sticky_moneyness_moves_the_smile_with_the_forward(rows: pl.DataFrame) -> None:
    """Where the underlying rose, a strike is deeper below the forward, and the skew makes it dearer."""
    moved = rows.filter(pl.col("log_return").abs() > 0.01)
    rise = (moved["last_at_moneyness"] - moved["last_volatility"]).to_numpy() * np.sign(moved["log_return"].to_numpy())
    assert (rise > 0).mean() > 0.7


def naive_regression(rows: pl.DataFrame) -> np.ndarray:
    """Refitted for each test date with lstsq on all earlier rows, weights under the root."""
    columns = regression_columns(rows)
    target = (rows["iv_market"] - rows["last_volatility"]).to_numpy()
    dates = rows["ts"].dt.date().to_numpy()
    out = np.full(len(rows), np.nan)
    for date in np.unique(dates[(rows["split"] == "test").to_numpy()]):
        before, today = dates < date, dates == date
        weight = np.array([1.0 / target[dates == day].std() for day in dates[before]])
        root = np.sqrt(weight)
        fitted = np.linalg.lstsq(columns[before] * root[:, None], target[before] * root, rcond=None)[0]
        out[today] = columns[today] @ fitted
    return out[(rows["split"] == "test").to_numpy()]


def test_regression_equals_a_naive_refit(store: FeatureStore) -> None:
    test = store.rows.filter(pl.col("split") == "test")
    found = predict_all(store, seed=7)["regression_anchored"] - test["last_volatility"].to_numpy()
    np.testing.assert_allclose(found, naive_regression(store.rows), atol=1e-8)


@pytest.mark.parametrize("name", BOOSTED)
def test_lightgbm_is_the_same_again(store: FeatureStore, name: str) -> None:
    np.testing.assert_array_equal(predict_all(store, seed=7)[name], predict_all(store, seed=7, threads=1)[name])


@pytest.mark.parametrize("name", BOOSTED)
def test_lightgbm_sees_no_label_of_a_test_date(store: FeatureStore, name: str) -> None:
    """Of any test date, earlier ones too: it is fitted once. What it is fitted on shows."""
    labels = ("iv_market", "bid", "ask", "forward", "discount")
    before = predict_all(store, seed=7)[name]
    test = pl.col("split") == "test"
    np.testing.assert_array_equal(before, predict_all(with_columns(store, test, *labels), seed=7)[name])
    for split in ("train", "validation"):
        other = predict_all(with_columns(store, pl.col("split") == split, "iv_market"), seed=7)[name]
        assert not np.allclose(before, other, atol=1e-4), split


def test_same_inputs_sees_no_features_of_other_test_dates(store: FeatureStore) -> None:
    """Features of the dates after the first test date, and their order, don't reach it."""
    test = (store.rows["split"] == "test").to_numpy()
    times = store.rows["ts"].to_numpy()
    first = times[test].min()
    contracts = np.array(store.contracts)
    contracts[times > first] = 1.3 * contracts[times > first][::-1] + 0.05
    other = predict_all(dataclasses.replace(store, contracts=contracts), seed=7)["lightgbm_same_inputs"]
    found = predict_all(store, seed=7)["lightgbm_same_inputs"]
    today = times[test] == first
    np.testing.assert_array_equal(found[today], other[today])
    assert not np.allclose(found[~today], other[~today], atol=1e-4)


def test_same_inputs_corrects_the_nets_prior_by_the_nets_features(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns what is missing to the prior, from every column; without a tree it is the prior plus a constant."""
    prior = store.contracts[:, CONTRACT_FEATURES.index("prior_volatility")].astype(float)
    seen: list[tuple[np.ndarray, ...]] = []
    boosted = baselines._boosted

    def watched(rows: pl.DataFrame, columns: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append((columns, *rest[:2]))
        return boosted(rows, columns, *rest)

    monkeypatch.setattr(baselines, "_boosted", watched)
    monkeypatch.setitem(baselines.SAME_INPUTS, "min_data_in_leaf", 10**6)
    correction = predict_all(store, seed=7)["lightgbm_same_inputs"] - prior[(store.rows["split"] == "test").to_numpy()]
    np.testing.assert_allclose(correction, correction[0], atol=1e-12)
    assert 0 < abs(correction[0]) < 0.01
    columns, target, weight = seen[-1]
    np.testing.assert_array_equal(columns, store.contracts)
    np.testing.assert_array_equal(target, store.rows["iv_market"].to_numpy() - prior)
    times = store.rows["ts"].to_numpy()
    for time in np.unique(times):  # the weight of a day: its prior's error to the power -3
        today = times == time
        error = np.sqrt(np.mean(target[today] ** 2))
        np.testing.assert_allclose(weight[today], error**-3.0, rtol=1e-9)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_labels_of_the_day_and_later_change_nothing(store: FeatureStore, place: int) -> None:
    """Whatever is known of t only afterwards: volatility, quotes, forward, discount."""
    test = store.rows.filter(pl.col("split") == "test")
    date = test["ts"].unique().sort()[place]
    changed = with_columns(store, pl.col("ts") >= date, "iv_market", "bid", "ask", "forward", "discount")
    until = (test["ts"] <= date).to_numpy()
    before, after = predict_all(store, seed=7), predict_all(changed, seed=7)
    for name, values in before.items():
        np.testing.assert_array_equal(values[until], after[name][until], err_msg=name)


def test_without_anchors_the_names_stay(tmp_path: Path) -> None:
    cfg = market.featured(tmp_path, market.market(), "data.anchors=[]")
    found = predict_all(FeatureStore.open(cfg.folder / "features"), seed=7)
    assert {*JUNE, *baselines.SAME_FORWARD} <= set(found)
    np.testing.assert_array_equal(found["anchored_sticky_strike"], found["sticky_strike"])
    assert np.isfinite(found["regression_anchored"]).all()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not SPX.exists(), reason="../shared/data/spx_options_2019 isn't there")
def test_june_of_spx_2019_comes_out(tmp_path: Path) -> None:
    cfg = load_config(["experiment=spx_2019", f"data.path={SPX}", "split.test_from=2019-06-03", f"out={tmp_path}/out"])
    ingest.run(cfg)
    features.run(cfg)
    store = FeatureStore.open(cfg.folder / "features")
    test = pricing_evaluation.test_rows(store)
    assert test["ts"].dt.date().n_unique() == JUNE_DATES
    assert len(test) == pytest.approx(JUNE_ROWS, rel=1e-3)
    table = test.select(*IDENTITY, *KEPT).with_columns(baseline_columns(cfg, store, test))
    scores = metrics.scores(table)
    for name, published in JUNE.items():
        for found, wanted in zip((scores[name]["iv_rmse"], scores[name]["price_rmse"]), published, strict=True):
            if name in FITTED:
                assert found <= 1.05 * wanted, name
            else:
                assert found == pytest.approx(wanted, rel=0.03), name
