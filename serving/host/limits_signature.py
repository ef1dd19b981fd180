"""Who signed a host's limits, and that nobody plays old ones back.

Data in: the bytes of a limits file; `<file>.sig`, an Ed25519 signature of exactly these bytes (64 bytes in base64 or
hexadecimal digits; pipelines/sign_limits.py, or any tool that signs Ed25519); the public key, as PEM or as the
`NAME.pub.json` of pipelines/channel/key.py. Data kept: the last serial accepted with the sha256 of its file.
Invariants: where a key is configured nothing unsigned, altered or wrongly signed is accepted, no serial below the last
accepted one, and no second file of the same serial; a state file that can't be understood is a refusal, not a start
from nothing; it is written (synced) before the limits are used. Every refusal is a TrustError naming the file.
Not seen from here: a state file that was removed looks like a host's first start; keep its folder the host's alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.canonical import sha256_hex
from serving.disk import folder_lock, replace_file
from serving.errors import ConfigError, TrustError
from serving.host.limits import read_bounded
from serving.installed import DEVELOPMENT, ROOT_KIND

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_SUFFIX = ".sig"
SIGNATURE_BYTES = 64


def signature_path(path: Path) -> Path:
    """Where a limits file's signature lies."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def check_signature(path: Path, data: bytes, public_key: Path) -> None:
    """TrustError unless the key's owner signed `data`, the bytes that were read of `path`."""
    from cryptography.exceptions import InvalidSignature

    key, signature = read_public_key(public_key), _read_signature(signature_path(path), path)
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise TrustError(
            f"{path}: isn't what {signature_path(path).name} signed, or somebody else than {public_key} signed it; "
            "the limits stay as they are"
        ) from None


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The key of a PEM file, or of a `.pub.json`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_bounded(path)
    try:
        key = _json_key(data, path) if data.lstrip().startswith(b"{") else load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{path}: holds no public key, neither as PEM nor as .pub.json: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{path}: limits are signed with Ed25519; this is a key of another kind")
    return key


def accept_serial(path: Path, data: bytes, serial: int, state: Path) -> None:
    """Remember the serial of verified limits; TrustError if a newer one, or another file of this one, came before."""
    digest = sha256_hex(data)
    try:
        with folder_lock(state.parent, f".{state.name}.lock"):
            last, last_digest = _read_state(state)
            if serial < last:
                raise TrustError(
                    f"{path}: serial {serial} is older than {last}, which was accepted already: played back"
                )
            if serial == last and digest != last_digest:
                raise TrustError(f"{path}: another file of serial {serial} was accepted already; give it {serial + 1}")
            if serial > last:
                replace_file(state, json.dumps({"serial": serial, "sha256": digest}).encode() + b"\n")
    except OSError as error:
        raise TrustError(
            f"{state}: the last serial can't be kept: {error.strerror}; make the folder writable"
        ) from error


def _read_state(state: Path) -> tuple[int, str]:
    if not state.exists():
        return 0, ""
    try:
        kept = json.loads(read_bounded(state))
        serial, digest = kept["serial"], kept["sha256"]
        if isinstance(serial, bool) or not isinstance(serial, int) or not isinstance(digest, str):
            raise TypeError("serial must be a whole number, sha256 text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError(
            f"{state}: doesn't hold the last accepted serial ({error!r}); look who changed it, then write "
            '{"serial": N, "sha256": ""} with the last N you know of'
        ) from error
    return serial, digest


def _read_signature(path: Path, signed: Path) -> bytes:
    try:
        text = read_bounded(path).decode("ascii").strip()
        is_hex = len(text) == 2 * SIGNATURE_BYTES
        signature = binascii.unhexlify(text) if is_hex else base64.b64decode(text, validate=True)
    except ConfigError as error:
        raise TrustError(f"{signed}: isn't signed, and a public key is configured: {error.problems[0]}") from error
    except ValueError as error:  # not ASCII, neither base64 nor hexadecimal
        raise TrustError(f"{path}: holds no signature in base64 or hexadecimal digits: {error}") from error
    if len(signature) != SIGNATURE_BYTES:
        raise TrustError(f"{path}: an Ed25519 signature has {SIGNATURE_BYTES} bytes, this one {len(signature)}")
    return signature


def _json_key(data: bytes, path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        fields = json.loads(data)
        keytype, public = fields["keytype"], fields["keyval"]["public"]
        is_development = fields.get(ROOT_KIND) == DEVELOPMENT
        raw = bytes.fromhex(public) if keytype == "ed25519" else b""
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"keytype and keyval.public are expected: {error!r}") from error
    if is_development:
        raise TrustError(f"{path}: is a development key; make one with signing=production (docs/runbook-signing.md)")
    if not raw:
        raise TrustError(f"{path}: limits are signed with Ed25519; this key is {keytype!r}")
    return Ed25519PublicKey.from_public_bytes(raw)
