"""A registered version becomes champion, if its gates say so.

Data in: a version, gates, the ledger, compiled engine packs. Data out: a gate report `gate-reports/<sha256>.json` (and
.html), a `gated` event, engine packs `packs/<sha256>/`, a provenance statement, then a `promoted` event that names
them: the decision. What follows from it (the signed channel, MLflow's aliases) is pipelines/reconcile.py's.
Invariants: of promotions that looked at the same state exactly one goes through, the others get LedgerRaceError naming
it; a failing gate leaves the champion as it was; every intermediate state is one that `promote` run again, or
`reconcile`, completes; running again with the same verdict writes nothing twice; nothing is decided that couldn't be
signed; MLflow isn't needed to decide.

Run: python -m pipelines.promote model=M version=V approve_by=NAME [reason=...] [packs=[DIR,...]] [renew=true]
     [dry_run=true]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import Operation
from pipelines.gate_report import html_key, store_report
from pipelines.gates import Gate, GateOutcome, load_gates, run_gates
from pipelines.native_packs import by_target, compiled_packs, kept_packs, not_admitted, store_packs
from pipelines.provenance import store_provenance
from pipelines.reconcile import reconcile
from pipelines.registry import Registry
from pipelines.site import open_site, person
from serving.blobstore import BlobStore
from serving.bundle import fetch_bundle
from serving.canonical import parse_canonical
from serving.errors import ConfigError, GateError, LedgerError
from serving.events import TIME_FORMAT, Event
from serving.ledger import Ledger, fold
from serving.release import RELEASE_LIFETIME, expiry

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel


@dataclass(frozen=True)
class Promotion:
    """What `promote` did; `release_number` is that of the champion now."""

    model: str
    version: int
    bundle_sha256: str
    changed: bool
    release_number: int
    outcomes: tuple[GateOutcome, ...]
    report_sha256: str | None
    message: str


def promote(
    *,
    model: str,
    version: int,
    store: BlobStore,
    registry: Registry,
    channel: Channel,
    gates: Sequence[Gate],
    by: str,
    reason: str = "",
    approve_by: str | None = None,
    lifetime: timedelta = RELEASE_LIFETIME,
    packs: Sequence[Path] = (),
    renew: bool = False,
    dry_run: bool = False,
) -> Promotion:
    """Gate a version and make it champion; GateError names every failing gate.

    `packs` are folders of engine packs that were compiled of this version's bundle; they are released with it, beside
    those of the native engine (pipelines/native_packs.py). Promoting the champion changes nothing but what a crash left
    behind, unless `renew` asks for a new release of it, through the gates again, with a lifetime of its own and
    the compiled packs it had, but for the targets of `packs`. A dry run writes nothing at all. FollowUpError if the
    decision stands, but the channel or MLflow couldn't follow.
    """
    ledger = Ledger(store, model)
    events = ledger.events()
    state = fold(model, events)
    candidate = state.known(version)
    if candidate.retired:
        raise LedgerError(f"{model}: version {version} is retired; register a new one")
    renewed = state.champion if state.champion is not None and state.champion.version == version else None
    if renew and renewed is None:
        raise LedgerError(f"{model}: version {version} isn't the champion, so there is nothing to renew; promote it")
    if renewed is not None and (not renew or _is_this_renewal(events[renewed.seq - 1], reason, by)):
        if not dry_run:
            reconcile(model, store, registry, channel)
        message = (
            f"{model}: version {version} is the champion already, release {state.release_number}; "
            "renew=true makes a new release of it before it expires"
        )
        return Promotion(model, version, candidate.bundle, False, state.release_number, (), None, message)

    channel.ready(model)
    with tempfile.TemporaryDirectory(prefix="promote-") as folder:
        released = events[renewed.seq - 1].details.get("packs", {}) if renewed else {}
        bundle = fetch_bundle(store, candidate.bundle, Path(folder)) if packs or released else None
        compiled = compiled_packs(bundle, packs) if bundle else []
        kept = kept_packs(store, bundle, released, compiled, Path(folder) / "kept") if bundle else {}
    by_target(compiled)
    gated = run_gates(state, version, store, gates, by=by, approve_by=approve_by)
    failing = [outcome for outcome in gated.outcomes if not outcome.passed]
    if not dry_run:
        store_report(store, gated)
        verdict = {"passed": not failing, "report": gated.sha256}
        if candidate.gated is None or candidate.gated.details != verdict:
            state = ledger.append(
                state, "gated", version=version, bundle=candidate.bundle, by=by, reason=reason, details=verdict
            )
    if failing:
        lines = [f"  - {outcome.name}: {outcome.message}" for outcome in failing]
        where = "dry run: no report was stored" if dry_run else f"report: {html_key(gated.sha256)} in the store"
        raise GateError(f"{model}: version {version} isn't promoted; failing gates:\n" + "\n".join([*lines, where]))
    message = f"{model}: version {version} passes {len(gated.outcomes) - len(gated.not_asked)} gates"
    if gated.not_asked:
        message += f" (NOT ASKED: {', '.join(gated.not_asked)})"
    if refused := not_admitted(gated.outcomes):
        message += f" (precisions NOT released: {', '.join(refused)})"
    if dry_run:
        message += "; dry run, nothing written"
        return Promotion(
            model, version, candidate.bundle, False, state.release_number, gated.outcomes, gated.sha256, message
        )
    with tempfile.TemporaryDirectory(prefix="promote-") as folder:
        bundle = fetch_bundle(store, candidate.bundle, Path(folder))
        named = store_packs(store, bundle, parse_canonical(gated.report), compiled, kept)
    details = {
        "gate_report": gated.sha256,
        "provenance": store_provenance(store, state, version, gate_report=gated.sha256),
        "expires_at": expiry(lifetime),
        **({"approve_by": approve_by} if approve_by else {}),
        **({"packs": named} if named else {}),
        **({"renews": renewed.number} if renewed else {}),
    }
    state = ledger.append(
        state, "promoted", version=version, bundle=candidate.bundle, by=by, reason=reason, details=details
    )
    reconcile(model, store, registry, channel)
    message += f" and is champion, release {state.release_number}"
    if named:
        message += f", with engine packs {', '.join(named)}"
    return Promotion(
        model, version, candidate.bundle, True, state.release_number, gated.outcomes, gated.sha256, message
    )


def _is_this_renewal(decided: Event, reason: str, by: str) -> bool:
    """What released the champion is this very renewal, typed again within a day, perhaps after a crash.

    Later it is the next one: who renews every quarter says the same each time.
    """
    if (decided.kind, decided.reason, decided.by) != ("promoted", reason, by) or "renews" not in decided.details:
        return False
    return datetime.now(UTC) - datetime.strptime(decided.at, TIME_FORMAT).replace(tzinfo=UTC) < timedelta(days=1)


def run(cfg: Operation) -> Promotion:
    """Gate and promote `version` of `model` with the gates of `conf/gate/`."""
    problems = [] if cfg.version is not None else ["version: must be given, as version=NUMBER"]
    if cfg.to is not None:
        problems.append(f"to: a promotion doesn't take it (value {cfg.to}); version=NUMBER names what is promoted")
    if problems:
        raise ConfigError(problems)
    assert cfg.version is not None
    site = open_site(cfg)
    return promote(
        model=cfg.model.name, version=cfg.version, store=site.store, registry=site.registry, channel=site.channel,
        gates=load_gates(cfg.gate, task=cfg.model.task), by=person(cfg), reason=cfg.reason or "",
        approve_by=cfg.approve_by, lifetime=timedelta(days=cfg.signing.release_days),
        packs=[Path(folder) for folder in cfg.packs], renew=cfg.renew, dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
