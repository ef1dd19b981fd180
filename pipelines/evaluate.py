"""Stage evaluate: a trained net against the baselines, on dates neither has seen.

In: `OUT/features/`, `OUT/train/MODEL/`. Out, in `OUT/evaluate/MODEL/`: `predictions.parquet` (a row per scored test
quote), `exam.npz` (the same questions for released bytes: pipelines/exam.py), `metrics.json`, `report.html`
(self-contained), `figures/*.png`; for dvc, `scores.json` (metrics) and `by_date.csv` (plots).
Invariants: every predictor is scored on the same rows; prices use the carried forward and the discount last seen.

Run: python -m pipelines.evaluate [key=value ...]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.config import Config, as_json
from pipelines.lineage import lineage


@dataclass(frozen=True)
class EvaluateResult:
    """Errors are IV RMSE in vol points."""

    report: Path
    model_iv_rmse: float
    best_baseline: str
    best_baseline_iv_rmse: float


def run(cfg: Config) -> EvaluateResult:
    """Predict, score, report; raises DataError where an earlier stage's files are missing."""
    import torch

    from pipelines import plots
    from pipelines.dataset import FeatureStore
    from pipelines.report import Report, save_figures, write_report
    from pipelines.tasks import evaluation_module
    from pipelines.trained import load_trained

    if cfg.hardware.threads:
        torch.set_num_threads(cfg.hardware.threads)
    store = FeatureStore.open(cfg.folder / "features")
    trained = load_trained(cfg.folder / "train" / cfg.model.name, cfg.folder / "features")
    done = evaluation_module(cfg.model.name).evaluate(cfg, store, trained)
    folder = cfg.folder / "evaluate" / cfg.model.name
    folder.mkdir(parents=True, exist_ok=True)
    history = pl.read_csv(cfg.folder / "train" / cfg.model.name / "history.csv")
    curve = history.rename({"validation_iv_rmse": "validation_loss"})
    figures = {**done.figures, "training": plots.training(curve)}
    report = Report.of(
        done.predictions, title=f"{cfg.model.name}: against baselines", provenance=cfg.data.provenance,
        summary={"model": cfg.model.name, "layout": cfg.data.layout, "best epoch": trained.description["best_epoch"],
                 "anchors": _anchors(cfg), "test quotes": len(done.predictions)},
        split=split_dates(store), greeks=done.greeks, sanity=done.sanity, tables=done.tables, figures=figures,
        captions=done.captions, configuration_yaml=_yaml(cfg), lineage=lineage(cfg, trained.description),
        notes=done.notes,
    )  # fmt: skip
    done.predictions.write_parquet(folder / "predictions.parquet")
    (folder / "exam.npz").write_bytes(done.exam.to_bytes())
    write_report(folder / "report.html", report)
    save_figures(figures, folder / "figures")
    by_date = report.dates
    assert by_date is not None
    by_date.pivot("predictor", index="date", values="iv_rmse").write_csv(folder / "by_date.csv")
    metrics = summarise(report, done.predictions, cfg) | {
        "measures": dict(done.measures), "trained_config_sha256": trained.description["config_sha256"],
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    best = metrics["best_baseline"]
    own = metrics["test"]["model"]
    scores = {name: own[name] for name in ("iv_rmse", "price_rmse", "inside_spread")}
    scores |= {"best_baseline": best["name"], "ratio_to_best_baseline": own["iv_rmse"] / best["iv_rmse"]}
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return EvaluateResult(folder / "report.html", metrics["test"]["model"]["iv_rmse"], best["name"], best["iv_rmse"])


def split_dates(store: Any) -> dict[str, str]:
    """First and last date and number of dates of each split."""
    out = {}
    for name in ("train", "validation", "test"):
        dates = store.snapshots.filter((pl.col("split") == name) & (pl.col("rows") > 0))["ts"].dt.date()
        out[name] = f"{dates.min()} to {dates.max()}, {dates.n_unique()} dates" if len(dates) else "none"
    return out


def summarise(report: Any, predictions: pl.DataFrame, cfg: Config) -> dict[str, Any]:
    """What `metrics.json` holds; IV errors in vol points, prices in money, shares as fractions."""
    from pipelines.metrics import best_baseline
    from pipelines.tasks.evaluation import IDENTITY

    best = best_baseline(report.scores)
    assert best is not None
    identity = predictions.select(*IDENTITY, "iv_market").write_csv().encode()
    return {
        "model": cfg.model.name,
        "test": {name: dict(score) for name, score in report.scores.items()},
        "best_baseline": {"name": best, "iv_rmse": report.scores[best]["iv_rmse"]},
        "diebold_mariano": {name: _plain(test._asdict()) for name, test in report.tests.items()},
        "arbitrage_violations": report.shape.to_dicts(),
        "greeks": report.greeks.to_dicts() if report.greeks is not None else [],
        "sanity": [dataclasses.asdict(bound) for bound in report.sanity],
        "split": dict(report.split),
        "test_set": hashlib.sha256(identity).hexdigest(),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a test that couldn't be made is null, with its reason beside it."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


def _anchors(cfg: Config) -> str:
    return ", ".join(f"{anchor.tenor_days:g} days" for anchor in cfg.data.anchors) or "none"


def _yaml(cfg: Config) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(as_json(cfg)))


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
