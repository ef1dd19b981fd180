"""A host that pulls from a folder store of tests/forged.py, and processes that may die."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.folder_store import FolderStore
from serving.installed import open_installed, read_installed
from serving.pull import Pulled, pull
from tests.forged import MODEL, write_store
from tests.forgery import moments, sealed

BIG = 3 << 20
DEADLINE_S = 60.0
NAMES = {number: f"{3 + number:08d}-{moments()[number - 1].bundle[:12]}" for number in (1, 2, 3)}


class Host:
    """A folder store, a root file and a folder to pull into."""

    def __init__(self, folder: Path) -> None:
        self.store_folder, self.folder = folder / "store", folder / "host"
        self.root = folder / "root.json"
        self.root.write_bytes(sealed(1)["channel/1.root.json"])
        self.store = FolderStore(self.store_folder)

    @property
    def home(self) -> Path:
        return self.folder / MODEL / "champion"

    def publish(self, number: int) -> None:
        """Moment `number` becomes what the store says."""
        write_store(self.store_folder, sealed(number))

    def pull(self, **options: object) -> Pulled:
        return pull(self.store, self.root, directory=self.folder, model=MODEL, **options)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.home / "releases").iterdir())

    def check(self) -> int:
        """The number of the current release, after checking that every release there is whole."""
        for folder in (self.home / "releases").iterdir():
            read_installed(folder).load()
        with ExitStack() as stack:
            return open_installed(self.folder, MODEL, "champion", stack).release

    def leftovers(self) -> list[str]:
        return [path.name for path in (*self.home.glob(".*"), *self.folder.glob(".trust-*"))]


def child(act: Callable[[], object]) -> int:
    """Fork, act, exit: the child's process id. Exit code 0 if `act` returned, 1 if it raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    except BaseException:  # noqa: BLE001 (nothing may get back into pytest's copy in the child)
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child, negative for a signal; fails after a deadline instead of hanging."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"process {pid} hung for {DEADLINE_S} s")
