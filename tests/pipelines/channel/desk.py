"""A store with ledgers, bundles and reports as promotions leave them, and a host that reads its channel with TUF's own
client."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater

from pipelines.channel.delegate import delegate
from pipelines.channel.init import init
from pipelines.channel.key import make_pair
from pipelines.channel.key_files import read_public
from pipelines.channel.publish import StoreChannel
from pipelines.channel.settings import SigningConfig
from pipelines.channel.workbench import Workbench, open_workbench, utc_now
from serving.blobstore import BlobStore
from serving.bundle import Bundle, store_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.errors import BlobMissingError
from serving.ledger import Ledger, State
from serving.release import ReleaseFile, parse_release, release_key, release_target
from tests.tiny_bundle import tiny_bundle

EXPIRES = "2099-01-01T00:00:00.000000Z"


def signing(folder: Path, *, kind: str = "development", keys: tuple[str, ...] = (), **days: float) -> SigningConfig:
    """A configuration with the usual lives."""
    usual = {"root": 365.0, "targets": 180.0, "model": 30.0, "snapshot": 7.0, "timestamp": 2.0, "release": 90.0}
    lives = {f"{role}_days": life for role, life in (usual | days).items()}
    return SigningConfig(kind=kind, folder=str(folder), keys=keys, **lives)  # type: ignore[arg-type]


@functools.cache
def bundle(model: str, seed: int) -> Bundle:
    """A tiny bundle, made once."""
    return tiny_bundle(Path(tempfile.mkdtemp(prefix="channel-desk-")) / "bundle", model=model, seed=seed)


def promote(store: BlobStore, model: str, seed: int) -> State:
    """What a promotion writes: bundle, gate report, provenance, events; the channel doesn't follow yet."""
    ledger = Ledger(store, model)
    state = ledger.state()
    made = bundle(model, seed)
    version = state.version_of_bundle(made.sha256) or len(state.versions) + 1
    if version not in state.versions:
        store_bundle(store, made)
        state = ledger.append(state, "registered", version=version, bundle=made.sha256, by="test")
    report = _document(store, "gate-reports", {"passed": True, "version": version})
    verdict = {"passed": True, "report": report}
    state = ledger.append(state, "gated", version=version, bundle=made.sha256, by="test", details=verdict)
    details = {
        "gate_report": report,
        "provenance": _document(store, "provenance", _statement(made.sha256)),
        "expires_at": EXPIRES,
    }
    return ledger.append(state, "promoted", version=version, bundle=made.sha256, by="test", details=details)


def roll_back(store: BlobStore, model: str) -> State:
    """What a rollback writes."""
    ledger = Ledger(store, model)
    state = ledger.state()
    assert state.champion is not None
    assert state.rollback_target is not None
    event = next(e for e in ledger.events() if (e.kind, e.version) == ("promoted", state.rollback_target))
    details = {"from": state.champion.version, **event.details}
    return ledger.append(
        state, "rolled_back", version=event.version, bundle=event.bundle, by="test", reason="test", details=details
    )


def _statement(sha256: str) -> dict[str, Any]:
    subject = {"name": f"bundles/{sha256}/manifest.json", "digest": {"sha256": sha256}}
    return {
        "_type": "https://in-toto.io/Statement/v1", "subject": [subject],
        "predicateType": "https://slsa.dev/provenance/v1", "predicate": {},
    }  # fmt: skip


def _document(store: BlobStore, folder: str, value: dict[str, Any]) -> str:
    raw = canonical_json(value)
    store.put_if_absent(f"{folder}/{sha256_hex(raw)}.json", raw)
    return sha256_hex(raw)


class StoreFetcher(FetcherInterface):
    """Reads `store:///KEY` from a blob store."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([self.store.get(url.removeprefix("store:///"))])
        except BlobMissingError as error:
            raise DownloadHTTPError(str(error), 404) from error


class Host:
    """One trading host: a trusted root and whatever it has seen before, in a folder."""

    def __init__(self, store: BlobStore, folder: Path, root: bytes | None = None) -> None:
        self.store = store
        self.folder = folder
        self.root = root

    def updater(self) -> Updater:
        """A fresh client over what the host has seen."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root = self.root or self.store.get("channel/1.root.json")
        return Updater(str(self.folder), "store:///channel/", fetcher=StoreFetcher(self.store), bootstrap=self.root)

    def target(self, path: str) -> TargetFile | None:
        """What the channel says of a target, verified."""
        return self.updater().get_targetinfo(path)

    def release(self, model: str) -> ReleaseFile | None:
        """The release that the host would install, verified."""
        updater = self.updater()
        found = updater.get_targetinfo(release_target(model, "champion"))
        if found is None:
            return None
        raw = self.store.get(release_key(found.hashes["sha256"]))
        found.verify_length_and_hashes(raw)
        release = parse_release(raw)
        assert found.custom == release.custom()
        return release

    def number(self, model: str) -> int | None:
        """The release number, None without a release."""
        release = self.release(model)
        return release.release if release is not None else None


class Company:
    """A production channel: ann, bob and cid hold root keys (2 of 3), ann and bob those of the targets, CI the rest."""

    def __init__(self, folder: Path, store: BlobStore, *, now: Callable[[], datetime] = utc_now) -> None:
        self.folder = folder
        self.store = store
        self.keys = folder / "people"
        self.online = ("snapshot", "timestamp", "models")
        for name in ("ann", "bob", "cid", *self.online, "new", "newer"):
            make_pair(self.keys / name, development=False)
        bench = self.bench("ann", "bob", *self.online, now=now)
        names = {"root": "ann bob cid", "targets": "ann bob", "snapshot": "snapshot", "timestamp": "timestamp"}
        keys = {role: [self.public(name) for name in who.split()] for role, who in names.items()}
        init(bench, keys, {"root": 2})
        delegate(bench, "a", [self.public("models")])

    def public(self, name: str) -> SSlibKey:
        """The public half of somebody's key."""
        return read_public(self.keys / f"{name}.pub.json")

    def uri(self, name: str) -> str:
        """Where somebody's private key lies; a URI stays what it is."""
        return name if ":" in name else f"file2:{self.keys}/{name}.pem"

    def bench(self, *names: str, now: Callable[[], datetime] = utc_now) -> Workbench:
        """A workbench with these people's keys at hand."""
        uris = tuple(self.uri(name) for name in names)
        return open_workbench(signing(self.folder / "keys", kind="production", keys=uris), self.store, now)

    def channel(self, *names: str, now: Callable[[], datetime] = utc_now) -> StoreChannel:
        """The channel with CI's keys at hand, or with these people's alone."""
        return StoreChannel(self.bench(*(names or self.online), now=now))

    def host(self, name: str = "host") -> Host:
        """A host that was given root 1."""
        return Host(self.store, self.folder / name)


def later(days: float) -> Callable[[], datetime]:
    """A clock that is ahead, or behind."""
    return lambda: datetime.now(UTC) + timedelta(days=days)
