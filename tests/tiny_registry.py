"""MLflow registries and registered tiny bundles for tests; the SQLite schema is made once per process and copied."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipelines.channel.publish import StoreChannel, open_channel
from pipelines.register import Registered, register
from pipelines.registry import Registry, open_registry
from serving.blobstore import BlobStore
from serving.folder_store import FolderStore
from serving.ledger import Ledger, State
from tests.pipelines.channel.desk import signing
from tests.tiny_bundle import HASH, tiny_bundle

LINEAGE = {"commit": "c" * 40, "dvc_lock_sha256": HASH}


@functools.cache
def empty_database() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-registry-"))
    open_registry(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


def tracking_uri(folder: Path) -> str:
    """A fresh, empty MLflow in the folder, or the one there."""
    database = folder / "mlflow.db"
    if not database.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_database(), database)
    return f"sqlite:///{database}"


class Desk:
    """A store and a registry in one folder, as one user sees them."""

    def __init__(self, folder: Path, store: BlobStore | None = None, registry: Registry | None = None) -> None:
        self.folder = folder
        self.store = store or FolderStore(folder / "store")
        self.registry = registry or open_registry(tracking_uri(folder))

    @property
    def channel(self) -> StoreChannel:
        """Signed with development keys that lie in the folder."""
        return open_channel(signing(self.folder / "keys"), self.store)

    def state(self) -> State:
        return Ledger(self.store, "tiny").state()

    def aliases(self) -> dict[str, int]:
        return self.registry.aliases("tiny")

    def register(self, seed: int, *, iv_rmse: float = 0.01, bundle: dict[str, Any] | None = None) -> Registered:
        directory = self.folder / f"bundle-{seed}"
        return register(
            model="tiny",
            bundle_dir=tiny_bundle(directory, seed=seed, **(bundle or {})).directory,
            metrics=metrics(iv_rmse),
            parity={"iv": 1e-7},
            lineage=LINEAGE,
            registry=self.registry,
            store=self.store,
            report_paths=[],
            by="trainer",
        )


def metrics(iv_rmse: float, baseline: float = 0.02, test_set: str = "2026-q3") -> dict[str, Any]:
    return {"test": {"model": {"iv_rmse": iv_rmse}, "sticky_strike": {"iv_rmse": baseline}}, "test_set": test_set}
