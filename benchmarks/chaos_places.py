"""A desk that harm is done to: store, MLflow, signing keys and two hosts; and cheap copies of it.

In: a folder and the addresses of store and MLflow. Out: `Place`. Invariant: everything that belongs to a local place
lies in its folder, so a copy of the folder is a copy of the place.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.channel.publish import Channel, open_channel
from pipelines.channel.settings import SigningConfig
from pipelines.registry import Registry, lazy_registry
from serving.blobstore import BlobStore, open_store

MODEL = "tiny"
PACKS = "packs"
ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class Place:
    """One desk: `folder` holds keys/, packs/ and host/, and store/ and mlflow.db where those are local."""

    folder: Path
    store_url: str
    tracking_uri: str

    @classmethod
    def local(cls, folder: Path) -> Place:
        """Store and MLflow in the folder."""
        return cls(folder, str(folder / "store"), f"sqlite:///{folder}/mlflow.db")

    @property
    def store(self) -> BlobStore:
        return _store(self.store_url)

    @property
    def registry(self) -> Registry:
        return _registry(self.tracking_uri)

    @property
    def channel(self) -> Channel:
        return open_channel(signing(self.folder / "keys"), self.store)

    def pack(self, version: int) -> Path:
        """Where the version's engine pack was compiled."""
        return self.folder / PACKS / str(version)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder."""
        return "://" not in self.store_url


def signing(folder: Path) -> SigningConfig:
    """Development keys in this folder; lifetimes as in conf/signing/."""
    return SigningConfig(
        kind="development", folder=str(folder), root_days=365.0, targets_days=180.0, model_days=30.0,
        snapshot_days=7.0, timestamp_days=2.0, release_days=30.0,
    )  # fmt: skip


@lru_cache(maxsize=4)  # clients of clouds take a tenth of a second to make
def _store(url: str) -> BlobStore:
    return open_store(url)


@lru_cache(maxsize=4)
def _registry(uri: str) -> Registry:
    return lazy_registry(uri)


def copy_local(source: Place, target: Place) -> Place:
    """A copy of a local place; MLflow keeps whole paths, so those of the copy are made its own."""
    shutil.copytree(source.folder, target.folder, symlinks=True)
    rebase(target.folder / "mlflow.db", {source.folder.as_uri(): target.folder.as_uri()})
    return target


def rebase(database: Path, places: Mapping[str, str]) -> None:
    """Replace the places of artifacts in MLflow's database."""
    if not database.exists():
        return
    with sqlite3.connect(database) as connection:
        for table, column in ARTIFACT_COLUMNS:
            for old, new in places.items():
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
    connection.close()
