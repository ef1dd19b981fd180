"""The baselines are the published ones: the June figures of SPX 2019 come out, a refit is a refit, and no label of a
row's own or of a later date reaches its prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import baselines, features, ingest, metrics
from pipelines.baselines import FLOOR, predict_all, regression_columns
from pipelines.config import load_config
from pipelines.dataset import FeatureStore
from serving import black76
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


@pytest.fixture
def rows(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """The tiny run's rows; LightGBM with leaves and trees for so few, so that it learns something at all."""
    monkeypatch.setattr(baselines, "LIGHTGBM_TREES", 20)
    monkeypatch.setitem(baselines.LIGHTGBM, "min_data_in_leaf", 20)
    return FeatureStore.open(tiny_run.out / "features").rows


def test_plain_baselines_are_what_they_say(rows: pl.DataFrame) -> None:
    test = rows.filter(pl.col("split") == "test")
    found = predict_all(rows, seed=7)
    sticky = test["last_volatility"].to_numpy()
    np.testing.assert_array_equal(found["sticky_strike"], sticky)
    np.testing.assert_array_equal(found["anchored_sticky_strike"], sticky + test["shift"].to_numpy())
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


def test_regression_equals_a_naive_refit(rows: pl.DataFrame) -> None:
    test = rows.filter(pl.col("split") == "test")
    found = predict_all(rows, seed=7)["regression_anchored"] - test["last_volatility"].to_numpy()
    np.testing.assert_allclose(found, naive_regression(rows), atol=1e-8)


def test_lightgbm_is_the_same_again(rows: pl.DataFrame) -> None:
    np.testing.assert_array_equal(
        predict_all(rows, seed=7)["lightgbm_anchored"], predict_all(rows, seed=7, threads=1)["lightgbm_anchored"]
    )


@pytest.mark.parametrize("place", [0, 2, 4])
def test_labels_of_the_day_and_later_change_nothing(rows: pl.DataFrame, place: int) -> None:
    """Whatever is known of t only afterwards: volatility, quotes, forward, discount."""
    test = rows.filter(pl.col("split") == "test")
    date = test["ts"].unique().sort()[place]
    late = pl.col("ts") >= date
    changed = rows.with_columns(
        pl.when(late).then(pl.col(name) * 1.7 + 0.1).otherwise(pl.col(name)).alias(name)
        for name in ("iv_market", "bid", "ask", "forward", "discount")
    )
    until = (test["ts"] <= date).to_numpy()
    before, after = predict_all(rows, seed=7), predict_all(changed, seed=7)
    for name, values in before.items():
        np.testing.assert_array_equal(values[until], after[name][until], err_msg=name)


def test_without_anchors_the_names_stay(tmp_path: Path) -> None:
    cfg = market.featured(tmp_path, market.market(), "data.anchors=[]")
    found = predict_all(FeatureStore.open(cfg.folder / "features").rows, seed=7)
    assert set(JUNE) <= set(found)
    np.testing.assert_array_equal(found["anchored_sticky_strike"], found["sticky_strike"])
    assert np.isfinite(found["regression_anchored"]).all()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not SPX.exists(), reason="../shared/data/spx_options_2019 isn't there")
def test_june_of_spx_2019_comes_out(tmp_path: Path) -> None:
    cfg = load_config(["experiment=spx_2019", f"data.path={SPX}", "split.test_from=2019-06-03", f"out={tmp_path}/out"])
    ingest.run(cfg)
    features.run(cfg)
    rows = pl.read_parquet(cfg.folder / "features/rows.parquet")
    test = rows.filter(pl.col("split") == "test")
    assert test["ts"].dt.date().n_unique() == JUNE_DATES
    assert len(test) == pytest.approx(JUNE_ROWS, rel=1e-3)
    columns = [test[name].to_numpy() for name in ("forward_model", "strike", "tau")]
    discount, sign = test["discount_model"].to_numpy(), test["right_sign"].to_numpy()
    table = test.select(
        "ts", "underlying", "root", "expiry", "strike", "tau", "bid", "ask", "forward", "discount", "forward_model",
        "discount_model", "iv_market", right=pl.when(pl.col("right_sign") > 0).then(pl.lit("C")).otherwise(pl.lit("P")),
    )  # fmt: skip
    for name, volatility in predict_all(rows, seed=cfg.seed).items():
        price = black76.price(*columns, volatility, discount, sign)
        table = table.with_columns(pl.Series(f"iv_{name}", volatility), pl.Series(f"price_{name}", price))
    scores = metrics.scores(table)
    for name, published in JUNE.items():
        for found, wanted in zip((scores[name]["iv_rmse"], scores[name]["price_rmse"]), published, strict=True):
            if name in FITTED:
                assert found <= 1.05 * wanted, name
            else:
                assert found == pytest.approx(wanted, rel=0.03), name
