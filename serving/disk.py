"""Files that are on disk, or locked, when a call returns.

Data in and out: paths of a local file system. Invariants: what was synced survives a power cut, also its name; a reader
of a replaced file sees the old content or the new; a lock goes with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DURABLE: set[Path] = set()  # folders whose own names this process has brought to disk


def sync_file(path: Path) -> None:
    """A file's content, not its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Like `mkdir -p`, and the names are on disk when it returns, also those a killed process had only just made."""
    if folder in _DURABLE and folder.is_dir():
        return
    ours = os.access(folder.parent, os.W_OK)  # else nobody like us can have made it
    if not folder.is_dir():
        make_folder(folder.parent, mode)
        folder.mkdir(mode, exist_ok=True)
        sync_folder(folder.parent)
    elif ours and folder.parent != folder:
        make_folder(folder.parent, mode)
        sync_folder(folder.parent)
    _DURABLE.add(folder)


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file in the place of what is there; beside it first, under a hidden name of this process."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


@contextmanager
def folder_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the file `folder/name` among the processes of a machine; waits for whoever holds it. The file stays."""
    with (folder / name).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
