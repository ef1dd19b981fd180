"""The directory of one running host: private, and with one loop at a time.

In: the configuration. Out: a folder of mode 0700 that belongs to this user, and a lock on it for as long as the process
lives (flock: the system drops it, however the process ends). Invariant: nobody else can put a ring, a board or a HALT
file there; what a killed run left is taken over by the next, never by a second one.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import HostError
from serving.host.config_types import HostConfig


@contextmanager
def owned(config: HostConfig) -> Iterator[None]:
    """Make the directory if it isn't there, and hold it; HostError where somebody else does."""
    _make_private(config.directory)
    try:
        descriptor = os.open(config.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(
            f"{config.lock}: can't be opened: {error.strerror}; remove what is there, make the folder writable, or "
            "choose another `directory`"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise HostError(
                f"{config.directory}: a loop runs here already (process {other}); stop it (strikeforge-host control "
                "--config C stop), or give this one another directory"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise HostError(f"{config.lock}: can't be written: {error.strerror}; make room there") from error
        yield
    finally:
        os.close(descriptor)


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise HostError(f"{directory}: can't be made: {error.strerror}; choose another `directory`") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise HostError(f"{directory}: isn't a folder of this user's own; remove it or choose another `directory`")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise HostError(
            f"{directory}: has mode {stat.S_IMODE(found.st_mode):o}, so others can look or write there; chmod 700 it"
        )
