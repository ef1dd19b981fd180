"""Real chains: the default pricing_lstm on SPX, June 2019, as the README's command runs it.

Promises: with three anchors it beats anchored sticky strike and the anchored regression in IV RMSE, and prices better
than anchored sticky strike, at the carried forward or at the anchors'; without anchors it is its prior, the smoothed
last smile, which isn't worse than sticky strike. Figures: docs/LOG.md. The recipe was chosen on dates before June
(decision 004).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import run as whole_run
from pipelines.config import load_config
from pipelines.dataset import FeatureStore
from serving.features import CONTRACT_FEATURES

SPX = Path(__file__).parents[2].parent / "shared/data/spx_options_2019"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not SPX.exists(), reason="../shared/data/spx_options_2019 isn't there"),
]


def scores(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """Scores per predictor of a whole run on June."""
    cfg = load_config([
        "experiment=spx_2019", f"data.path={SPX}", "split.test_from=2019-06-03", f"out={tmp_path / 'out'}",
        f"registry.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}", *overrides,
    ])  # fmt: skip
    whole_run.run(cfg)
    metrics: dict[str, Any] = json.loads((tmp_path / "out/metrics.json").read_text())
    return metrics["test"]


def test_with_anchors(tmp_path: Path) -> None:
    found = scores(tmp_path)
    model, anchored = found["model"], found["anchored_sticky_strike"]
    assert model["dates"] == 17
    assert model["iv_rmse"] < anchored["iv_rmse"]
    assert model["iv_rmse"] < found["regression_anchored"]["iv_rmse"]
    assert model["price_rmse"] < anchored["price_rmse"]
    assert model["price_rmse"] < found["anchored_at_their_forward"]["price_rmse"]


def test_without_anchors(tmp_path: Path) -> None:
    found = scores(tmp_path, "data.anchors=[]")
    store = FeatureStore.open(tmp_path / "out/features")
    test, column = (store.rows["split"] == "test").to_numpy(), CONTRACT_FEATURES.index("prior_volatility")
    model = pl.read_parquet(tmp_path / "out/predictions.parquet")["iv_model"].to_numpy()
    np.testing.assert_allclose(model, store.contracts[test, column], rtol=1e-6, err_msg="no live anchor, no correction")
    assert found["model"]["iv_rmse"] < found["sticky_strike"]["iv_rmse"]
