"""What a trial of a sweep does: its features, then a fit that reports every epoch.

In: a trial's `Config` and its `RunningTrial`. Out: the least validation error (vol points), or none for a trial that
was given up. Checkpoints lie in `OUT/sweep/STUDY/trials/NUMBER/` until the trial is finished; a killed one goes on.

Features are those of `OUT/features/` where no key of `data`, `features` or `split` is swept. Else every distinct
combination is made once, in `OUT/sweep/STUDY/prepared/`. Invariant: a folder there is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from pipelines import features, ingest
from pipelines.config import Config, as_json
from pipelines.dataset import FeatureStore
from pipelines.fit import MONITOR, fit
from pipelines.sweep_study import RunningTrial
from serving.errors import DataError

SECTIONS = ("data", "features", "split")  # what features depend on
INGESTED = ("layout", "path", "history", "time_zone", "snapshot_time", "columns", "constants", "settlement_by_root")


@dataclass
class Features:
    """Where each trial's features are; the last one's stay open."""

    folder: Path  # of the study
    swept: bool
    _opened: dict[Path, FeatureStore] = field(default_factory=dict)

    def of(self, cfg: Config) -> FeatureStore:
        """Open, made first where they are swept; raises DataError where they're absent or hold no validation date."""
        place = self._prepared(cfg) if self.swept else cfg.folder / "features"
        if place not in self._opened:
            self._opened = {place: FeatureStore.open(place)}
        store = self._opened[place]
        if store.spec.window != cfg.features.window:
            raise DataError(f"{place} has windows of {store.spec.window} steps and features.window is "
                            f"{cfg.features.window}: run python -m pipelines.features with the same out=")  # fmt: skip
        if not len(store.places("validation")):
            raise DataError(f"{place} holds no validation dates, which trials need: set split.validation_dates "
                            "and run python -m pipelines.features with the same out=")  # fmt: skip
        return store

    def ingested(self, cfg: Config) -> Path:
        """The folder of the quotes, ingested first if they aren't yet."""
        content = as_json(cfg)["data"]
        key = _hash({name: content[name] for name in INGESTED})
        return self._made(self.folder / "prepared" / f"ingest-{key}", cfg)

    def _prepared(self, cfg: Config) -> Path:
        content = as_json(cfg)
        key = _hash({name: content[name] for name in SECTIONS})
        return self._made(self.folder / "prepared" / f"features-{key}", cfg, self.ingested(cfg)) / "features"

    def _made(self, place: Path, cfg: Config, quotes: Path | None = None) -> Path:
        """Ingest, or compute features of the quotes, in a folder that gets its name once it is complete."""
        if place.exists():
            return place
        aside = place.with_name(f".{place.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        if quotes is None:
            ingest.run(replace(cfg, out=str(aside)))
        else:
            (aside / "ingest").symlink_to(os.path.relpath(quotes / "ingest", aside))
            features.run(replace(cfg, out=str(aside)))
        aside.rename(place)
        return place


class ReportEpochs(Callback):
    """Tells a trial each epoch's validation error, and ends the fit of one that is given up."""

    def __init__(self, trial: RunningTrial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.trial.report(trainer.current_epoch + 1, float(trainer.callback_metrics[MONITOR])):
            trainer.should_stop = True


def train(cfg: Config, store: FeatureStore, trial: RunningTrial, checkpoints: Path) -> float | None:
    """The least validation error, that of the prior before the first epoch included; None if the trial is given up."""
    if trial.pruned:  # the process was killed between this verdict and its writing
        return None
    fitted = fit(cfg, store, checkpoints, callbacks=[ReportEpochs(trial)])
    return None if trial.pruned else fitted.best_validation


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
