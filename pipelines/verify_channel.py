"""The signed side of a store, checked from the root down and to the end: every signature, hash, length and expiry.

In: `channel/*.json` of a store, the root one trusts (or none: then the store's own first root, which is said). Out:
`SignedSide`: what the model's role signs, and everything that is wrong, the first break first.
Invariants: nothing is written; a broken file doesn't keep the others from being looked at, and what it names is then
followed although nobody vouches for it. A host (serving/trust.py) does the same with python-tuf's client and stops at
the first break; here the classes of `tuf.api` are used one by one: where the two disagree one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import DelegatedRole, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from pipelines.channel.metadata import FOLDER, MAX_BYTES, TIMESTAMP_KEY, Held, kind_of, metadata_key, parse, verify
from serving.blobstore import BlobStore
from serving.errors import BlobMissingError, StoreError, TrustError
from serving.release import role_of

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass
class SignedSide:
    """What a channel says of a model; `is_there` is false for a store without one."""

    is_there: bool = True
    targets: Mapping[str, TargetFile] = field(default_factory=dict)
    files: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_signed_side(store: BlobStore, model: str, *, root: bytes | None, now: datetime) -> SignedSide:
    """Check everything that leads to the model's targets; `now` has a time zone."""
    if not store.list(FOLDER):
        return SignedSide(is_there=False)
    return _Walk(store, now).to(model, root)


class _Walk:
    """One pass from the root down; problems are collected in that order."""

    def __init__(self, store: BlobStore, now: datetime) -> None:
        self.store, self.now, self.side = store, now, SignedSide()

    def to(self, model: str, trusted: bytes | None) -> SignedSide:
        """Follow root, timestamp, snapshot, targets, the model's role."""
        root = self.roots(trusted)
        if root is None:
            return self.side
        timestamp = self.read(Timestamp, TIMESTAMP_KEY)
        if timestamp is None:
            return self.side
        self.signed(root, "timestamp", timestamp)
        snapshot = self.named(Snapshot, "snapshot", timestamp.signed.snapshot_meta)
        if snapshot is None:
            return self.side
        self.signed(root, "snapshot", snapshot)
        targets = self.listed(snapshot, "targets")
        if targets is None:
            return self.side
        self.signed(root, "targets", targets)
        if targets.signed.targets:
            self.problem(f"{targets.key}: signs {sorted(targets.signed.targets)[0]!r} itself; it may only delegate")
        self.model(model, snapshot, targets)
        return self.side

    def model(self, model: str, snapshot: Held[Snapshot], targets: Held[Targets]) -> None:
        """The model's role: delegated, signed, and of this model alone."""
        role = role_of(model)
        delegated = (targets.signed.delegations.roles if targets.signed.delegations else None) or {}
        if role not in delegated:
            self.problem(f"{targets.key}: delegates nothing to {role}; so no release of {model} is signed")
            return
        self.delegation(delegated[role], model, targets.key)
        held = self.listed(snapshot, role)
        if held is None:
            return
        self.signed(targets.signed, role, held)
        foreign = [path for path in held.signed.targets if not path.startswith(f"{model}/")]
        if foreign:
            self.problem(f"{held.key}: signs {sorted(foreign)[0]!r}, which isn't of model {model}")
        self.side.targets = held.signed.targets

    def delegation(self, role: DelegatedRole, model: str, key: str) -> None:
        """It ends at this role, and covers this model's paths only."""
        wrong = [path for path in role.paths or () if not path.startswith(f"{model}/")]
        if not role.terminating or wrong or not role.paths:
            self.problem(
                f"{key}: the delegation to {role.name} isn't terminating or covers {wrong or 'nothing by path'}"
            )

    def roots(self, trusted: bytes | None) -> Root | None:
        """The newest root that follows from the trusted one, and the chain of all of them judged."""
        try:
            given = None if trusted is None else parse(Root, "the root file given", trusted)
        except TrustError as error:
            self.problem(str(error))
            given = None
        last = max((int(name) for key in self.store.list(FOLDER) if (name := _root_number(key))), default=0)
        if given is None:
            self.side.notes.append(
                "the first root is the store's own word: root=FILE holds it against the one you trust"
            )
        elif given.version > last:
            key = metadata_key("root", given.version)
            self.problem(f"{key}: the root you trust isn't there, the newest is {last}: another channel or an old copy")
            return None
        before: Held[Root] | None = None
        for version in range(1, last + 1):
            held = self.read(Root, metadata_key("root", version))
            if held is None:
                before = None
                continue
            self.root(held, version, before, given)
            before = held
        if before is None:
            if not last:
                self.problem(f"{metadata_key('root', 1)}: is missing, so nothing can be verified")
            return None
        self.expiry(before)
        if kind_of(before.signed) == "development":
            self.side.notes.append("a development channel: its keys lie unprotected; hosts want --development for it")
        return before.signed

    def root(self, held: Held[Root], version: int, before: Held[Root] | None, given: Held[Root] | None) -> None:
        """One root: its number, signed by the one before and by itself, the same as the one given."""
        if held.version != version:
            self.problem(f"{held.key}: says it is version {held.version}")
        if given is not None and given.version == version and given.raw != held.raw:
            self.problem(f"{held.key}: isn't the root you trust")
        for by in ([before.signed] if before else []) + [held.signed]:
            self.verified(by, "root", held)
        if before is None and version > 1:
            self.problem(f"{held.key}: what it should follow from is missing")
        if before is not None and kind_of(before.signed) != kind_of(held.signed):
            self.problem(f"{held.key}: makes a {kind_of(before.signed)} channel a {kind_of(held.signed)} one")

    def listed(self, snapshot: Held[Snapshot], role: str) -> Held[Targets] | None:
        """A targets file that the snapshot lists."""
        meta = snapshot.signed.meta.get(f"{role}.json")
        if meta is None:
            self.problem(f"{snapshot.key}: lists no {role}.json")
            return None
        return self.named(Targets, role, meta)

    def named(self, kind: type[T], role: str, meta: MetaFile) -> Held[T] | None:
        """A file that another one names with version, length and hash."""
        key = metadata_key(role, meta.version)
        held = self.read(kind, key)
        if held is None:
            return None
        try:
            meta.verify_length_and_hashes(held.raw)
        except LengthOrHashMismatchError as error:
            self.problem(f"{key}: isn't what was published: {error}")
        if meta.hashes is None:
            self.problem(f"{key}: is named without a hash")
        if held.version != meta.version:
            self.problem(f"{key}: says it is version {held.version}")
        return held

    def read(self, kind: type[T], key: str) -> Held[T] | None:
        """A file's metadata, not verified."""
        try:
            held = parse(kind, key, self.store.get(key, max_bytes=MAX_BYTES[kind.type]))
        except BlobMissingError:
            self.problem(f"{key}: is missing")
            return None
        except (StoreError, TrustError) as error:
            self.problem(str(error))
            return None
        self.side.files += 1
        return held

    def signed(self, by: Root | Targets, role: str, held: Held[T]) -> None:
        """Signed by a threshold of the role's keys, and not expired."""
        self.verified(by, role, held)
        self.expiry(held)

    def verified(self, by: Root | Targets, role: str, held: Held[T]) -> None:
        try:
            verify(by, role, held)
        except TrustError as error:
            self.problem(str(error))

    def expiry(self, held: Held[T]) -> None:
        if held.signed.is_expired(self.now):
            self.problem(f"{held.key}: expired at {held.signed.expires:%Y-%m-%dT%H:%M:%SZ}; sign it anew (refresh)")

    def problem(self, text: str) -> None:
        self.side.problems.append(text)


def _root_number(key: str) -> str:
    name, _, rest = key.removeprefix(FOLDER).partition(".")
    return name if rest == "root.json" and name.isdecimal() else ""
