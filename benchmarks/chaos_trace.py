"""What a process writes below a folder, as libc saw it: building, arming and reading chaos_trace.c.

In: a folder, and where to kill. Out: `Operation`s in the order they happened. Linux and gcc, which the project needs
anyway. Invariants: only the process that called `arm` is traced, from that call on; numbers count writes from 1 and are
the same in every run of the same act; a sync has the number of the write before it and changes nothing itself.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("chaos_trace.c")
HEAD = struct.Struct("<7q")


class Kind(enum.IntEnum):
    """What an operation does; the numbers are those of chaos_trace.c."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    LINK = 5
    RENAME = 6
    SYMLINK = 7
    UNLINK = 8
    MKDIR = 9
    RMDIR = 10


class Mode(enum.IntEnum):
    """What happens at operation number `stop_at`; HALF: half of a write is done, then the kill."""

    RECORD = 1
    BEFORE = 2
    HALF = 3
    AFTER = 4


@dataclass(frozen=True)
class Operation:
    """`path` is where it happened, `second` the new name of a link or rename, or what a symbolic link says.

    `content` is what a sync made durable; of a folder it is empty. `mode` holds the permissions of what was created.
    """

    kind: Kind
    number: int
    mode: int
    path: str
    second: str
    failed: bool
    content: bytes


def build(folder: Path) -> Path:
    """Compile the tracer; returns the library to preload. RuntimeError with the compiler's words."""
    library = folder / "chaos_trace.so"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"gcc can't build {SOURCE.name}:\n{done.stderr}")
    return library


def preloaded(library: Path) -> dict[str, str]:
    """The environment of a process that can be traced."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def arm(folder: Path, mode: Mode, stop_at: int = 0, log: Path | None = None) -> None:
    """Trace this process from here on; it must have been started with `preloaded`."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "chaos_arm"):
        raise RuntimeError("this process wasn't started with chaos_trace.so preloaded")
    library.chaos_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    library.chaos_arm(os.fsencode(folder.resolve()), int(mode), stop_at, os.fsencode(log) if log else b"")


def disarm() -> int:
    """Stop tracing; returns how many writes there were."""
    library = ctypes.CDLL(None)
    library.chaos_disarm.restype = ctypes.c_long
    return int(library.chaos_disarm())


def read_log(path: Path) -> list[Operation]:
    """The operations of a log that `arm` wrote."""
    raw = path.read_bytes() if path.exists() else b""
    operations = []
    at = 0
    while at < len(raw):
        kind, number, mode, first, second, failed, length = HEAD.unpack_from(raw, at)
        at += HEAD.size
        parts = []
        for size in (first, second, length):
            parts.append(raw[at : at + size])
            at += size
        operations.append(
            Operation(Kind(kind), number, mode, os.fsdecode(parts[0]), os.fsdecode(parts[1]), bool(failed), parts[2])
        )
    return operations
