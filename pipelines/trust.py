"""How far a pricing net's corrections are to be trusted: learned on dates held out of the training, not assumed.

In: what `fit` takes. Out: a `Fitted` whose head believes the share `trust` of its correction. With validation dates the
share is learned there. Without (a few weeks of data, where every date counts) a first net is fitted
without the last `trainer.trust_share` of the training dates and judged on those; then the net is fitted on all of them.
What a net said of dates it wasn't fitted on is kept (`Trusted.unseen`): pipelines/intervals.py measures errors by it.

Invariants: the share lies between 0 (the anchored prior) and 1; test dates have no part in it; a killed training goes
on, as in pipelines/fit.py, whichever of the two fits it was in. Source: James & Stein (1961) for the thought, least
squares for the share.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
FEWEST_LEFT = 5  # dates for the first fit; with fewer a net can't be judged
BELIEF = 0.5  # the share that is believed before any held-out date has spoken
BELIEF_DATES = 4.0  # how many dates that weighs as much as
FEW_HELD_OUT = 6  # dates; from so many on they speak alone
HELD_OUT = "held_out"  # their split in the first fit
UNSEEN = {"row": pl.UInt32, "iv_model": pl.Float64}


@dataclass(frozen=True)
class Trusted(Fitted):
    """What was fitted, and what was said of rows that weren't fitted on; None for a task that isn't pricing.

    `unseen` has the columns UNSEEN: the place in `store.rows`, ascending, and the volatility answered there. They are
    the validation rows, answered by the net itself, or the rows held out of the first fit, answered by that net with
    the share that the other held-out dates gave. No rows where neither was to be had.
    """

    unseen: pl.DataFrame | None


class _Judged(NamedTuple):
    """The share to believe, None where all of it without having been judged; see `Trusted.unseen`."""

    share: float | None
    unseen: pl.DataFrame


def fit_trusted(
    cfg: Config, store: FeatureStore, checkpoints: Path, *, judging: Sequence[Callback] = (), **options: Any
) -> Trusted:
    """`fit`, then for a pricing net the share of its correction to believe.

    With validation dates the share is learned on the dates that chose the epoch, which are kind to the net. `judging`
    are callbacks of the first fit, `options` those of `fit`.
    """
    if task_name(cfg.model.name) != "pricing":
        return _trusted(fit(cfg, store, checkpoints, **options), None)
    validated = len(store.places("validation")) > 0
    judged = None if validated else _judged_first(cfg, store, checkpoints / "trust", judging)
    fitted = fit(cfg, store, checkpoints, **options)
    assert isinstance(fitted.net, PricingNet)
    share = least_squares_share(fitted.net, store, "validation") if judged is None else judged.share
    if share is not None and share != 1.0:
        fitted.net.head.trust.fill_(share)
        log.info("the net's corrections are trusted at %.3f", share)
        if validated:
            task = open_task(cfg, store)
            best = root_mean_square_error(fitted.net, task, task.validation_batches())
            fitted = dataclasses.replace(fitted, best_validation=best)
    unseen = (
        _answers(store, "validation", predict(fitted.net, store, "validation")) if judged is None else judged.unseen
    )
    return _trusted(fitted, unseen)


def _trusted(fitted: Fitted, unseen: pl.DataFrame | None) -> Trusted:
    return Trusted(**{field.name: getattr(fitted, field.name) for field in dataclasses.fields(fitted)}, unseen=unseen)


def _answers(store: FeatureStore, split: str, volatility: Array) -> pl.DataFrame:
    rows = np.flatnonzero((store.rows["split"] == split).to_numpy())
    return pl.DataFrame({"row": rows, "iv_model": volatility}, schema=UNSEEN)


def _judged_first(cfg: Config, store: FeatureStore, checkpoints: Path, callbacks: Sequence[Callback]) -> _Judged:
    """The share by a net that hasn't seen the last training dates, and what it said of them."""
    nothing = pl.DataFrame(schema=UNSEEN)
    if cfg.trainer.trust_share == 0.0:
        return _Judged(None, nothing)
    held_out = without_last(store, cfg.trainer.trust_share, cfg.split.embargo)
    if held_out is None:
        log.warning("too few training dates to judge a net by: %.0f %% of its correction is believed", 100 * BELIEF)
        return _Judged(BELIEF, nothing)
    net = fit(cfg, held_out, checkpoints, callbacks=callbacks).net
    assert isinstance(net, PricingNet)
    share = least_squares_share(net, held_out, HELD_OUT)
    return _Judged(share, _answers(held_out, HELD_OUT, believed_by_others(net, held_out, HELD_OUT)))


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
    return share_of(*_corrections(net, store, split))


def believed_by_others(net: PricingNet, store: FeatureStore, split: str) -> Array:
    """Volatility [N] of a split's rows, on each date with the share that its other dates give; leaves `trust` at 1.

    A date's own share would make its errors look smaller than those of a date to come.
    """
    correction, wanted, dates = _corrections(net, store, split)
    out = np.full(len(dates), np.nan)
    for day in np.unique(dates):
        today = dates == day
        net.head.trust.fill_(share_of(correction[~today], wanted[~today], dates[~today]))
        out[today] = predict(net, store, split)[today]
    net.head.trust.fill_(1.0)
    return out


def _corrections(net: PricingNet, store: FeatureStore, split: str) -> tuple[Array, Array, npt.NDArray[np.datetime64]]:
    """What the net adds to its prior, what it should have, and the date, of a split's rows: [N] each."""
    rows = store.rows.filter(pl.col("split") == split)
    prior = prior_volatility(store)[(store.rows["split"] == split).to_numpy()]
    return predict(net, store, split) - prior, rows["iv_market"].to_numpy() - prior, rows["ts"].dt.date().to_numpy()


def share_of(correction: Array, wanted: Array, dates: npt.NDArray[np.datetime64]) -> float:
    """Least-squares s of s correction = wanted, clipped to [0, 1]; 1 where there is no correction.

    With fewer than FEW_HELD_OUT dates it is a mean of that, not below 0, and BELIEF, weighted by dates: few dates often
    agree by chance, and what they say of the next ones is worth less than it looks.
    """
    days = np.unique(dates)
    products = np.array([correction[dates == day] @ wanted[dates == day] for day in days])
    squares = np.array([correction[dates == day] @ correction[dates == day] for day in days])
    if not squares.any():
        return 1.0
    share = products.sum() / squares.sum()
    if len(days) < FEW_HELD_OUT:
        share = (len(days) * max(share, 0.0) + BELIEF_DATES * BELIEF) / (len(days) + BELIEF_DATES)
    return float(np.clip(share, 0.0, 1.0))
