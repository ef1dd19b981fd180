"""A bundle in a store: visible only when complete, refused by name when tampered with, fetched by many at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from serving.bundle import Bundle, bundle_key, fetch_bundle, store_bundle
from serving.errors import BundleError
from serving.folder_store import FolderStore
from serving.manifest import MANIFEST

PROCESSES = 8


@pytest.fixture
def store(pristine: Bundle, tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "store")
    assert store_bundle(store, pristine) == pristine.sha256
    return store


def test_through_a_store_and_back(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    before = store.list()
    assert before == sorted(bundle_key(pristine.sha256, name) for name in [MANIFEST, *pristine.manifest.files])
    store_bundle(store, pristine)
    assert store.list() == before
    for _ in range(2):
        fetched = fetch_bundle(store, pristine.sha256, tmp_path / "host")
        assert fetched.directory == (tmp_path / "host" / pristine.sha256).resolve()
        assert (fetched.sha256, fetched.manifest) == (pristine.sha256, pristine.manifest)
    assert [path.name for path in (tmp_path / "host").iterdir()] == [pristine.sha256]


def test_an_incomplete_bundle_is_invisible_and_completed_by_storing_again(pristine: Bundle, tmp_path: Path) -> None:
    total = len(pristine.manifest.files) + 1
    for writes in range(1, total + 1):
        root = tmp_path / f"store-{writes}"
        process = multiprocessing.get_context("forkserver").Process(target=store_and_die, args=(root, pristine, writes))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        store = FolderStore(root)
        assert len(store.list()) == writes
        if writes < total:
            with pytest.raises(BundleError, match="isn't in the store, or isn't complete"):
                fetch_bundle(store, pristine.sha256, tmp_path / "host")
        store_bundle(store, pristine)
        assert len(store.list()) == total
        fetch_bundle(store, pristine.sha256, tmp_path / f"host-{writes}")
    assert not (tmp_path / "host" / pristine.sha256).exists()


def store_and_die(root: Path, bundle: Bundle, writes: int) -> None:
    class Dying(FolderStore):
        left = writes

        def put_if_absent(self, key: str, data: bytes) -> bool:
            done = super().put_if_absent(key, data)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    store_bundle(Dying(root), bundle)


def test_a_tampered_store_is_refused_by_name(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    for name in sorted([MANIFEST, *pristine.manifest.files]):
        key = bundle_key(pristine.sha256, name)
        whole = store.get(key)
        for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole + b"x"):
            store.put(key, content)
            with pytest.raises(BundleError, match=f"^{name}: "):
                fetch_bundle(store, pristine.sha256, tmp_path / "host")
            with pytest.raises(BundleError, match=f"^{key}: the store holds other bytes"):
                store_bundle(store, pristine)
        store.delete(key)
        with pytest.raises(BundleError, match=f"^{name}: "):
            fetch_bundle(store, pristine.sha256, tmp_path / "host")
        store.put(key, whole)
        assert list((tmp_path / "host").iterdir()) == []
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        fetch_bundle(store, "../../etc", tmp_path / "host")


def test_a_damaged_copy_is_refused_with_the_remedy(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    fetched = fetch_bundle(store, pristine.sha256, tmp_path / "host")
    (fetched.directory / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden.npz: .*is damaged: remove it, then fetch"):
        fetch_bundle(store, pristine.sha256, tmp_path / "host")


def fetch(root: Path, barrier: Barrier, sha256: str) -> None:
    barrier.wait()
    assert fetch_bundle(FolderStore(root / "store"), sha256, root / "host").sha256 == sha256


def test_eight_processes_fetch_at_once(pristine: Bundle, store: FolderStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(PROCESSES)
    workers = [context.Process(target=fetch, args=(tmp_path, barrier, pristine.sha256)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [path.name for path in (tmp_path / "host").iterdir()] == [pristine.sha256]
