"""A model is let into the channel, or gets one more key: new targets, signed by the targets' (offline) keys.

Data in: a model, public halves. Data out: `<folder>/pending/N.targets.json`, then `channel/N.targets.json`.
Invariants: a model's keys sign paths of that model alone; the next `refresh` or promotion makes it visible to hosts.

Run: python -m pipelines.channel.delegate signing=production model=pricing_lstm key=ci.pub.json [threshold=1] [uri=...]
"""

from __future__ import annotations

from collections.abc import Sequence

from securesystemslib.signer import Key

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, current_targets, propose, publish_pending
from pipelines.channel.commands import ChannelCommand, channel_command, public_keys
from pipelines.channel.metadata import next_version
from pipelines.channel.workbench import Workbench


def delegate(
    bench: Workbench, model: str, keys: Sequence[Key], *, threshold: int | None = None, dry_run: bool = False
) -> list[str]:
    """Propose targets in which `keys` may sign for the model besides those that may already."""
    view, held = current_targets(bench)
    new = documents.next_targets(held.signed, bench.expires("targets"), next_version(held.version, bench.now()))
    role = documents.delegate(new, model)
    documents.set_keys(new, role, kind=bench.signing.kind, add=keys, threshold=threshold)
    line = f"{role}: {documents.threshold_of(new, role)} of {len(documents.keys_of(new, role))} keys"
    if dry_run:
        return [f"{line}, would be proposed"]
    (path,) = propose(bench, view, targets=new)
    return [f"{line}: {path}", add_signatures(bench, path), *publish_pending(bench)]


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Delegate to `model`."""
    assert cfg.model is not None
    return delegate(cfg.bench, cfg.model.name, public_keys(cfg.key), threshold=cfg.threshold, dry_run=cfg.dry_run)


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("threshold", "uri"), needs=("model", "key")))
