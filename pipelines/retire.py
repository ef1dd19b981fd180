"""A version is taken out of use for good: one more event through the same ledger.

Data in: a version and a reason. Data out: a `retired` event, then MLflow's aliases; the bundle stays in the store,
so that what it once priced can be looked at. Invariants: the champion can't be retired; a retired version is never
promoted or rolled back to again; the same call once more, also after a crash before the aliases, completes them and
writes no second event.

Run: python -m pipelines.retire model=M version=V reason='...' [dry_run=true]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config import Operation
from pipelines.reconcile import reconcile
from pipelines.registry import Registry
from pipelines.site import open_site, person
from serving.blobstore import BlobStore
from serving.errors import ConfigError, LedgerError
from serving.ledger import Ledger

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel


@dataclass(frozen=True)
class Retirement:
    """What `retire` did; `rollback_target` is where a rollback now goes (in a dry run: would go), None for nowhere."""

    model: str
    version: int
    bundle_sha256: str
    changed: bool
    rollback_target: int | None
    message: str


def retire(
    *,
    model: str,
    version: int,
    reason: str,
    store: BlobStore,
    registry: Registry,
    channel: Channel,
    by: str,
    dry_run: bool = False,
) -> Retirement:
    """Retire a version; LedgerError if it is the champion or unknown, or if somebody else wrote meanwhile."""
    if not reason.strip():
        raise LedgerError(f"{model}: retiring a version needs a reason")
    ledger = Ledger(store, model)
    state = ledger.state()
    known = state.known(version)
    if known.retired:
        if not dry_run:
            reconcile(model, store, registry, channel)
        message = f"{model}: version {version} is retired already"
        return Retirement(model, version, known.bundle, False, state.rollback_target, message)
    if state.champion is not None and state.champion.version == version:
        raise LedgerError(
            f"{model}: version {version} is the champion and can't be retired; "
            "roll back or promote another version first"
        )
    _, after = ledger.prepare(state, "retired", version=version, bundle=known.bundle, by=by, reason=reason)
    message = f"{model}: version {version} {'would be' if dry_run else 'is'} retired"
    if after.rollback_target != state.rollback_target:
        where = f"to version {after.rollback_target}" if after.rollback_target else "nowhere, no champion is left there"
        message += f"; a rollback then goes {where}"
    if dry_run:
        message += "; dry run, nothing written"
        return Retirement(model, version, known.bundle, False, after.rollback_target, message)
    ledger.append(state, "retired", version=version, bundle=known.bundle, by=by, reason=reason)
    reconcile(model, store, registry, channel)
    return Retirement(model, version, known.bundle, True, after.rollback_target, message)


def run(cfg: Operation) -> Retirement:
    """Retire `version` of `model`."""
    missing = [
        f"{key}: must be given, as {key}={example}"
        for key, example, value in (
            ("version", "NUMBER", cfg.version),
            ("reason", "'why this version goes'", cfg.reason),
        )
        if value is None
    ]
    if missing:
        raise ConfigError(missing)
    assert cfg.version is not None
    assert cfg.reason is not None
    site = open_site(cfg)
    return retire(
        model=cfg.model.name, version=cfg.version, reason=cfg.reason, store=site.store, registry=site.registry,
        channel=site.channel, by=person(cfg), dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
