"""The signed channel made to follow the ledgers: what hosts read, signed anew where it differs or soon expires.

Data in: ledgers, bundles, gate reports and provenance of a store; keys. Data out: its `releases/` and `channel/`.
Order of writes: release file, model role, snapshot, each under a new number, then `timestamp.json` by compare-and-set:
the one visible step. Whatever is killed before it leaves files that nothing names; whoever loses it reads all anew.
Invariants: the ledger is read after the channel, and a channel that names an event the ledger lacks is never written
over, so a release number never goes down; nobody else's model is lost in a race, because a snapshot is only ever
replaced by one made from it; offline keys (root, targets) are needed in development channels alone, which make them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from tuf.api.metadata import Targets

from pipelines.channel import documents
from pipelines.channel.content import Wanted, check_fence
from pipelines.channel.draft import Draft, ModelChange, plan
from pipelines.channel.foundation import found, renew_offline
from pipelines.channel.metadata import TIMESTAMP_KEY, Held, View, is_delegated, next_version, read_model
from pipelines.channel.settings import SigningConfig
from pipelines.channel.workbench import Workbench, not_delegated, open_workbench, utc_now
from pipelines.errors import SigningError
from serving.blobstore import BlobStore
from serving.canonical import sha256_hex
from serving.errors import StoreError, StrikeforgeError
from serving.ledger import Ledger
from serving.release import release_key, role_of

ATTEMPTS = 30
LONGEST_PAUSE_SECONDS = 1.0


class Channel(Protocol):
    """What promotion, rollback and reconciliation ask of a channel."""

    def ready(self, model: str) -> None:
        """SigningError unless a release of the model could be signed now; writes nothing.

        LedgerError if the channel already names an event that the ledger doesn't have: it was cut, or rewritten, and
        whatever is decided on top of it reaches nobody and stands in the way of bringing it back.
        """

    def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
        """Make the channel say what the model's ledger says, and renew what soon expires; one line for each change.

        SigningError: a key is missing or not allowed. LedgerError: the channel names an event the ledger doesn't have.
        TrustError: what lies in the store isn't signed as it must be. StoreError: the store refused or doesn't answer.
        """


def open_channel(signing: SigningConfig, store: BlobStore, *, now: Callable[[], datetime] = utc_now) -> StoreChannel:
    """The channel of a store; reads neither store nor keys yet."""
    return StoreChannel(open_workbench(signing, store, now))


class StoreChannel:
    """The channel of one store, and the keys at hand to sign it."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def ready(self, model: str) -> None:
        bench, role = self.bench, role_of(model)
        view = bench.view()
        held = read_model(bench.store, view, role)
        if held is not None:
            check_fence(bench.store, Wanted(model, None, tuple(Ledger(bench.store, model).events())), held.signed)
        roots = view.roots if not bench.lacks_foundation(view) else bench.kept.roots()
        if not roots and bench.is_development:
            return  # they will be made
        targets = bench.targets_of(view) if view.targets is not None or not bench.is_development else None
        if targets is not None and is_delegated(targets, role):
            bench.check_keys(targets, role)
        elif not bench.is_development:
            raise not_delegated(model)
        else:
            bench.check_keys(roots[-1].signed, "targets")
        for online in ("snapshot", "timestamp"):
            bench.check_keys(roots[-1].signed, online)

    def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
        lines, problems = self._bring([model], dry_run=dry_run)
        return (*lines, *(str(problem) for problem in problems))

    def refresh(self, *, dry_run: bool = False) -> tuple[str, ...]:
        """Make the channel say what all ledgers say, and renew what soon expires; errors as in `follow`.

        What can be done is done; then the problems of single models are raised as one SigningError.
        """
        if not self.bench.view().roots:
            if self.bench.is_development and not self.bench.kept.roots():
                return ("there is no channel yet; the first promotion makes one",)
            raise self.bench.no_channel()
        return self._all(dry_run=dry_run)

    def rebuild(self, *, dry_run: bool = False) -> tuple[str, ...]:
        """Bring back the kept roots and targets, then sign everything else anew from the ledgers.

        For a store whose `channel/` was lost or damaged; hosts that saw the old one accept the new one.
        """
        roots = self.bench.kept.roots()
        if not roots:
            raise SigningError(f"{self.bench.kept.folder} keeps no root: name the channel's folder in STRIKEFORGE_KEYS")
        if dry_run:
            return (f"would bring back root {len(roots)} and the targets, and sign everything else anew",)
        back = self.bench.kept.bring_back(self.bench.store)
        return (*back, *self._all(anew=True))

    def _all(self, *, anew: bool = False, dry_run: bool = False) -> tuple[str, ...]:
        lines, problems = self._bring(None, anew=anew, dry_run=dry_run)
        if problems:
            done = [f"done: {line}" for line in lines]
            raise SigningError("\n  - ".join(["not everything could be signed:", *map(str, problems), *done]))
        return lines

    def _bring(
        self, models: Sequence[str] | None, *, anew: bool = False, dry_run: bool = False
    ) -> tuple[tuple[str, ...], Sequence[StrikeforgeError]]:
        """Try until nobody else was faster: the changes made, and what couldn't be said of other models."""
        bench = self.bench
        before: tuple[str, ...] = ()
        for attempt in range(ATTEMPTS):
            view = bench.view(anew=anew)
            draft = plan(bench, view, models)
            if dry_run or not (draft.lines or view.roots):
                return tuple(draft.lines), draft.problems
            if bench.lacks_foundation(view):
                before += found(bench)
                continue
            if not draft.lines:
                return before, draft.problems
            if self._publish(view, draft):
                return (*before, *draft.lines), draft.problems
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, 0.02 * 2**attempt)))
        raise StoreError(f"channel/: others published {ATTEMPTS} times meanwhile; reconcile again")

    def _publish(self, view: View, draft: Draft) -> bool:
        """All writes of a draft; False if somebody else was faster."""
        bench, now = self.bench, self.bench.now()
        if bench.is_development:
            bench.kept.keep(view)
            view = renew_offline(bench, view, draft)
        targets = bench.targets_of(view)
        assert view.targets is not None
        for role in draft.models:
            bench.check_keys(targets, role)
        for role in ("snapshot", "timestamp") if draft.snapshot else ("timestamp",):
            bench.check_keys(view.root, role)
        snapshot = view.snapshot
        if draft.snapshot or snapshot is None:
            meta = dict(snapshot.signed.meta) if snapshot is not None else {}
            meta["targets.json"] = view.targets.named()
            for role, change in draft.models.items():
                before = meta[f"{role}.json"].version if f"{role}.json" in meta else 0
                meta[f"{role}.json"] = self._put_model(role, targets, next_version(before, now), change).named()
            snapshot = bench.put(
                "snapshot", view.root, next_version(snapshot.version if snapshot is not None else 0, now),
                lambda version: documents.snapshot(meta, version, bench.expires("snapshot")),
            )  # fmt: skip
        version = next_version(view.timestamp.version if view.timestamp is not None else 0, now)
        stamp = documents.timestamp(snapshot, version, bench.expires("timestamp"))
        raw = documents.sign(stamp, "timestamp", [view.root], bench.keyring).raw
        if view.etag is None:
            return bench.store.put_if_absent(TIMESTAMP_KEY, raw)
        return bench.store.put_if_match(TIMESTAMP_KEY, raw, view.etag) is not None

    def _put_model(self, role: str, by: Targets, first: int, change: ModelChange) -> Held[Targets]:
        if change.release is not None:
            ledger = Ledger(self.bench.store, change.release.model)
            ledger.settle(ledger.events()[change.release.seq - 1])
            raw = change.release.to_bytes()
            self.bench.store.put_if_absent(release_key(sha256_hex(raw)), raw)

        def build(version: int) -> Targets:
            return documents.model_targets(change.targets, version, self.bench.expires(role))

        return self.bench.put(role, by, first, build)
