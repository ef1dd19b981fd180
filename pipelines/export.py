"""Stage export: trained weights -> the immutable bundle a host loads, with parity proven.

In: `OUT/train/MODEL/`, `OUT/features/`, `OUT/ingest/quotes.parquet`. Out, in `OUT/export/MODEL/`: `bundle/` (manifest,
ONNX step, window and head, weights.safetensors, golden.npz, demo.npz, reference.npz) and `parity.json`.
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

IV_TOLERANCE = 1e-5  # absolute, against PyTorch in float32
CONTEXT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportResult:
    """The bundle and how far ONNX Runtime is from PyTorch (largest absolute IV difference over the test rows)."""

    bundle: Path
    sha256: str
    max_abs_iv_difference: float


def run(cfg: Config) -> ExportResult:
    """Export and check; raises EngineError where parity fails."""
    from pipelines.dataset import FeatureStore
    from pipelines.fit import predict
    from pipelines.golden import demo_arrays, golden_arrays, reference_arrays
    from pipelines.onnx_export import export_member
    from pipelines.trained import load_trained
    from serving.bundle import write_bundle
    from serving.manifest import Member, MemberFile

    store = FeatureStore.open(cfg.folder / "features")
    trained = load_trained(cfg.folder / "train" / cfg.model.name, cfg.folder / "features")
    quotes = cfg.folder / "ingest" / "quotes.parquet"
    onnx, roles = export_member(trained.net, "member-0")
    weights = "member-0/weights.safetensors"
    files: dict[str, bytes | Path] = {
        **onnx,
        weights: trained.weights_path,
        "golden.npz": _npz(golden_arrays(trained.net, store)),
        "demo.npz": _npz(demo_arrays(trained.net, store, quotes, cfg.data.history)),
        "reference.npz": _npz(reference_arrays(store)),
    }
    folder = cfg.folder / "export" / cfg.model.name
    shutil.rmtree(folder, ignore_errors=True)
    bundle = write_bundle(
        folder / "bundle", model=cfg.model.name, model_config=trained.sizes,
        members=[Member({**roles, "weights": MemberFile(weights)})], files=files, feature_spec=store.spec.to_json(),
        semantics="window", tolerances={"iv": IV_TOLERANCE, "context": CONTEXT_TOLERANCE},
        data_sha256=file_hash(quotes), config_sha256=trained.description["config_sha256"],
    )  # fmt: skip
    difference = float(np.max(np.abs(_engine_predictions(bundle, store) - predict(trained.net, store, "test"))))
    checks = [
        {"name": check.name, "difference": check.difference, "tolerance": check.tolerance} for check in _golden(bundle)
    ]
    parity = {"max_abs_iv_difference": difference, "tolerance": IV_TOLERANCE, "golden": checks}
    (folder / "parity.json").write_text(json.dumps(parity, indent=1) + "\n")
    failed = [check["name"] for check in checks if not check["difference"] <= check["tolerance"]]
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


def _golden(bundle: Any) -> list[Any]:
    from pipelines.parity import recompute

    return recompute(bundle)


def _engine_predictions(bundle: Any, store: Any) -> np.ndarray:
    """Volatility of every test row as a host computes it: the window stepped through the engine, then the head."""
    from serving.engine import open_engine

    engine = open_engine(bundle, "ort")
    context = np.zeros(engine.info().context_size, np.float32)
    out = np.full(len(store.rows), np.nan, np.float32)
    for place in store.places("test"):
        window, span = store.window(int(place)), store.row_range(int(place))
        engine.reset()
        for step in window[:-1]:
            engine.advance(step)
        engine.evaluate(window[-1], context)
        engine.head(context, np.ascontiguousarray(store.contracts[span]), out[span])
    return np.asarray(out[(store.rows["split"] == "test").to_numpy()], dtype=np.float64)


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
