"""Where bundles, ledgers, gate reports and channels are kept: a flat map from key to bytes.

Data in and out: bytes, or files streamed with their sha256. Keys are relative POSIX paths, checked before
use. Back ends: a folder (serving/folder_store.py), S3, GCS and Azure (serving/stores/), all held to one contract
(tests/contract/test_blobstore*.py, under faults test_blobstore_faults.py).
Invariants: a reader sees a whole blob or none, also after `kill -9`; of any number of `put_if_absent` on one
key exactly one returns True, decided by the store itself (`os.link`, a conditional write), and of any number of
`put_if_match` with one etag exactly one wins. What returned is durable. Reading never writes, so read-only access
will do. A back end that retries requests tells its own earlier success from somebody else's write. An SDK is
imported only when a URL names its store.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from serving.errors import StoreError

MAX_KEY_BYTES = 900  # S3 and GCS allow 1024, and a prefix may come on top
MAX_SEGMENT_BYTES = 200  # file systems allow 255, temporary names need some
MAX_SEGMENTS = 100  # Azure allows 254, with the prefix
PRIVATE = ".strikeforge-"  # temporary and lock files of the folder store; no key may hold such a segment
CHUNK_BYTES = 1 << 20
BACK_ENDS = {"s3": "s3", "gs": "gcs", "az": "azure"}  # scheme -> module in serving/stores, and the extra it needs

Keys = list[str]
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Blob:
    """Content and the etag `put_if_match` wants; take both from one read."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Entry:
    """A blob as a listing tells it; `version` is another text whenever the content is another."""

    key: str
    size_bytes: int
    version: str


Entries = list[Entry]


class BlobStore(Protocol):
    """What every back end promises; see the module's invariants.

    All of it raises StoreError where the store refuses or doesn't answer, and says so with the key. After an error of a
    write the blob is as before or as asked, never anything else; reading tells which.
    """

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """The content; BlobMissingError if absent, StoreError if longer than `max_bytes`."""

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The content with its etag."""

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The content from byte `start` on, in chunks, all of one version of the blob; errors come with the first.

        BlobMissingError if absent, StoreError if `start` lies beyond the end.
        """

    def put(self, key: str, data: bytes) -> str:
        """Write, replacing what is there; returns the new etag."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False, and nothing changed, if the key exists."""

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Replace the blob that has this etag; returns the new etag, or None, and nothing changed."""

    def list(self, prefix: str = "") -> Keys:
        """Sorted keys that begin with the prefix."""

    def entries(self, prefix: str = "", *, shallow: bool = False) -> Entries:
        """What `list` names, in the same order, with sizes and versions.

        Shallow: as a person sees a folder, up to the next slash after the prefix. All that lies deeper is one entry,
        whose key ends in a slash (size 0, no version), and names that can't be keys are told too, as they are.
        """

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""

    def upload(self, key: str, source: Path, *, progress: Progress | None = None) -> str:
        """Stream a file in, replacing what is there; returns the sha256 of what was written."""

    def download(
        self, key: str, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> str:
        """Stream a blob into a new file, which is on disk or, after an error, gone; returns the sha256 of it."""


def check_key(key: str) -> str:
    """The key, or StoreError saying what is wrong with it."""
    problem = _key_problem(key)
    if problem:
        raise StoreError(f"key {key!r}: {problem}; a key is a relative POSIX path such as 'ledger/model/00000001.json'")
    return key


def check_prefix(prefix: str) -> str:
    """The beginning of a key, empty or a key that may end in a slash; else StoreError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def is_key(name: str) -> bool:
    """Whether a name found in a store can be a key; others are somebody else's and not listed."""
    return _key_problem(name) is None


def _key_problem(key: str) -> str | None:
    if not key:
        return "is empty"
    if any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in key):
        return "has a control character"
    try:
        length = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        return "isn't valid Unicode"
    if length > MAX_KEY_BYTES:
        return f"is {length} bytes long, at most {MAX_KEY_BYTES} are allowed"
    if "\\" in key:
        return "has a backslash"
    if key.startswith("/"):
        return "is absolute"
    segments = key.split("/")
    if len(segments) > MAX_SEGMENTS:
        return f"has {len(segments)} segments, at most {MAX_SEGMENTS} are allowed"
    for segment in segments:
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}"
        if segment.endswith("."):
            return f"has the segment {segment!r}, whose last dot Azure and Windows may drop"
        if segment.startswith(PRIVATE):
            return f"has a segment beginning with {PRIVATE!r}, which the store keeps for itself"
        if len(segment.encode("utf-8")) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def open_store(url: str | Path) -> BlobStore:
    """A store from a plain path, `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    Endpoint, region and credentials are found by each SDK's own default chain, never in the URL.
    """
    text = str(url)
    if not text:
        raise StoreError("the store's URL is empty; give a folder, file:///folder, s3://, gs:// or az://")
    if "://" not in text:
        return _open_folder(Path(text))
    scheme = text.partition("://")[0]
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StoreError(f"store {text!r}: a file URL needs three slashes, as in file:///srv/store")
        return _open_folder(Path(unquote(parts.path)))
    if scheme not in BACK_ENDS:
        raise StoreError(f"store scheme {scheme!r} is unknown; use a folder, file:///folder, s3://, gs:// or az://")
    name = BACK_ENDS[scheme]
    try:
        store: BlobStore = importlib.import_module(f"serving.stores.{name}").open(text)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("serving"):
            raise
        raise StoreError(
            f"{scheme}:// needs {error.name}, which isn't installed: pip install 'strikeforge[{name}]'"
        ) from error
    return store


def _open_folder(root: Path) -> BlobStore:
    from serving.folder_store import FolderStore

    return FolderStore(root)


def save_new(target: Path, chunks: Iterable[bytes]) -> str:
    """Write a new file and sync it; its sha256. After any error there is no file."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        try:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            target.unlink()
            raise
    return digest.hexdigest()
