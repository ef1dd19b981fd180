"""A bundle: an immutable, content-addressed directory with everything a host needs to price with one model.

Data in: files (ONNX, safetensors, `golden.npz`, `reference.npz`) and what the manifest says of them. Data
out: a directory with `manifest.json`; the same under `bundles/<sha256>/` of a blob store; `Bundle` to read
from.
Invariants: the bundle's name is the sha256 of the manifest's bytes, which hold the sha256 of every other
file. Loading checks all of it before anything is parsed further and refuses by name. `read` checks the bytes
it returns again, so what an engine is built from is what was verified. A bundle is visible, in a folder or a
store, only once it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.blobstore import BlobStore
from serving.canonical import is_sha256, sha256_hex
from serving.disk import sync_file, sync_folder
from serving.errors import BlobMissingError, BundleError, StoreError
from serving.golden import GOLDEN, check_golden
from serving.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    Member,
    check_file_names,
    parse_manifest,
)
from serving.npz import Arrays, parse_npz


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    directory: Path
    sha256: str
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest on this very read."""
        if name == MANIFEST:
            raw = _read_file(self.directory, name, MAX_MANIFEST_BYTES)
            return _check_hash(raw, name, self.sha256)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name}: isn't in bundle {self.sha256}; there are {sorted(self.manifest.files)}")
        raw = _read_file(self.directory, name, entry.size)
        if len(raw) != entry.size:
            found = "more" if len(raw) > entry.size else str(len(raw))
            raise BundleError(f"{name}: {found} bytes found, {entry.size} expected; fetch the bundle again")
        return _check_hash(raw, name, entry.sha256)

    def arrays(self, name: str) -> Arrays:
        """The read-only arrays of an npz file; object arrays are refused."""
        return parse_npz(self.read(name), name)


def load_bundle(directory: Path, *, expected_sha256: str | None = None, model: str | None = None) -> Bundle:
    """Verify a directory as a bundle; BundleError names the file and what is wrong with it."""
    root = directory.resolve()
    present = _scan(root)
    if MANIFEST not in present:
        raise BundleError(f"{MANIFEST}: missing in {directory}, which isn't a complete bundle")
    raw = _read_file(root, MANIFEST, MAX_MANIFEST_BYTES)
    sha256 = sha256_hex(raw)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise BundleError(f"{MANIFEST}: this is bundle {sha256}, expected {expected_sha256}; fetch it again")
    manifest = parse_manifest(raw)
    if model is not None and manifest.model != model:
        raise BundleError(f"{MANIFEST}: a bundle of model {manifest.model!r}, expected {model!r}")
    listed = {MANIFEST, *manifest.files}
    for name in sorted(present - listed):
        raise BundleError(f"{name}: unknown file; a bundle holds nothing its manifest doesn't list")
    for name in sorted(listed - present):
        raise BundleError(f"{name}: missing in {directory}; fetch the bundle again")
    bundle = Bundle(root, sha256, manifest)
    for name in sorted(manifest.files):
        content = bundle.read(name)
        if name.endswith(".npz"):
            arrays = parse_npz(content, name)
            if name == GOLDEN:
                check_golden(manifest, arrays)
    return bundle


def write_bundle(
    directory: Path,
    *,
    model: str,
    model_config: Mapping[str, Any],
    members: Sequence[Member],
    files: Mapping[str, bytes | Path],
    feature_spec: Mapping[str, Any],
    semantics: str,
    tolerances: Mapping[str, float],
    data_sha256: str,
    config_sha256: str,
) -> Bundle:
    """Write and verify a bundle; the directory appears complete or not at all.

    One that is there already is kept if it is the same bundle and refused if it is another.
    """
    check_file_names(files)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".bundle-", dir=directory.parent))
    try:
        entries = {name: _put_file(temporary, name, content) for name, content in files.items()}
        manifest = Manifest(
            model=model,
            model_config=model_config,
            members=tuple(members),
            files=entries,
            feature_spec=feature_spec,
            semantics=semantics,
            tolerances=tolerances,
            data_sha256=data_sha256,
            config_sha256=config_sha256,
        )
        (temporary / MANIFEST).write_bytes(manifest.to_bytes())
        return _publish(load_bundle(temporary), directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def bundle_key(sha256: str, name: str) -> str:
    """Where a bundle's file lies in a store."""
    return f"bundles/{sha256}/{name}"


def store_bundle(store: BlobStore, bundle: Bundle) -> str:
    """Copy a bundle into a store, the manifest last: visible only when complete. May be run again."""
    for name in (*sorted(bundle.manifest.files), MANIFEST):
        key = bundle_key(bundle.sha256, name)
        content = bundle.read(name)
        if not store.put_if_absent(key, content) and store.get(key, max_bytes=MAX_FILE_BYTES) != content:
            raise BundleError(f"{key}: the store holds other bytes; find out who changed it, then delete it")
    return bundle.sha256


def fetch_bundle(store: BlobStore, sha256: str, into_dir: Path) -> Bundle:
    """Bring a bundle from a store to `into_dir/<sha256>`, verified before it appears there.

    One that is there already is verified and returned. Any number of processes may fetch the same at once.
    """
    if not is_sha256(sha256):
        raise BundleError(f"bundle {sha256!r}: a bundle is named by 64 hexadecimal digits")
    target = into_dir / sha256
    if target.exists():
        try:
            return load_bundle(target, expected_sha256=sha256)
        except BundleError as error:
            raise BundleError(f"{error}; the copy in {target} is damaged: remove it, then fetch") from error
    into_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=into_dir))
    try:
        _download(store, sha256, MANIFEST, temporary, MAX_MANIFEST_BYTES)
        raw = _read_file(temporary, MANIFEST, MAX_MANIFEST_BYTES)
        manifest = parse_manifest(_check_hash(raw, MANIFEST, sha256))
        for name, entry in sorted(manifest.files.items()):
            (temporary / name).parent.mkdir(exist_ok=True)
            _download(store, sha256, name, temporary, entry.size)
        return _publish(load_bundle(temporary, expected_sha256=sha256), target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download(store: BlobStore, sha256: str, name: str, folder: Path, max_bytes: int) -> None:
    try:
        store.download(bundle_key(sha256, name), folder / name, max_bytes=max_bytes)
    except BlobMissingError as error:
        raise BundleError(f"{name}: bundle {sha256} isn't in the store, or isn't complete: {error}") from error
    except StoreError as error:
        raise BundleError(f"{name}: refused, of bundle {sha256}: {error}") from error


def _publish(bundle: Bundle, directory: Path) -> Bundle:
    """Move a private, verified bundle to its place; somebody else's same bundle there is as good."""
    for parent, _, names in os.walk(bundle.directory):
        for name in names:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))
    bundle.directory.chmod(0o755)
    try:
        bundle.directory.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        there = load_bundle(directory)
        if there.sha256 != bundle.sha256:
            raise BundleError(
                f"{directory}: holds bundle {there.sha256}, not {bundle.sha256}; remove it first"
            ) from error
        return there
    sync_folder(directory.parent)
    return replace(bundle, directory=directory.resolve())


def _put_file(folder: Path, name: str, content: bytes | Path) -> FileEntry:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, Path):
        size = content.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BundleError(f"{name}: {size} bytes, at most {MAX_FILE_BYTES} are allowed")
        content = content.read_bytes()
    path.write_bytes(content)
    return FileEntry(sha256_hex(content), len(content))


def _scan(root: Path) -> set[str]:
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


def _read_file(root: Path, name: str, max_bytes: int) -> bytes:
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


def _check_hash(raw: bytes, name: str, expected: str) -> bytes:
    found = sha256_hex(raw)
    if found != expected:
        raise BundleError(f"{name}: sha256 is {found}, expected {expected}; fetch the bundle again")
    return raw
