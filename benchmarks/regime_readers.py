"""What surface_vae's regimes are held against: simple readers of the same surfaces, given the same few labels.

In: a `FeatureStore`, the regime (0 or 1) of the labelled training dates. Out: by name, the regime of every snapshot.
  level_threshold  the at-the-money volatility of 30 days against the threshold, on the side, best on the labelled dates
  logistic         logistic regression on level, skew, curvature and term slope (`features_of`)
  logistic_shape   the same on the numbers that surface_vae's regime head reads (pipelines/tasks/surface.py)
  mixture          two Gaussians on the features of `logistic` over all training dates; labels only name them
Invariants: scales come from training dates; nothing but the labels given tells a regime; results depend on the inputs
alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.mixture import GaussianMixture

from pipelines.dataset import FeatureStore
from pipelines.tasks.surface import shape_weight
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS, Grid, fill

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]

NEAR_DAYS, FAR_DAYS = 30.0, 180.0
SMILE = (-0.3, 0.2)  # moneyness over which skew and curvature are fitted


def filled_surfaces(store: FeatureStore) -> Array:
    """Volatility of every snapshot's cells [M, G], unknown ones from their nearest."""
    return np.stack([fill(Grid(*np.asarray(one[:2], dtype=np.float64))) for one in store.grids])


def features_of(surfaces: Array) -> Array:
    """[M, 4]: ln of the near at-the-money volatility, slope and curvature of the near smile in ln(K/F)/sqrt(tau), ln
    of far over near at-the-money volatility."""
    grids = surfaces.reshape(-1, *SHAPE)
    middle, near, far = MONEYNESS.index(0.0), TENORS_DAYS.index(NEAR_DAYS), TENORS_DAYS.index(FAR_DAYS)
    at = np.array(MONEYNESS)
    inside = (at >= SMILE[0]) & (at <= SMILE[1])
    curvature, skew, _ = np.polynomial.polynomial.polyfit(at[inside], grids[:, near, inside].T, 2)[::-1]
    level, later = np.log(grids[:, near, middle]), np.log(grids[:, far, middle])
    return np.stack([level, skew, curvature, later - level], axis=1)


def best_threshold(level: Array, regime: Integers) -> tuple[float, int]:
    """The threshold and the side (1: regime 1 above it, 0: below) of the greatest macro F1; the first of equals."""
    values = np.unique(level)
    between = np.concatenate([values[:1] - 1.0, 0.5 * (values[1:] + values[:-1])])
    found = [(macro_f1(regime, _above(level, threshold, side)), -place, threshold, side)
             for side in (1, 0) for place, threshold in enumerate(between)]  # fmt: skip
    _, _, threshold, side = max(found, key=lambda one: one[:2])
    return float(threshold), side


def macro_f1(true: Integers, said: Integers) -> float:
    """Mean of both regimes' F1."""
    return float(f1_score(true, said, labels=[0, 1], average="macro", zero_division=0.0))


def read_regimes(store: FeatureStore, labelled: Places, regime: Integers) -> dict[str, Integers]:
    """Regime of every snapshot by each reader; `regime` is that of the places `labelled`."""
    surfaces = filled_surfaces(store)
    training = store.places("train")
    simple, shape = (_scaled(one, training) for one in (features_of(surfaces), surfaces**2 @ shape_weight().T))
    threshold, side = best_threshold(simple[labelled, 0], regime)
    mixture = GaussianMixture(2, n_init=5, random_state=0).fit(simple[training]).predict(simple).astype(np.int64)
    if np.mean(mixture[labelled] == regime) < 0.5:
        mixture = 1 - mixture
    return {
        "level_threshold": _above(simple[:, 0], threshold, side),
        "logistic": _logistic(simple, labelled, regime),
        "logistic_shape": _logistic(shape, labelled, regime),
        "mixture": mixture,
    }


def _above(level: Array, threshold: float, side: int) -> Integers:
    return np.where(level > threshold, side, 1 - side).astype(np.int64)


def _scaled(features: Array, training: Places) -> Array:
    return np.asarray((features - features[training].mean(0)) / features[training].std(0))


def _logistic(features: Array, labelled: Places, regime: Integers) -> Integers:
    fitted = LogisticRegression(class_weight="balanced").fit(features[labelled], regime)
    return np.asarray(fitted.predict(features), dtype=np.int64)
