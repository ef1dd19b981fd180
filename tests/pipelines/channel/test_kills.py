"""Publishers killed with SIGKILL before and after each write, and publishers that race in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Timestamp

from pipelines.channel import documents, key_files
from pipelines.channel.ceremony import add_signatures, pending_files, publish_pending
from pipelines.channel.metadata import TIMESTAMP_KEY
from pipelines.channel.publish import open_channel
from pipelines.channel.revoke import revoke
from pipelines.errors import SigningError
from serving.errors import BlobMissingError
from serving.folder_store import FolderStore
from tests.pipelines.channel.desk import Company, Host, promote, signing

WRITES = ("put", "put_if_absent", "put_if_match", "delete")
MOST_WRITES = 60


def killed_at(moment: int, act: Callable[[], Any]) -> bool:
    """Run `act` in a child killed before (even) or after (odd) its write number `moment // 2`; False if it ended."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(moment)
            act()
        except BaseException:  # noqa: BLE001 (a child must never return into the test run)
            traceback.print_exc()
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed before it could be killed"
    return False


def _die_at(moment: int) -> None:
    count = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            mine, count = count, count + 1
            if 2 * mine == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*arguments, **named)
            if 2 * mine + 1 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in WRITES:
        setattr(FolderStore, name, dying(getattr(FolderStore, name)))
    key_files._write_new = dying(key_files._write_new)
    Path.unlink = dying(Path.unlink)  # type: ignore[method-assign]
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]


def number_seen(host: Host, model: str) -> int | None:
    """What the host may install now, None while there is nothing (yet) that it accepts."""
    try:
        return host.number(model)
    except (DownloadHTTPError, RepositoryError, BlobMissingError):
        return None


def at_every_write(tmp_path: Path, prepared: Path, check: Callable[[Path, int], bool]) -> int:
    """`check(folder, moment)` on a copy for each moment, until it says that nobody was killed; how many kills."""
    for moment in range(2 * MOST_WRITES):
        folder = tmp_path / f"moment-{moment}"
        shutil.copytree(prepared, folder)
        if not check(folder, moment):
            return moment
        shutil.rmtree(folder)
    raise AssertionError(f"more than {MOST_WRITES} writes")


@pytest.mark.slow
def test_the_first_publication_is_completed_after_any_kill(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    for model in ("a", "b"):
        promote(FolderStore(prepared / "store"), model, 1)

    def check(folder: Path, moment: int) -> bool:
        store = FolderStore(folder / "store")
        killed = killed_at(moment, lambda: open_channel(signing(folder / "keys"), store).follow("a"))
        host = Host(store, folder / "host")
        seen = number_seen(host, "a")
        assert seen in ((None, 1) if killed else (1,))
        open_channel(signing(folder / "keys"), store).follow("a")
        assert (host.number("a"), host.number("b")) == (1, 1)
        assert open_channel(signing(folder / "keys"), store).follow("b") == ()
        return killed

    assert at_every_write(tmp_path, prepared, check) >= 2 * 14


@pytest.mark.slow
def test_a_release_is_old_or_new_after_any_kill(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    store = FolderStore(prepared / "store")
    for model in ("a", "b"):
        promote(store, model, 1)
        open_channel(signing(prepared / "keys"), store).follow(model)
    promote(store, "a", 2)

    def check(folder: Path, moment: int) -> bool:
        store = FolderStore(folder / "store")
        killed = killed_at(moment, lambda: open_channel(signing(folder / "keys"), store).follow("a"))
        host = Host(store, folder / "host")
        assert host.number("a") in ((1, 2) if killed else (2,))
        assert host.number("b") == 1
        open_channel(signing(folder / "keys"), store).follow("a")
        assert (host.number("a"), host.number("b")) == (2, 1)
        return killed

    assert at_every_write(tmp_path, prepared, check) >= 2 * 4


@pytest.mark.slow
def test_a_lost_channel_is_restored_after_any_kill(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    store = FolderStore(prepared / "store")
    for model in ("a", "b"):
        promote(store, model, 1)
        open_channel(signing(prepared / "keys"), store).follow(model)
    before = Host(store, prepared / "host")
    assert (before.number("a"), before.number("b")) == (1, 1)
    shutil.rmtree(store.root / "channel")

    def check(folder: Path, moment: int) -> bool:
        store = FolderStore(folder / "store")
        killed = killed_at(moment, lambda: open_channel(signing(folder / "keys"), store).rebuild())
        host = Host(store, folder / "host", before.root)
        assert number_seen(host, "a") in (None, 1)
        open_channel(signing(folder / "keys"), store).rebuild()
        assert (host.number("a"), host.number("b")) == (1, 1)
        return killed

    assert at_every_write(tmp_path, prepared, check) >= 2 * 6


@pytest.mark.slow
def test_a_ceremony_is_completed_after_any_kill(tmp_path: Path) -> None:
    """Keys of timestamp and model `a` are replaced: a root, then targets, then everything that hosts read."""
    prepared = tmp_path / "prepared"
    company = Company(prepared, FolderStore(prepared / "store"))
    promote(company.store, "a", 1)
    company.channel().follow("a")
    host = company.host()
    assert host.number("a") == 1
    lost = [company.public(name).keyid for name in ("timestamp", "models")]
    people = ("ann", "bob", "snapshot", "new")

    def there(folder: Path) -> Company:
        copied = Company.__new__(Company)
        copied.folder, copied.store, copied.keys = folder, FolderStore(folder / "store"), folder / "people"
        copied.online = company.online
        return copied

    def check(folder: Path, moment: int) -> bool:
        at = there(folder)
        killed = killed_at(moment, lambda: revoke(at.bench(*people), lost, [at.public("new")]))
        host = at.host()
        assert number_seen(host, "a") in (None, 1)
        for path in pending_files(at.bench()):
            add_signatures(at.bench(*people), path)
        publish_pending(at.bench(*people))
        with suppress(SigningError):  # no role names the keys any more: all of it was done
            revoke(at.bench(*people), lost, [at.public("new")])
        at.channel("new", "snapshot").refresh()
        view = at.bench().view()
        assert view.settled
        assert view.targets is not None
        assert not {*lost} & {*view.root.keys, *documents.keys_of(view.targets.signed, "model-a")}
        assert number_seen(host, "a") == 1
        assert number_seen(at.host("fresh"), "a") == 1
        return killed

    assert at_every_write(tmp_path, prepared, check) >= 2 * 8


def _publish_some(folder: Path, model: str, count: int, seed: int) -> None:
    store = FolderStore(folder / "store")
    for number in range(count):
        promote(store, model, seed + number)
        open_channel(signing(folder / "keys"), store).follow(model)


def _follow_until(folder: Path, model: str, release: int) -> None:
    store = FolderStore(folder / "store")
    deadline = time.monotonic() + 120
    host = Host(store, folder / f"host-{os.getpid()}")
    while number_seen(host, model) != release:
        assert time.monotonic() < deadline
        open_channel(signing(folder / "keys"), store).follow(model)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_publishers_of_different_models_lose_nothing(tmp_path: Path, begun: bool) -> None:
    store = FolderStore(tmp_path / "store")
    models, count = ("a", "b", "c"), 5
    if begun:
        for model in models:
            promote(store, model, 0)
            open_channel(signing(tmp_path / "keys"), store).follow(model)
    workers = [
        multiprocessing.get_context("fork").Process(target=_publish_some, args=(tmp_path, model, count, 1))
        for model in models
    ]
    for worker in workers:
        worker.start()
    versions: list[int] = []
    host, numbers = Host(store, tmp_path / "host"), dict.fromkeys(models, 0)
    while any(worker.is_alive() for worker in workers):
        try:
            stamp: Metadata[Timestamp] = Metadata.from_bytes(store.get(TIMESTAMP_KEY))
        except BlobMissingError:
            continue
        versions.append(stamp.signed.version)
        for model in models:
            number = number_seen(host, model)
            assert number is None or number >= numbers[model], "a host never sees an older release"
            numbers[model] = number or numbers[model]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert versions == sorted(versions)
    assert len(set(versions)) > 3, "the race was watched"
    assert {model: host.number(model) for model in models} == dict.fromkeys(models, count + begun)


@pytest.mark.slow
def test_publishers_of_one_model_end_at_the_ledgers_release(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    promote(store, "a", 0)
    open_channel(signing(tmp_path / "keys"), store).follow("a")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_follow_until, args=(tmp_path, "a", 9)) for _ in range(3)]
    workers.append(context.Process(target=_publish_some, args=(tmp_path, "a", 8, 1)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert Host(store, tmp_path / "host").number("a") == 9
