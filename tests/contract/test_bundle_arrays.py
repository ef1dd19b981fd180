"""Arrays of a bundle: never a pickle, never more than the bytes hold; what wouldn't load isn't written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bundle import Bundle, write_bundle
from serving.errors import BundleError
from serving.manifest import MANIFEST
from serving.npz import parse_npz
from tests.tiny_bundle import npz_bytes, tiny_bundle


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
