"""The champion steps back to an earlier one: one more event through the same ledger.

Data in: a reason, and the version to go back to or none for the champion before. Data out: a `rolled_back`
event with a new release number over the old bundle, then MLflow's aliases. Invariants: only a version that
has been champion and isn't retired is gone back to, and only if the store still holds its bundle intact;
without `to`, repeated rollbacks walk down the history and never return to a version rolled back from; one
that was interrupted before the aliases were set is completed by the same call, not doubled.

Run: python -m pipelines.rollback model=M reason='...' [to=V] [dry_run=true]
"""

from __future__ import annotations

import getpass
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import Operation
from pipelines.reconcile import reconcile
from pipelines.registry import Registry, open_registry
from serving.blobstore import BlobStore, open_store
from serving.bundle import fetch_bundle
from serving.errors import ConfigError, LedgerError
from serving.ledger import Ledger, State


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
    reason: str,
    store: BlobStore,
    registry: Registry,
    by: str,
    dry_run: bool = False,
) -> Rollback:
    """Make an earlier champion the champion again; LedgerError if there is none, or somebody else was first."""
    if not reason.strip():
        raise LedgerError(f"{model}: a rollback needs a reason")
    ledger = Ledger(store, model)
    state = ledger.state()
    champion = state.champion
    if champion is None:
        raise LedgerError(f"{model}: there is no champion yet, so nothing to roll back")
    if to == champion.version or (to is None and _was_interrupted(ledger, state, registry, reason, by)):
        if not dry_run:
            reconcile(model, store, registry)
        message = f"{model}: version {champion.version} is the champion already, release {champion.number}"
        return Rollback(model, champion.version, champion.bundle, False, champion.number, message)
    target = state.rollback_target if to is None else to
    if target is None:
        raise LedgerError(f"{model}: before version {champion.version} there is no champion to go back to")
    bundle_sha256 = state.known(target).bundle
    details = {"from": champion.version}
    ledger.prepare(state, "rolled_back", version=target, bundle=bundle_sha256, by=by, reason=reason, details=details)
    with tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        fetch_bundle(store, bundle_sha256, Path(folder))
    step = f"{model}: version {champion.version} -> {target}"
    if dry_run:
        message = f"{step}; dry run, nothing written"
        return Rollback(model, target, bundle_sha256, False, champion.number, message)
    state = ledger.append(
        state, "rolled_back", version=target, bundle=bundle_sha256, by=by, reason=reason, details=details
    )
    reconcile(model, store, registry)
    message = f"{step}, release {state.release_number}"
    return Rollback(model, target, bundle_sha256, True, state.release_number, message)


def _was_interrupted(ledger: Ledger, state: State, registry: Registry, reason: str, by: str) -> bool:
    """The latest event is this very rollback, and the alias hasn't followed yet."""
    latest = ledger.events()[-1]
    assert state.champion is not None
    return (
        (latest.kind, latest.reason, latest.by) == ("rolled_back", reason, by)
        and latest.seq == state.seq
        and registry.aliases(ledger.model).get("champion") != state.champion.version
    )


def run(cfg: Operation) -> Rollback:
    """Roll `model` back, to the champion before or to version `to`."""
    if cfg.reason is None:
        raise ConfigError(["reason: must be given, as reason='why this champion goes'"])
    return rollback(
        model=cfg.model.name, to=cfg.to, reason=cfg.reason, store=open_store(cfg.storage.url),
        registry=open_registry(cfg.registry.tracking_uri), by=cfg.by or getpass.getuser(), dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
