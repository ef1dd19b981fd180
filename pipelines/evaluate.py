"""Stage evaluate: a trained net against the baselines, on dates neither has seen.

In: `OUT/features/`, `OUT/train/MODEL/`. Out, in `OUT/evaluate/MODEL/`: `predictions.parquet` (a row per scored test
quote), `metrics.json`, `report.html` (self-contained), `figures/*.png`; for dvc, `scores.json` (metrics) and
`by_date.csv` (plots).
Invariants: every predictor is scored on the same rows; prices use the carried forward and the discount last seen.

Run: python -m pipelines.evaluate [key=value ...]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.config import Config, as_json
from pipelines.lineage import lineage
from serving import black76

IDENTITY = ["ts", "underlying", "root", "expiry", "strike", "right"]
KEPT = ["tau", "bid", "ask", "forward", "discount", "forward_model", "discount_model", "iv_market"]
SHUFFLED_EPOCHS = 10


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
    from pipelines.trained import load_trained

    if cfg.hardware.threads:
        torch.set_num_threads(cfg.hardware.threads)
    store = FeatureStore.open(cfg.folder / "features")
    trained = load_trained(cfg.folder / "train" / cfg.model.name, cfg.folder / "features")
    predictions = predict_table(cfg, store, trained.net)
    folder = cfg.folder / "evaluate" / cfg.model.name
    folder.mkdir(parents=True, exist_ok=True)
    history = pl.read_csv(cfg.folder / "train" / cfg.model.name / "history.csv")
    figures = plots.all_figures(
        predictions, attention_weights=attention(store, trained.net),
        training_curve=history.rename({"validation_iv_rmse": "validation_loss"}),
    )  # fmt: skip
    report = Report.of(
        predictions, title=f"{cfg.model.name}: fair values against baselines", provenance=cfg.data.provenance,
        summary={"model": cfg.model.name, "layout": cfg.data.layout, "best epoch": trained.description["best_epoch"],
                 "anchors": _anchors(cfg), "test quotes": len(predictions)},
        split=split_dates(store), greeks=greeks_check(predictions), sanity=sanity_bounds(cfg, store, predictions),
        figures=figures, configuration_yaml=_yaml(cfg), lineage=lineage(cfg, trained.description),
        notes=["IV in vol points; a predictor's price uses the carried forward and the discount last seen."],
    )  # fmt: skip
    predictions.write_parquet(folder / "predictions.parquet")
    write_report(folder / "report.html", report)
    save_figures(figures, folder / "figures")
    by_date = report.dates
    assert by_date is not None
    by_date.pivot("predictor", index="date", values="iv_rmse").write_csv(folder / "by_date.csv")
    metrics = summarise(report, predictions, cfg)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    best = metrics["best_baseline"]
    own = metrics["test"]["model"]
    scores = {name: own[name] for name in ("iv_rmse", "price_rmse", "inside_spread")}
    scores |= {"best_baseline": best["name"], "ratio_to_best_baseline": own["iv_rmse"] / best["iv_rmse"]}
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return EvaluateResult(folder / "report.html", metrics["test"]["model"]["iv_rmse"], best["name"], best["iv_rmse"])


def predict_table(cfg: Config, store: Any, net: Any) -> pl.DataFrame:
    """One row per scored test quote: identity, labels, and a volatility and a price per predictor."""
    from pipelines.baselines import predict_all
    from pipelines.fit import predict

    test = store.rows.filter(pl.col("split") == "test").with_columns(
        pl.col("ts", "expiry").dt.replace_time_zone("UTC"),
        right=pl.when(pl.col("right_sign") > 0).then(pl.lit("C")).otherwise(pl.lit("P")),
    )
    volatilities = {
        "model": predict(net, store, "test"),
        **predict_all(store.rows, seed=cfg.seed, threads=cfg.hardware.threads or 1),
    }
    columns = []
    for name, volatility in volatilities.items():
        columns += [pl.Series(f"iv_{name}", volatility), pl.Series(f"price_{name}", _price(test, volatility))]
    table: pl.DataFrame = test.select(*IDENTITY, *KEPT).with_columns(columns)
    return table


def _price(test: pl.DataFrame, volatility: np.ndarray) -> np.ndarray:
    forward, strike, tau = (test[name].to_numpy() for name in ("forward_model", "strike", "tau"))
    discount, right = test["discount_model"].to_numpy(), test["right_sign"].to_numpy()
    return black76.price(forward, strike, tau, volatility, discount, right)


def attention(store: Any, net: Any) -> np.ndarray:
    """Attention weights of the test windows, [dates, T]."""
    import torch

    windows = torch.from_numpy(np.stack([store.window(int(place)) for place in store.places("test")]))
    with torch.no_grad():
        weights: np.ndarray = net.attention(net.lstm(windows)[0]).numpy()
    return weights


def greeks_check(predictions: pl.DataFrame, rows: int = 200) -> pl.DataFrame:
    """Greeks by automatic differentiation against central differences, and against the host's formulas, on test rows.

    Errors are relative to the largest magnitude of the Greek among the rows.
    """
    import torch

    from models.black76 import black76_greeks, black76_price

    sample = predictions[np.unique(np.linspace(0, len(predictions) - 1, rows).astype(int)).tolist()]
    names = ("forward_model", "strike", "tau", "iv_model", "discount_model")
    sign = np.where(sample["right"].to_numpy() == "C", 1.0, -1.0)
    f, k, t, v, d = (torch.tensor(sample[name].to_numpy(), dtype=torch.float64) for name in names)
    w = torch.tensor(sign, dtype=torch.float64)
    automatic = black76_greeks(f, k, t, v, d, w)
    rate = -torch.log(d) / t

    def price(forward: Any = f, tau: Any = t, volatility: Any = v) -> Any:
        return black76_price(forward, k, tau, volatility, torch.exp(-rate * tau), w)

    step_f, step_v, step_t = 1e-4 * f, 1e-5, 1e-4 * t
    up, down = price(forward=f + step_f), price(forward=f - step_f)
    numeric = {
        "delta": (up - down) / (2 * step_f), "gamma": (up - 2 * price() + down) / step_f**2,
        "vega": (price(volatility=v + step_v) - price(volatility=v - step_v)) / (2 * step_v),
        "theta": -(price(tau=t + step_t) - price(tau=t - step_t)) / (2 * step_t),
    }  # fmt: skip
    host = black76.value(f.numpy(), k.numpy(), t.numpy(), v.numpy(), d.numpy(), sign)
    out = []
    for name, difference in numeric.items():
        scale = float(automatic[name].abs().max())
        out.append({
            "greek": name,
            "against_finite_differences": float((automatic[name] - difference).abs().max()) / scale,
            "against_the_host": float(np.abs(automatic[name].numpy() - getattr(host, name)).max()) / scale,
        })  # fmt: skip
    return pl.DataFrame(out)


def sanity_bounds(cfg: Config, store: Any, predictions: pl.DataFrame) -> list[Any]:
    """A run on shuffled labels, which must be worse than the model, and the leaked quote, which must be better."""
    from pipelines.fit import fit, predict
    from pipelines.report import SanityBound

    quiet = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, resume=False))
    with tempfile.TemporaryDirectory() as folder:
        shuffled = fit(quiet, store, Path(folder), epochs=min(cfg.trainer.epochs, SHUFFLED_EPOCHS), shuffle_labels=True)
    market = predictions["iv_market"].to_numpy()
    error = 100.0 * (predict(shuffled.net, store, "test") - market)
    prior = 100.0 * float(np.sqrt(np.mean((predictions["iv_anchored_sticky_strike"].to_numpy() - market) ** 2)))
    leaked = _price(
        predictions.with_columns(right_sign=pl.when(pl.col("right") == "C").then(1.0).otherwise(-1.0)), market
    )
    inside = float(((leaked >= predictions["bid"].to_numpy()) & (leaked <= predictions["ask"].to_numpy())).mean())
    return [
        SanityBound("shuffled labels", float(np.sqrt(np.mean(error**2))), "worse",
                    "the same net trained on corrections permuted among the quotes learns nothing: it stays near its "
                    f"prior ({prior:.3f})"),
        SanityBound("leaked-quote oracle", 0.0, "better",
                    f"today's own volatility, priced with the carried forward: {100 * inside:.1f} % inside the spread; "
                    "no predictor can hope for more"),
    ]  # fmt: skip


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

    best = best_baseline(report.scores)
    assert best is not None
    identity = predictions.select(*IDENTITY, "iv_market").write_csv().encode()
    return {
        "model": cfg.model.name,
        "test": {name: dict(score) for name, score in report.scores.items()},
        "best_baseline": {"name": best, "iv_rmse": report.scores[best]["iv_rmse"]},
        "diebold_mariano": {name: _plain(test._asdict()) for name, test in report.tests.items()},
        "arbitrage_violations": report.shape.to_dicts(),
        "greeks": report.greeks.to_dicts(),
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
