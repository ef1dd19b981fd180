"""How the surface task is evaluated: completion of sparse test surfaces, regimes, and faults found.

In: a `FeatureStore`, a trained net. Out: `Evaluation`: a row per hidden quote of the test dates with every predictor's
volatility.
Invariants: every predictor completes the same hidden quotes from the same visible ones; what is hidden depends on the
seed and the snapshot; prices use the forward and discount of the snapshot itself, which are taken as known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.surface_vae import SurfaceVAE
from pipelines import metrics, plots, plots_surface
from pipelines.completion import Blend, alone, complete, draw_hidden, fit_blend
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.exam_questions import surface_exam
from pipelines.plots_surface import CAPTIONS
from pipelines.report import SanityBound
from pipelines.surface_days import SurfaceDays
from pipelines.surface_faults import Detection, detect
from pipelines.tasks.evaluation import IDENTITY, Evaluation
from pipelines.tasks.pricing_evaluation import test_rows
from pipelines.tasks.surface import regime_names
from pipelines.tasks.surface_bundle import reference, surface_input, torch_net
from pipelines.trained import Trained
from serving import black76
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS
from serving.surface_host import UNUSUAL
from serving.surface_score import SurfaceAnswer, SurfaceNet

HIDDEN_SHARES = (0.5, 0.8)  # of the quotes; the report's predictions hide the first
AT_THE_MONEY_45 = TENORS_DAYS.index(45.0) * SHAPE[1] + MONEYNESS.index(0.0)


def evaluate(cfg: Config, store: FeatureStore, trained: Trained) -> Evaluation:
    """Completion, regimes, anomalies, figures."""
    own = trained.net
    assert isinstance(own, SurfaceVAE)
    net = torch_net(own)
    blends = {share: fit_blend(store, net, share) for share in HIDDEN_SHARES}
    predictions = {share: predict_table(store, net, share, blends[share]) for share in HIDDEN_SHARES}
    first = predictions[HIDDEN_SHARES[0]]
    exam = surface_exam(store, first, list(_hidden(store, HIDDEN_SHARES[0]).values()), blends[HIDDEN_SHARES[0]])
    shares = pl.concat(
        pl.DataFrame([{"hidden": f"{100 * share:.0f} %", "predictor": name, "iv_rmse": score["iv_rmse"],
                       "quotes": score["rows"]} for name, score in metrics.scores(table).items()])
        for share, table in predictions.items()
    )  # fmt: skip
    shares = pl.concat([shares, net_alone(store, net)])
    days = SurfaceDays.read(store, cfg.folder / "ingest" / "quotes.parquet")
    found = detect(store, days, net, reference(own, store, days))
    regimes = regime_table(store, net)
    return Evaluation(
        predictions=first, exam=exam, figures=_figures(store, net, first, found), captions=CAPTIONS,
        sanity=sanity_bounds(store, net),
        tables={"Completion by share of quotes hidden: IV RMSE [vol points]": _side_by_side(shares),
                "Faults found: area under the ROC curve, share flagged": found.table,
                "Regimes on the test dates": regimes},
        measures={"completion": shares.to_dicts(), "faults": found.table.to_dicts(), "regimes": regimes.to_dicts()},
        notes=[f"{100 * HIDDEN_SHARES[0]:.0f} % of the test dates' quotes were hidden, drawn singly; every predictor "
               "completes them from the others. Forwards and discounts of the date are taken as known.",
               "shifted last: the last smile at the strike plus the visible quotes' changes, interpolated. grid "
               "interpolation: the grid of the visible quotes, filled, corrected by the expiry's. net alone: the net's "
               "grid read at the quotes, corrected by nothing.",
               "Faults are put into the test dates' smiles. The score's AUC is against clean dates, of stale snapshots "
               f"against those of the same dates. Flagged: above {100 * UNUSUAL:g} % of the reference dates, a verdict "
               "that takes 100 validation dates. Clean means as quoted: the data's own faults count as false alarms.",
               "Regimes are labelled by realised volatility unless features.regimes names a file: agreement with such "
               "labels says that the surface knows what the underlying does, no more."],
    )  # fmt: skip


def predict_table(store: FeatureStore, net: SurfaceNet, share: float, blend: Blend) -> pl.DataFrame:
    """One row per hidden test quote: identity, labels, and a volatility and a price per predictor."""
    rows = test_rows(store)
    hidden = _hidden(store, share)
    # rows.parquet is in order of time, then underlying: so are the places
    chosen = rows.filter(pl.Series(np.concatenate(list(hidden.values()))))
    parts = [complete(store, place, net, mask, blend) for place, mask in hidden.items()]
    volatilities = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    forward, strike, tau, discount, right = (
        chosen[name].to_numpy() for name in ("forward", "strike", "tau", "discount", "right_sign")
    )
    columns: list[Any] = [pl.col("forward").alias("forward_model"), pl.col("discount").alias("discount_model")]
    for name, volatility in volatilities.items():
        price = black76.price(forward, strike, tau, volatility, discount, right)
        columns += [pl.Series(f"iv_{name}", volatility), pl.Series(f"price_{name}", price)]
    return chosen.select(*IDENTITY, "tau", "bid", "ask", "forward", "discount", "iv_market").with_columns(columns)


def net_alone(store: FeatureStore, net: SurfaceNet) -> pl.DataFrame:
    """The net's own answers at the hidden quotes, without its neighbours' correction: what a host's grid says."""
    rows = []
    for share in HIDDEN_SHARES:
        misses = []
        for place in (int(place) for place in store.places("test")):
            hidden = draw_hidden(_count(store, place), share, place)
            market = store.rows["iv_market"][store.row_range(place)].to_numpy()[hidden]
            misses.append(100.0 * (alone(store, place, net, hidden) - market))
        miss = np.concatenate(misses)
        rows.append({"hidden": f"{100 * share:.0f} %", "predictor": "net alone",
                     "iv_rmse": float(np.sqrt(np.mean(miss**2))), "quotes": len(miss)})  # fmt: skip
    return pl.DataFrame(rows)


def _hidden(store: FeatureStore, share: float) -> dict[int, npt.NDArray[np.bool_]]:
    """Which rows of each test snapshot are hidden, by place, in order of time."""
    places = [int(place) for place in store.places("test")]
    return {place: draw_hidden(_count(store, place), share, place) for place in places}


def _count(store: FeatureStore, place: int) -> int:
    return int(store.snapshots["rows"][place])


def _side_by_side(shares: pl.DataFrame) -> pl.DataFrame:
    return shares.pivot(on="hidden", index="predictor", values="iv_rmse")


def regime_table(store: FeatureStore, net: SurfaceNet) -> pl.DataFrame:
    """By labelled regime of the test dates: how many, the net's recall and precision, and F1; then their mean."""
    names = regime_names(store)
    places = store.places("test")
    labels = np.array([store.snapshots["regime"][int(place)] or "" for place in places])
    said = np.array(
        [names[int(_answer(store, net, int(place)).regime[0].argmax())] if names else "" for place in places]
    )
    known = labels != ""
    rows: list[dict[str, Any]] = []
    for name in names:
        true, chosen = labels == name, (said == name) & known
        if not true.any():
            continue
        hits = int((true & chosen).sum())
        recall, precision = hits / int(true.sum()), hits / max(int(chosen.sum()), 1)
        rows.append({"regime": name, "dates": int(true.sum()), "recall": recall, "precision": precision,
                     "F1": 2 * hits / (int(true.sum()) + int(chosen.sum()))})  # fmt: skip
    schema = {"regime": pl.String, "dates": pl.Int64, "recall": pl.Float64, "precision": pl.Float64, "F1": pl.Float64}
    if rows:
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("recall", "precision", "F1")}
        rows.append({"regime": "mean", "dates": int(known.sum()), **means})
    return pl.DataFrame(rows, schema=schema)


def _answer(store: FeatureStore, net: SurfaceNet, place: int) -> SurfaceAnswer:
    return net(surface_input(store, place))


def sanity_bounds(store: FeatureStore, net: SurfaceNet) -> list[SanityBound]:
    """Without any quote of the date the net must be worse; with more of them (a fifth hidden) better."""
    fewer = predict_table(store, net, 0.2, fit_blend(store, net, 0.2))
    blind = predict_table(store, net, 1.0, fit_blend(store, net, 1.0))
    errors = {name: metrics.scores(table)["model"]["iv_rmse"] for name, table in (("fewer", fewer), ("blind", blind))}
    return [
        SanityBound("every quote hidden", errors["blind"], "worse",
                    "the net knows the last surface and the underlying's move alone"),
        SanityBound("a fifth hidden instead of half", errors["fewer"], "better", "more neighbours are visible"),
    ]  # fmt: skip


def _figures(store: FeatureStore, net: SurfaceNet, predictions: pl.DataFrame, found: Detection) -> dict[str, Any]:
    figures = plots.all_figures(predictions)
    every = [int(place) for name in ("train", "validation", "test") for place in store.places(name)]
    answers = {place: _answer(store, net, place) for place in every}
    test = [int(place) for place in store.places("test")]
    labels = [store.snapshots["regime"][place] for place in every]
    level = np.array([answers[place].completed[0][AT_THE_MONEY_45] for place in every])
    latents = np.stack([answers[place].latent[0] for place in every]).astype(np.float64)
    figures["latent_plane"] = plots_surface.latent_plane(latents, labels, level, np.isin(every, test))
    dates = store.snapshots["ts"].to_numpy()
    names = regime_names(store)
    if names:
        probabilities = np.stack([answers[place].regime[0] for place in test]).astype(np.float64)
        figures["regimes"] = plots_surface.regimes(
            dates[test], probabilities, names, [store.snapshots["regime"][place] for place in test]
        )
    figures["anomaly_score"] = plots_surface.anomaly_score(dates[found.places], found.clean, found.percentile, UNUSUAL)
    place = test[len(test) // 2]
    whole = surface_input(store, place)
    half = whole.hiding(draw_hidden(whole.mask.size, 0.5, place)[np.newaxis])
    figures["completed_surface"] = plots_surface.completed_surface(
        half.surface[0], half.mask[0], net(half).completed[0], whole.surface[0], whole.mask[0],
        f"{str(dates[place])[:10]}, half of the cells given",
    )  # fmt: skip
    return figures
