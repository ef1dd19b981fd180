"""The channel as a store holds it, read and verified for those who publish: signatures and thresholds, not expiries.

Data in: TUF metadata under `channel/`. Data out: `View`. The order of trust is TUF's: each root by the one before and
by itself; timestamp, snapshot and targets by the newest root; a model's role by the targets. What is signed with keys
that an earlier root named is told apart (`settled` is false): a rotation is under way, everything is signed anew.

Invariants: bytes that aren't signed by a threshold of keys are never a base for new metadata: TrustError names the key
in the store and the remedy. A targets file counts once the snapshot names it, or if it says that it follows one that
counts: of two made from the same one at most one ever counts. Versions only grow: root by one, the others
max(previous + 1, milliseconds since 1970), so that a channel rebuilt from nothing is never older than what a host has
seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from pipelines.channel.keys import KIND_FIELD
from serving.blobstore import BlobStore
from serving.errors import BlobMissingError, TrustError
from serving.trust import CHANNEL_PREFIX, CONFIG

FOLDER = CHANNEL_PREFIX
TIMESTAMP_KEY = f"{FOLDER}timestamp.json"
FOLLOWS_FIELD = "x-strikeforge-follows"  # version of the targets that these were made from; 0: none
MAX_BYTES = {  # what hosts read
    "root": CONFIG.root_max_length,
    "timestamp": CONFIG.timestamp_max_length,
    "snapshot": CONFIG.snapshot_max_length,
    "targets": CONFIG.targets_max_length,
}
TARGETS_NAME = re.compile(r"([1-9][0-9]{0,17})\.targets\.json", re.ASCII)
NOBODYS = "if nobody of yours made it, delete it from the store"
REBUILD = "`python -m pipelines.channel.restore` makes it anew from the kept root and the ledgers"

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Held(Generic[T]):
    """One metadata file: where it is, its bytes, what they say."""

    key: str
    raw: bytes = field(repr=False)
    metadata: Metadata[T] = field(repr=False)

    @property
    def signed(self) -> T:
        return self.metadata.signed

    @property
    def version(self) -> int:
        return self.metadata.signed.version

    def named(self) -> MetaFile:
        """How snapshot and timestamp name it: version, length, sha256."""
        return MetaFile.from_data(self.version, self.raw, ["sha256"])


@dataclass(frozen=True)
class View:
    """What counts of a channel at one moment; empty if there is no root."""

    roots: tuple[Held[Root], ...] = ()
    targets: Held[Targets] | None = None  # none: the newest root wants other signatures than there are
    named_targets: Held[Targets] | None = None  # those the snapshot names
    timestamp: Held[Timestamp] | None = None
    etag: str | None = None  # of whatever lies at timestamp.json
    snapshot: Held[Snapshot] | None = None
    settled: bool = False  # timestamp and snapshot are signed as the newest root wants it

    @property
    def root(self) -> Root:
        """The newest root; ask only where there is one."""
        return self.roots[-1].signed


def metadata_key(role: str, version: int) -> str:
    """Where a role's metadata lies (all but the timestamp's)."""
    return f"{FOLDER}{version}.{role}.json"


def next_version(previous: int, now: datetime) -> int:
    """The version after `previous` of any role but root."""
    return max(previous + 1, int(now.timestamp() * 1000))


def kind_of(root: Root) -> str:
    """`development` or `production`; anything that isn't marked is production."""
    return "development" if root.unrecognized_fields.get(KIND_FIELD) == "development" else "production"


def parse(kind: type[T], key: str, raw: bytes) -> Held[T]:
    """The metadata of these bytes, not verified; TrustError if they are none of that kind."""
    try:
        metadata = Metadata[T].from_bytes(raw)
    except DeserializationError as error:
        raise TrustError(f"{key}: isn't TUF metadata: {error.__cause__ or error}") from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{key}: holds metadata of type {metadata.signed.type}, expected {kind.type}")
    return Held(key, raw, metadata)


def verify(by: Root | Targets, role: str, held: Held[T], remedy: str = REBUILD) -> None:
    """TrustError unless a threshold of the keys that `by` names for the role signed it."""
    try:
        by.verify_delegate(role, held.metadata.signed_bytes, held.metadata.signatures)
    except UnsignedMetadataError as error:
        raise TrustError(f"{held.key}: {error} of {by.type} {by.version}; {remedy}") from error
    except SerializationError as error:  # a fraction, say: nobody can have signed it
        raise TrustError(f"{held.key}: holds what TUF's canonical JSON can't; {remedy}") from error
    except ValueError as error:
        raise TrustError(f"{held.key}: {by.type} {by.version} names no role {role}") from error


def is_signed(by: Root | Targets, role: str, held: Held[T]) -> bool:
    """Whether `verify` accepts it."""
    try:
        verify(by, role, held)
    except TrustError:
        return False
    return True


def read_channel(store: BlobStore, kept: Sequence[Held[Root]] = (), *, anew: bool = False) -> View:
    """What counts of the store's channel; TrustError naming what doesn't verify.

    `kept` are roots this side knows: the store's must be the same. `anew` looks at roots and targets only, for a
    channel whose other metadata is lost or damaged.
    """
    roots = read_roots(store, kept)
    if not roots:
        return View()
    etag = None
    try:
        blob = store.get_blob(TIMESTAMP_KEY, max_bytes=None if anew else MAX_BYTES["timestamp"])
        etag = blob.etag
    except BlobMissingError:
        anew = True
    if anew:
        return View(roots, newest_targets(store, roots[-1].signed, None), etag=etag)
    timestamp = parse(Timestamp, TIMESTAMP_KEY, blob.data)
    settled = _accepting_root(roots, "timestamp", timestamp) is roots[-1]
    snapshot = _fetch(store, Snapshot, "snapshot", timestamp.signed.snapshot_meta)
    settled = _accepting_root(roots, "snapshot", snapshot) is roots[-1] and settled
    named = snapshot.signed.meta.get("targets.json")
    if named is None:
        raise TrustError(f"{snapshot.key}: names no targets.json; {REBUILD}")
    targets = _fetch(store, Targets, "targets", named)
    _accepting_root(roots, "targets", targets)
    newest = newest_targets(store, roots[-1].signed, targets)
    return View(roots, newest, targets, timestamp, etag, snapshot, settled)


def read_roots(store: BlobStore, kept: Sequence[Held[Root]] = ()) -> tuple[Held[Root], ...]:
    """The chain of roots from version 1; TrustError where it breaks, or isn't the kept one."""
    roots: list[Held[Root]] = []
    while True:
        key = metadata_key("root", len(roots) + 1)
        try:
            raw = store.get(key, max_bytes=MAX_BYTES["root"])
        except BlobMissingError:
            return tuple(roots)
        if len(roots) < len(kept) and kept[len(roots)].raw != raw:
            raise TrustError(
                f"{key}: isn't the root that is kept here; either this is another channel (name its folder in "
                f"STRIKEFORGE_KEYS) or it was replaced: {REBUILD}"
            )
        roots.append(accept_root(roots, parse(Root, key, raw)))


def accept_root(roots: Sequence[Held[Root]], new: Held[Root]) -> Held[Root]:
    """The root that comes after `roots`; TrustError unless the one before and itself signed it."""
    if new.version != len(roots) + 1:
        raise TrustError(f"{new.key}: is version {new.version}, expected {len(roots) + 1}; {NOBODYS}")
    if roots:
        verify(roots[-1].signed, "root", new, NOBODYS)
        if kind_of(roots[-1].signed) != kind_of(new.signed):
            raise TrustError(f"{new.key}: makes a {kind_of(roots[-1].signed)} channel a {kind_of(new.signed)} one")
    verify(new.signed, "root", new, NOBODYS)
    return new


def read_model(store: BlobStore, view: View, role: str) -> Held[Targets] | None:
    """A model's metadata if the snapshot names one that its delegated keys signed, else None."""
    named = view.snapshot.signed.meta.get(f"{role}.json") if view.snapshot is not None else None
    if named is None or view.targets is None or not is_delegated(view.targets.signed, role):
        return None
    held = _fetch(store, Targets, role, named)
    return held if is_signed(view.targets.signed, role, held) else None


def is_delegated(targets: Targets, role: str) -> bool:
    """Whether the targets name keys for a model's role."""
    return role in delegated_roles(targets)


def delegated_roles(targets: Targets) -> list[str]:
    """The models' roles, in the order of the targets."""
    return list((targets.delegations.roles if targets.delegations else None) or {})


def _accepting_root(roots: Sequence[Held[Root]], role: str, held: Held[T]) -> Held[Root]:
    """The newest root whose keys for the role signed it; TrustError if none's did."""
    for root in reversed(roots):
        if is_signed(root.signed, role, held):
            return root
    verify(roots[-1].signed, role, held)
    raise AssertionError("verify accepts what is_signed refused")


def _fetch(store: BlobStore, kind: type[T], role: str, named: MetaFile) -> Held[T]:
    """The metadata that another file names, checked against version, length and hash."""
    key = metadata_key(role, named.version)
    try:
        raw = store.get(key, max_bytes=MAX_BYTES[kind.type])
        named.verify_length_and_hashes(raw)
    except BlobMissingError as error:
        raise TrustError(f"{key}: is missing, yet it was published; {REBUILD}") from error
    except LengthOrHashMismatchError as error:
        raise TrustError(f"{key}: isn't what was published: {error}; {REBUILD}") from error
    held = parse(kind, key, raw)
    if held.version != named.version:
        raise TrustError(f"{key}: says it is version {held.version}; {REBUILD}")
    return held


def newest_targets(store: BlobStore, root: Root, current: Held[Targets] | None) -> Held[Targets] | None:
    """The last of the chain of targets that begins at `current`; without one, the newest that is signed at all."""
    candidates: list[Held[Targets]] = []
    newest = current if current is not None and is_signed(root, "targets", current) else None
    for version in _targets_versions(store):
        if current is not None and version <= current.version:
            continue
        key = metadata_key("targets", version)
        try:
            held = parse(Targets, key, store.get(key, max_bytes=MAX_BYTES["targets"]))
        except TrustError:  # anybody who can write to the store can leave rubbish there; it counts for nothing
            continue
        if held.version == version and is_signed(root, "targets", held):
            candidates.append(held)
    if current is None:
        return max(candidates, key=lambda held: held.version, default=None)
    at = current.version
    while following := [held for held in candidates if held.signed.unrecognized_fields.get(FOLLOWS_FIELD) == at]:
        newest = max(following, key=lambda held: held.version)
        at = newest.version
    return newest


def _targets_versions(store: BlobStore) -> list[int]:
    names = (key.removeprefix(FOLDER) for key in store.list(FOLDER))
    return sorted(int(match[1]) for name in names if (match := TARGETS_NAME.fullmatch(name)))
