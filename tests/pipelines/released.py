"""Tiny versions with everything a real one is registered with, and their signed releases, in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.exam import ROWS, Exam
from pipelines.gates import GateContext, GateOutcome
from pipelines.promote import Promotion, promote
from pipelines.register import Registered, register
from pipelines.rollback import rollback
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk, metrics

COMMIT = "c0ffee" + "0" * 34
LINEAGE = {
    "config_sha256": "11" * 32, "trained_config_sha256": "11" * 32, "quotes_sha256": "22" * 32,
    "features_sha256": "33" * 32, "seed": "7", "training_run": "ab" * 16, "git_commit": COMMIT, "git_clean": "true",
    "dvc_clean": "true", "dvc_lock_sha256": "44" * 32, "constraints_sha256": "55" * 32, "raw_data_sha256": "66" * 32,
    "builder": "urn:strikeforge:builder:local",
}  # fmt: skip
CONFIG = {"seed": 7, "trainer": {"epochs": 40, "learning_rate": 1e-3}, "data": {"layout": "generic"}}


def tiny_exam(path: Path, strike: float = 100.0) -> Path:
    """An exam of one snapshot and one row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"snapshot", "root"}
    rows = {name: np.array([0 if name in whole else 1], np.int32 if name in whole else np.float64) for name in ROWS}
    rows["strike"] = np.array([strike])
    inputs = {"steps": np.zeros((1, 2), np.float32), "contracts": np.zeros((1, 2), np.float32),
              "step_end": np.array([1], np.int32), "step_count": np.array([1], np.int32)}  # fmt: skip
    days = np.array([17000], np.int32)
    exam = Exam("pricing", {}, {}, days, days - 10, days - 5, rows, {}, inputs)
    path.write_bytes(exam.to_bytes())
    return path


class ReleaseDesk(Desk):
    """A desk whose versions are complete and whose decisions are signed with development keys."""

    @property
    def root(self) -> bytes:
        """What a host would have been given."""
        return self.store.get("channel/1.root.json")

    def registered(
        self, seed: int, *, iv_rmse: float = 0.01, lineage: Mapping[str, str] = LINEAGE,
        config: Mapping[str, Any] | None = CONFIG, bundle: Mapping[str, Any] | None = None,
    ) -> Registered:  # fmt: skip
        """One more version."""
        return register(
            model="tiny", bundle_dir=tiny_bundle(self.folder / f"bundle-{seed}", seed=seed, **(bundle or {})).directory,
            metrics=metrics(iv_rmse), parity={"iv": 1e-7}, lineage=lineage, config=config,
            exam=tiny_exam(self.folder / f"exam-{seed}.npz", 100.0 + seed),
            dates={"train": ["2017-01-03"], "validation": ["2017-01-04"]}, registry=self.registry, store=self.store,
            by="trainer",
        )  # fmt: skip

    def release(self, version: int, reason: str = "") -> Promotion:
        """Promoted, signed, aliased."""
        return promote(
            model="tiny", version=version, store=self.store, registry=self.registry, channel=self.channel,
            gates=(passing,), by="ci", reason=reason, approve_by="ann",
        )  # fmt: skip

    def go_back(self, reason: str = "worse") -> None:
        """Rolled back, signed, aliased."""
        rollback(model="tiny", reason=reason, store=self.store, registry=self.registry, channel=self.channel, by="ops")


def passing(context: GateContext) -> GateOutcome:
    """A gate that says yes."""
    return GateOutcome("taste", True, 1.0, 2.0, "1 <= 2")
