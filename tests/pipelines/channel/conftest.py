"""Stores and channels of a test, in its own folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.channel.publish import StoreChannel, open_channel
from serving.folder_store import FolderStore
from tests import servers
from tests.pipelines.channel.desk import Company, Host, signing


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """An empty store."""
    return FolderStore(tmp_path / "store")


@pytest.fixture
def channel(tmp_path: Path, store: FolderStore) -> StoreChannel:
    """A development channel that nobody has begun."""
    return open_channel(signing(tmp_path / "keys"), store)


@pytest.fixture
def company(tmp_path: Path, store: FolderStore) -> Company:
    """A production channel that lets model `a` in, without a release."""
    return Company(tmp_path, store)


@pytest.fixture
def host(tmp_path: Path, store: FolderStore) -> Host:
    """A host of the development channel; it takes root 1 when it first looks."""
    return Host(store, tmp_path / "host")


@pytest.fixture(scope="session")
def kms_server() -> Iterator[str]:
    """Endpoint URL of a KMS that signs hashes."""
    script = str(Path(__file__).with_name("kms_server.py"))
    with servers.running("kms", lambda port: [sys.executable, script, str(port)]) as port:
        yield f"http://{servers.HOST}:{port}"


@pytest.fixture
def kms(aws: str, kms_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of AWS clients, with that KMS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", kms_server)
    return kms_server
