"""A key pair as files, or the public half of a key that stays in a KMS.

Data out: `FILE.pem` (ed25519, mode 600, readable by whoever runs this alone) and `FILE.pub.json`; with `uri=` the
latter alone.
Invariants: nothing is replaced; the private half is never shown; with signing=development the pair says that it is one
for development, and a production channel refuses it.

Run: python -m pipelines.channel.key signing=production file=/media/ann/ann [uri=awskms:alias/channel-timestamp]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.channel.commands import ChannelCommand, channel_command
from pipelines.channel.key_files import PUBLIC_SUFFIX, make_key, marked, write_public
from pipelines.channel.keys import open_key
from pipelines.errors import SigningError
from serving.errors import ConfigError


def make_pair(file: Path, *, development: bool) -> list[str]:
    """A new pair; SigningError if there is a file of that name."""
    private, public = file.with_name(f"{file.name}.pem"), file.with_name(file.name + PUBLIC_SUFFIX)
    there = [str(path) for path in (private, public) if path.exists()]
    if there:
        raise SigningError(f"{', '.join(there)}: there already; name another file")
    key = make_key(private, development=development)
    write_public(public, key)
    return [
        f"key {key.keyid}",
        f"private: {private} (keep it offline, if it is for root or targets)",
        f"public: {public}",
    ]


def import_public(uri: str, file: Path, *, development: bool) -> list[str]:
    """The public half of the key a URI leads to."""
    opened = open_key(uri)
    key = marked(opened.public, development=development or opened.is_development)
    public = file.with_name(file.name + PUBLIC_SUFFIX)
    write_public(public, key)
    return [f"key {key.keyid}", f"public: {public}"]


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Make a pair, or import a public half."""
    assert cfg.file
    if len(cfg.uri) > 1:
        raise ConfigError([f"uri: one key at a time, {len(cfg.uri)} were given"])
    if cfg.dry_run:
        return [f"{cfg.file}{PUBLIC_SUFFIX} would be written"]
    if cfg.uri:
        return import_public(cfg.uri[0], Path(cfg.file), development=cfg.signing.is_development)
    return make_pair(Path(cfg.file), development=cfg.signing.is_development)


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run, takes=("uri",), needs=("file",)))
