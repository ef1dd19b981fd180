"""`strikeforge-host pull` as a host lives with it: layout, old releases, root files, resumed downloads.

What it must refuse is in tests/contract/test_forged.py, what stops it in the middle in test_pull_stops.py.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.errors import StoreError, TrustError
from serving.folder_store import FolderStore
from serving.installed import open_installed
from serving.pull import pull
from tests.forged import MODEL, PACKED, bundle_files, moment, rebundled, sha256, write_store
from tests.forgery import moments, sealed, whole
from tests.pull_host import BIG, NAMES, Host

# What a pull leaves.


def test_everything_a_release_names_lies_in_its_folder(host: Host) -> None:
    host.publish(1)
    pulled = host.pull()
    folder = host.home / "releases" / NAMES[1]
    assert pulled.installed.folder == folder
    assert (host.home / "current").readlink() == Path("releases") / NAMES[1]
    first = moments()[0]
    expected = {key.replace(f"bundles/{first.bundle}", "bundle"): raw for key, raw in first.content.items()}
    kinds = {"releases": "release.json", "provenance": "provenance.json", "gate-reports": "gate-report.json"}
    expected = {kinds.get(key.partition("/")[0], key): raw for key, raw in expected.items()}
    expected = {re.sub("^packs/[0-9a-f]{64}/", f"packs/{PACKED}/", key): raw for key, raw in expected.items()}
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == expected
    assert host.leftovers() == []


def test_newer_releases_follow_and_the_last_n_stay(host: Host) -> None:
    for number in (1, 2, 3):
        host.publish(number)
        pulled = host.pull(keep=2)
        assert (pulled.installed.release, pulled.before) == (3 + number, 2 + number if number > 1 else None)
    assert pulled.removed == (NAMES[1],)
    assert host.names() == [NAMES[2], NAMES[3]]
    again = host.pull(keep=1)
    assert (again.changed, again.removed) == (False, (NAMES[2],))
    assert host.names() == [NAMES[3]]


def test_what_a_reader_has_open_stays(with_5: Host) -> None:
    with ExitStack() as stack:
        opened = open_installed(with_5.folder, MODEL, "champion", stack)
        assert opened.release == 5
        assert with_5.pull(keep=1).removed == ()
        assert with_5.check() == 6
        assert opened.load().read("golden.npz") == bundle_files(2)["golden.npz"]
    assert with_5.pull(keep=1).removed == (NAMES[2],)


def test_a_damaged_release_is_fetched_again(with_5: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with_5.pull()
    head = with_5.home / "current" / "bundle" / "member-0" / "head.onnx"
    head.write_bytes(b"not this")
    assert with_5.pull().changed
    assert "head.onnx" in capsys.readouterr().err
    assert with_5.check() == 6
    (with_5.home / "current" / "release.json").unlink()
    with_5.pull()
    assert with_5.check() == 6


@pytest.mark.parametrize("gone", ["current", f"releases/{NAMES[3]}"])
def test_the_number_stays_a_floor_as_long_as_anything_tells_it(with_5: Host, tmp_path: Path, gone: str) -> None:
    with_5.pull()
    shutil.rmtree(with_5.folder / ".trust")  # else the metadata's own versions refuse it
    lost = with_5.home / gone
    lost.unlink() if lost.is_symlink() else shutil.rmtree(lost)
    older = FolderStore(write_store(tmp_path / "older", {**sealed(1), **sealed(2)}))
    with pytest.raises(TrustError, match="offers release 5, release 6 is installed"):
        pull(older, with_5.root, directory=with_5.folder, model=MODEL)
    assert with_5.pull().installed.release == 6
    assert with_5.check() == 6


# The root file.


def test_any_root_of_the_chain_may_be_given_another_may_not(with_5: Host, tmp_path: Path) -> None:
    for number in (1, 2, 3, 1):
        with_5.root.write_bytes(whole()[f"channel/{number}.root.json"])
        with_5.pull()
    with_5.root.write_bytes(moment(3, root_fields={"note": "another"}).seal()["channel/3.root.json"])
    with pytest.raises(TrustError, match=r"root file .* isn't the root 3 that .* trusts"):
        with_5.pull()
    (tmp_path / "late").mkdir()
    late = Host(tmp_path / "late")
    late.root.write_bytes(sealed(3)["channel/3.root.json"])
    write_store(late.store_folder, whole())
    late.pull()
    late.root.write_bytes(sealed(1)["channel/1.root.json"])
    assert late.pull().installed.release == 6


def test_a_root_file_that_never_fitted_isnt_pinned(host: Host) -> None:
    host.publish(1)
    other = moment(1)
    other.signers = {"root": ("stranger", "root1")}
    host.root.write_bytes(other.seal()["channel/1.root.json"])
    with pytest.raises(TrustError, match="root file"):
        host.pull()
    host.root.write_bytes(sealed(1)["channel/1.root.json"])
    assert host.pull().installed.release == 4


def test_a_root_newer_than_the_store_reaches_is_refused(host: Host) -> None:
    host.publish(1)
    host.pull()
    host.root.write_bytes(sealed(3)["channel/3.root.json"])
    with pytest.raises(TrustError, match=r"channel/3.root.json: the root 3 .* isn't among the channel's roots 1 to 1"):
        host.pull()


def test_a_development_root_needs_to_be_allowed(host: Host) -> None:
    marked = moment(1, root_fields={"x-strikeforge-kind": "development"}).seal()
    write_store(host.store_folder, marked)
    host.root.write_bytes(marked["channel/1.root.json"])
    with pytest.raises(TrustError, match="development root"):
        host.pull()
    assert not host.folder.joinpath(".trust").exists()
    assert host.pull(development=True).installed.release == 4


# Interrupted downloads.


class Cut:
    """A store whose stream of one key breaks off after some bytes; notes what was asked for and sent."""

    def __init__(self, store: FolderStore, key: str, after: int | None) -> None:
        self.store, self.key, self.after = store, key, after
        self.starts: list[int] = []
        self.sent = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        if key != self.key:
            yield from self.store.stream(key, start=start)
            return
        self.starts.append(start)
        raw = self.store.get(key)[start:]
        for at in range(0, len(raw), 1 << 16):
            if self.after is not None and at >= self.after:
                raise StoreError(f"{key}: the connection was reset")
            self.sent += len(raw[at : at + (1 << 16)])
            yield raw[at : at + (1 << 16)]


@pytest.fixture
def big(host: Host) -> tuple[Host, str]:
    """A store whose release has one large file, and that file's key."""
    content = os.urandom(BIG)
    files = rebundled(bundle_files(3), {"big.bin": content})
    made = moment(3, bundle=files)
    write_store(host.store_folder, {**sealed(1), **sealed(2), **made.seal()})
    return host, f"bundles/{made.bundle}/big.bin"


def test_a_broken_download_goes_on_where_it_stopped(big: tuple[Host, str]) -> None:
    host, key = big
    for attempt in (1, 2):
        cut = Cut(host.store, key, 1 << 20)
        with pytest.raises(StoreError, match="connection was reset"):
            pull(cut, host.root, directory=host.folder, model=MODEL)  # type: ignore[arg-type]
        assert cut.starts == [(attempt - 1) << 20]
        assert not (host.home / "current").exists()
    rest = Cut(host.store, key, None)
    pull(rest, host.root, directory=host.folder, model=MODEL)  # type: ignore[arg-type]
    assert (rest.starts, rest.sent) == ([2 << 20], BIG - (2 << 20))
    assert host.check() == 6
    assert host.leftovers() == []


@pytest.mark.parametrize("spoil", [lambda raw: b"\0" * len(raw), lambda raw: raw + os.urandom(BIG)])
def test_a_damaged_part_is_fetched_anew(big: tuple[Host, str], spoil: Callable[[bytes], bytes]) -> None:
    host, key = big
    with pytest.raises(StoreError):
        pull(Cut(host.store, key, 1 << 20), host.root, directory=host.folder, model=MODEL)  # type: ignore[arg-type]
    (part,) = [path for path in (host.home / ".partial").iterdir() if path.stat().st_size == 1 << 20]
    part.write_bytes(spoil(part.read_bytes()))
    host.pull()
    assert host.check() == 6


def test_parts_of_a_release_that_was_superseded_go(with_5: Host) -> None:
    (with_5.home / ".partial").mkdir(exist_ok=True)
    (with_5.home / ".partial" / sha256(b"old")).write_bytes(b"ol")
    (with_5.home / ".garbage-x").mkdir()
    (with_5.home / ".staging").mkdir()
    with_5.pull()
    assert with_5.leftovers() == []
