"""`kill -9` between any two writes of a registration, promotion or rollback loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.reconcile import alias_aims, reconcile
from pipelines.registry import Registry
from serving.bundle import fetch_bundle
from serving.folder_store import FolderStore
from serving.ledger import Ledger, State
from serving.release import report_key
from tests.pipelines.decisions import champions, desk, promoted, rolled_back
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk, tracking_uri

__all__ = ["desk"]  # fixtures

WRITES = ("put", "put_if_absent", "put_if_match", "upload", "delete")
READS = ("get_", "search_")


class Counter:
    """Kills this process right after the n-th write."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = act(*args, **kwargs)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper


class Fatal:
    """Anything whose writes are counted."""

    def __init__(self, inner: Any, counter: Counter, is_write: Callable[[str], bool]) -> None:
        self._inner, self._counter, self._is_write = inner, counter, is_write

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._counter.counted(found) if callable(found) and self._is_write(name) else found


def fatal_desk(folder: Path, limit: int) -> Desk:
    counter = Counter(limit)
    desk = Desk(folder)
    client: Any = Fatal(desk.registry.client, counter, lambda name: not name.startswith(READS))
    store: Any = Fatal(FolderStore(folder / "store"), counter, WRITES.__contains__)
    return Desk(folder, store, Registry(client, desk.registry.artifact_root))


def story_register(desk: Desk) -> None:
    desk.register(2)


def story_promote(desk: Desk) -> None:
    promoted(desk, 2)


def story_rollback(desk: Desk) -> None:
    rolled_back(desk)


def prepare_register(desk: Desk) -> None:
    tiny_bundle(desk.folder / "bundle-2", seed=2)


def prepare_promote(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1, gates=())
    desk.register(2)


def prepare_rollback(desk: Desk) -> None:
    champions(desk, 3)


def end_state(desk: Desk) -> Any:
    """All that matters and doesn't depend on the time of day, nor on what follows from it."""
    state = desk.state()
    timely = ("run_id", "provenance", "expires_at")
    events = [
        (event.seq, event.kind, event.version, event.bundle, event.by, {**event.details, **dict.fromkeys(timely)})
        for event in Ledger(desk.store, "tiny").events()
    ]
    kept = [key for key in desk.store.list() if not key.startswith(("channel/", "releases/", "provenance/"))]
    signed = desk.channel.follow("tiny", dry_run=True) == () if state.champion else None
    client = desk.registry.client
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = sorted((run.data.tags["mlflow.runName"], run.info.status) for run in client.search_runs(experiments))
    return events, state.releases, kept, signed, desk.registry.versions("tiny"), desk.aliases(), runs


def check_consistent(desk: Desk, before: State) -> None:
    """What anybody may see in between: a sound ledger, complete bundles, a champion from before or after."""
    state = desk.state()
    for version in state.versions.values():
        fetch_bundle(desk.store, version.bundle, desk.folder / "seen")
        if version.gated is not None:
            desk.store.get(report_key(version.gated.details["report"]))
    assert state.releases[: len(before.releases)] == before.releases
    assert len(state.releases) <= len(before.releases) + 1
    for alias, version_number in desk.aliases().items():
        allowed = {alias_aims(before)[alias], alias_aims(state)[alias]}
        assert version_number in allowed, (alias, version_number, allowed)


def killed_after_each_write(story: Callable[[Desk], None], template: Path) -> Iterator[Path]:
    """Copies of the template, in each of which a process was killed one write later than in the one before."""
    for limit in range(1, 60):
        folder = template.with_name(f"killed-{limit}")
        shutil.copytree(template, folder)
        rebase_artifacts(folder, template)
        process = multiprocessing.get_context("fork").Process(
            target=lambda f, n: story(fatal_desk(f, n)), args=(folder, limit)
        )
        process.start()
        process.join(60)
        if process.exitcode == 0:
            assert limit > 2
            return
        assert process.exitcode == -signal.SIGKILL
        yield folder
    pytest.fail("never got to the end")


def rebase_artifacts(folder: Path, template: Path) -> None:
    """MLflow keeps absolute artifact folders; make those of a copy its own."""
    import sqlite3

    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (template.as_uri(), folder.as_uri())
            )
    database.close()


@pytest.mark.parametrize(
    ("prepare", "story"),
    [
        (prepare_register, story_register),
        (prepare_promote, story_promote),
        (prepare_rollback, story_rollback),
    ],
    ids=["register", "promote", "rollback"],
)
def test_killed_anywhere_and_run_again(
    tmp_path: Path, prepare: Callable[[Desk], None], story: Callable[[Desk], None]
) -> None:
    template = tmp_path / "template"
    tracking_uri(template)
    prepare(Desk(template))
    before = Desk(template).state()
    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    rebase_artifacts(whole, template)
    story(Desk(whole))
    wanted = end_state(Desk(whole))
    for folder in killed_after_each_write(story, template):
        desk = Desk(folder)
        check_consistent(desk, before)
        story(desk)
        assert end_state(desk) == wanted
        check_consistent(desk, before)


def test_a_crash_before_the_aliases_is_mended_by_reconcile(desk: Desk) -> None:
    """Also by whoever comes next, not only by the same call."""
    champions(desk, 1)
    desk.register(2)
    process = multiprocessing.get_context("fork").Process(target=lambda: story_promote(fatal_desk(desk.folder, 5)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (desk.state().resolve("champion").version, desk.aliases()) == (2, {"champion": 1})
    done = reconcile("tiny", desk.store, desk.registry, desk.channel)
    assert (done.champion, done.changed) == (2, ("champion: 1 -> 2",))
    assert desk.aliases() == {"champion": 2}
