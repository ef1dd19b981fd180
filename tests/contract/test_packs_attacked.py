"""Engine packs on hosts when things go wrong: targets asked for later, at once, on a full disk, killed half way."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving import native
from serving.bundle import bundle_key
from serving.engine_pack import packed_key
from serving.errors import StoreError, TrustError
from serving.folder_store import FolderStore
from serving.installed import Place, open_installed
from serving.pull import pull_unsigned
from tests.contract.packed_release import (
    MODEL,
    TRT,
    Released,
    moves,
    native_pack,
    promote,
    released,
    small_bundle,
    store,
    trt_pack,
)

__all__ = ["moves", "released", "store"]  # fixtures
NATIVE = ["native_bf16", "native_fp32"]


def test_a_target_asked_for_later_joins_what_is_installed(released: Released, store: FolderStore) -> None:
    """Readers have the release open: neither its folder nor what lies in it is replaced, and nothing fetched again."""
    _, host, bundle, _ = released
    with ExitStack() as stack:
        host.pull()
        reading = open_installed(host.folder, MODEL, "champion", stack)
        before = {path: path.stat().st_ino for path in (reading.folder, *reading.folder.rglob("*"))}
        for name in bundle.manifest.files:
            store.delete(bundle_key(bundle.sha256, name))
        assert host.pull(TRT).changed
        assert {path: path.stat().st_ino for path in before} == before
        assert reading.installed_targets() == [*NATIVE, TRT]
        assert len(reading.load_packs(reading.load())) == 3
    assert not host.pull(TRT).changed
    assert not host.pull("native").changed


def test_unsigned_packs_join_too(released: Released, tmp_path: Path) -> None:
    _, host, _, _ = released
    place: dict[str, Any] = {"directory": tmp_path / "unsigned", "model": MODEL, "channel": "champion"}
    assert pull_unsigned(host.store, **place).installed.installed_targets() == NATIVE
    assert pull_unsigned(host.store, targets=(TRT,), **place).installed.installed_targets() == [*NATIVE, TRT]


def test_killed_while_a_pack_joins_the_release_stays_whole(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a pack's rename and after it: what is current is whole, and the next pull completes it."""
    _, host, _, _ = released
    host.pull(TRT)
    current = host.pull(TRT).installed

    original = Place.add_packs
    for joined, there in ((0, [TRT]), (1, ["native_bf16", TRT])):

        def dying(place: Place, name: str, targets: Sequence[str], joined: int = joined) -> None:
            original(place, name, targets[:joined])
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Place, "add_packs", dying)
            with pytest.raises(KeyboardInterrupt):
                host.pull("native")
        assert current.load_packs(current.load())
        assert current.installed_targets() == there
    assert host.pull("native").installed.installed_targets() == [*NATIVE, TRT]


def test_pulls_at_once_with_different_targets_leave_all_of_them(released: Released) -> None:
    _, host, _, _ = released
    asked = [("native",), (TRT,), ("native_fp32",), ("native", TRT)] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        done = list(pool.map(lambda targets: host.pull(*targets), asked))
    assert done[0].installed.installed_targets() == [*NATIVE, TRT]
    assert len(done[0].installed.load_packs(done[0].installed.load())) == 3
    assert not host.pull("native", TRT).changed


class FullDisk(FolderStore):
    """The host's disk is full once half of this key's content is written."""

    full: str | None = None

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        for chunk in super().stream(key, start=start):
            if key == self.full:
                yield chunk[: len(chunk) // 2]
                raise OSError(errno.ENOSPC, "No space left on device")
            yield chunk


@pytest.mark.parametrize("name", ["pack.json", "member-0/step.engine"])
def test_a_disk_that_is_full_in_mid_pack_leaves_the_release_as_it_was(
    released: Released, store: FolderStore, name: str
) -> None:
    _, host, _, packs = released
    host.store = FullDisk(store.root)
    for installed in ((), ("native",)):  # on its first pull, and where the release is there
        if installed:
            host.pull(*installed)
        host.store.full = packed_key(packs[2].sha256, name)
        with pytest.raises(StoreError, match="No space left on device; the pull was given up"):
            host.pull("native", TRT)
        home = host.folder / MODEL / "champion"
        assert (home / "current").exists() == bool(installed)
        assert not (home / ".partial").exists()
        assert not (home / ".staging").exists()
        host.store.full = None
    done = host.pull("native", TRT).installed
    assert done.installed_targets() == [*NATIVE, TRT]
    assert len(done.load_packs(done.load())) == 3


def test_a_pack_swapped_for_another_of_the_same_bundle_doesnt_join(released: Released, store: FolderStore) -> None:
    """The store's owner puts the bf16 pack's bytes in the GPU's place: its name is a hash, so it is refused."""
    _, host, _, packs = released
    before = host.pull().installed.installed_targets()
    key = packed_key(packs[2].sha256, "pack.json")
    store.put(key, packs[1].read("pack.json"))
    with pytest.raises(TrustError, match=r"pack\.json"):
        host.pull(TRT)
    assert host.pull().installed.installed_targets() == before


def test_packs_go_with_their_release_and_stay_with_the_kept_ones(
    tmp_path: Path, released: Released, store: FolderStore
) -> None:
    company, host, _, _ = released
    first = host.pull("native", TRT).installed
    folders = [first.folder]
    for members in (2, 3):
        bundle = small_bundle(tmp_path / f"bundle-{members}", members=members)
        promote(store, bundle, [native_pack(tmp_path / f"packs-{members}", bundle, "fp32"),
                                trt_pack(tmp_path / f"packs-{members}", bundle)])  # fmt: skip
        company.channel().follow(MODEL)
        folders.append(host.pull("native", TRT, keep=2).installed.folder)
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert [sorted(path.name for path in (folder / "packs").iterdir()) for folder in folders[1:]] == [
        ["native_fp32", TRT],
        ["native_fp32", TRT],
    ]


def test_a_host_without_the_native_core_takes_its_packs_all_the_same(
    released: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull brings files; what runs is asked where it runs."""
    _, host, _, _ = released
    monkeypatch.setattr(native, "why_unavailable", lambda: "it was built without a compiler")
    assert host.pull("native").installed.installed_targets() == NATIVE
