"""What a gate is given and what it answers; every gate (pipelines/gates/) is a function from one to the other.

Data in: what the ledger recorded of the version and of the champion, and the store with their bundles and exams. Data
out: `GateOutcome`, kept in the gate report. Invariants: a gate writes nothing; what it looks at is fetched from the
store and verified by its hash, once for all gates; what can't be had raises BundleError, EngineError or DataError,
which is a failure of the gate that asked (pipelines/gate_choice.py), never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.blobstore import BlobStore
from serving.bundle import Bundle, fetch_bundle
from serving.canonical import is_sha256
from serving.errors import DataError
from serving.normal import Array

if TYPE_CHECKING:
    from pipelines.exam import Exam

MODEL_PREDICTOR = "model"  # the name under which an evaluation scores the version itself


@dataclass(frozen=True)
class GateOutcome:
    """A verdict with the figure behind it; `value` should be at most `threshold`.

    `figures` are JSON values for the report. A gate that wasn't asked (switched off, or not for this task) is `passed`
    with `asked` False; the report says so.
    """

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: bool = True


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
    champion_bundle_sha256: str | None = None
    by: str = ""  # who promotes
    approve_by: str | None = None  # who answers for it

    def bundle(self) -> Bundle:
        """The bundle, fetched from the store and verified; BundleError if that fails."""
        return fetch_bundle(self.store, self.bundle_sha256, self.work_dir)

    def champion_bundle(self) -> Bundle:
        """The champion's bundle, fetched and verified; only where there is a champion."""
        assert self.champion_bundle_sha256 is not None, "there is no champion"
        return fetch_bundle(self.store, self.champion_bundle_sha256, self.work_dir)

    @cached_property
    def exam(self) -> Exam:
        """The version's own exam; DataError if it has none or if it is damaged."""
        return self._exam_of(self.details, self.version)

    @cached_property
    def champion_exam(self) -> Exam:
        """The champion's own exam, which says how its answers are read; DataError as for `exam`."""
        assert self.champion_version is not None, "there is no champion"
        assert self.champion_details is not None
        return self._exam_of(self.champion_details, self.champion_version)

    @cached_property
    def answers(self) -> Array:
        """Volatility [N] that the stored bundle gives for every row of its exam, by the reference engine."""
        from pipelines.exam_answers import answer

        return answer(self.bundle(), self.exam)

    def _exam_of(self, details: Mapping[str, Any], version: int) -> Exam:
        from pipelines.exam import read_exam

        sha256 = details.get("exam")
        if not is_sha256(sha256):
            raise DataError(
                f"version {version} was registered without an exam (found {sha256!r}), so nothing can be recomputed: "
                "run evaluate and register again (a bundle that is registered already needs a new training)"
            )
        return read_exam(self.store, str(sha256))


Gate = Callable[[GateContext], GateOutcome]
