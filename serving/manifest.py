"""What a bundle says of itself: model, members, tensors, files with their hashes, feature spec, tolerances.

Data in and out: the exact bytes of `manifest.json` (canonical JSON); their sha256 is the bundle's name.
Invariants: no unknown and no missing key, every type checked; file names are plain, at most one folder deep;
every file a member names is listed with size and hash. It holds no version, release, commit, gate or engine:
those name the bundle, not the other way round.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.canonical import canonical_json, is_model_name, is_sha256, parse_canonical
from serving.errors import BundleError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
SEMANTICS = ("window", "stateful")
ROLES = ("step", "window", "head", "surface", "weights")
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 1 << 30
MAX_BUNDLE_BYTES = 4 << 30
MAX_FILES = 256
MAX_MEMBERS = 64

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
FILE_NAME = re.compile(rf"{_NAME}(/{_NAME})?", re.ASCII)
TENSOR_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64"}
)


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output; a dimension of None is free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)


@dataclass(frozen=True)
class MemberFile:
    """One file of a member and its tensors, in the order the file declares them."""

    name: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class Member:
    """One net of an ensemble: its files by role."""

    files: Mapping[str, MemberFile]


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    model: str
    model_config: Mapping[str, Any]
    members: tuple[Member, ...]
    files: Mapping[str, FileEntry]
    feature_spec: Mapping[str, Any]
    semantics: str
    tolerances: Mapping[str, float]
    data_sha256: str
    config_sha256: str
    format: int = MANIFEST_FORMAT

    @property
    def task(self) -> str:
        """What its nets are for: `surface` (one file that completes and judges surfaces) or `pricing`."""
        return "surface" if any("surface" in member.files for member in self.members) else "pricing"

    def to_bytes(self) -> bytes:
        """Canonical bytes; BundleError for what JSON can't hold."""
        value = {
            "format": self.format,
            "model": self.model,
            "model_config": dict(self.model_config),
            "members": [
                {"files": {role: _file_json(file) for role, file in member.files.items()}} for member in self.members
            ],
            "files": {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in self.files.items()},
            "feature_spec": dict(self.feature_spec),
            "semantics": self.semantics,
            "tolerances": dict(self.tolerances),
            "data_sha256": self.data_sha256,
            "config_sha256": self.config_sha256,
        }
        try:
            return canonical_json(value)
        except (ValueError, TypeError) as error:
            raise BundleError(f"{MANIFEST}: can't be written as JSON: {error}") from error


def _file_json(file: MemberFile) -> dict[str, Any]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in specs]

    return {"name": file.name, "inputs": tensors(file.inputs), "outputs": tensors(file.outputs)}


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest of these bytes; BundleError naming what is wrong."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST}: longer than {MAX_MANIFEST_BYTES} bytes")
    try:
        value = parse_canonical(raw)
    except ValueError as error:
        raise BundleError(f"{MANIFEST}: {error}") from error
    fields = _object(value, "the manifest", frozenset(Manifest.__dataclass_fields__))
    if type(fields["format"]) is not int or fields["format"] != MANIFEST_FORMAT:
        raise BundleError(f"{MANIFEST}: format {fields['format']!r}; this code reads {MANIFEST_FORMAT}: upgrade it")
    _require(is_model_name(fields["model"]), "model", fields["model"])
    _require(fields["semantics"] in SEMANTICS, f"semantics (one of {SEMANTICS})", fields["semantics"])
    for key in ("data_sha256", "config_sha256"):
        _require(is_sha256(fields[key]), key, fields[key])
    for key in ("model_config", "feature_spec"):
        _require(isinstance(fields[key], dict), key, fields[key])
    files = parse_files(fields["files"], MANIFEST)
    return Manifest(
        model=fields["model"],
        model_config=fields["model_config"],
        members=_parse_members(fields["members"], files),
        files=files,
        feature_spec=fields["feature_spec"],
        semantics=fields["semantics"],
        tolerances=_parse_tolerances(fields["tolerances"]),
        data_sha256=fields["data_sha256"],
        config_sha256=fields["config_sha256"],
    )


def check_file_name(name: object) -> str:
    """The name, or BundleError: letters, digits, '.', '_' and '-', at most one folder deep, nothing hidden."""
    if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None or name == MANIFEST:
        raise BundleError(f"file name {name!r}: use plain names: 'golden.npz', 'member-0/step.onnx'")
    return name


def check_file_names(names: Iterable[object]) -> None:
    """BundleError for a name that isn't plain, or two that clash on some file system."""
    plain = [check_file_name(name) for name in names]
    folders = {name.partition("/")[0].lower() for name in plain if "/" in name}
    seen: set[str] = set()
    for name in plain:
        if name.lower() in seen or name.lower() in folders:
            raise BundleError(f"file name {name!r}: clashes with a folder or one that differs by case only")
        seen.add(name.lower())


def parse_files(value: object, index: str) -> dict[str, FileEntry]:
    """The files that an index (`manifest.json`, `pack.json`) lists; BundleError, naming it, for what is unusable."""
    if not isinstance(value, dict):
        raise BundleError(f"{index}: unusable files: {_short(value)}")
    if not 1 <= len(value) <= MAX_FILES:
        raise BundleError(f"{index}: {len(value)} files; 1 to {MAX_FILES} are allowed")
    check_file_names(value)
    files = {}
    for name, entry in value.items():
        fields = _object(entry, f"files[{name!r}]", frozenset({"sha256", "size"}), index)
        sha256, size = fields["sha256"], fields["size"]
        if name == index:
            raise BundleError(f"{index}: file name {name!r}: it can't list itself")
        if not is_sha256(sha256):
            raise BundleError(f"{index}: unusable files[{name!r}].sha256: {_short(sha256)}")
        if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
            raise BundleError(f"{index}: unusable files[{name!r}].size (at most {MAX_FILE_BYTES}): {_short(size)}")
        files[name] = FileEntry(sha256, size)
    total = sum(entry.size for entry in files.values())
    if total > MAX_BUNDLE_BYTES:
        raise BundleError(f"{index}: files of {total} bytes together; at most {MAX_BUNDLE_BYTES} are allowed")
    return files


def _parse_members(value: object, files: Mapping[str, FileEntry]) -> tuple[Member, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MEMBERS:
        raise BundleError(f"{MANIFEST}: members must be a list of 1 to {MAX_MEMBERS}")
    members = []
    for index, entry in enumerate(value):
        where = f"members[{index}]"
        by_role = _object(entry, where, frozenset({"files"}))["files"]
        _require(isinstance(by_role, dict) and bool(by_role), f"{where}.files", by_role)
        parsed = {}
        for role, file in by_role.items():
            _require(role in ROLES, f"{where}: role (one of {ROLES})", role)
            fields = _object(file, f"{where}.files.{role}", frozenset({"name", "inputs", "outputs"}))
            if check_file_name(fields["name"]) not in files:
                raise BundleError(f"{MANIFEST}: {where}: {fields['name']!r} ({role}) isn't among the files")
            parsed[role] = MemberFile(
                fields["name"],
                _parse_tensors(fields["inputs"], f"{where}.files.{role}.inputs"),
                _parse_tensors(fields["outputs"], f"{where}.files.{role}.outputs"),
            )
        members.append(Member(parsed))
    return tuple(members)


def _parse_tensors(value: object, where: str) -> tuple[TensorSpec, ...]:
    _require(isinstance(value, list), where, value)
    assert isinstance(value, list)
    specs = []
    for entry in value:
        fields = _object(entry, where, frozenset({"name", "shape", "dtype"}))
        name, shape, dtype = fields["name"], fields["shape"], fields["dtype"]
        _require(isinstance(name, str) and bool(name), f"{where}: name", name)
        _require(isinstance(dtype, str) and dtype in TENSOR_DTYPES, f"{where}: dtype of {name!r}", dtype)
        fine = isinstance(shape, list) and all(size is None or (type(size) is int and size >= 0) for size in shape)
        _require(fine, f"{where}: shape of {name!r}", shape)
        specs.append(TensorSpec(name, tuple(shape), dtype))
    if len({spec.name for spec in specs}) != len(specs):
        raise BundleError(f"{MANIFEST}: {where} names a tensor twice")
    return tuple(specs)


def _parse_tolerances(value: object) -> dict[str, float]:
    _require(isinstance(value, dict), "tolerances", value)
    assert isinstance(value, dict)
    for name, tolerance in value.items():
        fine = type(tolerance) in (int, float) and 0 <= tolerance <= sys.float_info.max
        _require(fine, f"tolerances.{name}", tolerance)
    return dict(value)


def _object(value: object, where: str, keys: frozenset[str], index: str = MANIFEST) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"{index}: {where} must be a JSON object, not {_short(value)}")
    unknown, missing = sorted(value.keys() - keys), sorted(keys - value.keys())
    if unknown or missing:
        raise BundleError(f"{index}: {where} has unknown keys {unknown}, lacks {missing}")
    return value


def _require(fine: bool, what: str, value: object) -> None:
    if not fine:
        raise BundleError(f"{MANIFEST}: unusable {what}: {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
