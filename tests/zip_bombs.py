"""npz files that unpack to more than they should, or to what isn't numbers."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.tiny_bundle import npz_bytes


@cache
def zeros(size: int) -> bytes:
    return npz_bytes_compressed(weights=np.zeros(size // 8))


def npz_bytes_compressed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def bombs() -> dict[str, Callable[[], bytes]]:
    """What makes each, by name."""
    return {
        "32 MB of zeros": lambda: zeros(32 << 20),
        "claims less than it unpacks to": lambda: _claiming(zeros(32 << 20), 128),
        "claims 3 GB": lambda: _claiming(npz_bytes(weights=np.zeros(4)), 3 << 30),
        "bzip2": lambda: _zipped({"weights.npy": _npy()}, zipfile.ZIP_BZIP2),
        "lzma": lambda: _zipped({"weights.npy": _npy()}, zipfile.ZIP_LZMA),
        "2000 arrays": lambda: _zipped({f"a{index}.npy": _npy() for index in range(2000)}, zipfile.ZIP_STORED),
        "a header that promises 8 EB": lambda: _zipped({"weights.npy": _npy((1 << 60,))}, zipfile.ZIP_STORED),
        "objects": lambda: npz_bytes(weights=np.array([print], dtype=object)),
        "an entry that is no array": lambda: _zipped({"../x.sh": b"echo"}, zipfile.ZIP_STORED),
        "no zip": lambda: b"PK\x03\x04" + b"\0" * 100,
    }


def _npy(shape: tuple[int, ...] = (4,)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(32)


def _zipped(entries: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


def _claiming(raw: bytes, size: int) -> bytes:
    """The zip with the unpacked size of its first entry in the directory replaced."""
    spoilt = bytearray(raw)
    struct.pack_into("<I", spoilt, raw.index(b"PK\x01\x02") + 24, size)
    return bytes(spoilt)
