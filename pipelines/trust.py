"""How far a pricing net's corrections are to be trusted: learned on dates held out of the training, not assumed.

In: what `fit` takes. Out: a `Fitted` whose head believes the share `trust` of its correction. With validation dates the
share is learned there. Without (a few weeks of data, where every date counts) a first net is fitted
without the last `trainer.trust_share` of the training dates and judged on those; then the net is fitted on all of them.

Invariants: the share lies between 0 (the anchored prior) and 1; test dates have no part in it; a killed training goes
on, as in pipelines/fit.py, whichever of the two fits it was in. Source: James & Stein (1961) for the thought, least
squares for the share.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pytorch_lightning.callbacks import Callback

from models.pricing import PricingNet
from pipelines.config import Config
from pipelines.dataset import FeatureStore
from pipelines.fit import Fitted, fit, root_mean_square_error
from pipelines.tasks import open_task, task_name
from pipelines.tasks.pricing import predict, prior_volatility

Array = npt.NDArray[np.float64]

log = logging.getLogger("strikeforge.trust")

FEWEST_HELD_OUT = 3  # dates to judge by
FEWEST_LEFT = 5  # dates for the first fit; a net that can't be judged so isn't believed at all
FEW_HELD_OUT = 6  # dates; with fewer the share is taken one standard error lower
HELD_OUT = "held_out"  # their split in the first fit


def fit_trusted(
    cfg: Config, store: FeatureStore, checkpoints: Path, *, judging: Sequence[Callback] = (), **options: Any
) -> Fitted:
    """`fit`, then for a pricing net the share of its correction to believe.

    With validation dates the share is learned on the dates that chose the epoch, which are kind to the net. `judging`
    are callbacks of the first fit, `options` those of `fit`.
    """
    if task_name(cfg.model.name) != "pricing":
        return fit(cfg, store, checkpoints, **options)
    share: float | None = None
    validated = len(store.places("validation")) > 0
    if not validated:
        share = _judged_first(cfg, store, checkpoints / "trust", judging)
    fitted = fit(cfg, store, checkpoints, **options)
    assert isinstance(fitted.net, PricingNet)
    if validated:
        share = least_squares_share(fitted.net, store, "validation")
    if share is None or share == 1.0:
        return fitted
    fitted.net.head.trust.fill_(share)
    log.info("the net's corrections are trusted at %.3f", share)
    if not validated:
        return fitted
    task = open_task(cfg, store)
    return dataclasses.replace(
        fitted, best_validation=root_mean_square_error(fitted.net, task, task.validation_batches())
    )


def _judged_first(cfg: Config, store: FeatureStore, checkpoints: Path, callbacks: Sequence[Callback]) -> float | None:
    """The share by a net that hasn't seen the last training dates; None where none is wanted."""
    if cfg.trainer.trust_share == 0.0:
        return None
    held_out = without_last(store, cfg.trainer.trust_share, cfg.split.embargo)
    if held_out is None:
        log.warning("too few training dates to judge a net by: the anchored prior is not corrected")
        return 0.0
    net = fit(cfg, held_out, checkpoints, callbacks=callbacks).net
    assert isinstance(net, PricingNet)
    return least_squares_share(net, held_out, HELD_OUT)


def without_last(store: FeatureStore, share: float, embargo: int) -> FeatureStore | None:
    """The store with its last training dates held out, an embargo before them; None where too few would be left."""
    dates = store.snapshots["ts"].dt.date()
    training = sorted(set(dates.filter(store.snapshots["split"] == "train").to_list()))
    count = max(round(share * len(training)), FEWEST_HELD_OUT)
    if len(training) - count - embargo < FEWEST_LEFT:
        return None
    first = training[-count]
    embargoed = training[len(training) - count - embargo : len(training) - count]

    def renamed(table: pl.DataFrame) -> pl.DataFrame:
        date, training = pl.col("ts").dt.date(), pl.col("split") == "train"
        late = pl.when(training & (date >= first)).then(pl.lit(HELD_OUT))
        between = late.when(training & date.is_in(embargoed)).then(pl.lit("embargo"))
        return table.with_columns(split=between.otherwise(pl.col("split")))

    return dataclasses.replace(store, rows=renamed(store.rows), snapshots=renamed(store.snapshots))


def least_squares_share(net: PricingNet, store: FeatureStore, split: str) -> float:
    """The share of the net's correction to believe, by what it would have done for a split's volatilities."""
    rows = store.rows.filter(pl.col("split") == split)
    prior = prior_volatility(store)[(store.rows["split"] == split).to_numpy()]
    correction, wanted = predict(net, store, split) - prior, rows["iv_market"].to_numpy() - prior
    return share_of(correction, wanted, rows["ts"].dt.date().to_numpy())


def share_of(correction: Array, wanted: Array, dates: npt.NDArray[np.datetime64]) -> float:
    """Least-squares s of s correction = wanted, clipped to [0, 1]; 1 where there is no correction.

    With fewer than FEW_HELD_OUT dates it is one standard error lower (jackknife over dates): few dates often agree by
    chance, and what they say of the next ones is worth less than it looks.
    """
    days = np.unique(dates)
    products = np.array([correction[dates == day] @ wanted[dates == day] for day in days])
    squares = np.array([correction[dates == day] @ correction[dates == day] for day in days])
    rest = squares.sum() - squares
    if not squares.any():
        return 1.0
    share = products.sum() / squares.sum()
    if len(days) < FEW_HELD_OUT:
        if not (rest > 0).all():
            return 0.0  # one date alone spoke
        without = (products.sum() - products) / rest
        share -= float(np.sqrt((len(days) - 1) / len(days) * float(np.sum((without - without.mean()) ** 2))))
    return float(np.clip(share, 0.0, 1.0))
