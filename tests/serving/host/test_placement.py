"""Cores, priority and locked memory: what was asked for is done, or refused with the system's reason and a remedy."""

from __future__ import annotations

import os
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.errors import HostError
from serving.host.config_types import LoopConfig
from serving.host.directory import _make_private
from serving.host.placement import lock_memory, place_housekeeping, place_loop

CORES = os.sched_getaffinity(0)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may, and can become somebody who may not")


def settings(core: int | None = None, cores: tuple[int, ...] = (), priority: int | None = None) -> LoopConfig:
    return LoopConfig(core, cores, "busy", "simulated", None, False, priority, 64, 32, 0, 0)


def in_thread(work: Callable[[], object]) -> object:
    """What `work` gives in a thread of its own, whose placement ends with it."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def in_child(work: Callable[[], object], *, allowed: bool = False) -> str:
    """What `work` raises in another process; one that isn't `allowed` may nothing: another user, without limits."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if not allowed:
                for limit in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_RTPRIO):
                    resource.setrlimit(limit, (0, 0))
                os.setresuid(65534, 65534, 65534)
            work()
            os.write(writer, b"done; locked " + locked().encode())
        except HostError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        return told.read()


def locked() -> str:
    """Kilobytes of locked memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmLck:"))


def test_the_loop_is_pinned_and_the_others_keep_off_its_core() -> None:
    core = max(CORES)

    def place() -> tuple[set[int], set[int]]:
        place_loop(settings(core))
        pinned = os.sched_getaffinity(0)
        os.sched_setaffinity(0, CORES)
        place_housekeeping(settings(core))
        return pinned, os.sched_getaffinity(0)

    assert in_thread(place) == ({core}, CORES - {core} or CORES)
    assert os.sched_getaffinity(0) == CORES


def test_without_being_asked_nothing_is_changed() -> None:
    def place() -> tuple[set[int], int]:
        place_housekeeping(settings())
        place_loop(settings())
        return os.sched_getaffinity(0), os.sched_getscheduler(0)

    assert in_thread(place) == (CORES, os.sched_getscheduler(0))


def test_a_core_that_is_not_there_is_refused_with_those_that_are() -> None:
    for place, config, key in (
        (place_loop, settings(4000), "core 4000"),
        (place_housekeeping, settings(None, (4000,)), "housekeeping_cores 4000"),
    ):
        with pytest.raises(HostError, match=rf"\[loop\] {key}: .*may use the cores {min(CORES)}"):
            place(config)


@AS_ROOT
def test_priority_is_set_where_permitted_and_refused_where_not() -> None:
    core = max(CORES)

    def place() -> tuple[int, int]:
        place_loop(settings(core, priority=5))
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority

    assert in_thread(place) == (os.SCHED_FIFO, 5)
    assert "SCHED_FIFO is refused" in in_child(lambda: place_loop(settings(core, priority=5)))


@AS_ROOT
def test_memory_is_locked_where_permitted_and_refused_where_not() -> None:
    done, _, kilobytes = in_child(lock_memory, allowed=True).rpartition(" ")
    assert done == "done; locked"
    assert int(kilobytes) > 0
    assert "lock_memory: refused" in in_child(lock_memory)


def test_the_directory_is_private_or_refused(tmp_path: Path) -> None:
    _make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for name, said in (("open", "chmod 700"), ("file", "can't be made"), ("link", "isn't a folder of this user's own")):
        with pytest.raises(HostError, match=said):
            _make_private(tmp_path / name)


@AS_ROOT
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(HostError, match="isn't a folder of this user's own"):
        _make_private(tmp_path / "theirs")
