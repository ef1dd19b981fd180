"""Defects to plant in a process, each of which the chaos must notice.

In: a name. Out: a changed process: `DEFECTS[name]()` replaces a function of the product or of a library it rests on.
Invariant: only the process that calls it is changed; nothing on disk is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from serving.blobstore import BlobStore


def no_fsync() -> None:
    """Nothing waits for the disk."""
    os.fsync = lambda fd: None
    os.fdatasync = lambda fd: None


def no_channel() -> None:
    """`reconcile` forgets the channel."""
    from pipelines import promote, reconcile, rollback

    original = reconcile.reconcile

    def without_channel(model: str, store: Any, registry: Any, channel: Any, **other: Any) -> Any:
        class Forgotten:
            def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
                return ()

        return original(model, store, registry, cast(Any, Forgotten()), **other)

    for module in (promote, reconcile, rollback):
        module.reconcile = without_channel  # type: ignore[attr-defined]


def same_number() -> None:
    """A rollback gives the old release number again to what it brings back."""
    from serving import ledger

    original = ledger.apply_event

    def reusing(state: Any, event: Any) -> Any:
        after = original(state, event)
        if event.kind != "rolled_back":
            return after
        old = next(release for release in state.releases if release.version == event.version)
        again = dataclasses.replace(after.releases[-1], number=old.number)
        return dataclasses.replace(after, releases=(*after.releases[:-1], again))

    ledger.apply_event = reusing


def unstored_packs() -> None:
    """A promotion names engine packs that it never brought into the store."""
    from pipelines import native_packs

    native_packs.store_pack = lambda store, pack: pack.sha256  # type: ignore[attr-defined]


def no_expiry() -> None:
    """A host believes signatures for ever."""
    from tuf.api.metadata import Signed

    from serving.release import ReleaseFile

    Signed.is_expired = lambda self, reference_time=None: False  # type: ignore[method-assign]
    ReleaseFile.expired = lambda self, now: False  # type: ignore[method-assign]


def any_signature() -> None:
    """A host takes one good signature for enough."""
    from tuf.api.metadata import RootVerificationResult, VerificationResult

    VerificationResult.verified = property(lambda self: bool(self.signed))  # type: ignore[assignment,method-assign]
    RootVerificationResult.verified = property(lambda self: bool(self.signed))  # type: ignore[assignment,method-assign]


class _Overwriting:
    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._store.put(key, data)
        return True


def overwriting(store: BlobStore) -> BlobStore:
    """The store with a create-if-absent that replaces what is there and says it created it."""
    return cast(BlobStore, _Overwriting(store))


DEFECTS: Mapping[str, Callable[[], None]] = {
    "no fsync": no_fsync,
    "reconcile skips the channel": no_channel,
    "rollback uses a release number again": same_number,
    "engine packs named and not stored": unstored_packs,
    "expiry ignored": no_expiry,
    "signature threshold ignored": any_signature,
}
