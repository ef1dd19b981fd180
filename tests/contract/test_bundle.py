"""The promises of a bundle: named by its content, refused by name when anything differs, visible only when complete."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import manifest as manifest_module
from serving.bundle import Bundle, bundle_key, fetch_bundle, load_bundle, store_bundle, write_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.errors import BundleError
from serving.folder_store import FolderStore
from serving.manifest import MANIFEST, parse_manifest
from serving.npz import parse_npz
from tests.tiny_bundle import npz_bytes, tiny_bundle

PROCESSES = 8


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("pristine") / "bundle", members=2)


@pytest.fixture
def copy(pristine: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine.directory, tmp_path / "copy"))


def refuse(directory: Path, why: str, **expected: Any) -> None:
    with pytest.raises(BundleError, match=why):
        load_bundle(directory, **expected)


def test_a_bundle_is_named_by_its_manifest(pristine: Bundle) -> None:
    raw = (pristine.directory / MANIFEST).read_bytes()
    assert pristine.sha256 == sha256_hex(raw)
    assert canonical_json(json.loads(raw)) == raw == pristine.manifest.to_bytes()
    assert parse_manifest(raw) == pristine.manifest
    assert not {"version", "release", "commit", "gate", "engine"} & set(json.loads(raw))
    loaded = load_bundle(pristine.directory, expected_sha256=pristine.sha256, model="tiny")
    assert loaded == pristine


def test_what_is_read_is_what_was_written(pristine: Bundle) -> None:
    for name, entry in pristine.manifest.files.items():
        assert sha256_hex(pristine.read(name)) == entry.sha256
    golden = pristine.arrays("golden.npz")
    assert set(golden) == {"window", "contracts", "iv", "context-0", "context-1", "iv-0", "iv-1"}
    np.testing.assert_allclose(golden["iv"], (golden["iv-0"] + golden["iv-1"]) / 2)
    with pytest.raises(BundleError, match="isn't in bundle"):
        pristine.read("other")
    with pytest.raises(ValueError, match="read-only"):
        golden["iv"][0] = 0


def test_equal_content_has_an_equal_name(pristine: Bundle, tmp_path: Path) -> None:
    assert tiny_bundle(tmp_path / "again", members=2).sha256 == pristine.sha256
    assert tiny_bundle(tmp_path / "other", members=2, seed=1).sha256 != pristine.sha256


def test_writing_again_is_fine_writing_another_is_not(tmp_path: Path) -> None:
    first = tiny_bundle(tmp_path / "b")
    assert tiny_bundle(tmp_path / "b") == first
    with pytest.raises(BundleError, match="remove it first"):
        tiny_bundle(tmp_path / "b", seed=1)
    assert load_bundle(tmp_path / "b") == first
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_reading_checks_again(copy: Path) -> None:
    bundle = load_bundle(copy)
    (copy / "golden.npz").write_bytes(b"x" * bundle.manifest.files["golden.npz"].size)
    with pytest.raises(BundleError, match=r"golden.npz: sha256 is .*, expected"):
        bundle.read("golden.npz")
    (copy / "golden.npz").unlink()
    os.mkfifo(copy / "golden.npz")
    with pytest.raises(BundleError, match=r"golden.npz: isn't a plain file"):
        bundle.read("golden.npz")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_refused_by_name(pristine: Bundle, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted([MANIFEST, *pristine.manifest.files])))
    path = pristine.directory / name
    raw = path.read_bytes()
    changed = bytearray(raw)
    changed[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        refuse(pristine.directory, f"^{name}: ", expected_sha256=pristine.sha256)
    finally:
        path.write_bytes(raw)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_other_length_is_refused_by_name(pristine: Bundle, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted([MANIFEST, *pristine.manifest.files])))
    path = pristine.directory / name
    raw = path.read_bytes()
    cut = data.draw(st.integers(0, len(raw) - 1))
    try:
        path.write_bytes(data.draw(st.sampled_from([raw[:cut], raw + raw[: cut + 1]])))
        refuse(pristine.directory, f"^{name}: ", expected_sha256=pristine.sha256)
    finally:
        path.write_bytes(raw)


def files_of(directory: Path) -> Iterator[str]:
    return (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_every_missing_renamed_or_linked_file_is_refused(copy: Path, tmp_path: Path) -> None:
    for name in sorted(files_of(copy)):
        path, aside = copy / name, tmp_path / "aside"
        path.rename(aside)
        refuse(copy, rf"^{name}: missing")
        path.symlink_to(aside)
        refuse(copy, rf"^{name}: .*links are refused")
        path.unlink()
        path.mkdir()
        refuse(copy, "^member-|^golden|^reference|^manifest")
        path.rmdir()
        renamed = path.with_name("renamed")
        aside.rename(renamed)
        refuse(copy, rf"^({name}: missing|.*renamed: unknown file)")
        renamed.rename(path)
    load_bundle(copy)


@pytest.mark.parametrize("name", ["extra", "member-0/extra", ".hidden", "new/extra", "manifest.json.bak"])
def test_every_extra_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"")
    refuse(copy, rf"^{name}: unknown file")


def test_extra_folders_links_and_pipes_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "empty").mkdir()
    refuse(copy, "^empty/: unknown empty folder")
    (copy / "empty/deeper").mkdir()
    refuse(copy, "^empty/deeper: ")
    shutil.rmtree(copy / "empty")
    (tmp_path / "elsewhere").mkdir()
    (copy / "member-0").rename(tmp_path / "elsewhere/member-0")
    (copy / "member-0").symlink_to(tmp_path / "elsewhere/member-0")
    refuse(copy, r"^member-0: .*links are refused")
    (copy / "member-0").unlink()
    os.mkfifo(copy / "pipe")
    refuse(copy, "^pipe: ")
    refuse(tmp_path / "nowhere", "no such folder")


def test_too_many_files_are_refused(copy: Path) -> None:
    for number in range(2 * manifest_module.MAX_FILES + 1):
        (copy / f"extra-{number}").touch()
    refuse(copy, "more than")


def test_the_wrong_bundle_and_the_wrong_model_are_refused(copy: Path) -> None:
    refuse(copy, f"this is bundle .*, expected {'0' * 64}", expected_sha256="0" * 64)
    refuse(copy, "of model 'tiny', expected 'pricing_lstm'", model="pricing_lstm")


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


# Arrays: never a pickle, never more than the bytes hold.


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    evil = npz_bytes(weights=np.array([Bomb()], dtype=object))
    with pytest.raises(BundleError, match=r"evil.npz: array 'weights': dtype object"):
        parse_npz(evil, "evil.npz")
    with pytest.raises(BundleError, match=r"reference.npz: array 'weights'"):
        tiny_bundle(tmp_path / "b", extra_files={"reference.npz": evil})
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "b").exists()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_npz_is_a_bundle_error_or_reads(data: st.DataObject) -> None:
    """Parsers never fail otherwise, however the bytes came to be."""
    raw = bytearray(npz_bytes(a=np.arange(6.0).reshape(2, 3), b=np.asfortranarray(np.eye(2, dtype=np.float32))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        parse_npz(bytes(raw), "x.npz")


def test_arrays_come_back_as_they_were() -> None:
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 4)),
        "flags": np.array([True, False]),
    }
    for name, array in parse_npz(npz_bytes(**arrays), "x").items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(BundleError, match="dtype"):
        parse_npz(npz_bytes(text=np.array(["a"])), "x")


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"iv": np.zeros(4, np.float32)}, "'iv' has 4 values for 5 contracts"),
        ({"iv-0": np.zeros((5, 1), np.float32)}, "'iv-0' has shape"),
        ({"context-0": np.zeros((3, 9), np.float32)}, "'context-0' has shape"),
        ({"context-0": np.zeros((2, 2), np.float32)}, "3 windows, but array 'context-0' has 2 rows"),
        ({"window": np.zeros((3, 4, 7), np.float32)}, "'window' has shape"),
        ({"contracts": np.zeros((0, 3), np.float32), "iv": np.zeros(0), "iv-0": np.zeros(0)}, "is empty"),
        ({"contracts": np.full((5, 3), np.nan, np.float32)}, "only finite floats"),
        ({"contracts": np.zeros((5, 3), np.int64)}, "only finite floats"),
    ],
)
def test_golden_arrays_must_fit(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    with pytest.raises(BundleError, match=f"golden.npz: .*{why}"):
        tiny_bundle(tmp_path / "b", change=arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"files": {"../x": b""}}, "file name"),
        ({"files": {MANIFEST: b""}}, "file name"),
        ({"files": {"a": b"", "A": b""}}, "clashes"),
        ({"files": {"a": b"", "a/b": b""}}, "clashes"),
        ({"model_config": {"x": float("nan")}}, "JSON"),
        ({"model_config": {"x": object()}}, "JSON"),
        ({"model": "No Good"}, "model"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path: Path, other: dict[str, Any], why: str) -> None:
    with pytest.raises(BundleError, match=why):
        tiny_bundle(tmp_path / "b", **other)
    assert list(tmp_path.iterdir()) == []


def test_files_may_come_from_paths(pristine: Bundle, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {name: pristine.directory / name for name in pristine.manifest.files}
    manifest = pristine.manifest
    fields = {
        name: getattr(manifest, name) for name in manifest.__dataclass_fields__ if name not in ("files", "format")
    }
    assert write_bundle(tmp_path / "b", files=files, **fields).sha256 == pristine.sha256


# In a store.


@pytest.fixture
def store(pristine: Bundle, tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "store")
    assert store_bundle(store, pristine) == pristine.sha256
    return store


def test_through_a_store_and_back(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    before = store.list()
    assert before == sorted(bundle_key(pristine.sha256, name) for name in [MANIFEST, *pristine.manifest.files])
    store_bundle(store, pristine)
    assert store.list() == before
    for _ in range(2):
        fetched = fetch_bundle(store, pristine.sha256, tmp_path / "host")
        assert fetched.directory == (tmp_path / "host" / pristine.sha256).resolve()
        assert (fetched.sha256, fetched.manifest) == (pristine.sha256, pristine.manifest)
    assert [path.name for path in (tmp_path / "host").iterdir()] == [pristine.sha256]


def test_an_incomplete_bundle_is_invisible_and_completed_by_storing_again(pristine: Bundle, tmp_path: Path) -> None:
    total = len(pristine.manifest.files) + 1
    for writes in range(1, total + 1):
        root = tmp_path / f"store-{writes}"
        process = multiprocessing.get_context("forkserver").Process(target=store_and_die, args=(root, pristine, writes))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        store = FolderStore(root)
        assert len(store.list()) == writes
        if writes < total:
            with pytest.raises(BundleError, match="isn't in the store, or isn't complete"):
                fetch_bundle(store, pristine.sha256, tmp_path / "host")
        store_bundle(store, pristine)
        assert len(store.list()) == total
        fetch_bundle(store, pristine.sha256, tmp_path / f"host-{writes}")
    assert not (tmp_path / "host" / pristine.sha256).exists()


def store_and_die(root: Path, bundle: Bundle, writes: int) -> None:
    class Dying(FolderStore):
        left = writes

        def put_if_absent(self, key: str, data: bytes) -> bool:
            done = super().put_if_absent(key, data)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    store_bundle(Dying(root), bundle)


def test_a_tampered_store_is_refused_by_name(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    for name in sorted([MANIFEST, *pristine.manifest.files]):
        key = bundle_key(pristine.sha256, name)
        whole = store.get(key)
        for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole + b"x"):
            store.put(key, content)
            with pytest.raises(BundleError, match=f"^{name}: "):
                fetch_bundle(store, pristine.sha256, tmp_path / "host")
            with pytest.raises(BundleError, match=f"^{key}: the store holds other bytes"):
                store_bundle(store, pristine)
        store.delete(key)
        with pytest.raises(BundleError, match=f"^{name}: "):
            fetch_bundle(store, pristine.sha256, tmp_path / "host")
        store.put(key, whole)
        assert list((tmp_path / "host").iterdir()) == []
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        fetch_bundle(store, "../../etc", tmp_path / "host")


def test_a_damaged_copy_is_refused_with_the_remedy(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    fetched = fetch_bundle(store, pristine.sha256, tmp_path / "host")
    (fetched.directory / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden.npz: .*is damaged: remove it, then fetch"):
        fetch_bundle(store, pristine.sha256, tmp_path / "host")


def fetch(root: Path, barrier: Barrier, sha256: str) -> None:
    barrier.wait()
    assert fetch_bundle(FolderStore(root / "store"), sha256, root / "host").sha256 == sha256


def test_eight_processes_fetch_at_once(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(PROCESSES)
    workers = [context.Process(target=fetch, args=(tmp_path, barrier, pristine.sha256)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [path.name for path in (tmp_path / "host").iterdir()] == [pristine.sha256]
