"""TUF metadata made: roots, targets with their delegations, a model's targets, snapshot, timestamp; and signed.

Data in: keys, expiries, what is to be said. Data out: `Held` metadata, verified against whoever delegates to it.
Invariants: nothing leaves here without its threshold of signatures (`unsigned` apart, for ceremonies); a production
root or delegation names no development key; a model's keys may sign that model's paths alone; no key counts twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pipelines.channel.key_files import is_marked
from pipelines.channel.keys import KIND_FIELD, SHORT, Keyring, same_key, short
from pipelines.channel.metadata import (
    FOLLOWS_FIELD,
    TIMESTAMP_KEY,
    Held,
    T,
    is_signed,
    kind_of,
    metadata_key,
)
from pipelines.channel.settings import Kind
from pipelines.errors import SigningError
from serving.release import role_of

ROLES = ("root", "targets", "snapshot", "timestamp")
assert set(ROLES) == set(TOP_LEVEL_ROLE_NAMES)


def first_root(kind: Kind, keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int], expires: datetime) -> Root:
    """Root 1 of a new channel; SigningError naming roles without enough keys."""
    root = Root(expires=expires, unrecognized_fields={KIND_FIELD: kind})
    for role in ROLES:
        set_keys(root, role, add=keys[role], threshold=thresholds.get(role, 1))
    return root


def next_root(root: Root, expires: datetime) -> Root:
    """The root after this one, saying the same."""
    new = copy.deepcopy(root)
    new.version += 1
    new.expires = expires
    return new


def first_targets(expires: datetime, version: int) -> Targets:
    """Targets without any model."""
    return Targets(
        version=version, expires=expires, delegations=Delegations({}, {}), unrecognized_fields={FOLLOWS_FIELD: 0}
    )


def next_targets(targets: Targets, expires: datetime, version: int) -> Targets:
    """Targets made from these ones, saying the same."""
    new = copy.deepcopy(targets)
    new.unrecognized_fields[FOLLOWS_FIELD] = targets.version
    new.version = version
    new.expires = expires
    return new


def delegate(targets: Targets, model: str) -> str:
    """Name a model's role, without keys yet; returns its name. Its paths are those of serving/release.py."""
    role = role_of(model)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    if role not in targets.delegations.roles:
        paths = [f"{model}/*/*", f"{model}/*/*/*", f"{model}/*/*/*/*"]
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=paths)
    return role


def set_keys(
    by: Root | Targets, role: str, *, kind: str | None = None, add: Iterable[Key] = (), remove: Iterable[str] = (),
    threshold: int | None = None,
) -> None:  # fmt: skip
    """Change who signs for a role; SigningError if that leaves too few keys, or adds one that mustn't be there."""
    names = by.get_delegated_role(role)
    kind = kind if kind is not None else kind_of(by) if isinstance(by, Root) else "production"
    for keyid in remove:
        full = [known for known in names.keyids if len(keyid) >= SHORT and known.startswith(keyid)]
        if len(full) != 1:
            there = ", ".join(short(known) for known in names.keyids) or "none"
            raise SigningError(f"{role}: has no key {keyid!r}; there are {there}")
        by.revoke_key(full[0], role)
    for key in add:
        if kind == "production" and is_marked(key):
            raise SigningError(f"{role}: {short(key.keyid)} is a development key, which a production channel refuses")
        doubles = [known for known in names.keyids if known != key.keyid and same_key(by.get_key(known), key)]
        if doubles:
            raise SigningError(f"{role}: {short(key.keyid)} and {short(doubles[0])} are the same key")
        by.add_key(key, role)
    names.threshold = threshold if threshold is not None else names.threshold
    if not 1 <= names.threshold <= len(names.keyids):
        raise SigningError(f"{role}: {len(names.keyids)} keys for a threshold of {names.threshold}; add keys")


def keys_of(by: Root | Targets, role: str) -> dict[str, Key]:
    """The public keys of a role by key id."""
    return {keyid: by.get_key(keyid) for keyid in by.get_delegated_role(role).keyids}


def threshold_of(by: Root | Targets, role: str) -> int:
    """How many of them must sign."""
    found: Role = by.get_delegated_role(role)
    return found.threshold


def model_targets(targets: Mapping[str, TargetFile], version: int, expires: datetime) -> Targets:
    """What a model's role says."""
    return Targets(version=version, expires=expires, targets=dict(targets))


def snapshot(meta: Mapping[str, MetaFile], version: int, expires: datetime) -> Snapshot:
    """Which version of every role belongs together."""
    return Snapshot(version=version, expires=expires, meta=dict(meta))


def timestamp(named: Held[Snapshot], version: int, expires: datetime) -> Timestamp:
    """Which snapshot is the newest."""
    return Timestamp(version=version, expires=expires, snapshot_meta=named.named())


def sign(signed: T, role: str, by: Sequence[Root | Targets], keyring: Keyring) -> Held[T]:
    """Signed as each of `by` wants it (a new root: as the root before it and itself want it)."""
    metadata: Metadata[T] = Metadata(signed)
    key = TIMESTAMP_KEY if role == "timestamp" else metadata_key(role, signed.version)
    for delegator in by:
        for signer in keyring.signers(role, keys_of(delegator, role), threshold_of(delegator, role)):
            if signer.public_key.keyid in metadata.signatures:
                continue
            try:
                metadata.sign(signer, append=True)
            except UnsignedMetadataError as error:
                raise SigningError(f"{role}: key {short(signer.public_key.keyid)}: {error}") from error
    held = Held(key, metadata.to_bytes(), metadata)
    if not all(is_signed(delegator, role, held) for delegator in by):
        ids = ", ".join(map(short, metadata.signatures))
        raise SigningError(f"{role}: a key at hand made signatures that don't verify ({ids}); is it the key it says?")
    return held


def unsigned(signed: T | None, role: str) -> Held[T] | None:
    """Metadata that waits for its signatures, if there is any."""
    if signed is None:
        return None
    metadata: Metadata[T] = Metadata(signed)
    return Held(metadata_key(role, signed.version), metadata.to_bytes(), metadata)


def is_due(held: Held[T], lifetime: timedelta, now: datetime, *, share_left: float = 1 / 3) -> bool:
    """Whether no more than this share of its life is left, the last third if nothing is said."""
    return held.signed.expires - now < share_left * lifetime
