"""MLflow's aliases made to say what the ledger says; also into an empty MLflow.

Data in: the ledger. Data out: aliases `champion` and `challenger`, and the versions an emptied MLflow lacks.
Invariants: derived only, so it may run at any time, any number of times, from anywhere; it writes nothing to
the store. MLflow's alias writes are unconditional, so the ledger is read again afterwards, until it stood
still.

Run: python -m pipelines.reconcile model=M
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import Operation
from pipelines.register import restore_versions
from pipelines.registry import Registry, open_registry
from serving.blobstore import BlobStore, open_store
from serving.errors import LedgerError
from serving.ledger import CHANNELS, Ledger, State

ATTEMPTS = 20


@dataclass(frozen=True)
class Reconciled:
    """What the aliases now are, and what had to be done for it."""

    model: str
    seq: int
    champion: int | None
    challenger: int | None
    restored: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()


def reconcile(model: str, store: BlobStore, registry: Registry) -> Reconciled:
    """Make MLflow agree with the ledger and say what changed."""
    ledger = Ledger(store, model)
    restored: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    for _ in range(ATTEMPTS):
        state = ledger.state()
        if state.seq == 0:
            raise LedgerError(f"{model}: there is no ledger in {store!r}; is it the right store?")
        restored += restore_versions(state, store, registry)
        changed += reconcile_aliases(state, registry)
        if ledger.state().seq == state.seq:
            aims = alias_aims(state)
            return Reconciled(model, state.seq, aims["champion"], aims["challenger"], restored, changed)
    raise LedgerError(f"{model}: the ledger kept moving; reconcile again")


def reconcile_aliases(state: State, registry: Registry) -> tuple[str, ...]:
    """Set or delete the aliases that differ from the state; returns one line for each."""
    there = registry.aliases(state.model)
    changed = []
    for alias, aim in alias_aims(state).items():
        found = there.get(alias)
        if aim == found:
            continue
        if aim is None:
            registry.delete_alias(state.model, alias)
        else:
            registry.set_alias(state.model, alias, aim)
        changed.append(f"{alias}: {found or 'none'} -> {aim or 'none'}")
    return tuple(changed)


def alias_aims(state: State) -> dict[str, int | None]:
    """The version each channel's alias should point at."""
    champion, challenger = state.champion, state.challenger
    aims = {
        "champion": champion.version if champion else None,
        "challenger": challenger.version if challenger else None,
    }
    assert tuple(aims) == CHANNELS
    return aims


def run(cfg: Operation) -> Reconciled:
    """Make MLflow's aliases and versions of `model` follow its ledger."""
    return reconcile(cfg.model.name, open_store(cfg.storage.url), open_registry(cfg.registry.tracking_uri))


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
