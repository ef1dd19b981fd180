"""Retirement: a version goes for good, the champion can't, and `kill -9` before the aliases loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines import command, retire
from pipelines.config import load_operation
from pipelines.promote import promote
from pipelines.registry import Registry
from pipelines.retire import Retirement
from pipelines.rollback import rollback
from pipelines.site import person
from serving.errors import ConfigError, LedgerError
from serving.folder_store import FolderStore
from serving.ledger import Ledger, LedgerRaceError
from tests.tiny_registry import Desk, tracking_uri


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def retired(desk: Desk, version: int, reason: str = "stale", **other: Any) -> Retirement:
    arguments: dict[str, Any] = {
        "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "me", **other,
    }  # fmt: skip
    return retire.retire(model="tiny", version=version, reason=reason, **arguments)


def champions(desk: Desk, count: int) -> None:
    for seed in range(1, count + 1):
        desk.register(seed)
        promote(
            model="tiny",
            version=seed,
            store=desk.store,
            registry=desk.registry,
            channel=desk.channel,
            gates=(),
            by="ci",
        )


def kinds(desk: Desk) -> list[str]:
    return [f"{event.kind} {event.version}" for event in Ledger(desk.store, "tiny").events()]


def test_a_retired_version_is_gone_for_good(desk: Desk) -> None:
    champions(desk, 3)
    done = retired(desk, 2)
    assert (done.version, done.changed, done.rollback_target) == (2, True, 1)
    assert done.message == "tiny: version 2 is retired; a rollback then goes to version 1"
    last = Ledger(desk.store, "tiny").events()[-1]
    assert (last.kind, last.version, last.bundle, last.reason, last.by) == (
        "retired", 2, done.bundle_sha256, "stale", "me",
    )  # fmt: skip
    assert desk.store.list(f"bundles/{done.bundle_sha256}/")  # what it priced can still be looked at
    everybody: dict[str, Any] = {
        "model": "tiny", "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "me",
    }  # fmt: skip
    with pytest.raises(LedgerError, match="version 2 is retired"):
        promote(version=2, gates=(), **everybody)
    with pytest.raises(LedgerError, match="is retired"):
        rollback(to=2, reason="why not", **everybody)
    assert rollback(reason="bad fills", **everybody).version == 1


def test_the_last_way_back_is_told(desk: Desk) -> None:
    champions(desk, 2)
    done = retired(desk, 1)
    assert (done.rollback_target, desk.state().rollback_target) == (None, None)
    assert "a rollback then goes nowhere" in done.message


def test_the_champion_stays_and_the_remedy_is_said(desk: Desk) -> None:
    champions(desk, 2)
    before = kinds(desk)
    with pytest.raises(LedgerError, match=r"2 is the champion and can't be retired; roll back or promote another"):
        retired(desk, 2)
    assert kinds(desk) == before


def test_what_is_refused_writes_nothing(desk: Desk) -> None:
    champions(desk, 2)
    before = desk.store.list()
    with pytest.raises(LedgerError, match="version 7 isn't registered; there are: 1, 2"):
        retired(desk, 7)
    with pytest.raises(LedgerError, match="needs a reason"):
        retired(desk, 1, reason=" \n")
    with pytest.raises(LedgerError, match="isn't plain JSON"):
        retired(desk, 1, reason="\udcff")
    dry = retired(desk, 1, dry_run=True)
    assert (dry.changed, dry.rollback_target) == (False, None)
    assert "would be retired" in dry.message
    assert desk.store.list() == before


def test_a_retired_challenger_loses_its_alias(desk: Desk) -> None:
    champions(desk, 1)
    registered = desk.register(2)
    ledger = Ledger(desk.store, "tiny")
    verdict = {"passed": True, "report": "0" * 64}
    ledger.append(ledger.state(), "gated", version=2, bundle=registered.bundle_sha256, by="ci", details=verdict)
    desk.registry.set_alias("tiny", "challenger", 2)
    retired(desk, 2)
    assert desk.aliases() == {"champion": 1}


def test_once_more_changes_nothing(desk: Desk) -> None:
    champions(desk, 2)
    retired(desk, 1)
    before = kinds(desk)
    again = retired(desk, 1, reason="another")
    assert (again.changed, again.message) == (False, "tiny: version 1 is retired already")
    assert kinds(desk) == before


def test_whoever_was_first_is_named(desk: Desk) -> None:
    champions(desk, 2)

    class Overtaken(FolderStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            rollback(
                model="tiny", reason="bad", store=desk.store, registry=desk.registry, channel=desk.channel,
                by="the faster one",
            )  # fmt: skip
            return super().put_if_absent(key, data)

    with pytest.raises(LedgerRaceError, match="the faster one wrote it meanwhile"):
        retired(desk, 1, store=Overtaken(desk.folder / "store"))
    assert kinds(desk)[-1] == "rolled_back 1"
    assert desk.aliases() == {"champion": 1}


class Dying(Registry):
    """The process is killed at the first alias."""

    def delete_alias(self, model: str, alias: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def retire_and_die(folder: Path) -> None:
    desk = Desk(folder)
    retired(desk, 2, registry=Dying(desk.registry.client, desk.registry.artifact_root))


def test_killed_before_the_aliases_the_same_call_completes_it(desk: Desk) -> None:
    champions(desk, 1)
    registered = desk.register(2)
    ledger = Ledger(desk.store, "tiny")
    verdict = {"passed": True, "report": "0" * 64}
    ledger.append(ledger.state(), "gated", version=2, bundle=registered.bundle_sha256, by="ci", details=verdict)
    desk.registry.set_alias("tiny", "challenger", 2)
    process = multiprocessing.get_context("fork").Process(target=retire_and_die, args=(desk.folder,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    written = kinds(desk)
    assert (written[-1], desk.aliases()) == ("retired 2", {"champion": 1, "challenger": 2})
    assert not retired(desk, 2).changed
    assert kinds(desk) == written
    assert desk.aliases() == {"champion": 1}


def test_a_user_without_a_name_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 3)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert person(load_operation(["by=ann"])) == "ann"
    with pytest.raises(ConfigError, match="by: must be given, as by=NAME"):
        person(load_operation([]))


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ([], {"version", "reason"}),
        (["version=1"], {"reason"}),
        (["version=1", "reason='  '"], {"reason"}),
        (["reason=why"], {"version"}),
        (["version='1 or 2'", "reason=why"], {"version"}),
    ],
)
def test_the_command_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], problems: set[str]
) -> None:
    places = [f"storage.url={tmp_path}/store", f"registry.tracking_uri={tracking_uri(tmp_path)}"]
    assert command.operation(retire.__doc__, retire.run, [*given, *places]) == 2
    error = capsys.readouterr().err
    assert {line.split(":")[0].removeprefix("  - ") for line in error.splitlines()[1:]} == problems
    assert not (tmp_path / "store").exists()
