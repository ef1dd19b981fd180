"""A pull stopped anywhere: killed, out of disk, beside others. The old or the new release is current, and whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import load_bundle
from serving.errors import StoreError, TrustError
from serving.installed import Place, open_installed
from tests.forged import MODEL, Files, bundle_files, moment, rebundled, write_store
from tests.forgeries import installed_tree
from tests.forgery import moments
from tests.pull_host import BIG, NAMES, Host, child, ended

# Killed.

CHANGES = ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


def before_change(folder: Path, at: int, told: int, act: Callable[[], object]) -> Callable[[str, Any], None]:
    """An audit hook that acts before this process's `at`-th change below `folder`; every change goes to the pipe."""
    count = 0

    def hook(event: str, arguments: Any) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and any(str(folder) in str(one) for one in arguments[:2]):
            count += 1
            os.write(told, b".")
            if count == at:
                act()

    return hook


def hooked(host: Host, at: int, act: Callable[[], object]) -> tuple[int, int]:
    """Exit code of a pull in a process of its own with that hook, and how many changes it came to."""
    reading, writing = os.pipe()

    def run() -> None:
        sys.addaudithook(before_change(host.folder, at, writing, act))
        host.pull(keep=1)

    pid = child(run)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        count = len(stream.read())
    return ended(pid), count


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize(("act", "codes"), [(kill_itself, {-signal.SIGKILL}), (fill_the_disk, {0, 1})])
def test_stopped_before_any_change_old_or_new_is_current_and_the_next_pull_completes(
    with_5: Host, tmp_path: Path, act: Callable[[], object], codes: set[int]
) -> None:
    pristine = tmp_path / "pristine"
    shutil.copytree(with_5.folder, pristine, symlinks=True)
    finished_code, changes = hooked(with_5, -1, act)
    assert finished_code == 0
    assert changes > 50
    finished = installed_tree(with_5.folder)
    seen, failed = set(), 0
    for at in range(1, changes + 1):
        shutil.rmtree(with_5.folder)
        shutil.copytree(pristine, with_5.folder, symlinks=True)
        code, came_to = hooked(with_5, at, act)
        assert code in codes, f"change {at}"
        assert came_to >= at
        failed += code != 0
        seen.add(with_5.check())
        with_5.pull(keep=1)
        assert installed_tree(with_5.folder) == finished, f"stopped before change {at}"
        assert with_5.leftovers() == []
    assert seen == {5, 6}
    assert failed > 0.7 * changes  # some that fail don't matter: making a folder that is there


@pytest.mark.slow
def test_control_a_link_that_isnt_replaced_in_one_step_is_noticed(
    with_5: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_two_steps(place: Place, name: str) -> None:
        place.link.unlink()
        place.link.symlink_to(Path("releases") / name)

    monkeypatch.setattr(Place, "switch", in_two_steps)
    pristine = tmp_path / "pristine"
    shutil.copytree(with_5.folder, pristine, symlinks=True)
    _, changes = hooked(with_5, -1, kill_itself)
    noticed = 0
    for at in range(1, changes + 1):
        shutil.rmtree(with_5.folder)
        shutil.copytree(pristine, with_5.folder, symlinks=True)
        hooked(with_5, at, kill_itself)
        try:
            with_5.check()
        except TrustError:
            noticed += 1
    assert noticed == 1


# At once.


@pytest.mark.slow
def test_pulls_at_once_and_readers_meanwhile(host: Host, tmp_path: Path) -> None:
    host.publish(1)
    host.pull()
    stop = tmp_path / "stop"
    bundles = {3 + made.number: made.bundle for made in moments()}

    def read() -> None:
        seen = []
        while not (stop.exists() and seen):
            with ExitStack() as stack:
                opened = open_installed(host.folder, MODEL, "champion", stack)
                assert load_bundle(opened.folder / "bundle").sha256 == bundles[opened.release]
                seen.append(opened.release)
        assert seen == sorted(seen)

    readers = [child(read) for _ in range(2)]
    for number in (2, 3):
        host.publish(number)
        pullers = [child(lambda: host.pull(keep=1)) for _ in range(4)]
        assert [ended(pid) for pid in pullers] == [0] * 4
    stop.touch()
    assert [ended(pid) for pid in readers] == [0, 0]
    assert host.pull(keep=1).installed.release == 6
    assert host.names() == [NAMES[3]]
    assert host.leftovers() == []


# A full disk.


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes there; skips where one can't be mounted (needs root)."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"no tmpfs can be mounted here ({done.stderr.strip()}); the test with a file size limit runs instead"
        )
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _second_then_big(host: Host) -> Files:
    """The store of release 5, pulled, and a release 6 with a large file."""
    host.publish(1)
    host.publish(2)
    host.pull()
    return moment(3, bundle=rebundled(bundle_files(3), {"big.bin": os.urandom(BIG)})).seal()


def test_a_full_disk_is_said_and_given_back(host: Host, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", BIG // 2):
        host.folder = tmp_path / "disk" / "host"
        write_store(host.store_folder, _second_then_big(host))
        before, free = installed_tree(host.folder), shutil.disk_usage(host.folder).free
        with pytest.raises(
            StoreError, match=f"No space left on device; the pull was given up, {NAMES[2]} is the current release"
        ):
            host.pull()
        assert installed_tree(host.folder) == before
        assert host.check() == 5
        assert shutil.disk_usage(host.folder).free > free - (64 << 10)  # metadata may have grown
        subprocess.run(["mount", "-o", f"remount,size={4 * BIG}", str(tmp_path / "disk")], check=True)
        assert host.pull().installed.release == 6


def test_a_file_size_limit_is_said(host: Host) -> None:
    """Runs everywhere: RLIMIT_FSIZE gives EFBIG where a full disk gives ENOSPC."""
    latest = _second_then_big(host)
    write_store(host.store_folder, latest)
    before = installed_tree(host.folder)

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, BIG // 2))
        with pytest.raises(StoreError, match="the pull was given up") as caught:
            host.pull()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG

    assert ended(child(act)) == 0
    assert installed_tree(host.folder) == before
    assert not list((host.home).glob(".partial/*"))


def test_a_folder_that_cant_be_written_is_said(host: Host, tmp_path: Path) -> None:
    host.publish(1)
    (tmp_path / "host").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="given up, nothing is installed yet"):
        host.pull()
