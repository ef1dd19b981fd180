"""How the pricing task is evaluated: fair volatilities of the test quotes against the baselines, and their shape.

In: a `FeatureStore`, a trained net. Out: `Evaluation`. Invariants: every predictor is scored on the same rows;
baselines are priced with the carried forward, the net (and the baselines of SAME_FORWARD) with the one that the
anchors' pairs have put right, as a host prices; all with the discount last seen.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from models.black76 import black76_greeks, black76_price
from models.pricing import PricingNet
from pipelines import intervals, plots
from pipelines.baselines import SAME_FORWARD, predict_all
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.exam_questions import pricing_exam
from pipelines.fit import fit
from pipelines.report import SanityBound
from pipelines.shape_surfaces import shape_table, standard_predictors
from pipelines.tasks.evaluation import IDENTITY, Evaluation
from pipelines.tasks.pricing import PricingTask, predict, prior_volatility
from pipelines.trained import Trained
from serving import black76

KEPT = ["tau", "bid", "ask", "forward", "discount", "forward_model", "forward_carried", "discount_model", "iv_market"]
SHUFFLED_EPOCHS = 10
SHAPE_SNAPSHOTS = 20  # test snapshots whose shape is looked at, evenly spread
SHAPE_TITLE = "shape on a dense grid: shares of nodes that offer an arbitrage, and how much"


def evaluate(cfg: Config, store: FeatureStore, trained: Trained) -> Evaluation:
    """Predictions, attention, Greeks, sanity bounds."""
    net = trained.net
    assert isinstance(net, PricingNet)
    predictions = predict_table(cfg, store, net)
    around = intervals.report(cfg, store, trained.unseen, predictions)
    predictors = standard_predictors(store, net)
    shape = shape_table(store, cfg.folder / "ingest" / "quotes.parquet", predictors, most=SHAPE_SNAPSHOTS)
    exam = pricing_exam(cfg.folder / "features", store, predictions, priced_like_the_model=SAME_FORWARD)
    return Evaluation(
        predictions=predictions, exam=exam,
        figures=plots.all_figures(predictions, attention_weights=attention(store, net)),
        sanity=sanity_bounds(cfg, store, predictions), greeks=greeks_check(predictions),
        tables={**around.tables, SHAPE_TITLE: shape}, measures={**around.measures, "shape": shape.to_dicts()},
        notes=["IV in vol points. Prices use the discount last seen and the carried forward; the model's, and those of "
               f"{' and '.join(SAME_FORWARD)}, the forward that the anchors' pairs imply.", *around.notes],
    )  # fmt: skip


def test_rows(store: FeatureStore) -> pl.DataFrame:
    """Scored quotes of the test dates, with times in UTC and `right` as C or P."""
    return store.rows.filter(pl.col("split") == "test").with_columns(
        pl.col("ts", "expiry").dt.replace_time_zone("UTC"),
        right=pl.when(pl.col("right_sign") > 0).then(pl.lit("C")).otherwise(pl.lit("P")),
    )


def predict_table(cfg: Config, store: FeatureStore, net: PricingNet) -> pl.DataFrame:
    """One row per scored test quote: identity, labels, and a volatility and a price per predictor."""
    test = test_rows(store)
    model = predict(net, store, "test")
    own = [pl.Series("iv_model", model), pl.Series("price_model", price(test, model, "forward_model"))]
    table: pl.DataFrame = test.select(*IDENTITY, *KEPT).with_columns(own + baseline_columns(cfg, store, test))
    return table


def baseline_columns(cfg: Config, store: FeatureStore, test: pl.DataFrame) -> list[pl.Series]:
    """A volatility and a price of every test row per baseline."""
    columns = []
    for name, volatility in predict_all(store, seed=cfg.seed, threads=cfg.hardware.threads or 1).items():
        forward = "forward_model" if name in SAME_FORWARD else "forward_carried"
        columns += [pl.Series(f"iv_{name}", volatility), pl.Series(f"price_{name}", price(test, volatility, forward))]
    return columns


def price(test: pl.DataFrame, volatility: np.ndarray, forward: str) -> np.ndarray:
    """Price [N] in money of every test row at `volatility` [N], with the forward of that column."""
    forwards, strike, tau = (test[name].to_numpy() for name in (forward, "strike", "tau"))
    right = np.where(test["right"].to_numpy() == "C", 1.0, -1.0)
    return black76.price(forwards, strike, tau, volatility, test["discount_model"].to_numpy(), right)


def attention(store: FeatureStore, net: PricingNet) -> np.ndarray:
    """Attention weights of the test windows, [dates, T]."""
    windows = torch.from_numpy(np.stack([store.window(int(place)) for place in store.places("test")]))
    with torch.no_grad():
        weights: np.ndarray = net.attention(windows).numpy()
    return weights


def greeks_check(predictions: pl.DataFrame, rows: int = 200) -> pl.DataFrame:
    """Greeks by automatic differentiation against central differences, and against the host's formulas, on test rows.

    Errors are relative to the largest magnitude of the Greek among the rows.
    """
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


def sanity_bounds(cfg: Config, store: FeatureStore, predictions: pl.DataFrame) -> list[SanityBound]:
    """A run on shuffled labels, which must be worse than the model, and the leaked quote, which must be better."""
    quiet = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, resume=False))
    task = PricingTask(quiet, store)
    task.shuffle_labels()
    with tempfile.TemporaryDirectory() as folder:
        shuffled = fit(quiet, store, Path(folder), epochs=min(cfg.trainer.epochs, SHUFFLED_EPOCHS), task=task)
    market = predictions["iv_market"].to_numpy()
    error = 100.0 * (predict(shuffled.net, store, "test") - market)
    untrained = prior_volatility(store)[(store.rows["split"] == "test").to_numpy()]
    prior = 100.0 * float(np.sqrt(np.mean((untrained - market) ** 2)))
    leaked = price(predictions, market, "forward_model")
    inside = float(((leaked >= predictions["bid"].to_numpy()) & (leaked <= predictions["ask"].to_numpy())).mean())
    return [
        SanityBound("shuffled labels", float(np.sqrt(np.mean(error**2))), "worse",
                    "the same net trained on corrections permuted among the quotes learns nothing: it stays near its "
                    f"prior ({prior:.3f})"),
        SanityBound("leaked-quote oracle", 0.0, "better",
                    "today's own volatility, priced with the anchors' forward: "
                    f"{100 * inside:.1f} % inside the spread; no predictor can hope for more"),
    ]  # fmt: skip
