"""The predictors a model has to beat; definitions and figures in docs/conventions.md.

In: the features stage's rows (all splits, in order of time) and contract features. Out: a volatility per test row and
baseline. `lightgbm_same_inputs` gets the nets' own prior and features, with settings searched on the dates on which
theirs were (docs/accuracy.md): what it doesn't reach is the nets' doing, not their inputs'.
Invariant: like the nets, a baseline sees of t the underlying and the anchors; those that are fitted see earlier dates
only (the regression all of them, refitted daily; LightGBM those before the test window, once).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.dataset import FeatureStore
from pipelines.tasks.pricing import prior_volatility

Array = npt.NDArray[np.float64]

FLOOR = 0.01  # a predicted volatility below this would price nothing
LIGHTGBM = {
    "objective": "regression", "learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": 500,
    "bagging_fraction": 0.5, "bagging_freq": 1, "feature_fraction": 0.6, "verbosity": -1, "deterministic": True,
    "force_row_wise": True,
}  # fmt: skip
LIGHTGBM_TREES = 300
SAME_INPUTS = LIGHTGBM | {"num_leaves": 7}
SAME_INPUTS_TREES, SAME_INPUTS_DAY_POWER = 100, 3.0
SAME_FORWARD = ("anchored_at_their_forward", "lightgbm_same_inputs")  # priced with the forward the nets price with


def predict_all(store: FeatureStore, *, seed: int, threads: int = 2) -> dict[str, Array]:
    """Volatility of every test row, by baseline. Without anchors the shift is zero, and the names stay."""
    rows = store.rows
    test = rows.filter(pl.col("split") == "test")
    sticky = test["last_volatility"].to_numpy()
    out = {
        "flat": _flat(test),
        "sticky_moneyness": test["last_at_moneyness"].to_numpy(),
        "sticky_strike": sticky,
        "black_scholes_realised": test["realised_volatility"].to_numpy(),
    }
    out["anchored_sticky_strike"] = sticky + test["shift"].to_numpy()
    out["regression_anchored"] = sticky + _regression(rows)
    out["anchored_at_their_forward"] = out["anchored_sticky_strike"]
    out["lightgbm_anchored"] = out["anchored_sticky_strike"] + _lightgbm(rows, seed, threads)
    out["lightgbm_same_inputs"] = _same_inputs(store, seed, threads)
    return {name: np.maximum(values, FLOOR) for name, values in out.items()}


def _flat(test: pl.DataFrame) -> Array:
    """Median of the expiry's sticky-strike predictions."""
    smile = ["ts", "underlying", "root", "expiry"]
    return test.select(pl.col("last_volatility").median().over(smile)).to_series().to_numpy()


def _position(rows: pl.DataFrame) -> tuple[Array, Array]:
    """ln(K/F_prev)/sqrt(tau) and sqrt(tau)."""
    root_tau = np.sqrt(rows["tau"].to_numpy())
    return np.log(rows["strike"].to_numpy() / rows["last_forward"].to_numpy()) / root_tau, root_tau


def regression_columns(rows: pl.DataFrame) -> Array:
    """shift, shift x, shift x^2, shift sqrt(tau), r/sqrt(tau), that times x and x^2: [N, 7]."""
    x, root_tau = _position(rows)
    shift, scaled = rows["shift"].to_numpy(), rows["log_return"].to_numpy() / root_tau
    return np.stack([shift, shift * x, shift * x**2, shift * root_tau, scaled, scaled * x, scaled * x**2], axis=1)


def _regression(rows: pl.DataFrame) -> Array:
    """Predicted IV_t - IV_prev of the test rows: least squares without intercept, refitted daily on all earlier dates.

    Each row weighs 1 over its day's standard deviation of the target. The normal equations are summed day by day, so a
    refit costs nothing.
    """
    columns = regression_columns(rows)
    target = (rows["iv_market"] - rows["last_volatility"]).to_numpy()
    dates = rows["ts"].dt.date().to_numpy()
    test = (rows["split"] == "test").to_numpy()
    left, right = np.zeros((7, 7)), np.zeros(7)
    out = np.zeros(len(rows))
    for date in np.unique(dates):
        today = dates == date
        if test[today].any() and left.any():
            out[today] = columns[today] @ np.linalg.lstsq(left, right, rcond=None)[0]
        weight = 1.0 / max(float(target[today].std()), 1e-6)
        left += weight * columns[today].T @ columns[today]
        right += weight * columns[today].T @ target[today]
    return np.asarray(out[test])


def lightgbm_columns(rows: pl.DataFrame) -> Array:
    """x, tau, r, IV_prev, shift, the anchors' moves, the last smile's level, skew, curvature, and products: [N, 14]."""
    x, root_tau = _position(rows)
    plain = ["tau", "log_return", "last_volatility", "shift", "anchor_move_14", "anchor_move_45", "anchor_move_120",
             "last_level", "last_slope", "last_curvature"]  # fmt: skip
    shift, scaled = rows["shift"].to_numpy(), rows["log_return"].to_numpy() / root_tau
    return np.column_stack([x, *(rows[name].to_numpy() for name in plain), shift * x, scaled * x, scaled])


def _lightgbm(rows: pl.DataFrame, seed: int, threads: int) -> Array:
    """Predicted IV_t - IV_prev - shift of the test rows, fitted once on all dates before; weights 1/variance."""
    target = (rows["iv_market"] - rows["last_volatility"] - rows["shift"]).to_numpy()
    deviation = rows.select((pl.col("iv_market") - pl.col("last_volatility") - pl.col("shift")).std().over(
        pl.col("ts").dt.date())).to_series().fill_null(1.0).to_numpy()  # fmt: skip
    settings = {**LIGHTGBM, "seed": seed, "num_threads": threads}
    return _boosted(rows, lightgbm_columns(rows), target, np.maximum(deviation, 1e-6) ** -2, settings, LIGHTGBM_TREES)


def _same_inputs(store: FeatureStore, seed: int, threads: int) -> Array:
    """The nets' prior plus a LightGBM correction by their contract features, days weighted by their prior's error."""
    rows, prior = store.rows, prior_volatility(store)
    target = rows["iv_market"].to_numpy() - prior
    squares = rows.select("ts", "underlying", square=pl.Series(target**2))
    daily = squares.select(pl.col("square").mean().over("ts", "underlying").sqrt()).to_series().to_numpy()
    weight = np.maximum(daily, 1e-4) ** -SAME_INPUTS_DAY_POWER
    settings = {**SAME_INPUTS, "seed": seed, "num_threads": threads}
    corrected = _boosted(rows, store.contracts, target, weight, settings, SAME_INPUTS_TREES)
    return np.asarray(prior[(rows["split"] == "test").to_numpy()] + corrected)


def _boosted(
    rows: pl.DataFrame, columns: npt.NDArray[Any], target: Array, weight: Array, settings: dict[str, Any], trees: int
) -> Array:
    """Fitted on the rows before the test window, once; predictions of the test rows."""
    import lightgbm

    test = (rows["split"] == "test").to_numpy()
    times = rows["ts"].to_numpy()
    before = times < times[test].min()
    data = lightgbm.Dataset(columns[before], target[before], weight=weight[before])
    return np.asarray(lightgbm.train(settings, data, trees).predict(columns[test]), dtype=np.float64)
