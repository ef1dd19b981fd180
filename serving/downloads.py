"""Content of a store brought to a file whose length and sha256 are known beforehand, going on where it stopped.

Data in: a store, a key, length and sha256. Data out: a file named by its sha256 in the caller's private folder.
Invariants: no more than `length` bytes are ever written; the file is returned only after all of it was read back from
disk and has the sha256; what was cut off by a kill or a lost connection is a prefix that the next call continues; a
prefix that turns out to be wrong is dropped and fetched anew, once.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from serving.blobstore import BlobStore
from serving.errors import BlobMissingError, TrustError
from serving.stores.common import terminal_progress

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """One blob as the signed metadata describes it; `target` is its path there, `length` in bytes."""

    target: str
    key: str
    length: int
    sha256: str


def fetch(store: BlobStore, content: Content, folder: Path) -> Path:
    """The verified file; TrustError where the store holds other bytes, StoreError where it can't be read.

    `folder` must belong to the caller alone; OSError (no space) leaves what was written for the next call.
    """
    path = folder / content.sha256
    resumed = _size(path) > 0
    _complete(store, content, path)
    if _sha256_of(path) == content.sha256:
        return path
    path.unlink()
    if resumed:  # what an earlier run left may be damaged (a power cut); what this run read alone isn't excused
        _complete(store, content, path)
        if _sha256_of(path) == content.sha256:
            return path
        path.unlink()
    raise TrustError(
        f"{content.target}: {content.key} in the store has another sha256 than the {content.sha256} that was signed; "
        "it was tampered with or damaged"
    )


def _complete(store: BlobStore, content: Content, path: Path) -> None:
    """Append what lacks; TrustError if the store has more or fewer bytes than were signed."""
    if _size(path) > content.length:
        path.unlink()
    have = _size(path)
    show = terminal_progress(content.key, content.length)
    with path.open("ab") as file:
        if have < content.length:
            try:
                for chunk in store.stream(content.key, start=have):
                    have += len(chunk)
                    if have > content.length:
                        raise TrustError(
                            f"{content.target}: {content.key} in the store is longer than the {content.length} bytes "
                            "that were signed"
                        )
                    file.write(chunk)
                    if show is not None:
                        show(have, content.length)
            except BlobMissingError as error:
                raise TrustError(f"{content.target}: {content.key} is missing in the store") from error
        file.flush()
        os.fsync(file.fileno())
    if have < content.length:
        raise TrustError(
            f"{content.target}: {content.key} in the store is truncated: {have} bytes of the {content.length} signed"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
