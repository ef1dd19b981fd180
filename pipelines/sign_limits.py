"""Sign a trading host's limits.

Data in: a limits file (serving/host/limits.py) and the URI of an Ed25519 private key (pipelines/channel/keys.py:
file2:PATH, envvar:NAME). Data out: `FILE.sig` beside it, base64, which a host verifies with the key's public half.
Invariants: a file that a host would refuse isn't signed; no development key signs; the key isn't shown.

Run: python -m pipelines.sign_limits limits.toml --key file2:/media/ann/limits.pem
Keys: python -m pipelines.channel.key signing=production file=/media/ann/limits (the host gets limits.pub.json).
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.channel.keys import open_key
from pipelines.errors import SigningError
from serving.disk import replace_file
from serving.errors import run_command
from serving.host.limits import parse_limits, read_bounded
from serving.host.limits_signature import signature_path


def sign_limits(path: Path, uri: str) -> Path:
    """Write the signature of `path` beside it; ConfigError if the limits are refused, SigningError if the key is."""
    data = read_bounded(path)
    parse_limits(data, str(path))
    opened = open_key(uri)
    if opened.is_development:
        raise SigningError(f"{uri}: is a development key, which hosts refuse; make one with signing=production")
    if not isinstance(opened.private, Ed25519PrivateKey):
        raise SigningError(f"{uri}: limits are signed with an Ed25519 key at hand; this one is of another kind")
    signature = signature_path(path)
    replace_file(signature, base64.b64encode(opened.private.sign(data)) + b"\n")
    return signature


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.sign_limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("limits", type=Path, help="limits.toml")
    parser.add_argument("--key", required=True, metavar="URI", help="the private key: file2:PATH or envvar:NAME")
    chosen = parser.parse_args(argv)
    sys.stdout.write(f"{sign_limits(chosen.limits, chosen.key)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
