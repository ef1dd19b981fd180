"""Read back what the train stage wrote: the net with its weights, its description, its answers to unseen rows.

In: `OUT/train/MODEL/`. Out: `Trained`. Invariant: weights come from safetensors, never from a pickle, and fit exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.torch import load_file

import models
from pipelines.lineage import features_hash
from serving.errors import DataError


@dataclass(frozen=True)
class Trained:
    """A net in evaluation mode and where it came from; `unseen` as in pipelines/trust.py, None if not written."""

    net: models.Net
    sizes: dict[str, Any]
    description: dict[str, Any]
    weights_path: Path
    unseen: pl.DataFrame | None


def load_trained(folder: Path, features: Path) -> Trained:
    """Raises DataError where the folder isn't a complete training's, or was trained on other features than these.

    With other features the test dates might be ones the net was trained on.
    """
    description_path, weights = folder / "model.json", folder / "weights.safetensors"
    if not description_path.exists() or not weights.exists():
        raise DataError(f"{folder} holds no trained model: run python -m pipelines.train with the same out= and model=")
    description = json.loads(description_path.read_text())
    if description["features_sha256"] != features_hash(features):
        raise DataError(f"{folder} was trained on other features than {features} holds now: run python -m "
                        "pipelines.train again with the same out= and model=")  # fmt: skip
    net = models.build(description["model"], description["sizes"])
    net.load_state_dict(load_file(weights))
    unseen = folder / "unseen.parquet"
    answers = pl.read_parquet(unseen) if unseen.exists() else None
    return Trained(net.eval(), description["sizes"], description, weights, answers)
