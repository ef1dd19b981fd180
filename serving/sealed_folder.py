"""Folders sealed by an index: immutable, named by the sha256 of the index's bytes, which hold that of every other file.

Bundles (serving/bundle.py) and engine packs (serving/engine_pack.py) are such folders.

Data in: files and the bytes of an index; a folder; blobs under `<prefix>/<sha256>/`. Data out: the same, verified.
Invariants: whatever differs is refused by the file's name (BundleError); links, devices and what the index doesn't list
are refused; a folder appears complete or not at all, on disk or in a store, where the index is written last.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from serving.blobstore import BlobStore
from serving.canonical import is_sha256, sha256_hex
from serving.disk import sync_file, sync_folder
from serving.errors import BlobMissingError, BundleError, StoreError
from serving.manifest import MAX_FILE_BYTES, MAX_FILES, FileEntry


@dataclass(frozen=True)
class SealedFolder:
    """A verified folder on disk and the sha256 of its index."""

    directory: Path
    sha256: str


S = TypeVar("S", bound=SealedFolder)


@dataclass(frozen=True)
class Kind:
    """One kind of sealed folder: its word in messages, the name of its index, its prefix in a store."""

    word: str
    index: str
    max_index_bytes: int
    prefix: str

    def key(self, sha256: str, name: str) -> str:
        """Where a file of such a folder lies in a store."""
        return f"{self.prefix}/{sha256}/{name}"

    def read_index(self, root: Path, *, expected_sha256: str | None) -> tuple[bytes, str]:
        """The index's bytes and their sha256; BundleError unless it is the one expected."""
        raw = read_plain(root, self.index, self.max_index_bytes)
        sha256 = sha256_hex(raw)
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise BundleError(f"{self.index}: this is {self.word} {sha256}, expected {expected_sha256}; fetch it again")
        return raw, sha256

    def read(self, root: Path, name: str, entry: FileEntry) -> bytes:
        """A file's bytes, checked against its entry in the index on this very read."""
        raw = read_plain(root, name, entry.size)
        if len(raw) != entry.size:
            found = "more" if len(raw) > entry.size else str(len(raw))
            raise BundleError(f"{name}: {found} bytes found, {entry.size} expected; fetch the {self.word} again")
        return self.check_hash(raw, name, entry.sha256)

    def check_hash(self, raw: bytes, name: str, expected: str) -> bytes:
        """The bytes, if they have that sha256."""
        found = sha256_hex(raw)
        if found != expected:
            raise BundleError(f"{name}: sha256 is {found}, expected {expected}; fetch the {self.word} again")
        return raw

    def require_index(self, present: set[str], directory: Path) -> None:
        """BundleError where the folder has no index."""
        if self.index not in present:
            raise BundleError(f"{self.index}: missing in {directory}, which isn't a complete {self.word}")

    def check_names(self, present: set[str], files: Mapping[str, FileEntry], directory: Path) -> None:
        """BundleError for a file the index doesn't list, or one that isn't there."""
        listed = {self.index, *files}
        for name in sorted(present - listed):
            raise BundleError(f"{name}: unknown file; a {self.word} holds nothing its {self._words()} doesn't list")
        for name in sorted(listed - present):
            raise BundleError(f"{name}: missing in {directory}; fetch the {self.word} again")

    def _words(self) -> str:
        return "manifest" if self.index == "manifest.json" else self.index


@contextmanager
def private_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder nobody else looks at, gone afterwards unless it was published."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_file(folder: Path, name: str, content: bytes | Path) -> FileEntry:
    """Write a file and say what it is."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, Path):
        size = content.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BundleError(f"{name}: {size} bytes, at most {MAX_FILE_BYTES} are allowed")
        content = content.read_bytes()
    path.write_bytes(content)
    return FileEntry(sha256_hex(content), len(content))


def publish(kind: Kind, made: S, directory: Path, load: Callable[[Path], S]) -> S:
    """Move a private, verified folder to its place; somebody else's same one there is as good."""
    for parent, _, names in os.walk(made.directory):
        for name in names:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))
    made.directory.chmod(0o755)
    try:
        made.directory.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        there = load(directory)
        if there.sha256 != made.sha256:
            raise BundleError(
                f"{directory}: holds {kind.word} {there.sha256}, not {made.sha256}; remove it first"
            ) from error
        return there
    sync_folder(directory.parent)
    return replace(made, directory=directory.resolve())


def store_files(
    kind: Kind, store: BlobStore, sha256: str, files: Mapping[str, FileEntry], read: Callable[[str], bytes]
) -> str:
    """Copy a folder into a store, the index last: visible only when complete. May be run again."""
    for name in (*sorted(files), kind.index):
        key, content = kind.key(sha256, name), read(name)
        if not store.put_if_absent(key, content) and store.get(key, max_bytes=MAX_FILE_BYTES) != content:
            raise BundleError(f"{key}: the store holds other bytes; find out who changed it, then delete it")
    return sha256


def fetch_folder(
    kind: Kind, store: BlobStore, sha256: str, into_dir: Path, *,
    files_of: Callable[[bytes], Mapping[str, FileEntry]], load: Callable[[Path], S],
) -> S:  # fmt: skip
    """Bring a folder from a store to `into_dir/<sha256>`, verified before it appears there.

    One that is there already is verified and returned. Any number of processes may fetch the same at once. `load`
    verifies a folder as the one of this sha256.
    """
    if not is_sha256(sha256):
        raise BundleError(f"{kind.word} {sha256!r}: a {kind.word} is named by 64 hexadecimal digits")
    target = into_dir / sha256
    if target.exists():
        try:
            return load(target)
        except BundleError as error:
            raise BundleError(f"{error}; the copy in {target} is damaged: remove it, then fetch") from error
    with private_folder(into_dir, ".fetch-") as temporary:
        _download(kind, store, sha256, kind.index, temporary, kind.max_index_bytes)
        raw = kind.check_hash(read_plain(temporary, kind.index, kind.max_index_bytes), kind.index, sha256)
        for name, entry in sorted(files_of(raw).items()):
            (temporary / name).parent.mkdir(exist_ok=True)
            _download(kind, store, sha256, name, temporary, entry.size)
        return publish(kind, load(temporary), target, load)


def _download(kind: Kind, store: BlobStore, sha256: str, name: str, folder: Path, max_bytes: int) -> None:
    try:
        store.download(kind.key(sha256, name), folder / name, max_bytes=max_bytes)
    except BlobMissingError as error:
        raise BundleError(f"{name}: {kind.word} {sha256} isn't in the store, or isn't complete: {error}") from error
    except StoreError as error:
        raise BundleError(f"{name}: refused, of {kind.word} {sha256}: {error}") from error


def scan(root: Path) -> set[str]:
    """Relative names of all files; links, devices, empty and deeper folders are refused."""
    if not root.is_dir():
        raise BundleError(f"{root}: there is no such folder")
    names: set[str] = set()
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        before = len(names) + len(folders)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False) and not prefix:
                    folders.append((folder / entry.name, f"{name}/"))
                elif entry.is_file(follow_symlinks=False):
                    names.add(name)
                else:
                    raise BundleError(f"{name}: neither a plain file nor a first-level folder; links are refused")
                if len(names) + len(folders) > MAX_FILES + MAX_FILES:
                    raise BundleError(f"{root}: more than {MAX_FILES} files")
        if prefix and len(names) + len(folders) == before:
            raise BundleError(f"{prefix}: unknown empty folder")
    return names


def read_plain(root: Path, name: str, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes`, so that a longer file shows without being read."""
    try:
        with open(root / name, "rb", opener=_open_plain) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{name}: isn't a plain file")
            return file.read(max_bytes + 1)
    except OSError as error:
        raise BundleError(f"{name}: can't be read as a plain file of {root}: {error.strerror}") from error


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
