"""A registered version becomes champion, if its gates say so.

Data in: a version, gates, the ledger. Data out: a gate report `gate-reports/<sha256>.json`, a `gated` event,
then a `promoted` event, then MLflow's aliases. Invariants: of promotions that looked at the same state
exactly one goes through, the others get LedgerRaceError naming it; a failing gate leaves the champion as it
was; every intermediate state is one `promote` run again, or `reconcile`, completes; the report has no time in
it, so running again with the same outcome writes nothing twice.

Run: python -m pipelines.promote model=M version=V [reason=...] [dry_run=true]
"""

from __future__ import annotations

import dataclasses
import getpass
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.config import Operation
from pipelines.gates import Gate, GateContext, GateOutcome, accuracy, integrity, parity
from pipelines.reconcile import reconcile
from pipelines.registry import Registry, open_registry
from serving.blobstore import BlobStore, open_store
from serving.canonical import canonical_json, sha256_hex
from serving.errors import ConfigError, GateError, LedgerError
from serving.ledger import Ledger, State

REPORT_FORMAT = 1


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
    gates: Sequence[Gate],
    by: str,
    reason: str = "",
    dry_run: bool = False,
) -> Promotion:
    """Gate a version and make it champion; GateError names every failing gate.

    Promoting the champion changes nothing but aliases left behind by a crash. A dry run writes nothing at all.
    """
    ledger = Ledger(store, model)
    state = ledger.state()
    candidate = state.known(version)
    if candidate.retired:
        raise LedgerError(f"{model}: version {version} is retired; register a new one")
    if state.champion is not None and state.champion.version == version:
        if not dry_run:
            reconcile(model, store, registry)
        message = f"{model}: version {version} is the champion already, release {state.release_number}"
        return Promotion(model, version, candidate.bundle, False, state.release_number, (), None, message)

    outcomes = run_gates(state, version, store, gates)
    report = gate_report(state, version, outcomes)
    report_sha256 = sha256_hex(report)
    failing = [outcome for outcome in outcomes if not outcome.passed]
    if not dry_run:
        store.put_if_absent(report_key(report_sha256), report)
        verdict = {"passed": not failing, "report": report_sha256}
        if candidate.gated is None or candidate.gated.details != verdict:
            state = ledger.append(
                state, "gated", version=version, bundle=candidate.bundle, by=by, reason=reason, details=verdict
            )
    if failing:
        lines = [f"  - {outcome.name}: {outcome.message}" for outcome in failing]
        raise GateError(f"{model}: version {version} isn't promoted; failing gates:\n" + "\n".join(lines))
    message = f"{model}: version {version} passes {len(outcomes)} gates"
    if dry_run:
        message += "; dry run, nothing written"
        return Promotion(
            model, version, candidate.bundle, False, state.release_number, outcomes, report_sha256, message
        )
    state = ledger.append(
        state,
        "promoted",
        version=version,
        bundle=candidate.bundle,
        by=by,
        reason=reason,
        details={"gate_report": report_sha256},
    )
    reconcile(model, store, registry)
    message += f" and is champion, release {state.release_number}"
    return Promotion(model, version, candidate.bundle, True, state.release_number, outcomes, report_sha256, message)


def run_gates(state: State, version: int, store: BlobStore, gates: Sequence[Gate]) -> tuple[GateOutcome, ...]:
    """The outcome of `integrity` and of every gate, in order; none is skipped after a failure."""
    champion = state.champion
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        context = GateContext(
            model=state.model,
            version=version,
            bundle_sha256=state.versions[version].bundle,
            details=state.versions[version].registered.details,
            champion_version=champion.version if champion else None,
            champion_details=state.versions[champion.version].registered.details if champion else None,
            store=store,
            work_dir=Path(folder),
        )
        return tuple(gate(context) for gate in (integrity, *gates))


def gate_report(state: State, version: int, outcomes: Sequence[GateOutcome]) -> bytes:
    """Canonical JSON of the verdict; equal verdicts give equal bytes."""
    champion = state.champion
    return canonical_json(
        {
            "format": REPORT_FORMAT,
            "model": state.model,
            "version": version,
            "bundle": state.versions[version].bundle,
            "champion": {"version": champion.version, "bundle": champion.bundle} if champion else None,
            "passed": all(outcome.passed for outcome in outcomes),
            "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
        }
    )


def report_key(sha256: str) -> str:
    return f"gate-reports/{sha256}.json"


def run(cfg: Operation) -> Promotion:
    """Gate and promote `version` of `model` with the gates of `conf/gate/`."""
    if cfg.version is None:
        raise ConfigError(["version: must be given, as version=NUMBER"])
    gates: list[Gate] = [
        partial(accuracy, baseline=cfg.gate.accuracy_baselines[cfg.model.task], ratio=cfg.gate.accuracy_ratio,
                champion_tolerance=cfg.gate.champion_tolerance),
        parity,
    ]  # fmt: skip
    return promote(
        model=cfg.model.name, version=cfg.version, store=open_store(cfg.storage.url),
        registry=open_registry(cfg.registry.tracking_uri), gates=gates, by=cfg.by or getpass.getuser(),
        reason=cfg.reason or "", dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
