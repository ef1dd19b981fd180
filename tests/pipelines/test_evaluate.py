"""What evaluate writes can be checked from outside: the columns, the prices, every number of metrics.json."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import evaluate, train
from pipelines.baselines import predict_all
from pipelines.dataset import FeatureStore
from pipelines.tasks import pricing_evaluation
from pipelines.tasks.pricing_evaluation import greeks_check
from serving import black76, schema
from serving.errors import DataError
from serving.features import CONTRACT_FEATURES
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

REQUIRED = [
    "ts", "underlying", "root", "expiry", "strike", "right", "tau", "bid", "ask", "forward", "discount",
    "forward_model", "forward_carried", "discount_model", "iv_market",
]  # fmt: skip
PREDICTORS = [
    "model", "flat", "sticky_moneyness", "sticky_strike", "black_scholes_realised", "anchored_sticky_strike",
    "regression_anchored", "lightgbm_anchored", "anchored_at_their_forward", "lightgbm_same_inputs",
]  # fmt: skip
AT_THE_ANCHORS_FORWARD = ("model", "anchored_at_their_forward", "lightgbm_same_inputs")


@pytest.fixture
def predictions(tiny_run: TinyRun) -> pl.DataFrame:
    return pl.read_parquet(tiny_run.out / "predictions.parquet")


@pytest.fixture
def metrics(tiny_run: TinyRun) -> dict[str, Any]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} isn't JSON")

    found: dict[str, Any] = json.loads((tiny_run.out / "metrics.json").read_text(), parse_constant=refuse)
    return found


def test_columns_are_exactly_those_promised(predictions: pl.DataFrame) -> None:
    pairs = [f"{kind}_{name}" for name in PREDICTORS for kind in ("iv", "price")]
    assert sorted(predictions.columns) == sorted([*REQUIRED, *pairs])
    assert predictions.null_count().sum_horizontal().item() == 0
    for column in predictions.columns:
        if predictions[column].dtype == pl.Float64:
            assert predictions[column].is_finite().all(), column
    assert {str(predictions[name].dtype) for name in ("ts", "expiry")} == {"Datetime(time_unit='ns', time_zone='UTC')"}
    assert set(predictions["right"]) == {"C", "P"}
    assert not predictions.select(schema.IDENTITY).is_duplicated().any()


def test_rows_are_the_test_rows_of_the_features(tiny_run: TinyRun, predictions: pl.DataFrame) -> None:
    rows = FeatureStore.open(tiny_run.out / "features").rows.filter(pl.col("split") == "test")
    assert len(rows) == len(predictions)
    for name in ("strike", "iv_market", "forward", "forward_model", "forward_carried", "tau"):
        assert rows[name].equals(predictions[name]), name
    assert predictions["ts"].min().isoformat()[:10] >= market.TEST_FROM


@pytest.mark.parametrize("name", PREDICTORS)
def test_prices_follow_from_volatility_and_the_predictors_forward(predictions: pl.DataFrame, name: str) -> None:
    """The model and two baselines take the forward that the anchors put right, all others the carried one."""
    forward = "forward_model" if name in AT_THE_ANCHORS_FORWARD else "forward_carried"
    sign = np.where(predictions["right"].to_numpy() == "C", 1.0, -1.0)
    columns = [predictions[column].to_numpy() for column in (forward, "strike", "tau", f"iv_{name}", "discount_model")]
    np.testing.assert_allclose(predictions[f"price_{name}"].to_numpy(), black76.price(*columns, sign), rtol=1e-12)


def test_anchored_at_their_forward_differs_in_the_forward_alone(predictions: pl.DataFrame) -> None:
    """The same volatilities; every price moves with the forward, calls up where it is higher and puts down."""
    np.testing.assert_array_equal(
        predictions["iv_anchored_at_their_forward"].to_numpy(), predictions["iv_anchored_sticky_strike"].to_numpy()
    )
    apart = (predictions["forward_model"] - predictions["forward_carried"]).to_numpy()
    assert (np.abs(apart) > 1e-6).all(), "the days' carry alone keeps them apart on this market"
    moved = (predictions["price_anchored_at_their_forward"] - predictions["price_anchored_sticky_strike"]).to_numpy()
    sign = np.where(predictions["right"].to_numpy() == "C", 1.0, -1.0)
    np.testing.assert_array_equal(np.sign(moved), np.sign(sign * apart))
    misses = predictions.group_by("ts").agg(
        ((pl.col(name) / pl.col("forward")).log().abs().mean()).alias(name)
        for name in ("forward_model", "forward_carried")
    )
    assert misses["forward_model"].mean() < misses["forward_carried"].mean(), "nearer to the forwards of t"


def test_labels_follow_from_the_quotes(predictions: pl.DataFrame) -> None:
    sign = np.where(predictions["right"].to_numpy() == "C", 1.0, -1.0)
    columns = [predictions[column].to_numpy() for column in ("forward", "strike", "tau", "iv_market", "discount")]
    mid = 0.5 * (predictions["bid"] + predictions["ask"]).to_numpy()
    np.testing.assert_allclose(black76.price(*columns, sign), mid, rtol=1e-7)
    above = predictions["strike"].to_numpy() >= predictions["forward"].to_numpy()
    np.testing.assert_array_equal(sign > 0, above)  # out of the money


def test_metrics_recompute_from_the_predictions(predictions: pl.DataFrame, metrics: dict[str, Any]) -> None:
    assert set(metrics["test"]) == set(PREDICTORS)
    mid = 0.5 * (predictions["bid"] + predictions["ask"])
    for name, score in metrics["test"].items():
        error = 100 * (predictions[f"iv_{name}"] - predictions["iv_market"]).to_numpy()
        price = predictions[f"price_{name}"]
        assert score["iv_rmse"] == pytest.approx(float(np.sqrt(np.mean(error**2))), rel=1e-9)
        assert score["iv_mae"] == pytest.approx(float(np.mean(np.abs(error))), rel=1e-9)
        assert score["price_rmse"] == pytest.approx(float(np.sqrt(((price - mid) ** 2).mean())), rel=1e-9)
        inside = ((price >= predictions["bid"]) & (price <= predictions["ask"])).mean()
        assert score["inside_spread"] == pytest.approx(inside, rel=1e-9)
        assert (score["rows"], score["dates"]) == (len(predictions), 5)
    baselines = {name: score["iv_rmse"] for name, score in metrics["test"].items() if name != "model"}
    best = min(baselines, key=lambda name: baselines[name])
    assert metrics["best_baseline"] == {"name": best, "iv_rmse": baselines[best]}
    assert len(metrics["test_set"]) == 64
    assert "5 dates" in metrics["split"]["test"]


def test_sanity_bounds_and_greeks(tiny_run: TinyRun, metrics: dict[str, Any]) -> None:
    model = metrics["test"]["model"]["iv_rmse"]
    bounds = {bound["name"]: bound for bound in metrics["sanity"]}
    store = FeatureStore.open(tiny_run.out / "features")
    column, test = CONTRACT_FEATURES.index("prior_volatility"), (store.rows["split"] == "test").to_numpy()
    error = 100 * (store.contracts[test, column].astype(float) - store.rows["iv_market"].to_numpy()[test])
    prior = float(np.sqrt(np.mean(error**2)))
    assert f"its prior ({prior:.3f})" in bounds["shuffled labels"]["note"]
    assert model > bounds["leaked-quote oracle"]["iv_rmse"] == 0.0
    assert bounds["shuffled labels"]["iv_rmse"] > 0.95 * prior, (
        "shuffled corrections teach nothing about the test dates"
    )
    assert {row["greek"] for row in metrics["greeks"]} == {"delta", "gamma", "vega", "theta"}
    for row in metrics["greeks"]:
        assert row["against_finite_differences"] < 1e-5
        assert row["against_the_host"] < 1e-12


def test_a_wrong_greek_would_be_seen(predictions: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pricing_evaluation.black76_greeks
    monkeypatch.setattr(
        pricing_evaluation,
        "black76_greeks",
        lambda *a: {k: v * (1.01 if k == "theta" else 1) for k, v in right(*a).items()},
    )
    errors = {row["greek"]: row for row in greeks_check(predictions).to_dicts()}
    assert errors["theta"]["against_finite_differences"] > 1e-3
    assert errors["delta"]["against_finite_differences"] < 1e-5


def test_report_and_by_date(tiny_run: TinyRun, predictions: pl.DataFrame) -> None:
    folder = tiny_run.out / "evaluate/pricing_lstm"
    by_date = pl.read_csv(folder / "by_date.csv")
    assert by_date["date"].to_list() == sorted({str(ts.date()) for ts in predictions["ts"]})
    assert set(PREDICTORS) <= set(by_date.columns)
    page = (tiny_run.out / "report.html").read_text()
    assert page == (folder / "report.html").read_text()
    for word in ("shuffled labels", "test_from", "quotes sha256", tiny_run.cfg.data.provenance):
        assert word in html.unescape(page)
    assert list((folder / "figures").glob("*.png"))


def test_missing_or_foreign_training_is_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    cfg = market.featured(tmp_path, market.market(seed=6))
    with pytest.raises(DataError, match=r"run python -m pipelines\.train"):
        evaluate.run(cfg)
    (cfg.folder / "train").symlink_to(tiny_run.out / "train")
    with pytest.raises(DataError, match="was trained on other features"):
        evaluate.run(cfg)
    assert not (cfg.folder / "evaluate").exists()


@pytest.mark.slow
def test_one_test_date_without_anchors_gives_strict_json(tmp_path: Path) -> None:
    """Tests across dates aren't possible then: null with a reason, not NaN."""
    cfg = market.featured(
        tmp_path, market.market(), "data.anchors=[]", "split.test_from=2024-02-02", "trainer.epochs=1"
    )
    train.run(cfg)
    result = evaluate.run(cfg)
    text = (cfg.folder / "evaluate/pricing_lstm/metrics.json").read_text()
    assert "NaN" not in text
    found = json.loads(text)
    assert found["diebold_mariano"]["sticky_strike"]["p"] is None
    assert found["diebold_mariano"]["sticky_strike"]["reason"]
    assert found["test"]["anchored_sticky_strike"] == found["test"]["sticky_strike"]
    assert found["test"]["anchored_at_their_forward"] == found["test"]["sticky_strike"], "no anchor, no other forward"
    assert math.isfinite(result.model_iv_rmse)
    assert result.report.exists()


def test_lightgbm_is_seeded_by_the_run(tiny_run: TinyRun, predictions: pl.DataFrame) -> None:
    again = predict_all(FeatureStore.open(tiny_run.out / "features"), seed=tiny_run.cfg.seed)
    for name in ("lightgbm_anchored", "lightgbm_same_inputs"):
        np.testing.assert_array_equal(again[name], predictions[f"iv_{name}"].to_numpy(), err_msg=name)
