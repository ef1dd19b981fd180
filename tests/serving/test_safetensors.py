"""Our reader of safetensors: what the library writes, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from serving.errors import BundleError
from serving.safetensors import parse_safetensors

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def file_of(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(*shape: int, begin: int = 0, dtype: str = "F32", size: int | None = None) -> dict[str, Any]:
    count = 4 * int(np.prod(shape)) if size is None else size
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + count]}


@settings(max_examples=50, deadline=None)
@given(shapes=st.dictionaries(st.text(min_size=1, max_size=8), SHAPES, max_size=5), metadata=st.booleans())
def test_what_the_library_writes_comes_back(shapes: dict[str, tuple[int, ...]], metadata: bool) -> None:
    shapes.pop("__metadata__", None)
    rng = np.random.default_rng(0)
    written = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = parse_safetensors(save(written, {"made": "by"} if metadata else None), "w")
    assert found.keys() == written.keys()
    for name, array in written.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert found[name].flags.aligned
        assert found[name].flags.c_contiguous


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "a header of 0 bytes doesn't fit into a file of 0"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "doesn't fit"),
        (file_of(b"{", b""), "isn't a readable safetensors file"),
        (file_of(b"[" * 200_000, b""), "isn't a readable safetensors file"),
        (file_of([], b""), "its header is a list"),
        (file_of(b'{"a": 1, "a": 2}', b""), "a occurs twice"),
        (file_of({"a": 3}, b""), "tensor 'a': expected data_offsets, dtype, shape, found 3"),
        (file_of({"a": entry(1) | {"more": 1}}, b"1234"), "tensor 'a': expected data_offsets"),
        (file_of({"a": entry(1, dtype="BF16")}, b"1234"), "tensor 'a': expected dtype F32, found 'BF16'"),
        (file_of({"a": entry(1) | {"shape": [-1]}}, b"1234"), "tensor 'a': shape and data_offsets"),
        (file_of({"a": entry(1) | {"shape": [True]}}, b"1234"), "tensor 'a': shape and data_offsets"),
        (file_of({"a": entry(2, size=4)}, b"1234"), r"tensor 'a': expected 8 bytes for shape \(2,\), found 4"),
        (file_of({"a": entry(1), "b": entry(1)}, b"1234"), "tensor 'b': expected its data to begin at byte 4, found 0"),
        (file_of({"a": entry(1, begin=4)}, b"12345678"), "tensor 'a': expected its data to begin at byte 0, found 4"),
        (file_of({"a": entry(2)}, b"1234"), "tensor 'a': ends at byte"),
        (file_of({"a": entry(*[1] * 9)}, b"1234"), "tensor 'a': expected at most 8 dimensions"),
        (file_of({"a": entry(0, 1 << 70, size=0)}, b""), "tensor 'a': expected at most 8 dimensions and"),
        (file_of({"a": entry(0, 1 << 62, 1 << 62, size=0)}, b""), "tensor 'a': expected at most 8 dimensions and"),
        (file_of({"a": entry(1) | {"shape": [10**18] * 100_000}}, b"1234"), "tensor 'a': expected at most 8 dimen"),
        (file_of({"\ud800": entry(1)}, b"1234"), "its name isn't text"),
        (file_of(b"{%s}" % b",".join(b'"k%d":1,"k%d":1' % (i, i) for i in range(50_000)), b""), "k0, k1, .* twice"),
        (file_of({"a": entry(1)}, b"12345"), "1 bytes at the end belong to no tensor"),
    ],
)
def test_what_is_wrong_is_refused_by_name(raw: bytes, told: str) -> None:
    with pytest.raises(BundleError, match=f"^w: .*{told}"):
        parse_safetensors(raw, "w")


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_damage_never_escapes_as_another_error(place: int, value: int, cut: int) -> None:
    raw = bytearray(save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}))
    raw[place % len(raw)] = value
    with contextlib.suppress(BundleError):
        parse_safetensors(bytes(raw[: len(raw) - cut]), "w")
