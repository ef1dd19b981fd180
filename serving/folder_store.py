"""Blobs as files of one folder, on any file system with hard links and `flock` (NFS 4 has both).

Data in and out: as in serving/blobstore.py; a blob is the file `root/key`, its etag and its version the sha256 of its
content: a file's inode and times can come back, as ext4 gives a freed inode to the next file and clocks have ticks.
Invariants: a blob appears by `os.link` or `rename` of a file that was written and synced beside it, so that readers see
a whole one or none, and `put_if_absent` has one winner; put, put_if_match and delete hold one lock. File and folder
are synced before a write returns. No symbolic link leads out of the folder.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serving.blobstore import (
    CHUNK_BYTES,
    PRIVATE,
    Blob,
    Entries,
    Entry,
    Keys,
    Progress,
    check_key,
    check_prefix,
    is_key,
    save_new,
)
from serving.canonical import sha256_hex
from serving.disk import folder_lock, make_folder, sync_folder
from serving.errors import BlobMissingError, StoreError


class FolderStore:
    """Blobs as files of one folder, on any file system with hard links and `flock` (NFS 4 has both)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return b"".join(self._chunks(key, 0, max_bytes))

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        data = self.get(key, max_bytes=max_bytes)
        return Blob(data, sha256_hex(data))

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        return self._chunks(key, start, None)

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
            return self._there_already(path)
        with self._temporary(path) as (temporary, file):
            _write_synced(file, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return self._there_already(path)
            except OSError as error:
                raise StoreError(f"{key}: can't create it without hard links in {path.parent}: {error}") from error
            sync_folder(path.parent)
        return True

    def _there_already(self, path: Path) -> bool:
        """False, once the name is on disk: whoever made it may have been killed before that."""
        make_folder(path.parent)
        sync_folder(path.parent)
        return False

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
        return sorted(name for name in self._names(prefix) if is_key(name))

    def entries(self, prefix: str = "", *, shallow: bool = False) -> Entries:
        found = {}
        for name in self._names(prefix):
            first, slash, _ = name.removeprefix(prefix).partition("/")
            if shallow and slash:
                deeper = f"{prefix}{first}/"
                found[deeper] = Entry(deeper, 0, "")
            elif (shallow or is_key(name)) and (entry := self._entry(name)):
                found[name] = entry
        return [found[name] for name in sorted(found)]

    def delete(self, key: str) -> None:
        path = self._path(key)
        if not path.parent.is_dir():
            return
        with self._lock():
            with suppress(FileNotFoundError):
                path.unlink()
            sync_folder(path.parent)

    def upload(self, key: str, source: Path, *, progress: Progress | None = None) -> str:
        path = self._path(key)
        digest = hashlib.sha256()
        with self._temporary(path) as (temporary, file), source.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), size)
            _write_synced(file, b"")
            with self._lock():
                self._replace(temporary, path, key)
        return digest.hexdigest()

    def download(
        self, key: str, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> str:
        return save_new(target, self._chunks(key, 0, max_bytes, progress))

    def _names(self, prefix: str) -> Iterator[str]:
        """Of all files that begin with the prefix, whether they can be keys or not; the store's own are left out."""
        folder = check_prefix(prefix).rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        for parent, folders, names in os.walk(start, onerror=_raise_unless_missing):
            folders[:] = [name for name in folders if not name.startswith(PRIVATE)]
            for name in names:
                path = (Path(parent) / name).relative_to(self.root).as_posix()
                if not name.startswith(PRIVATE) and path.startswith(prefix):
                    yield path

    def _entry(self, name: str) -> Entry | None:
        """None where it was deleted meanwhile."""
        try:
            with open(self.root / name, "rb", opener=_open_no_link) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return Entry(name, os.fstat(file.fileno()).st_size, digest)
        except FileNotFoundError:
            return None
        except OSError as error:  # a symbolic link, no permission
            raise StoreError(f"{name}: can't be read in {self.root}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        path = self.root / check_key(key)
        real_root = self.root.resolve()
        if not path.parent.resolve().is_relative_to(real_root) or path.is_symlink():
            raise StoreError(f"key {key!r}: a symbolic link in {self.root} leads away from it; remove the link")
        return path

    def _chunks(self, key: str, start: int, max_bytes: int | None, progress: Progress | None = None) -> Iterator[bytes]:
        path = self._path(key)
        try:
            file = open(path, "rb", opener=_open_no_link)  # noqa: SIM115 (closed below)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BlobMissingError(f"{key}: no such blob in {self.root}") from error
        except OSError as error:
            raise StoreError(f"{key}: can't be read in {self.root}: {error.strerror}") from error
        count = 0
        with file:
            size = os.fstat(file.fileno()).st_size
            if start > size:
                raise StoreError(f"{key}: byte {start} lies beyond its {size} bytes")
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                count += len(chunk)
                if max_bytes is not None and count > max_bytes:
                    raise StoreError(f"{key}: longer than the {max_bytes} bytes allowed")
                yield chunk
                if progress is not None:
                    progress(start + count, size)

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
        temporary = path.parent / f"{PRIVATE}{secrets.token_hex(8)}"
        try:
            make_folder(path.parent)
            stream = temporary.open("xb")  # (closed below)
        except OSError as error:  # a read-only folder, or a blob where a folder is needed
            raise StoreError(f"{path}: can't be written: {error}") from error
        try:
            with stream:
                yield temporary, stream
        except OSError as error:  # a full disk, a file of the store that can't be read
            raise StoreError(f"{path}: can't be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _lock(self) -> AbstractContextManager[None]:
        """One writer at a time among put, put_if_match and delete."""
        return folder_lock(self.root, f"{PRIVATE}lock")

    def _replace(self, temporary: Path, path: Path, key: str) -> None:
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise StoreError(f"{key}: there is a folder of that name in {self.root}") from error
        sync_folder(path.parent)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _write_synced(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
