"""What a store in a folder promises beyond the contract of all stores (tests/contract/test_blobstore*.py)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.blobstore import check_key
from serving.errors import BlobMissingError, StoreError
from serving.folder_store import FolderStore


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(st.sampled_from("./\\a\n~ " + string.ascii_letters), max_size=12))
def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    try:
        check_key(key)
    except StoreError:
        return
    assert (tmp_path / key).resolve().is_relative_to(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put("a/b", b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    (tmp_path / "store/link").symlink_to(tmp_path / "outside")
    (tmp_path / "store/a/file").symlink_to(tmp_path / "outside/secret")
    for key in ("link/secret", "a/file"):
        with pytest.raises(StoreError, match="symbolic link"):
            store.get(key)
        with pytest.raises(StoreError, match="symbolic link"):
            list(store.stream(key))
        with pytest.raises(StoreError, match="symbolic link"):
            store.download(key, tmp_path / "target")
    with pytest.raises(StoreError, match="symbolic link"):
        store.put("link/new", b"")
    assert not (tmp_path / "target").exists()


def test_a_blob_is_no_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put("a", b"")
    store.put("b/c", b"")
    for key in ("a/b", "b"):
        with pytest.raises(StoreError):
            store.put(key, b"")
        with pytest.raises(StoreError):
            store.put_if_absent(key, b"")
    assert store.list() == ["a", "b/c"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "absent")
    assert store.list() == []
    store.delete("k")
    with pytest.raises(BlobMissingError):
        store.get("k")
    assert not (tmp_path / "absent").exists()


def die_before_visible(root: Path, operation: str) -> None:
    """Kill -9 at the last moment before the file system is told the name."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = kill  # type: ignore[assignment]
    Path.replace = kill  # type: ignore[assignment,method-assign]
    store = FolderStore(root)
    if operation == "upload":
        store.upload("k", Path(__file__))
    else:
        getattr(store, operation)("k", b"half")


@pytest.mark.parametrize("operation", ["put", "put_if_absent", "upload"])
def test_killed_before_visible_leaves_nothing(tmp_path: Path, operation: str) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=die_before_visible, args=(tmp_path, operation))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    store = FolderStore(tmp_path)
    assert store.list() == []
    assert store.put_if_absent("k", b"whole")
    assert store.put("k", b"whole again") == store.get_blob("k").etag
    assert store.list() == ["k"]


def test_a_reader_keeps_the_version_it_began_with(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    old, new = os.urandom(3 << 20), os.urandom(3 << 20)
    store.put("k", old)
    stream = store.stream("k")
    first = next(stream)
    store.put("k", new)
    assert first + b"".join(stream) == old
    assert store.get("k") == new
