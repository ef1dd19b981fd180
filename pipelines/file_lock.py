"""A lock among the processes of one machine: a file of a folder. The system drops it with its process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold `folder/name`; waits for whoever holds it. The file stays."""
    with (folder / name).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
