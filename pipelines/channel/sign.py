"""One more signature on whatever waits for some; published when they are enough.

Data in: `<folder>/pending/`, private keys by `uri=`, `file=` for one file alone. Data out: the same files; with the
last signature the channel. What each file says is shown. The machine of a person who only signs needs the keys folder,
neither store nor network: publish=false.
Invariants: as pipelines/channel/ceremony.py says; a key signs only what names it.

Run: python -m pipelines.channel.sign signing=production uri=file2:/media/bob/bob.pem [file=...] [publish=false]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, describe_pending, pending_files, publish_pending, read_pending
from pipelines.channel.commands import ChannelCommand, channel_command
from pipelines.channel.keys import short
from pipelines.channel.metadata import delegated_roles
from pipelines.errors import SigningError


def what_it_says(path: Path) -> list[str]:
    """Who may sign for which role, according to a file that waits."""
    signed = read_pending(path).signed
    roles = documents.ROLES if signed.type == "root" else delegated_roles(signed)
    lines = [f"{path}: {signed.type} {signed.version}, until {signed.expires:%Y-%m-%d %H:%M} UTC"]
    for role in roles:
        ids = " ".join(map(short, documents.keys_of(signed, role)))
        lines.append(f"  {role}: {documents.threshold_of(signed, role)} of {ids}")
    return lines


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Sign what waits, then publish what is complete."""
    bench = cfg.bench
    waiting = pending_files(bench)
    chosen = [path for path in waiting if not cfg.file or path.absolute() == Path(cfg.file).absolute()]
    if cfg.file and not chosen:
        there = ", ".join(map(str, waiting)) or "nothing"
        raise SigningError(f"{cfg.file}: doesn't wait in {bench.kept.pending} (STRIKEFORGE_KEYS); there: {there}")
    lines = [line for path in chosen for line in what_it_says(path)]
    if cfg.dry_run:
        return [*lines, *describe_pending(bench)]
    lines += [add_signatures(bench, path) for path in chosen]
    return [*lines, *(publish_pending(bench) if cfg.publish else ())]


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("file", "uri", "publish")))
