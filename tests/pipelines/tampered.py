"""A story of three releases, ways to damage its store, and ways to sign something else with its own keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from pipelines import verify
from pipelines.channel.keys import Keyring
from pipelines.verify import Verification
from serving.release import release_key, release_target
from tests.pipelines.released import ReleaseDesk

ROLE = "model-tiny"


def release_story(folder: Path) -> ReleaseDesk:
    """Two versions; 1, then 2 promoted, then rolled back to 1: three releases."""
    desk = ReleaseDesk(folder)
    desk.registered(1)
    desk.registered(2)
    desk.release(1)
    desk.release(2)
    desk.go_back()
    return desk


def copy_of(original: ReleaseDesk, folder: Path) -> ReleaseDesk:
    """One that may be damaged; MLflow is the original's."""
    for name in ("store", "keys"):
        shutil.copytree(original.folder / name, folder / name)
    return ReleaseDesk(folder, registry=original.registry)


def checked(desk: ReleaseDesk, root: bytes | None = None, **more: datetime) -> Verification:
    return verify.verify("tiny", desk.store, root=root, aliases={"champion": 1}, **more)


def layers(found: Verification) -> list[str]:
    return [layer.name for layer in found.layers if layer.problems]


def named_now(desk: ReleaseDesk) -> dict[str, str]:
    """Keys of the metadata that counts now, by role."""
    snapshot_version = Metadata[Timestamp].from_bytes(desk.store.get("channel/timestamp.json")).signed.snapshot_meta
    key = f"channel/{snapshot_version.version}.snapshot.json"
    meta = Metadata[Snapshot].from_bytes(desk.store.get(key)).signed.meta
    named = {role.removesuffix(".json"): f"channel/{one.version}.{role}" for role, one in meta.items()}
    return {"root": "channel/1.root.json", "timestamp": "channel/timestamp.json", "snapshot": key, **named}


def release_now(desk: ReleaseDesk) -> str:
    """Key of the release file that is signed now."""
    role = Metadata[Targets].from_bytes(desk.store.get(named_now(desk)[ROLE])).signed
    return release_key(role.targets[release_target("tiny", "champion")].hashes["sha256"])


def superseded(desk: ReleaseDesk) -> set[str]:
    """What nothing rests on any more: metadata and release files of earlier releases, and pages drawn for people."""
    keys = set(desk.store.list())
    current = {*named_now(desk).values(), release_now(desk)}
    return {key for key in keys if key.startswith(("channel/", "releases/")) and key not in current} | {
        key for key in keys if key.endswith(".html")
    }


def flip(raw: bytes) -> bytes:
    """One bit of the middle byte, which stays a printable character in text."""
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


TAMPER: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flip,
    "first byte": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "truncated": lambda raw: raw[:-1],
    "emptied": lambda raw: b"",
    "longer": lambda raw: raw + b" ",
    "removed": lambda raw: None,
}


def sign_anew(desk: ReleaseDesk, role: str, change: Callable[[Targets], None], *, publish_it: bool = True) -> str:
    """Change targets or the model's role and sign it and all above it with the channel's own keys; its key.

    Not published, it takes the place of the one that the snapshot names.
    """
    now = named_now(desk)
    root = Metadata[Root].from_bytes(desk.root).signed
    keyring = Keyring((), folder=desk.folder / "keys", allow_development=True)
    delegations = Metadata[Targets].from_bytes(desk.store.get(now["targets"])).signed.delegations
    assert delegations is not None
    assert delegations.roles is not None

    def publish(name: str, metadata: Metadata[Any], key: str | None = None) -> MetaFile:
        named, known = (delegations.roles[name], delegations.keys) if name == ROLE else (root.roles[name], root.keys)
        metadata.signed.version += 1
        metadata.signatures.clear()
        keys = {keyid: known[keyid] for keyid in named.keyids}
        for signer in keyring.signers(name, keys, named.threshold):
            metadata.sign(signer, append=True)
        raw = metadata.to_bytes()
        desk.store.put(key or f"channel/{metadata.signed.version}.{name}.json", raw)
        return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])

    changed = Metadata[Targets].from_bytes(desk.store.get(now[role]))
    change(changed.signed)
    if not publish_it:
        changed.signed.version -= 1  # which publish adds
        publish(role, changed)
        return now[role]
    snapshot = Metadata[Snapshot].from_bytes(desk.store.get(now["snapshot"]))
    snapshot.signed.meta[f"{role}.json"] = publish(role, changed)
    timestamp = Metadata[Timestamp].from_bytes(desk.store.get(now["timestamp"]))
    timestamp.signed.snapshot_meta = publish("snapshot", snapshot)
    publish("timestamp", timestamp, now["timestamp"])
    return named_now(desk)[role]
