"""Arrays out of npz bytes, without numpy's loader: no pickle, no allocation beyond what the bytes hold.

Data in: bytes of an npz (a zip of npy). Data out: read-only arrays by name. Invariants: BundleError, naming
the array, for object or structured arrays, repeated names, encrypted or damaged entries, a header that
promises other than what follows, and more than `MAX_ARRAYS_BYTES` once unpacked.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from serving.errors import BundleError

MAX_ARRAYS = 1024
MAX_ARRAYS_BYTES = 2 << 30
PLAIN_KINDS = "biuf"  # booleans, integers, floats

# What zipfile raises on damaged bytes; RuntimeError: encrypted, ValueError: an offset before the start.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)

Arrays = dict[str, NDArray[Any]]


def parse_npz(raw: bytes, name: str) -> Arrays:
    """The arrays of npz bytes; `name` is for messages."""
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARRAYS or unpacked > MAX_ARRAYS_BYTES:
                raise BundleError(
                    f"{name}: {len(entries)} arrays, {unpacked} bytes unpacked; "
                    f"at most {MAX_ARRAYS} and {MAX_ARRAYS_BYTES} are allowed"
                )
            for entry in entries:
                array_name = entry.filename.removesuffix(".npy")
                if array_name == entry.filename or array_name in arrays:
                    raise BundleError(f"{name}: entry {entry.filename!r} is repeated or isn't an .npy")
                arrays[array_name] = _parse_npy(archive.read(entry), f"{name}: array {array_name!r}")
    except ZIP_ERRORS as error:
        raise BundleError(f"{name}: isn't a readable npz: {error}") from error
    return arrays


def _parse_npy(raw: bytes, where: str) -> NDArray[Any]:
    stream = io.BytesIO(raw)
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, by_columns, dtype = npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, by_columns, dtype = npy.read_array_header_2_0(stream)
        else:
            raise BundleError(f"{where}: npy version {version}; 1.0 and 2.0 are read")
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise BundleError(f"{where}: unusable header: {error}") from error
    if dtype.kind not in PLAIN_KINDS:
        raise BundleError(f"{where}: dtype {dtype}; only plain numbers are read, never objects (pickle)")
    count = 1
    for size in shape:
        count *= size
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(raw) - stream.tell():
        raise BundleError(f"{where}: {dtype} of shape {shape} isn't what its {len(raw) - stream.tell()} bytes hold")
    flat = np.frombuffer(raw, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if by_columns else "C")
