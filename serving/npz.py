"""Arrays out of npz bytes, without numpy's loader: no pickle, no allocation beyond what the bytes hold.

Data in: bytes of an npz (a zip of npy). Data out: read-only arrays by name. Invariants: BundleError, naming
the array, for object or structured arrays, repeated names, encrypted or damaged entries, a header that
promises other than what follows, and more once unpacked than `MAX_ARRAYS_BYTES` or `MAX_RATIO` times the file. What an
entry claims is checked before any of it is inflated, and no more than that is ever inflated.
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
MAX_RATIO = 100  # unpacked bytes per byte of the file; float arrays stay below 10, a bomb of zeros reaches 1000
FREE_BYTES = 16 << 20  # small enough to unpack whatever the ratio
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
            allowed = min(MAX_ARRAYS_BYTES, max(FREE_BYTES, MAX_RATIO * len(raw)))
            if len(entries) > MAX_ARRAYS or unpacked > allowed:
                raise BundleError(
                    f"{name}: {len(entries)} arrays, {unpacked} bytes unpacked; "
                    f"of {len(raw)} bytes at most {MAX_ARRAYS} and {allowed} are allowed"
                )
            for entry in entries:
                array_name = entry.filename.removesuffix(".npy")
                if array_name == entry.filename or array_name in arrays:
                    raise BundleError(f"{name}: entry {entry.filename!r} is repeated or isn't an .npy")
                where = f"{name}: array {array_name!r}"
                arrays[array_name] = _parse_npy(_unpacked(archive, entry, where), where)
    except ZIP_ERRORS as error:
        raise BundleError(f"{name}: isn't a readable npz: {error}") from error
    return arrays


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> bytes:
    """The entry's bytes; `read` with a size inflates no more than that, without one all there is."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{where}: compression method {entry.compress_type}; stored and deflated entries are read")
    with archive.open(entry) as stream:
        raw = stream.read(entry.file_size)
    if len(raw) != entry.file_size:
        raise BundleError(f"{where}: {len(raw)} bytes unpacked, {entry.file_size} claimed")
    return raw


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
