"""The promises of an engine pack: named by its content, of one bundle and target, refused by name where it differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.canonical import canonical_json, sha256_hex
from serving.engine_pack import (
    PACK,
    EnginePack,
    PackParity,
    engine_key,
    fetch_pack,
    load_pack,
    packed_key,
    parse_pack,
    store_pack,
    write_pack,
)
from serving.errors import BundleError
from serving.folder_store import FolderStore
from tests.tiny_bundle import npz_bytes, tiny_bundle

TARGET = "trt_rtx_sm89_fp16"
FILES = {"member-0/step.engine": b"an engine", "golden.npz": npz_bytes(iv=np.array([0.2, 0.3]))}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def a_pack(directory: Path, bundle: Bundle, **other: Any) -> EnginePack:
    arguments: dict[str, Any] = {
        "target": TARGET, "backend": "trt", "precision": "fp16", "library": "tensorrt-rtx", "version": "1.1",
        "sm": "sm89", "configuration": {"profile": [1, 5000]}, "files": FILES, "executed": True,
        "parity": [PackParity("iv (step)", 1e-4, 1e-3)], "latency": {"step_p50_us": 9.5}, "notes": ["a note"],
    }  # fmt: skip
    return write_pack(directory, bundle=bundle, **(arguments | other))


@pytest.fixture(scope="module")
def pristine(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    return a_pack(tmp_path_factory.mktemp("pack") / "pack", bundle)


@pytest.fixture
def copy(pristine: EnginePack, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine.directory, tmp_path / "copy"))


def test_a_pack_is_named_by_its_pack_json_and_reads_back_as_written(pristine: EnginePack, bundle: Bundle) -> None:
    raw = (pristine.directory / PACK).read_bytes()
    assert pristine.sha256 == sha256_hex(raw)
    assert pristine.manifest.to_bytes() == raw == canonical_json(json.loads(raw))
    assert parse_pack(raw) == pristine.manifest
    assert load_pack(pristine.directory, expected_sha256=pristine.sha256, bundle=bundle, target=TARGET) == pristine
    assert {name: pristine.read(name) for name in FILES} == FILES
    np.testing.assert_array_equal(pristine.arrays("golden.npz")["iv"], [0.2, 0.3])
    onnx = {name: entry.sha256 for name, entry in bundle.manifest.files.items() if name.endswith(".onnx")}
    assert pristine.manifest.onnx_sha256 == onnx
    with pytest.raises(BundleError, match="isn't in engine pack"):
        pristine.read("other")


def test_the_key_changes_with_everything_it_is_made_of() -> None:
    onnx, settings = {"step.onnx": "ab" * 32}, {"profile": 1}
    base = engine_key(onnx, settings, "10.1", "sm89", "fp16")
    others = [
        engine_key({"step.onnx": "cd" * 32}, settings, "10.1", "sm89", "fp16"),
        engine_key(onnx, {"profile": 2}, "10.1", "sm89", "fp16"),
        engine_key(onnx, settings, "10.2", "sm89", "fp16"),
        engine_key(onnx, settings, "10.1", "sm80", "fp16"),
        engine_key(onnx, settings, "10.1", None, "fp16"),
        engine_key(onnx, settings, "10.1", "sm89", "int8"),
    ]
    assert len({base, *others}) == 7
    assert base == engine_key(dict(onnx), dict(settings), "10.1", "sm89", "fp16")


@pytest.mark.parametrize("name", [PACK, *FILES])
def test_any_changed_byte_is_refused_by_name(copy: Path, pristine: EnginePack, name: str) -> None:
    path = copy / name
    original = path.read_bytes()
    for place in {0, len(original) // 2, len(original) - 1}:
        changed = bytearray(original)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=name):
            load_pack(copy, expected_sha256=pristine.sha256)
    path.write_bytes(original + b"\n")
    with pytest.raises(BundleError, match=name):
        load_pack(copy, expected_sha256=pristine.sha256)
    path.unlink()
    with pytest.raises(BundleError, match=Path(name).parts[0]):  # with its only file gone the folder is what is odd
        load_pack(copy, expected_sha256=pristine.sha256)


def test_an_unknown_file_or_a_link_is_refused_by_name(copy: Path) -> None:
    (copy / "extra.engine").write_bytes(b"")
    with pytest.raises(BundleError, match=r"extra\.engine: unknown file"):
        load_pack(copy)
    (copy / "extra.engine").unlink()
    (copy / "link").symlink_to("golden.npz")
    with pytest.raises(BundleError, match="link: neither a plain file"):
        load_pack(copy)


def test_a_pack_of_another_bundle_or_target_is_refused(pristine: EnginePack, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(BundleError, match=f"is of bundle {pristine.manifest.bundle_sha256}, expected {other.sha256}"):
        load_pack(pristine.directory, bundle=other)
    with pytest.raises(BundleError, match=f"for target '{TARGET}', expected 'native_bf16'"):
        load_pack(pristine.directory, target="native_bf16")


def forged(copy: Path, **fields: Any) -> Path:
    """The same pack with other fields, its key recomputed where that is possible."""
    value = json.loads((copy / PACK).read_bytes()) | fields
    if "key" not in fields:
        value["key"] = engine_key(
            value["onnx_sha256"], value["configuration"], value["runtime"].get("version", ""), value["sm"],
            value["precision"],
        )  # fmt: skip
    (copy / PACK).write_bytes(canonical_json(value))
    return copy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2), ("bundle_sha256", "short"), ("target", "../up"), ("backend", "guess"), ("precision", "fp12"),
        ("runtime", {"library": "x"}), ("runtime", {"library": "x", "version": ""}), ("sm", "89"), ("sm", 89),
        ("configuration", []), ("onnx_sha256", {}), ("onnx_sha256", {"a.onnx": "b"}), ("executed", 1),
        ("parity", [{"name": "iv"}]), ("parity", [{"name": "iv", "difference": -1.0, "tolerance": 0.0}]),
        ("parity", [{"name": "iv", "difference": 10**400, "tolerance": 0.0}]), ("latency", {"step": 10**400}),
        ("latency", {"step": "fast"}), ("notes", "one"), ("files", {}), ("key", "ab" * 32), ("unknown", 1),
        ("files", {"../x": {"sha256": "ab" * 32, "size": 1}}), ("files", {"x": {"sha256": "ab" * 32, "size": -1}}),
    ],
)  # fmt: skip
def test_an_unusable_field_is_refused_by_name(copy: Path, field: str, value: object) -> None:
    with pytest.raises(BundleError, match=f"{PACK}: .*{field}|file name|files of|doesn't follow"):
        load_pack(forged(copy, **{field: value}))


def test_what_did_not_run_claims_no_parity_and_no_latency(copy: Path) -> None:
    with pytest.raises(BundleError, match="unusable parity"):
        load_pack(forged(copy, executed=False))
    with pytest.raises(BundleError, match="unusable latency"):
        load_pack(forged(copy, executed=False, parity=[]))
    assert not load_pack(forged(copy, executed=False, parity=[], latency=None)).manifest.executed


def test_onnx_hashes_other_than_the_bundles_are_refused(copy: Path, bundle: Bundle) -> None:
    name = next(name for name in bundle.manifest.files if name.endswith("head.onnx"))
    value = json.loads((copy / PACK).read_bytes())
    forged(copy, onnx_sha256=value["onnx_sha256"] | {name: "ab" * 32})
    with pytest.raises(BundleError, match=f"{name}: compiled from sha256 abab"):
        load_pack(copy, bundle=bundle)


def test_a_pack_in_a_store_comes_back_the_same(pristine: EnginePack, bundle: Bundle, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    assert store_pack(store, pristine) == store_pack(store, pristine) == pristine.sha256
    assert store.list("packs/")[0].startswith(f"packs/{pristine.sha256}/")
    fetched = fetch_pack(store, pristine.sha256, tmp_path / "host", bundle=bundle, target=TARGET)
    assert (fetched.sha256, fetched.manifest) == (pristine.sha256, pristine.manifest)
    assert fetch_pack(store, pristine.sha256, tmp_path / "host") == fetched


def test_a_pack_missing_or_tampered_in_the_store_is_refused_and_leaves_nothing(
    pristine: EnginePack, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(BundleError, match=r"pack\.json: pack .* isn't in the store"):
        fetch_pack(store, pristine.sha256, tmp_path / "host")
    store_pack(store, pristine)
    path = store.root / packed_key(pristine.sha256, "golden.npz")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"golden\.npz: sha256 is"):
        fetch_pack(store, pristine.sha256, tmp_path / "host")
    assert list((tmp_path / "host").iterdir()) == []
    with pytest.raises(BundleError, match="the store holds other bytes"):
        store_pack(store, pristine)


def test_writing_another_pack_over_one_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    first = a_pack(tmp_path / "p", bundle)
    assert a_pack(tmp_path / "p", bundle) == first
    with pytest.raises(BundleError, match="remove it first"):
        a_pack(tmp_path / "p", bundle, notes=[])
    assert load_pack(tmp_path / "p") == first
