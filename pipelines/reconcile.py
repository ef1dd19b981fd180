"""What follows from the ledger made to follow: the signed channel, then MLflow's versions and aliases.

Data in: the ledger. Data out: the channel's metadata and release file (pipelines/channel/), aliases `champion` and
`challenger`, the versions an emptied MLflow lacks.
Invariants: derived only, so it may run at any time, any number of times, from anywhere, also into an empty channel and
an empty MLflow. Hosts come first: MLflow's absence doesn't keep a release from them, and a channel that can't be
written doesn't keep the aliases back. MLflow's alias writes are unconditional, so the ledger is read again afterwards,
until it stood still.

Run: python -m pipelines.reconcile model=M [dry_run=true]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config import Operation
from pipelines.errors import FollowUpError, SigningError
from pipelines.register import restore_versions
from pipelines.registry import Registry, RegistryError
from pipelines.site import open_site
from serving.blobstore import BlobStore
from serving.errors import BundleError, LedgerError, StoreError, TrustError
from serving.ledger import CHANNELS, Ledger, State, fold

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel

ATTEMPTS = 20


@dataclass(frozen=True)
class Reconciled:
    """Where everything now is, and what had to be done for it."""

    model: str
    seq: int
    champion: int | None
    challenger: int | None
    restored: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def message(self) -> str:
        """One line, and one for each change."""
        done = [*self.published, *(f"MLflow: version {number} made again" for number in self.restored)]
        done += [f"alias {change}" for change in self.changed]
        roles = f"champion {_version(self.champion)}, challenger {_version(self.challenger)}"
        head = f"{self.model}: event {self.seq}, {roles}; "
        if not done:
            return head + "channel and MLflow agree with it"
        return "\n  ".join([head + ("would change (dry run, nothing written):" if self.dry_run else "changed:"), *done])


def reconcile(
    model: str, store: BlobStore, registry: Registry, channel: Channel, *, dry_run: bool = False
) -> Reconciled:
    """Make channel and MLflow agree with the ledger and say what changed.

    FollowUpError if one of them couldn't be brought along (the other was); LedgerError if there is no ledger, or the
    channel names an event that it doesn't have.
    """
    ledger = Ledger(store, model)
    restored: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    for _ in range(ATTEMPTS):
        events = ledger.events()
        state = fold(model, events)
        if state.seq == 0:
            raise LedgerError(f"{model}: there is no ledger in {store!r}; is it the right store?")
        if not dry_run:
            ledger.settle(events[-1])
        behind: list[Exception] = []  # OSError: a disk that is full, a folder of keys that can't be read
        try:
            published += channel.follow(model, dry_run=dry_run)
        except (SigningError, StoreError, TrustError, OSError) as error:
            behind.append(error)
        try:
            if not dry_run:
                restored += restore_versions(state, store, registry)
            changed += reconcile_aliases(state, registry, dry_run=dry_run)
        except (RegistryError, BundleError, StoreError, OSError) as error:
            behind.append(error)
        if behind:
            raise FollowUpError(_standing(state, behind))
        if dry_run or ledger.state().seq == state.seq:
            aims = alias_aims(state)
            return Reconciled(
                model, state.seq, aims["champion"], aims["challenger"], restored, changed, published, dry_run
            )
    raise LedgerError(f"{model}: the ledger kept moving; reconcile again")


def reconcile_aliases(state: State, registry: Registry, *, dry_run: bool = False) -> tuple[str, ...]:
    """Set or delete the aliases that differ from the state; returns one line for each."""
    there = registry.aliases(state.model)
    changed = []
    for alias, aim in alias_aims(state).items():
        found = there.get(alias)
        if aim == found:
            continue
        if not dry_run:
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


def _standing(state: State, behind: Sequence[Exception]) -> str:
    champion = state.champion
    now = f"version {champion.version} is champion, release {champion.number}" if champion else "there is no champion"
    lines = [
        f"{state.model}: the ledger stands at event {state.seq}: {now}; but not everything has followed, "
        "so reconcile when this is mended:",
        *(f"  - {error}" for error in behind),
    ]
    return "\n".join(lines)


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def run(cfg: Operation) -> Reconciled:
    """Make the channel, MLflow's aliases and its versions of `model` follow the ledger."""
    site = open_site(cfg)
    return reconcile(cfg.model.name, site.store, site.registry, site.channel, dry_run=cfg.dry_run)


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
