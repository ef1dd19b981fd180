"""Where bundles, ledgers, gate reports and channels are kept: a flat map from key to bytes.

Data in and out: bytes, or files streamed with their sha256. Keys are relative POSIX paths, checked before
use. Back end here: a folder; object stores follow with the same contract (tests/contract/test_blobstore.py).
Invariants: a reader sees a whole blob or none, also after `kill -9`; of any number of `put_if_absent` on one
key exactly one returns True, decided by the file system (`os.link`), and of any number of `put_if_match` with
one etag exactly one wins. What returned is on disk (file and folder synced). Reading never writes, so a
read-only mount will do.
A back end that retries requests must tell its own earlier success from somebody else's write.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from serving.canonical import sha256_hex
from serving.errors import StrikeforgeError

MAX_KEY_BYTES = 900  # S3 and GCS allow 1024, and a prefix may come on top
MAX_SEGMENT_BYTES = 200  # file systems allow 255, temporary names need some
PRIVATE = ".strikeforge-"  # temporary and lock files of the folder store; no key may hold such a segment
CHUNK_BYTES = 1 << 20

Keys = list[str]


class StoreError(StrikeforgeError):
    """A blob store refused: bad key, unknown scheme, a blob too large, a folder that can't be used."""


class BlobMissingError(StoreError):
    """There is no blob of that key."""


@dataclass(frozen=True)
class Blob:
    """Content and the etag `put_if_match` wants; take both from one read."""

    data: bytes
    etag: str


class BlobStore(Protocol):
    """What every back end promises; see the module's invariants."""

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """The content; BlobMissingError if absent, StoreError if longer than `max_bytes`."""

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        """The content with its etag."""

    def put(self, key: str, data: bytes) -> str:
        """Write, replacing what is there; returns the new etag."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False, and nothing changed, if the key exists."""

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Replace the blob that has this etag; returns the new etag, or None, and nothing changed."""

    def list(self, prefix: str = "") -> Keys:
        """Sorted keys that begin with the prefix."""

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""

    def upload(self, key: str, source: Path) -> str:
        """Stream a file in, replacing what is there; returns the sha256 of what was written."""

    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> str:
        """Stream a blob into a new file; returns the sha256 of what was written."""


def check_key(key: str) -> str:
    """The key, or StoreError saying what is wrong with it."""
    problem = _key_problem(key)
    if problem:
        raise StoreError(f"key {key!r}: {problem}; a key is a relative POSIX path such as 'ledger/model/00000001.json'")
    return key


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
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}"
        if segment.startswith(PRIVATE):
            return f"has a segment beginning with {PRIVATE!r}, which the store keeps for itself"
        if len(segment.encode("utf-8")) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def open_store(url: str | Path) -> BlobStore:
    """A store from a plain path or `file://` URL."""
    text = str(url)
    if not text:
        raise StoreError("the store's URL is empty; give a folder or file:///folder")
    if "://" not in text:
        return FolderStore(Path(text))
    parts = urlsplit(text)
    if parts.scheme != "file":
        raise StoreError(f"store {text!r}: scheme {parts.scheme!r} comes later; use a folder or file:///folder")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StoreError(f"store {text!r}: a file URL needs three slashes, as in file:///srv/store")
    return FolderStore(Path(unquote(parts.path)))


class FolderStore:
    """Blobs as files of one folder, on any file system with hard links and `flock` (NFS 4 has both)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        parts: list[bytes] = []
        self._read(key, max_bytes, parts.append)
        return b"".join(parts)

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        data = self.get(key, max_bytes=max_bytes)
        return Blob(data, sha256_hex(data))

    def put(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._temporary(path) as (temporary, file):
            _write_synced(file, data)
            with self._lock():
                self._replace(temporary, path, key)
        return sha256_hex(data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        if path.is_dir():
            raise StoreError(f"{key}: there is a folder of that name in {self.root}")
        if path.exists():  # saves the write only; the link below decides
            return False
        with self._temporary(path) as (temporary, file):
            _write_synced(file, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                raise StoreError(f"{key}: can't create it without hard links in {path.parent}: {error}") from error
            _sync_folder(path.parent)
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        path = self._path(key)
        with self._temporary(path) as (temporary, file):
            _write_synced(file, data)
            with self._lock():
                try:
                    found = self.get_blob(key).etag
                except BlobMissingError:
                    return None
                if found != etag:
                    return None
                self._replace(temporary, path, key)
        return sha256_hex(data)

    def list(self, prefix: str = "") -> Keys:
        if prefix:
            check_key(prefix.removesuffix("/"))
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        keys = []
        for parent, folders, names in os.walk(start, onerror=_raise_unless_missing):
            folders[:] = [name for name in folders if not name.startswith(PRIVATE)]
            for name in names:
                key = (Path(parent) / name).relative_to(self.root).as_posix()
                if not name.startswith(PRIVATE) and key.startswith(prefix):
                    keys.append(key)
        return sorted(keys)

    def delete(self, key: str) -> None:
        path = self._path(key)
        if not path.parent.is_dir():
            return
        with self._lock():
            with suppress(FileNotFoundError):
                path.unlink()
            _sync_folder(path.parent)

    def upload(self, key: str, source: Path) -> str:
        path = self._path(key)
        digest = hashlib.sha256()
        with self._temporary(path) as (temporary, file), source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            _write_synced(file, b"")
            with self._lock():
                self._replace(temporary, path, key)
        return digest.hexdigest()

    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> str:
        digest = hashlib.sha256()
        with target.open("xb") as file:

            def take(chunk: bytes) -> None:
                digest.update(chunk)
                file.write(chunk)

            self._read(key, max_bytes, take)
            _write_synced(file, b"")
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        path = self.root / check_key(key)
        real_root = self.root.resolve()
        if not path.parent.resolve().is_relative_to(real_root) or path.is_symlink():
            raise StoreError(f"key {key!r}: a symbolic link in {self.root} leads away from it; remove the link")
        return path

    def _read(self, key: str, max_bytes: int | None, take: Callable[[bytes], object]) -> None:
        path = self._path(key)
        try:
            file = open(path, "rb", opener=_open_no_link)  # noqa: SIM115 (closed below)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BlobMissingError(f"{key}: no such blob in {self.root}") from error
        count = 0
        with file:
            while chunk := file.read(CHUNK_BYTES):
                count += len(chunk)
                if max_bytes is not None and count > max_bytes:
                    raise StoreError(f"{key}: longer than the {max_bytes} bytes allowed")
                take(chunk)

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
        temporary = path.parent / f"{PRIVATE}{secrets.token_hex(8)}"
        try:
            _make_folder(path.parent)
            stream = temporary.open("xb")  # (closed below)
        except OSError as error:  # a read-only folder, or a blob where a folder is needed
            raise StoreError(f"{path}: can't be written: {error}") from error
        try:
            with stream:
                yield temporary, stream
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time among put, put_if_match and delete; the system drops it with the process."""
        with (self.root / f"{PRIVATE}lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _replace(self, temporary: Path, path: Path, key: str) -> None:
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise StoreError(f"{key}: there is a folder of that name in {self.root}") from error
        _sync_folder(path.parent)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _write_synced(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Like `mkdir -p`, and the new names are on disk when it returns."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
