"""The questions a version must pass before it becomes champion, each a function from context to outcome.

Data in: what the ledger recorded at registration, the champion's record, the bundle as the store has it. Data
out: `GateOutcome`, kept in the gate report. Invariants: a gate writes nothing; missing or unusable figures
are a failure with a message, never a pass. Thresholds are keyword arguments; bind them with
`functools.partial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.parity import recompute
from serving.blobstore import BlobStore
from serving.bundle import Bundle, fetch_bundle
from serving.errors import BundleError, EngineError

MODEL_PREDICTOR = "model"


@dataclass(frozen=True)
class GateOutcome:
    """A verdict with the figure behind it; `value` should be at most `threshold`."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    message: str


@dataclass(frozen=True)
class GateContext:
    """What gates may look at; `details` are those of the `registered` event."""

    model: str
    version: int
    bundle_sha256: str
    details: Mapping[str, Any]
    champion_version: int | None
    champion_details: Mapping[str, Any] | None
    store: BlobStore
    work_dir: Path

    def bundle(self) -> Bundle:
        """The bundle, fetched from the store and verified; BundleError if that fails."""
        return fetch_bundle(self.store, self.bundle_sha256, self.work_dir)


Gate = Callable[[GateContext], GateOutcome]


def integrity(context: GateContext) -> GateOutcome:
    """The store holds the bundle, complete and untampered, and it is of this model. Always run first."""
    try:
        bundle = context.bundle()
    except BundleError as error:
        return GateOutcome("integrity", False, None, None, str(error))
    if bundle.manifest.model != context.model:
        return GateOutcome("integrity", False, None, None, f"a bundle of model {bundle.manifest.model!r}")
    return GateOutcome("integrity", True, None, None, f"{len(bundle.manifest.files)} files as registered")


def accuracy(context: GateContext, *, baseline: str, ratio: float, champion_tolerance: float) -> GateOutcome:
    """Test IV RMSE is at most `ratio` times the baseline's, and not worse than the champion's.

    The champion counts if it was measured on the same test set; `champion_tolerance` is relative.
    """
    own = _iv_rmse(context.details, MODEL_PREDICTOR)
    other = _iv_rmse(context.details, baseline)
    if own is None or other is None:
        lacking = MODEL_PREDICTOR if own is None else baseline
        message = f"no usable metrics.test.{lacking}.iv_rmse on record for version {context.version}"
        return GateOutcome("accuracy", False, own, None, message)
    limits = {f"{ratio:g} x {baseline}'s {other:.6g}": ratio * other}
    remark = "there is no champion to compare with"
    if context.champion_details is not None:
        champion = _iv_rmse(context.champion_details, MODEL_PREDICTOR)
        test_set, champion_test_set = _test_set(context.details), _test_set(context.champion_details)
        if champion is None or test_set is None or test_set != champion_test_set:
            remark = f"champion {context.champion_version} not compared: test set {champion_test_set}, here {test_set}"
        else:
            remark = f"champion {context.champion_version} has {champion:.6g} on the same test set"
            limits[f"champion's {champion:.6g} + {champion_tolerance:.3g} of it"] = champion * (1 + champion_tolerance)
    reason, threshold = min(limits.items(), key=lambda item: item[1])
    passed = own <= threshold
    relation = "<=" if passed else ">"
    message = f"test IV RMSE {own:.6g} {relation} {threshold:.6g} ({reason}); {remark}"
    return GateOutcome("accuracy", passed, own, threshold, message)


def parity(context: GateContext) -> GateOutcome:
    """ONNX Runtime recomputes the golden vectors of the stored bundle within the manifest's tolerance."""
    try:
        bundle = context.bundle()
        checks = recompute(bundle)
    except (BundleError, EngineError) as error:
        return GateOutcome("parity", False, None, None, str(error))
    worst = max(checks, key=lambda check: check.excess)
    failed = [check for check in checks if check.excess > 1.0]
    shown = failed or [worst]
    message = "; ".join(
        f"{check.name} differs by {check.difference:.3g}, allowed {check.tolerance:.3g}" for check in shown
    )
    value = worst.difference if math.isfinite(worst.difference) else None
    return GateOutcome("parity", not failed, value, worst.tolerance, message)


def _iv_rmse(details: Mapping[str, Any], predictor: str) -> float | None:
    value: Any = details
    for key in ("metrics", "test", predictor, "iv_rmse"):
        value = value.get(key) if isinstance(value, Mapping) else None
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if usable else None


def _test_set(details: Mapping[str, Any]) -> str | None:
    metrics = details.get("metrics")
    value = metrics.get("test_set") if isinstance(metrics, Mapping) else None
    return value if isinstance(value, str) and value else None
