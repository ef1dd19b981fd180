"""A key that mustn't sign any more is taken out of every role that names it, by its id.

Data in: key ids, public halves in their place. Data out: pending root and targets, as far as they name the key; then
the channel.
Invariants: no role is left with fewer keys than its threshold; hosts refuse what the key signed as soon as they see
the new root or targets, and take new metadata as soon as `refresh` has run with the remaining keys.

Run: python -m pipelines.channel.revoke signing=production key=KEYID_OR_FILE.pub.json [add=new.pub.json] [uri=...]
"""

from __future__ import annotations

from collections.abc import Sequence

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, current_targets, propose, publish_pending
from pipelines.channel.commands import ChannelCommand, channel_command, key_ids, public_keys
from pipelines.channel.keys import SHORT, short
from pipelines.channel.metadata import delegated_roles, next_version
from pipelines.channel.workbench import Workbench
from pipelines.errors import SigningError


def revoke(bench: Workbench, keyids: Sequence[str], add: Sequence[Key] = (), *, dry_run: bool = False) -> list[str]:
    """Propose root and targets without the keys; `add` takes their place in every role that loses one."""
    view, held = current_targets(bench)
    root = documents.next_root(view.root, bench.expires("root"))
    version = next_version(held.version, bench.now())
    targets = documents.next_targets(held.signed, bench.expires("targets"), version)
    of_root = _take_out(bench, root, documents.ROLES, keyids, add)
    of_targets = _take_out(bench, targets, delegated_roles(targets), keyids, add)
    found = {keyid for _, keyid in (*of_root, *of_targets)}
    unknown = [keyid for keyid in keyids if not any(name.startswith(keyid) for name in found)]
    if not found:
        raise SigningError(f"no role names a key {', '.join(unknown)}; see `python -m pipelines.channel.status`")
    lines = [f"{role}: without {short(keyid)}" for role, keyid in (*of_root, *of_targets)]
    lines += [f"{keyid}: no role names it (any more)" for keyid in unknown]
    if dry_run:
        return [*lines, "would be proposed"]
    resigned = bool(of_targets) or any(role == "targets" for role, _ in of_root)
    paths = propose(bench, view, root=root if of_root else None, targets=targets if resigned else None)
    return [*lines, *(add_signatures(bench, path) for path in paths), *publish_pending(bench)]


def _take_out(
    bench: Workbench, by: Root | Targets, roles: Sequence[str], keyids: Sequence[str], add: Sequence[Key]
) -> list[tuple[str, str]]:
    """Change every role that names one of the keys; which role lost which key."""
    found = []
    for role in roles:
        lost = [
            name
            for name in documents.keys_of(by, role)
            if any(len(keyid) >= SHORT and name.startswith(keyid) for keyid in keyids)
        ]
        if lost:
            documents.set_keys(by, role, kind=bench.signing.kind, add=add, remove=lost)
            found += [(role, name) for name in lost]
    return found


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Revoke the keys."""
    return revoke(cfg.bench, key_ids(cfg.key), public_keys(cfg.add), dry_run=cfg.dry_run)


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("add", "uri"), needs=("key",)))
