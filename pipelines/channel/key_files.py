"""Key pairs as files: a private PEM that only its owner reads, and the public half as JSON.

Data in and out: `NAME.pem` (PKCS 8, mode 600; a development key's first line says so) and `NAME.pub.json` (the fields
of a TUF key, its id, and for a development key `x-strikeforge-kind`).
Invariants: no existing file is replaced; of two processes that make the same key one wins and both use it; a key id
always follows from the key, so that one key can't count twice towards a threshold.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from pipelines.channel.keys import DEVELOPMENT_LINE, KIND_FIELD, open_key
from pipelines.errors import SigningError
from serving.canonical import sha256_hex
from serving.disk import make_folder, sync_folder

PUBLIC_SUFFIX = ".pub.json"
MAX_PUBLIC_BYTES = 1 << 16


def make_key(path: Path, *, development: bool) -> SSlibKey:
    """A new ed25519 key in `path` (mode 600), or the one that is there; returns its public half."""
    signer = CryptoSigner.generate_ed25519()
    _write_new(path, (DEVELOPMENT_LINE if development else b"") + signer.private_bytes, mode=0o600)
    opened = open_key(f"file2:{path}")
    if opened.is_development != development:
        raise SigningError(
            f"{path}: a {'development' if opened.is_development else 'production'} key; name another file"
        )
    return marked(opened.public, development=development)


def marked(key: SSlibKey, *, development: bool) -> SSlibKey:
    """The key with the mark of a development key, or without; its id doesn't depend on that."""
    fields = {KIND_FIELD: "development"} if development else {}
    return SSlibKey(keyid_of(key), key.keytype, key.scheme, key.keyval, fields)


def is_marked(key: Key) -> bool:
    """Whether a public key says that it is a development key."""
    return key.unrecognized_fields.get(KIND_FIELD) == "development"


def keyid_of(key: Key) -> str:
    """The id that follows from a key: sha256 of its canonical JSON, as securesystemslib computes it."""
    text = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    assert text is not None
    return sha256_hex(text.encode())


def write_public(path: Path, key: SSlibKey) -> None:
    """The public half as JSON; SigningError if the file is there with other content."""
    text = json.dumps({"keyid": key.keyid, **key.to_dict()}, indent=1, sort_keys=True) + "\n"
    if not _write_new(path, text.encode(), mode=0o644) and path.read_text() != text:
        raise SigningError(f"{path}: holds another key; name another file")


def read_public(path: Path) -> SSlibKey:
    """A public half; SigningError naming the file and what is wrong."""
    try:
        values: Any = json.loads(path.read_bytes()[:MAX_PUBLIC_BYTES])
        keyid = values.pop("keyid")
        key = Key.from_dict(keyid, values)
        fine = keyid == keyid_of(key)
    except OSError as error:
        raise SigningError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, FormatError):
        raise SigningError(
            f"{path}: isn't a public key as `python -m pipelines.channel.key` writes it (NAME{PUBLIC_SUFFIX})"
        ) from None
    if not fine or not isinstance(key, SSlibKey):
        raise SigningError(f"{path}: its key id doesn't follow from the key; make the file anew")
    return key


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file in the place of what is there, synced."""
    temporary = _temporary(path, data, mode=0o644)
    temporary.replace(path)
    sync_folder(path.parent)


def _write_new(path: Path, data: bytes, *, mode: int) -> bool:
    """Create a whole file, synced; False, and nothing changed, if it exists."""
    made = False
    if not path.exists():
        temporary = _temporary(path, data, mode=mode)
        try:
            os.link(temporary, path)
            made = True
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    make_folder(path.parent, mode=0o700)  # also where a killed process had made it
    sync_folder(path.parent)
    return made


def _temporary(path: Path, data: bytes, *, mode: int) -> Path:
    """The content beside its place, synced, never readable by more than `mode` allows."""
    make_folder(path.parent, mode=0o700)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    return temporary
