"""The promises of a bundle's folder: named by its content, refused by name when anything in it differs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import manifest as manifest_module
from serving.bundle import Bundle, load_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.errors import BundleError
from serving.manifest import MANIFEST, parse_manifest
from tests.contract.bundle_copies import copy, refuse
from tests.tiny_bundle import tiny_bundle

__all__ = ["copy"]  # fixtures


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
