"""The arithmetic of one cell of the accuracy benchmark: fit a subject, predict the test dates.

In: a subject (a family of nets, or BASELINES), its configuration, the features in `cfg.folder`. Out: a table with one
row per scored quote of the test dates, in the order of the features' rows: the quote's identity, and `iv_NAME`
[fraction] and `price_NAME` [money per unit of the underlying] of each predictor; for BASELINES the labels too.
Invariants: nets are fitted as the train stage fits them, with `cfg.seed`; baselines are those of the evaluation; prices
are the evaluation's (docs/conventions.md, "Prices"), so one table of both equals the
evaluation's own (tests/benchmarks/test_accuracy.py).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from benchmarks.accuracy_cases import BASELINES
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.tasks.evaluation import IDENTITY
from pipelines.tasks.pricing import predict
from pipelines.tasks.pricing_evaluation import KEPT, baseline_columns, price, test_rows
from pipelines.trust import fit_trusted


def predictions(subject: str, cfg: Config, checkpoints: Path) -> pl.DataFrame:
    """See the module; `checkpoints` is an empty folder for the fit."""
    store = FeatureStore.open(cfg.folder / "features")
    test = test_rows(store)
    if subject == BASELINES:
        return test.select(*IDENTITY, *KEPT).with_columns(baseline_columns(cfg, store, test))
    volatility = predict(fit_trusted(cfg, store, checkpoints).net, store, "test")
    prices = price(test, volatility, "forward_model")
    return test.select(IDENTITY).with_columns(
        pl.Series(f"iv_{subject}", volatility), pl.Series(f"price_{subject}", prices)
    )
