"""A manifest that lies, or isn't canonical, is refused by the place of the lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import manifest as manifest_module
from serving.canonical import canonical_json
from serving.manifest import MANIFEST
from tests.contract.bundle_copies import copy, refuse

__all__ = ["copy"]  # fixtures


def change(value: Any, path: str, new: Any) -> Any:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        value = value[part]
    if new is None:
        del value[last]
    else:
        value[last] = new
    return value


TENSOR = "members.0.files.head.inputs.0"


@pytest.mark.parametrize(
    ("path", "new", "why"),
    [
        ("format", 2, "format 2"),
        ("format", True, "format True"),
        ("version", 1, r"unknown keys \['version'\]"),
        ("feature_spec", None, r"lacks \['feature_spec'\]"),
        ("feature_spec", [], "feature_spec"),
        ("model", "../x", "model"),
        ("semantics", "both", "semantics"),
        ("data_sha256", "abc", "data_sha256"),
        ("tolerances", {"iv": -1.0}, "tolerances.iv"),
        ("tolerances", {"iv": True}, "tolerances.iv"),
        ("tolerances", {"iv": 10**400}, "tolerances.iv"),
        ("members", [], "members"),
        ("members", [{}], "lacks"),
        ("members", [{"files": {}}], "members"),
        ("members.0.files.body", {}, "role"),
        ("members.0.files.head.name", "absent.onnx", "isn't among the files"),
        ("members.0.files.head.name", "../../etc/passwd", "file name"),
        (f"{TENSOR}.name", "", "name"),
        (f"{TENSOR}.dtype", "object", "dtype"),
        (f"{TENSOR}.dtype", [], "dtype"),
        (f"{TENSOR}.shape", [-1, 2], "shape"),
        (f"{TENSOR}.shape", [1, 2.0], "shape"),
        (f"{TENSOR}.shape", [1, 9], r"context-0' has shape \(3, 2\).*\(1, 9\)"),
        (f"{TENSOR}.shape", [2], "context-0' has shape"),
        ("members.0.files.head.inputs", [], "no tensor 'context'"),
        ("members.0.files.window.inputs.0.shape", [1, 4, 7], "array 'window' has shape"),
        ("members.0.files.step.inputs.0.shape", [1, 7], "takes 7 values"),
        ("files", {}, "0 files"),
        ("files.absent", {"sha256": "0" * 64, "size": 0}, "absent: missing"),
        ("files./etc/passwd", {"sha256": "0" * 64, "size": 0}, "file name '/etc/passwd'"),
        ("files.a/b/c", {"sha256": "0" * 64, "size": 0}, "file name"),
        ("files.GOLDEN:npz", {"sha256": "0" * 64, "size": 0}, "file name"),
        ("files.member-0", {"sha256": "0" * 64, "size": 0}, "clashes"),
        ("files.manifest:json", {"sha256": "0" * 64, "size": 0}, "file name"),
    ],
)
def test_a_manifest_that_lies_is_refused(copy: Path, path: str, new: Any, why: str) -> None:
    value = json.loads((copy / MANIFEST).read_bytes())
    if path.startswith("files."):
        value["files"][path.removeprefix("files.").replace(":", ".")] = new
    else:
        change(value, path, new)
    (copy / MANIFEST).write_bytes(canonical_json(value))
    if path.startswith("files.GOLDEN"):
        why = "clashes"
    refuse(copy, why)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"sha256": "0" * 64, "size": 1 << 40}, "size"),
        ({"sha256": "0" * 64, "size": -1}, "size"),
        ({"sha256": "0" * 64, "size": 1.0}, "size"),
        ({"sha256": "0" * 63, "size": 1}, "sha256"),
        ({"sha256": "0" * 64, "size": 0, "mode": 1}, "unknown keys"),
        ([], "JSON object"),
    ],
)
def test_a_file_entry_that_lies_is_refused(copy: Path, entry: Any, why: str) -> None:
    value = json.loads((copy / MANIFEST).read_bytes())
    value["files"]["golden.npz"] = entry
    (copy / MANIFEST).write_bytes(canonical_json(value))
    refuse(copy, why)


def test_only_canonical_manifests_are_read(copy: Path) -> None:
    raw = (copy / MANIFEST).read_bytes()
    value = json.loads(raw)
    others = [
        json.dumps(value, indent=1).encode(),
        raw[:-1],
        raw + b"\n",
        b"\xef\xbb\xbf" + raw,
        raw.replace(b'{"config', b'{"format":1,"config', 1),  # a repeated key
        raw.replace(b'"iv":1e-05', b'"iv":NaN'),
        raw.replace(b'"iv":1e-05', b'"iv":1e999'),
        b"[" * 100_000,
        b"",
        b"\xff",
    ]
    for other in others:
        assert other != raw
        (copy / MANIFEST).write_bytes(other)
        refuse(copy, "^manifest.json: ")
    (copy / MANIFEST).write_bytes(b" " * (manifest_module.MAX_MANIFEST_BYTES + 1))
    refuse(copy, "longer than")
