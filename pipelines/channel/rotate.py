"""A role's keys or threshold are changed, or a root or targets about to expire is renewed.

Data in: role, public halves to add, key ids to remove, threshold. Data out: a pending root (and targets, if it is
their keys that change), then the channel.
Invariants: a new root is signed as the root before it and as itself wants it, so that hosts follow from any earlier
root; without any change root and targets get a new version and expiry.

Run: python -m pipelines.channel.rotate signing=production role=timestamp add=new.pub.json remove=old.pub.json
     [threshold=N] [uri=...]
"""

from __future__ import annotations

from collections.abc import Sequence

from securesystemslib.signer import Key

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, current_targets, propose, publish_pending
from pipelines.channel.commands import ChannelCommand, RoleName, channel_command, key_ids, public_keys
from pipelines.channel.metadata import next_version
from pipelines.channel.workbench import Workbench
from serving.errors import ConfigError


def rotate(
    bench: Workbench, role: RoleName, *, add: Sequence[Key] = (), remove: Sequence[str] = (),
    threshold: int | None = None, dry_run: bool = False,
) -> list[str]:  # fmt: skip
    """Propose a root with the role changed; root and targets without a change are renewed."""
    view, held = current_targets(bench)
    changes = bool(add or remove or threshold is not None)
    if not changes and role not in ("root", "targets"):
        raise ConfigError([f"role={role}: say what changes (add, remove, threshold); `refresh` renews it"])
    root = targets = None
    if changes or role == "root":
        root = documents.next_root(view.root, bench.expires("root"))
        documents.set_keys(root, role, add=add, remove=remove, threshold=threshold)
    if role == "targets":
        version = next_version(held.version, bench.now())
        targets = documents.next_targets(held.signed, bench.expires("targets"), version)
    by = root if root is not None else view.root
    line = f"{role}: {documents.threshold_of(by, role)} of {len(documents.keys_of(by, role))} keys"
    if dry_run:
        return [f"{line}, would be proposed"]
    paths = propose(bench, view, root=root, targets=targets)
    return [line, *(add_signatures(bench, path) for path in paths), *publish_pending(bench)]


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Rotate or renew `role`."""
    assert cfg.role is not None
    return rotate(
        cfg.bench, cfg.role, add=public_keys(cfg.add), remove=key_ids(cfg.remove), threshold=cfg.threshold,
        dry_run=cfg.dry_run,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("add", "remove", "threshold", "uri"), needs=("role",)))
