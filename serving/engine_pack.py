"""An engine pack: what one engine needs, or holds itself to, to run one bundle on one kind of machine.

Data in: the bundle, what was compiled or measured for it, on which machine and with which library. Data out: a sealed
folder (serving/sealed_folder.py) with `pack.json`, canonical JSON; the same under `packs/<sha256>/` of a blob store;
`EnginePack` to read from. A native pack holds the golden answers of its precision, a TensorRT pack its
engines.
Invariants: the pack's name is the sha256 of the exact bytes of `pack.json`, which name the bundle, the sha256 of each
of its ONNX files that was compiled, and every other file. `key` follows from the ONNX hashes, the configuration, the
library's version, the SM and the precision: equal keys may take each other's place. Loading verifies all of it and
refuses, by name, what differs, what is unknown, and a pack of another bundle or target.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.blobstore import BlobStore
from serving.bundle import Bundle
from serving.canonical import canonical_json, is_sha256, parse_canonical, sha256_hex
from serving.errors import BundleError
from serving.manifest import FileEntry, check_file_name, check_file_names, parse_files
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

PACK = "pack.json"
PACK_FORMAT = 1
MAX_PACK_JSON_BYTES = 1 << 20
MAX_PACKS = 64  # of one release
PACK_KIND = Kind("pack", PACK, MAX_PACK_JSON_BYTES, "packs")
BACKENDS = ("native", "ort", "trt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
TARGET = re.compile(r"[a-z0-9][a-z0-9_]{0,62}", re.ASCII)
SM = re.compile(r"sm[0-9]{2,3}", re.ASCII)


@dataclass(frozen=True)
class PackParity:
    """One comparison of the compiled engine with the reference, at compile time."""

    name: str
    difference: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class PackManifest:
    """Field for field what `pack.json` holds.

    `runtime` has `library` and `version`; `sm` is "sm89" or null; `onnx_sha256` is by the bundle's file names;
    `executed`: whether the engine ran where it was compiled, without which there is no parity and no latency;
    `latency` are figures in microseconds by name.
    """

    bundle_sha256: str
    target: str
    backend: str
    precision: str
    runtime: Mapping[str, str]
    sm: str | None
    configuration: Mapping[str, Any]
    onnx_sha256: Mapping[str, str]
    key: str
    executed: bool
    parity: tuple[PackParity, ...]
    latency: Mapping[str, float] | None
    notes: tuple[str, ...]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = PACK_FORMAT

    def to_bytes(self) -> bytes:
        """Canonical bytes; BundleError for what JSON can't hold."""
        value = {name: getattr(self, name) for name in PACK_FIELDS} | {
            "parity": [dict(vars(one)) for one in self.parity],
            "files": {name: dict(vars(entry)) for name, entry in self.files.items()},
            "notes": list(self.notes),
        }
        try:
            return canonical_json({name: dict(one) if isinstance(one, Mapping) else one for name, one in value.items()})
        except (ValueError, TypeError) as error:
            raise BundleError(f"{PACK}: can't be written as JSON: {error}") from error


PACK_FIELDS = frozenset(PackManifest.__dataclass_fields__)


@dataclass(frozen=True)
class EnginePack(SealedFolder):
    """A verified engine pack on disk."""

    manifest: PackManifest

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against `pack.json` on this very read."""
        if name == PACK:
            return PACK_KIND.check_hash(read_plain(self.directory, PACK, MAX_PACK_JSON_BYTES), PACK, self.sha256)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name}: isn't in engine pack {self.sha256}; there are {sorted(self.manifest.files)}")
        return PACK_KIND.read(self.directory, name, entry)

    def arrays(self, name: str) -> Arrays:
        """The read-only arrays of an npz file; object arrays are refused."""
        return parse_npz(self.read(name), name)


def engine_key(
    onnx_sha256: Mapping[str, str], configuration: Mapping[str, Any], version: str, sm: str | None, precision: str
) -> str:
    """What a compiled engine depends on, as one sha256."""
    return sha256_hex(canonical_json([dict(onnx_sha256), dict(configuration), version, sm, precision]))


def onnx_hashes(bundle: Bundle) -> dict[str, str]:
    """The sha256 of every ONNX file of a bundle, by name."""
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items() if name.endswith(".onnx")}


def write_pack(
    directory: Path,
    *,
    bundle: Bundle,
    target: str,
    backend: str,
    precision: str,
    library: str,
    version: str,
    files: Mapping[str, bytes | Path],
    sm: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    executed: bool = False,
    parity: Sequence[PackParity] = (),
    latency: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> EnginePack:
    """Write and verify a pack of `bundle`; the directory appears complete or not at all.

    `library` and `version` of what compiled it, and what must run it. One that is there already is kept if it is the
    same pack and refused if it is another.
    """
    check_file_names(files)
    hashes, settings = onnx_hashes(bundle), dict(configuration or {})
    with private_folder(directory.parent, ".pack-") as temporary:
        manifest = PackManifest(
            bundle_sha256=bundle.sha256, target=target, backend=backend, precision=precision,
            runtime={"library": library, "version": version}, sm=sm, configuration=settings, onnx_sha256=hashes,
            key=engine_key(hashes, settings, version, sm, precision), executed=executed, parity=tuple(parity),
            latency=None if latency is None else dict(latency), notes=tuple(notes),
            files={name: put_file(temporary, name, content) for name, content in files.items()},
        )  # fmt: skip
        (temporary / PACK).write_bytes(manifest.to_bytes())
        made = load_pack(temporary, bundle=bundle, target=target)
        return publish(PACK_KIND, made, directory, load_pack)


def load_pack(
    directory: Path, *, expected_sha256: str | None = None, bundle: Bundle | None = None, target: str | None = None
) -> EnginePack:
    """Verify a directory as an engine pack (of `bundle`, for `target`); BundleError names file and fault."""
    root = directory.resolve()
    present = scan(root)
    PACK_KIND.require_index(present, directory)
    raw, sha256 = PACK_KIND.read_index(root, expected_sha256=expected_sha256)
    manifest = parse_pack(raw)
    PACK_KIND.check_names(present, manifest.files, directory)
    pack = EnginePack(root, sha256, manifest)
    for name in sorted(manifest.files):
        content = pack.read(name)
        if name.endswith(".npz"):
            parse_npz(content, name)
    if target is not None and manifest.target != target:
        raise BundleError(f"{PACK}: an engine pack for target {manifest.target!r}, expected {target!r}")
    if bundle is not None:
        check_pack_of(manifest, bundle)
    return pack


def check_pack_of(manifest: PackManifest, bundle: Bundle) -> None:
    """BundleError unless the pack was made of exactly this bundle's ONNX files."""
    if manifest.bundle_sha256 != bundle.sha256:
        raise BundleError(
            f"{PACK}: engine pack {manifest.target!r} is of bundle {manifest.bundle_sha256}, expected {bundle.sha256}"
        )
    ours = onnx_hashes(bundle)
    for name in sorted(ours.keys() | manifest.onnx_sha256.keys()):
        if ours.get(name) != manifest.onnx_sha256.get(name):
            found = manifest.onnx_sha256.get(name, "nothing")
            raise BundleError(
                f"{PACK}: {name}: compiled from sha256 {found}, the bundle's is {ours.get(name, 'absent')}"
            )


def parse_pack(raw: bytes) -> PackManifest:
    """What these bytes of a `pack.json` say; BundleError naming what is wrong."""
    if len(raw) > MAX_PACK_JSON_BYTES:
        raise BundleError(f"{PACK}: longer than {MAX_PACK_JSON_BYTES} bytes")
    try:
        value = parse_canonical(raw)
    except ValueError as error:
        raise BundleError(f"{PACK}: {error}") from error
    if not isinstance(value, dict) or value.keys() != PACK_FIELDS:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise BundleError(f"{PACK}: fields {found}, expected {sorted(PACK_FIELDS)}")
    for name, fine in _checks(value).items():
        if not fine:
            raise BundleError(f"{PACK}: unusable {name}: {value[name]!r:.100}")
    manifest = PackManifest(
        **value | {
            "parity": tuple(PackParity(**one) for one in value["parity"]), "notes": tuple(value["notes"]),
            "files": parse_files(value["files"], PACK),
        }
    )  # fmt: skip
    version = manifest.runtime["version"]
    wanted = engine_key(manifest.onnx_sha256, manifest.configuration, version, manifest.sm, manifest.precision)
    if manifest.key != wanted:
        raise BundleError(f"{PACK}: key {manifest.key} doesn't follow from the pack's own fields, which give {wanted}")
    return manifest


def _checks(value: Mapping[str, Any]) -> dict[str, bool]:
    """For each field whether it is usable alone; `files` has its own checks."""
    runtime, latency, sm, parity, onnx = (value[name] for name in ("runtime", "latency", "sm", "parity", "onnx_sha256"))
    return {
        "format": type(value["format"]) is int and value["format"] == PACK_FORMAT,
        "bundle_sha256": is_sha256(value["bundle_sha256"]),
        "target": is_target(value["target"]),
        "backend": value["backend"] in BACKENDS,
        "precision": value["precision"] in PRECISIONS,
        "runtime": isinstance(runtime, dict) and runtime.keys() == {"library", "version"} and _texts(runtime.values()),
        "sm": sm is None or (isinstance(sm, str) and SM.fullmatch(sm) is not None),
        "configuration": isinstance(value["configuration"], dict),
        "onnx_sha256": isinstance(onnx, dict) and bool(onnx) and all(is_sha256(one) for one in onnx.values())
        and all(check_file_name(name) for name in onnx),
        "key": is_sha256(value["key"]),
        "executed": isinstance(value["executed"], bool),
        "parity": isinstance(parity, list) and all(map(_is_parity, parity)) and (value["executed"] or not parity),
        "latency": latency is None
        or (isinstance(latency, dict) and all(map(_is_figure, latency.values())) and value["executed"]),
        "notes": isinstance(value["notes"], list) and all(isinstance(one, str) for one in value["notes"]),
    }  # fmt: skip


def is_target(name: object) -> bool:
    """Lower case letters, digits and `_`, at most 63: safe in file names and on a command line."""
    return isinstance(name, str) and TARGET.fullmatch(name) is not None


def _texts(values: Any) -> bool:
    return all(isinstance(one, str) and bool(one) for one in values)


def _is_figure(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max  # type: ignore[operator]


def _is_parity(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "difference", "tolerance"}
        and isinstance(value["name"], str)
        and _is_figure(value["difference"])
        and _is_figure(value["tolerance"])
    )


def packed_key(sha256: str, name: str) -> str:
    """Where a pack's file lies in a store."""
    return PACK_KIND.key(sha256, name)


def store_pack(store: BlobStore, pack: EnginePack) -> str:
    """Copy a pack into a store, `pack.json` last: visible only when complete. May be run again."""
    return store_files(PACK_KIND, store, pack.sha256, pack.manifest.files, pack.read)


def fetch_pack(
    store: BlobStore, sha256: str, into_dir: Path, *, bundle: Bundle | None = None, target: str | None = None
) -> EnginePack:
    """Bring a pack from a store to `into_dir/<sha256>`, verified before it appears there."""

    def load(directory: Path) -> EnginePack:
        return load_pack(directory, expected_sha256=sha256, bundle=bundle, target=target)

    return fetch_folder(PACK_KIND, store, sha256, into_dir, files_of=lambda raw: parse_pack(raw).files, load=load)
