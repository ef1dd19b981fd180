"""What the publishing side signs, the host takes: promotions, a rollback, a channel made again from nothing.

The two sides are written apart: pipelines/channel signs, serving/pull.py verifies; tests/forged.py knows neither.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.channel.publish import open_channel
from pipelines.provenance import store_provenance
from serving.bundle import store_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.errors import TrustError
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from serving.pull import Pulled, pull
from tests.pipelines.channel import desk
from tests.pipelines.channel.desk import EXPIRES, Company

MODEL = "a"


def promote(store: FolderStore, seed: int) -> str:
    """What a promotion writes, with a real provenance statement; the bundle's sha256."""
    made = desk.bundle(MODEL, seed)
    store_bundle(store, made)
    raw = canonical_json({"passed": True, "seed": seed})
    report = sha256_hex(raw)
    store.put_if_absent(f"gate-reports/{report}.json", raw)
    ledger = Ledger(store, MODEL)
    state = ledger.state()
    version = len(state.versions) + 1
    state = ledger.append(state, "registered", version=version, bundle=made.sha256, by="test")
    verdict = {"passed": True, "report": report}
    state = ledger.append(state, "gated", version=version, bundle=made.sha256, by="test", details=verdict)
    provenance = store_provenance(store, state, version, gate_report=report)
    details = {"gate_report": report, "provenance": provenance, "expires_at": EXPIRES}
    ledger.append(state, "promoted", version=version, bundle=made.sha256, by="test", details=details)
    return made.sha256


class Trading:
    """A host that was given root 1."""

    def __init__(self, folder: Path, store: FolderStore, root: bytes) -> None:
        folder.mkdir()
        self.folder, self.store, self.root = folder / "releases", store, folder / "root.json"
        self.root.write_bytes(root)

    def pull(self, **options: bool) -> Pulled:
        return pull(self.store, self.root, directory=self.folder, model=MODEL, **options)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_every_release_arrives(tmp_path: Path, store: FolderStore) -> None:
    company = Company(tmp_path, store)
    channel = company.channel()
    first = promote(store, 1)
    channel.follow(MODEL)
    host = Trading(tmp_path / "host", store, store.get("channel/1.root.json"))
    assert host.pull().installed.bundle == first
    second = promote(store, 2)
    assert not host.pull().changed  # decided, but the channel doesn't say so yet
    channel.follow(MODEL)
    pulled = host.pull()
    assert (pulled.installed.bundle, pulled.installed.release, pulled.before) == (second, 2, 1)
    desk.roll_back(store, MODEL)
    channel.follow(MODEL)
    pulled = host.pull()
    assert (pulled.installed.bundle, pulled.installed.release, pulled.installed.version) == (first, 3, 1)
    assert pulled.installed.load().manifest.model == MODEL


def test_a_channel_made_again_from_nothing_is_taken(tmp_path: Path, store: FolderStore) -> None:
    company = Company(tmp_path, store)
    promote(store, 1)
    company.channel().follow(MODEL)
    host = Trading(tmp_path / "host", store, store.get("channel/1.root.json"))
    host.pull()
    for key in store.list("channel/"):
        store.delete(key)
    with pytest.raises(TrustError, match=r"timestamp\.json: is missing"):
        host.pull()
    company.channel().rebuild()
    assert not host.pull().changed
    second = promote(store, 2)
    company.channel().follow(MODEL)
    assert host.pull().installed.bundle == second


def test_a_development_channel_must_be_asked_for(tmp_path: Path, store: FolderStore) -> None:
    made = promote(store, 1)
    open_channel(desk.signing(tmp_path / "keys"), store).follow(MODEL)
    host = Trading(tmp_path / "host", store, store.get("channel/1.root.json"))
    with pytest.raises(TrustError, match="development root"):
        host.pull()
    assert host.pull(development=True).installed.bundle == made
