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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.blobstore import BlobStore
from serving.errors import BundleError
from serving.golden import GOLDEN, check_golden
from serving.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, Member, check_file_names, parse_manifest
from serving.npz import Arrays, parse_npz
from serving.sealed_folder import (
    Kind,
    SealedFolder,
    fetch_folder,
    private_folder,
    publish,
    put_file,
    read_plain,
    scan,
    store_files,
)

BUNDLE = Kind("bundle", MANIFEST, MAX_MANIFEST_BYTES, "bundles")


@dataclass(frozen=True)
class Bundle(SealedFolder):
    """A verified bundle on disk."""

    manifest: Manifest

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against the manifest on this very read."""
        if name == MANIFEST:
            return BUNDLE.check_hash(read_plain(self.directory, name, MAX_MANIFEST_BYTES), name, self.sha256)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name}: isn't in bundle {self.sha256}; there are {sorted(self.manifest.files)}")
        return BUNDLE.read(self.directory, name, entry)

    def arrays(self, name: str) -> Arrays:
        """The read-only arrays of an npz file; object arrays are refused."""
        return parse_npz(self.read(name), name)


def load_bundle(directory: Path, *, expected_sha256: str | None = None, model: str | None = None) -> Bundle:
    """Verify a directory as a bundle; BundleError names the file and what is wrong with it."""
    root = directory.resolve()
    present = scan(root)
    BUNDLE.require_index(present, directory)
    raw, sha256 = BUNDLE.read_index(root, expected_sha256=expected_sha256)
    manifest = parse_manifest(raw)
    if model is not None and manifest.model != model:
        raise BundleError(f"{MANIFEST}: a bundle of model {manifest.model!r}, expected {model!r}")
    BUNDLE.check_names(present, manifest.files, directory)
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
    with private_folder(directory.parent, ".bundle-") as temporary:
        entries = {name: put_file(temporary, name, content) for name, content in files.items()}
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
        return publish(BUNDLE, load_bundle(temporary), directory, load_bundle)


def bundle_key(sha256: str, name: str) -> str:
    """Where a bundle's file lies in a store."""
    return BUNDLE.key(sha256, name)


def store_bundle(store: BlobStore, bundle: Bundle) -> str:
    """Copy a bundle into a store, the manifest last: visible only when complete. May be run again."""
    return store_files(BUNDLE, store, bundle.sha256, bundle.manifest.files, bundle.read)


def fetch_bundle(store: BlobStore, sha256: str, into_dir: Path) -> Bundle:
    """Bring a bundle from a store to `into_dir/<sha256>`, verified before it appears there.

    One that is there already is verified and returned. Any number of processes may fetch the same at once.
    """
    load = partial(load_bundle, expected_sha256=sha256)
    return fetch_folder(BUNDLE, store, sha256, into_dir, files_of=lambda raw: parse_manifest(raw).files, load=load)
