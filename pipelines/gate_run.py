"""All gates asked of one version, and the report of what they answered.

Data in: the ledger's state, a version, the gates. Data out: `Gated`: the outcomes and the bytes of the report. Nothing
is written (pipelines/gate_report.py stores it). Invariants: `integrity` is asked first, always; no gate is skipped
after a failure of another; a version that was gated before with the same verdict keeps that report, so that asking
again, after a crash or out of curiosity, makes no new one although latencies differ a little every time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.gate_context import Gate, GateContext, GateOutcome
from pipelines.gate_report import Gated, earlier_report, gate_report, same_verdict
from serving.blobstore import BlobStore
from serving.errors import BundleError
from serving.ledger import State

INTEGRITY = "integrity"


def run_gates(
    state: State, version: int, store: BlobStore, gates: Sequence[Gate], *, by: str = "", approve_by: str | None = None
) -> Gated:
    """Ask `integrity` and every gate, in order; LedgerError if the version isn't registered."""
    known, champion = state.known(version), state.champion
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        context = GateContext(
            model=state.model, version=version, bundle_sha256=known.bundle, details=known.registered.details,
            champion_version=champion.version if champion else None,
            champion_details=state.versions[champion.version].registered.details if champion else None,
            store=store, work_dir=Path(folder), champion_bundle_sha256=champion.bundle if champion else None,
            by=by, approve_by=approve_by,
        )  # fmt: skip
        outcomes = tuple(gate(context) for gate in (integrity, *gates))
    fresh = gate_report(state, version, outcomes, approve_by=approve_by)
    earlier = earlier_report(store, known)
    same = earlier is not None and same_verdict(earlier, fresh)
    return Gated(outcomes, earlier if earlier is not None and same else fresh)


def integrity(context: GateContext) -> GateOutcome:
    """The store holds the bundle, complete and untampered, and it is of this model."""
    try:
        bundle = context.bundle()
    except BundleError as error:
        return GateOutcome(INTEGRITY, False, None, None, str(error))
    if bundle.manifest.model != context.model:
        return GateOutcome(INTEGRITY, False, None, None, f"a bundle of model {bundle.manifest.model!r}")
    return GateOutcome(INTEGRITY, True, None, None, f"{len(bundle.manifest.files)} files as registered")
