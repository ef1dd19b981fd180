"""Files that are replaced whole, and a lock that goes with its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from serving.disk import folder_lock, make_folder, replace_file, sync_file, sync_folder

DEADLINE_SECONDS = 60.0
CONTEXT = multiprocessing.get_context("forkserver")


def die_before_visible(path: Path) -> None:
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = kill  # type: ignore[assignment,method-assign]
    replace_file(path, b"new")


def test_a_killed_replacement_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    process = CONTEXT.Process(target=die_before_visible, args=(path,))
    process.start()
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    replace_file(path, b"newest")
    assert path.read_bytes() == b"newest"


def test_content_then_name_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an order that a power cut can't undo: the content before its name, the name before the call returns."""
    synced: list[int] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def were_synced(*paths: Path) -> bool:
        """These last."""
        found = synced[-len(paths) :] == [path.stat().st_ino for path in paths]
        synced.clear()
        return found

    monkeypatch.setattr(os, "fsync", watch)
    folder, file = tmp_path / "a" / "b", tmp_path / "a" / "file"
    make_folder(folder)
    assert folder.is_dir()
    assert were_synced(tmp_path, folder.parent)
    make_folder(folder)  # being there already is fine
    synced.clear()
    replace_file(file, b"1")
    assert were_synced(file, file.parent)
    sync_file(file)
    sync_folder(file.parent)
    assert were_synced(file, file.parent)


def hold(folder: Path, pipe: Connection) -> None:
    with folder_lock(folder, ".lock"):
        pipe.send("held")
        pipe.recv()


def take(folder: Path, pipe: Connection) -> None:
    pipe.send("waiting")
    with folder_lock(folder, ".lock"):
        pipe.send(time.monotonic())


def test_a_lock_waits_for_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    ours, theirs = CONTEXT.Pipe()
    holder = CONTEXT.Process(target=hold, args=(tmp_path, theirs))
    holder.start()
    assert ours.poll(DEADLINE_SECONDS)
    assert ours.recv() == "held"
    waiting, other = CONTEXT.Pipe()
    waiter = CONTEXT.Process(target=take, args=(tmp_path, other))
    waiter.start()
    assert waiting.poll(DEADLINE_SECONDS)
    assert waiting.recv() == "waiting"
    assert not waiting.poll(0.3)
    killed = time.monotonic()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    assert waiting.poll(DEADLINE_SECONDS)
    assert waiting.recv() >= killed
    for process in (holder, waiter):
        process.join(DEADLINE_SECONDS)
    assert (holder.exitcode, waiter.exitcode) == (-signal.SIGKILL, 0)
    with folder_lock(tmp_path, ".lock"):  # the file stays, free
        assert (tmp_path / ".lock").exists()
