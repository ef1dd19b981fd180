"""The promises of a blob store. Every back end runs through `store`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import string
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import blobstore
from serving.blobstore import BlobMissingError, BlobStore, FolderStore, StoreError, check_key, open_store
from serving.canonical import sha256_hex

PROCESSES = 8


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(tmp_path / "store")


def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.contract.test_blobstore"])
    return context


def test_what_is_put_is_got(store: BlobStore) -> None:
    etag = store.put("a/b.bin", b"one")
    blob = store.get_blob("a/b.bin")
    assert (store.get("a/b.bin"), blob.data, blob.etag) == (b"one", b"one", etag)
    assert store.put("a/b.bin", b"two") != etag
    assert store.get("a/b.bin") == b"two"


def test_absent_is_said_by_name(store: BlobStore) -> None:
    store.put("a/b", b"")
    for key in ("nothing", "a", "a/b/c"):
        with pytest.raises(BlobMissingError, match=rf"^{key}: "):
            store.get(key)


def test_put_if_absent_creates_once(store: BlobStore) -> None:
    assert store.put_if_absent("k", b"first")
    assert not store.put_if_absent("k", b"second")
    assert store.get("k") == b"first"


def test_put_if_match_wants_the_latest_etag(store: BlobStore) -> None:
    assert store.put_if_match("k", b"new", "0" * 64) is None
    assert store.list() == []
    first = store.put("k", b"1")
    second = store.put_if_match("k", b"2", first)
    assert second == store.get_blob("k").etag
    assert store.put_if_match("k", b"3", first) is None
    assert store.get("k") == b"2"


def test_list_is_by_prefix_and_sorted(store: BlobStore) -> None:
    for key in ("b/2", "a/1", "b/10", "b2", "bb/x/y"):
        store.put(key, b"")
    assert store.list() == ["a/1", "b/10", "b/2", "b2", "bb/x/y"]
    assert store.list("b/") == ["b/10", "b/2"]
    assert store.list("b") == ["b/10", "b/2", "b2", "bb/x/y"]
    assert store.list("bb/x/") == ["bb/x/y"]
    assert store.list("c/") == store.list("a/1/") == []


def test_delete_is_idempotent(store: BlobStore) -> None:
    store.delete("never/was")
    store.put("k", b"")
    store.delete("k")
    store.delete("k")
    assert store.list() == []
    assert store.put_if_absent("k", b"again")


def test_streams_carry_their_hash(store: BlobStore, tmp_path: Path) -> None:
    content = os.urandom(blobstore.CHUNK_BYTES + 17)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    assert store.upload("big", source) == sha256_hex(content) == store.download("big", target)
    assert target.read_bytes() == content


def test_a_limit_is_kept(store: BlobStore, tmp_path: Path) -> None:
    store.put("k", b"12345")
    assert store.get("k", max_bytes=5) == b"12345"
    with pytest.raises(StoreError, match="longer than the 4 bytes"):
        store.get("k", max_bytes=4)
    with pytest.raises(StoreError, match="longer than the 4 bytes"):
        store.download("k", tmp_path / "target", max_bytes=4)


BAD_KEYS = ["", "/a", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a\\b", "a\nb", "a\0", "\x7f", "\x85", "\ud800"]


@pytest.mark.parametrize("key", [*BAD_KEYS, "x" * 1000, f"a/{'x' * 250}", ".strikeforge-lock"])
def test_bad_keys_are_refused_by_every_operation(store: BlobStore, key: str, tmp_path: Path) -> None:
    operations: list[Any] = [
        lambda: store.get(key),
        lambda: store.get_blob(key),
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.put_if_match(key, b"", ""),
        lambda: store.delete(key),
        lambda: store.upload(key, tmp_path),
        lambda: store.download(key, tmp_path / "target"),
    ]
    for operation in operations:
        with pytest.raises(StoreError, match=r"^key "):
            operation()


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
        store.put("link/new", b"")


def test_a_blob_is_no_folder(store: BlobStore) -> None:
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


def test_urls(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put("k", b"1")
    assert open_store(f"file://{tmp_path}").get("k") == b"1"
    spaced = tmp_path / "with space"
    open_store(spaced.as_uri()).put("k", b"2")
    assert (spaced / "k").read_bytes() == b"2"
    for url, why in (("s3://bucket/x", "comes later"), ("file://host/x", "three slashes"), ("", "empty")):
        with pytest.raises(StoreError, match=why):
            open_store(url)


def create(root: Path, barrier: Barrier, number: int) -> None:
    store = FolderStore(root)
    content = f"writer {number}".encode() * 1000
    barrier.wait()
    won = store.put_if_absent("deep/folder/prize", content)
    store.put(f"results/{number}", b"won" if won else b"lost")


def swap(root: Path, barrier: Barrier, number: int) -> None:
    """Adds one to a counter, starting over when somebody else was faster."""
    store = FolderStore(root)
    barrier.wait()
    for _ in range(10):
        while True:
            blob = store.get_blob("counter")
            if store.put_if_match("counter", str(int(blob.data) + 1).encode(), blob.etag):
                break


def run_all(target: Any, root: Path) -> None:
    context = processes()
    barrier = context.Barrier(PROCESSES)
    workers = [context.Process(target=target, args=(root, barrier, number)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_of_eight_processes_one_creates(tmp_path: Path) -> None:
    run_all(create, tmp_path)
    store = FolderStore(tmp_path)
    winners = [number for number in range(PROCESSES) if store.get(f"results/{number}") == b"won"]
    assert len(winners) == 1
    assert store.get("deep/folder/prize") == f"writer {winners[0]}".encode() * 1000


def test_eight_processes_lose_no_update(tmp_path: Path) -> None:
    FolderStore(tmp_path).put("counter", b"0")
    run_all(swap, tmp_path)
    assert FolderStore(tmp_path).get("counter") == str(PROCESSES * 10).encode()


def die_before_visible(root: Path, operation: str) -> None:
    """Kill -9 at the last moment before the file system is told the name."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = kill
    Path.replace = kill  # type: ignore[assignment,method-assign]
    store = FolderStore(root)
    getattr(store, operation)("k", b"half")


@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
def test_killed_before_visible_leaves_nothing(tmp_path: Path, operation: str) -> None:
    process = processes().Process(target=die_before_visible, args=(tmp_path, operation))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    store = FolderStore(tmp_path)
    assert store.list() == []
    assert store.put_if_absent("k", b"whole")
    assert store.put("k", b"whole again") == store.get_blob("k").etag
    assert store.list() == ["k"]
