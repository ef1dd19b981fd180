"""Stage export: trained weights -> the immutable bundle a host loads, with parity proven.

In: `OUT/train/MODEL/`, `OUT/features/`, `OUT/ingest/quotes.parquet`. Out, in `OUT/export/MODEL/`: `bundle/` (manifest,
an ONNX file for each part of the net, weights.safetensors, golden.npz, demo.npz, reference.npz) and `parity.json`.
Invariant: a bundle whose ONNX differs from PyTorch by more than the tolerance isn't written.

Run: python -m pipelines.export [key=value ...]
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import Config
from pipelines.lineage import file_hash
from serving.errors import EngineError

IV_TOLERANCE = 1e-5  # absolute, of volatility against PyTorch in float32


@dataclass(frozen=True)
class ExportResult:
    """The bundle and how far ONNX Runtime is from PyTorch (largest absolute IV difference over the test rows)."""

    bundle: Path
    sha256: str
    max_abs_iv_difference: float


def run(cfg: Config) -> ExportResult:
    """Export and check; raises EngineError where parity fails."""
    from pipelines.dataset import FeatureStore
    from pipelines.onnx_export import export_member
    from pipelines.parity import recompute
    from pipelines.tasks import bundle_module
    from pipelines.trained import load_trained
    from serving.bundle import write_bundle
    from serving.manifest import Member, MemberFile

    store = FeatureStore.open(cfg.folder / "features")
    trained = load_trained(cfg.folder / "train" / cfg.model.name, cfg.folder / "features")
    quotes = cfg.folder / "ingest" / "quotes.parquet"
    task = bundle_module(cfg.model.name)
    contents = task.contents(trained, store, quotes, cfg.data.history)
    onnx, roles = export_member(trained.net, "member-0")
    weights = "member-0/weights.safetensors"
    files: dict[str, bytes | Path] = {
        **onnx,
        weights: trained.weights_path,
        "golden.npz": _npz(contents.golden),
        "demo.npz": _npz(contents.demo),
        "reference.npz": _npz(contents.reference),
    }
    folder = cfg.folder / "export" / cfg.model.name
    shutil.rmtree(folder, ignore_errors=True)
    bundle = write_bundle(
        folder / "bundle", model=cfg.model.name, model_config=trained.sizes,
        members=[Member({**roles, "weights": MemberFile(weights)})], files=files,
        feature_spec=dict(contents.feature_spec), semantics="window", tolerances=dict(contents.tolerances),
        data_sha256=file_hash(quotes), config_sha256=trained.description["config_sha256"],
    )  # fmt: skip
    difference = task.largest_difference(bundle, trained.net, store)
    checks = recompute(bundle)
    shown = [{"name": one.name, "difference": one.difference, "tolerance": one.tolerance} for one in checks]
    parity = {"max_abs_iv_difference": difference, "tolerance": IV_TOLERANCE, "golden": shown}
    (folder / "parity.json").write_text(json.dumps(parity, indent=1) + "\n")
    failed = [one.name for one in checks if one.excess > 1.0]
    if failed or not difference <= IV_TOLERANCE:
        shutil.rmtree(folder / "bundle")
        raise EngineError(
            f"ONNX Runtime differs from PyTorch by {difference:.3g} in volatility (allowed {IV_TOLERANCE}); "
            f"golden vectors out of tolerance: {', '.join(failed) or 'none'}; see {folder}/parity.json"
        )
    return ExportResult(folder / "bundle", bundle.sha256, difference)


def _npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
