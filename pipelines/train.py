"""Stage train: features -> weights of the best validation epoch.

In: `OUT/features/`. Out, in `OUT/train/MODEL/`: `weights.safetensors`, `model.json` (family, sizes, seed, best epoch,
configuration and data hashes, MLflow run), `history.csv` (epoch, train_loss, validation_iv_rmse), `metrics.json`,
`tensorboard/`. Checkpoints lie in `OUT/checkpoints/MODEL/HASH/` while the training runs; a killed one goes on.

Run: python -m pipelines.train [key=value ...]
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import Config, as_json, config_hash
from pipelines.lineage import features_hash

log = logging.getLogger("strikeforge.train")


@dataclass(frozen=True)
class TrainResult:
    """Where the weights are; the best epoch and its validation error (vol points)."""

    folder: Path
    best_epoch: int
    validation_iv_rmse: float | None
    run_id: str


def run(cfg: Config) -> TrainResult:
    """Fit, then write; raises DataError where the features aren't there."""
    from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
    from safetensors.torch import save_file

    from pipelines.dataset import FeatureStore
    from pipelines.fit import fit
    from pipelines.registry import open_registry

    features = cfg.folder / "features"
    store = FeatureStore.open(features)
    data_hash = features_hash(features)
    folder = cfg.folder / "train" / cfg.model.name
    checkpoints = cfg.folder / "checkpoints" / cfg.model.name / f"{config_hash(cfg)[:12]}-{data_hash[:12]}"
    if cfg.trainer.resume and (checkpoints / "last.ckpt").exists():
        log.info("going on from %s", checkpoints / "last.ckpt")
    registry = open_registry(cfg.registry.tracking_uri)
    tracker = MLFlowLogger(cfg.registry.experiment, f"train {cfg.model.name}", registry.client.tracking_uri,
                           tags={"config_sha256": config_hash(cfg), "features_sha256": data_hash})  # fmt: skip
    tracker.log_hyperparams(as_json(cfg))
    board = TensorBoardLogger(str(checkpoints), name="tensorboard", version="")
    fitted = fit(cfg, store, checkpoints, loggers=[board, tracker], show_progress=sys.stderr.isatty())
    run_id = str(tracker.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in fitted.net.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip
    fitted.history.write_csv(folder / "history.csv")
    metrics = {"best_epoch": fitted.best_epoch, "epochs": len(fitted.history),
               "validation_iv_rmse": fitted.best_validation}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if (checkpoints / "tensorboard").exists():
        shutil.copytree(checkpoints / "tensorboard", folder / "tensorboard", dirs_exist_ok=True)
    description = {"model": cfg.model.name, "sizes": fitted.sizes, "seed": cfg.seed, "run_id": run_id,
                   "config_sha256": config_hash(cfg), "features_sha256": data_hash, **metrics}  # fmt: skip
    (folder / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(checkpoints)
    return TrainResult(folder, fitted.best_epoch, fitted.best_validation, run_id)


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
