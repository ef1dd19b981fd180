"""A new channel: root and targets proposed, and published once they are signed.

Data in: public halves of each role's keys, thresholds. Data out: `<folder>/pending/`, then `channel/1.root.json` and
targets without a model.
Invariants: a store's channel is begun once; a production root names no development key; the keys of root and targets
sign here and in later ceremonies alone.

Run: python -m pipelines.channel.init signing=production root='[ann.pub.json,bob.pub.json]' root_threshold=2
     targets='[ann.pub.json,bob.pub.json]' snapshot=ci.pub.json timestamp=ci.pub.json [targets_threshold=1] [uri=...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from securesystemslib.signer import Key

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, propose, publish_pending
from pipelines.channel.commands import ChannelCommand, channel_command, public_keys
from pipelines.channel.foundation import found
from pipelines.channel.metadata import next_version
from pipelines.channel.workbench import Workbench
from pipelines.errors import SigningError
from serving.errors import ConfigError


def init(
    bench: Workbench, keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int], *, dry_run: bool = False
) -> list[str]:
    """Propose root 1 and the first targets, sign them with the keys at hand, publish if that is enough."""
    view = bench.view()
    if view.roots:
        raise SigningError(f"{bench.store!r} has a channel already: see `python -m pipelines.channel.status`")
    if bench.kept.roots():
        raise SigningError(
            f"{bench.kept.folder} keeps the root of a channel: `python -m pipelines.channel.restore` brings it back; "
            "for another channel name another folder in STRIKEFORGE_KEYS"
        )
    root = documents.first_root(bench.signing.kind, keys, thresholds, bench.expires("root"))
    targets = documents.first_targets(bench.expires("targets"), next_version(0, bench.now()))
    if dry_run:
        return ["root 1 and targets without a model would be proposed"]
    lines = [f"{path}: proposed" for path in propose(bench, view, root=root, targets=targets)]
    lines += [add_signatures(bench, bench.kept.pending / "1.root.json")]
    lines += [add_signatures(bench, bench.kept.pending / f"{targets.version}.targets.json")]
    return [*lines, *publish_pending(bench)]


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Begin the channel of the store."""
    files = {role: getattr(cfg, role) for role in documents.ROLES}
    if cfg.signing.is_development and not any(files.values()):
        return ["a development channel would be made"] if cfg.dry_run else found(cfg.bench)
    missing = [f"{role}: must be given, as {role}=NAME.pub.json" for role, given in files.items() if not given]
    if missing:
        raise ConfigError(missing)
    keys = {role: public_keys(given) for role, given in files.items()}
    thresholds = {"root": cfg.root_threshold, "targets": cfg.targets_threshold}
    return init(cfg.bench, keys, thresholds, dry_run=cfg.dry_run)


if __name__ == "__main__":
    raise SystemExit(
        channel_command(__doc__, run, takes=(*documents.ROLES, "root_threshold", "targets_threshold", "uri"))
    )
