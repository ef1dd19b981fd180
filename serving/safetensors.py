"""Reading `weights.safetensors`: the subset that our bundles hold, without the library of that name.

Data in: a file's bytes: 8 bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}},
the numbers. Data out: float32 arrays by name, each with memory of its own.
Invariants: every byte is accounted for (tensors lie one after another from the first to the last byte); no unknown key,
no name twice or that isn't text, no dtype but float32,
at most MAX_DIMENSIONS; a BundleError names the file, the tensor, what was expected and what was found; a hostile header
costs no more than its length.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import BundleError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40  # without sizes of 0, which an array's shape may not hide an overflow behind
METADATA = "__metadata__"
KEYS = {"dtype", "shape", "data_offsets"}
FLOAT32 = "F32"


def parse_safetensors(raw: bytes, name: str) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of the file `name`, in the order in which they lie in it."""
    header, start = _header(raw, name)
    header.pop(METADATA, None)
    places = sorted((_place(entry, tensor, name), tensor) for tensor, entry in header.items())
    tensors = {}
    end = start
    for (begin, stop, shape), tensor in places:
        if start + begin != end:
            raise BundleError(
                f"{name}: tensor {tensor!r}: expected its data to begin at byte {end - start}, found {begin}"
            )
        end = start + stop
        if end > len(raw):
            raise BundleError(f"{name}: tensor {tensor!r}: ends at byte {end}, but the file has {len(raw)}")
        array = np.frombuffer(raw, np.dtype("<f4"), math.prod(shape), start + begin)
        tensors[tensor] = array.reshape(shape).astype(np.float32, copy=True)
    if end != len(raw):
        raise BundleError(f"{name}: {len(raw) - end} bytes at the end belong to no tensor")
    return tensors


def _header(raw: bytes, name: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(raw[:LENGTH_BYTES], "little")
    if len(raw) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, len(raw) - LENGTH_BYTES):
        raise BundleError(f"{name}: a header of {length} bytes doesn't fit into a file of {len(raw)} bytes")
    try:
        header = json.loads(raw[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: isn't a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise BundleError(f"{name}: isn't a readable safetensors file: its header is a {type(header).__name__}")
    return header, LENGTH_BYTES + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{', '.join(twice):.100} occurs twice")
    return found


def _place(entry: Any, tensor: str, name: str) -> tuple[int, int, tuple[int, ...]]:
    """Begin, end (bytes after the header) and shape."""
    if not _is_text(tensor):
        raise BundleError(f"{name}: tensor {tensor!r:.100}: its name isn't text")
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        raise BundleError(f"{name}: tensor {tensor!r}: expected {', '.join(sorted(KEYS))}, found {entry!r:.100}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] != FLOAT32:
        raise BundleError(f"{name}: tensor {tensor!r}: expected dtype {FLOAT32}, found {entry['dtype']!r:.100}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise BundleError(
            f"{name}: tensor {tensor!r}: shape and data_offsets must be whole numbers, found {entry!r:.100}"
        )
    if len(shape) > MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise BundleError(
            f"{name}: tensor {tensor!r}: expected at most {MAX_DIMENSIONS} dimensions and {MAX_ELEMENTS} numbers, "
            f"found shape {shape!r:.100}"
        )
    needed, given = 4 * math.prod(shape), offsets[1] - offsets[0]
    if needed != given:
        raise BundleError(f"{name}: tensor {tensor!r}: expected {needed} bytes for shape {tuple(shape)}, found {given}")
    return offsets[0], offsets[1], tuple(shape)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _is_text(tensor: str) -> bool:
    """Whether it can be written as UTF-8: JSON's half surrogates can't, and the native core couldn't take them."""
    return not any("\ud800" <= character <= "\udfff" for character in tensor)
