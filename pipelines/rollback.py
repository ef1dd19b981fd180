"""The champion steps back to an earlier one: one more event through the same ledger.

Data in: a reason, and the version to go back to or none for the champion before. Data out: a `rolled_back` event with a
new release number over the old bundle; what follows from it (channel, aliases) is pipelines/reconcile.py's.
Invariants: only a version that has been champion and isn't retired is gone back to, and only if the store still holds
its bundle, gate report and provenance, without which hosts couldn't be given it; without `to`, rollbacks walk down the
history and never return to a version rolled back from; the same call typed again (same reason, same person) completes
what was interrupted and takes no second step while no other release was decided, whatever else was registered or gated
meanwhile; neither gates nor MLflow are asked.

Run: python -m pipelines.rollback model=M reason='...' [to=V] [instead_of=V] [dry_run=true]
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.channel.content import check_releasable
from pipelines.config import Operation
from pipelines.reconcile import reconcile
from pipelines.registry import Registry
from pipelines.site import open_site, person
from serving.blobstore import BlobStore
from serving.bundle import fetch_bundle
from serving.errors import ConfigError, LedgerError
from serving.events import Event
from serving.ledger import Ledger, Version, fold
from serving.release import RELEASE_LIFETIME, expiry

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel


@dataclass(frozen=True)
class Rollback:
    """What `rollback` did; `version` is the champion now (in a dry run: would be)."""

    model: str
    version: int
    bundle_sha256: str
    changed: bool
    release_number: int
    message: str


def rollback(
    *,
    model: str,
    to: int | None = None,
    instead_of: int | None = None,
    reason: str,
    store: BlobStore,
    registry: Registry,
    channel: Channel,
    by: str,
    lifetime: timedelta = RELEASE_LIFETIME,
    dry_run: bool = False,
) -> Rollback:
    """Make an earlier champion the champion again; LedgerError if there is none, or somebody else was first.

    FollowUpError if the decision stands, but the channel or MLflow couldn't follow.
    """
    if not reason.strip():
        raise LedgerError(f"{model}: a rollback needs a reason")
    ledger = Ledger(store, model)
    events = ledger.events()
    state = fold(model, events)
    champion = state.champion
    if champion is None:
        raise LedgerError(f"{model}: there is no champion yet, so nothing to roll back")
    decided = events[champion.seq - 1]
    if to == champion.version or (to is None and _is_this_one(decided, reason, by)):
        if not dry_run:
            reconcile(model, store, registry, channel)
        message = f"{model}: version {champion.version} is the champion already, release {champion.number}"
        if to is None:
            message += f", by this same rollback at {decided.at}; to go further back, say to=VERSION"
        return Rollback(model, champion.version, champion.bundle, False, champion.number, message)
    if instead_of is not None and champion.version != instead_of:
        raise LedgerError(
            f"{model}: version {champion.version} is the champion (release {champion.number}), not {instead_of}: "
            "somebody was faster; look at the new state, then decide again"
        )
    target = state.rollback_target if to is None else to
    if target is None:
        raise LedgerError(f"{model}: before version {champion.version} there is no champion to go back to")
    known = state.known(target)
    details = {"from": champion.version, **_as_promoted(known), "expires_at": expiry(lifetime)}
    event, after = ledger.prepare(
        state, "rolled_back", version=target, bundle=known.bundle, by=by, reason=reason, details=details
    )
    channel.ready(model)
    with tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        fetch_bundle(store, known.bundle, Path(folder))
    check_releasable(store, model, after.release_number, event)
    step = f"{model}: version {champion.version} -> {target}"
    if dry_run:
        message = f"{step}; dry run, nothing written"
        return Rollback(model, target, known.bundle, False, champion.number, message)
    state = ledger.append(
        state, "rolled_back", version=target, bundle=known.bundle, by=by, reason=reason, details=details
    )
    reconcile(model, store, registry, channel)
    message = f"{step}, release {state.release_number}"
    return Rollback(model, target, known.bundle, True, state.release_number, message)


def _is_this_one(decided: Event, reason: str, by: str) -> bool:
    """What made the champion is this very rollback: it is being typed again, perhaps after a crash."""
    return (decided.kind, decided.reason, decided.by) == ("rolled_back", reason, by)


def _as_promoted(version: Version) -> dict[str, Any]:
    """What the version's latest promotion named: gate report, provenance and, if it had any, engine packs."""
    kept = version.promoted.details if version.promoted else {}
    return {name: kept[name] for name in ("gate_report", "provenance", "packs") if name in kept}


def run(cfg: Operation) -> Rollback:
    """Roll `model` back, to the champion before or to version `to`."""
    problems = [] if cfg.reason is not None else ["reason: must be given, as reason='why this champion goes'"]
    if cfg.version is not None:  # passed over, it would go back somewhere else than was meant
        problems.append(f"version: a rollback doesn't take it (value {cfg.version}); to=VERSION names where it goes")
    if problems:
        raise ConfigError(problems)
    assert cfg.reason is not None
    site = open_site(cfg)
    return rollback(
        model=cfg.model.name, to=cfg.to, instead_of=cfg.instead_of, reason=cfg.reason, store=site.store,
        registry=site.registry, channel=site.channel, by=person(cfg),
        lifetime=timedelta(days=cfg.signing.release_days), dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
