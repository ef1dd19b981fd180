"""Stage train: features -> weights of the best validation epoch.

In: `OUT/features/`. Out, in `OUT/train/MODEL/`: `weights.safetensors`, `model.json` (family, sizes, seed, best epoch,
configuration and data hashes, MLflow run), `history.csv` (epoch, train_loss, validation_iv_rmse), `metrics.json`; of
pricing nets `unseen.parquet` (what was said of rows that weren't fitted on, see pipelines/trust.py); and what `logging`
asks for: `csv/metrics.csv`, `tensorboard/`, `wandb/`. The folder is replaced as a whole. Checkpoints lie in
`OUT/checkpoints/MODEL/HASH/` while the training runs; a killed one goes on.

Run: python -m pipelines.train [key=value ...]
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import Config, config_hash
from pipelines.lineage import features_hash

if TYPE_CHECKING:
    from pipelines.trust import Trusted

log = logging.getLogger("strikeforge.train")


@dataclass(frozen=True)
class TrainResult:
    """Where the weights are; the best epoch and its validation error (vol points); MLflow's run, `none` without it."""

    folder: Path
    best_epoch: int
    validation_iv_rmse: float | None
    run_id: str


def run(cfg: Config) -> TrainResult:
    """Fit, then write; raises DataError where the features aren't there."""
    from pipelines import health, loggers
    from pipelines.dataset import FeatureStore
    from pipelines.trust import fit_trusted

    features = cfg.folder / "features"
    store = FeatureStore.open(features)
    origin = {"config_sha256": config_hash(cfg), "features_sha256": features_hash(features)}
    name = f"{origin['config_sha256'][:12]}-{origin['features_sha256'][:12]}"
    checkpoints = cfg.folder / "checkpoints" / cfg.model.name / name
    folder = cfg.folder / "train" / cfg.model.name
    aside = folder.with_name(f".{folder.name}.new")
    if cfg.trainer.resume and (checkpoints / "last.ckpt").exists():
        log.info("going on from %s", checkpoints / "last.ckpt")
    with health.serve(cfg, checkpoints, origin) as watching:
        with loggers.build(cfg, checkpoints, origin) as record:
            fitted = fit_trusted(
                cfg, store, checkpoints, judging=[health.Heartbeat(monitor) for monitor in watching],
                callbacks=[record, *watching], show_progress=sys.stderr.isatty(),
            )  # fmt: skip
            write(cfg, fitted, aside, {**origin, "run_id": record.run_id})
        record.copy_files(aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    shutil.rmtree(checkpoints)
    return TrainResult(folder, fitted.best_epoch, fitted.best_validation, record.run_id)


def write(cfg: Config, fitted: Trusted, folder: Path, origin: dict[str, str]) -> None:
    """Weights, history, metrics, answers to unseen rows and description of a training into a new folder."""
    from safetensors.torch import save_file

    if folder.exists():  # of a training killed here
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in fitted.net.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip
    fitted.history.write_csv(folder / "history.csv")
    if fitted.unseen is not None:
        fitted.unseen.write_parquet(folder / "unseen.parquet")
    metrics = {"best_epoch": fitted.best_epoch, "epochs": len(fitted.history),
               "validation_iv_rmse": fitted.best_validation}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    head = getattr(fitted.net, "head", None)
    trust = None if head is None else float(head.trust)  # a pricing net's, see pipelines/trust.py
    chosen = {"model": cfg.model.name, "sizes": fitted.sizes, "seed": cfg.seed, "trust": trust}
    description = {**chosen, **origin, **metrics}
    (folder / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
