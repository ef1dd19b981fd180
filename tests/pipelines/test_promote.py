"""Promotion and rollback: gates decide, one promoter wins, and `kill -9` between any two writes loses nothing."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import promote as promote_module
from pipelines import rollback as rollback_module
from pipelines.channel.publish import StoreChannel, open_channel
from pipelines.config import FAMILIES, Operation, load_operation
from pipelines.errors import FollowUpError, SigningError
from pipelines.gates import Gate, GateContext, GateOutcome
from pipelines.parity import recompute
from pipelines.promote import Promotion, promote
from pipelines.reconcile import alias_aims, reconcile
from pipelines.registry import Registry, RegistryError
from pipelines.rollback import Rollback, rollback
from serving.bundle import bundle_key, fetch_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.errors import BundleError, ConfigError, GateError, LedgerError, StoreError
from serving.events import TIME_FORMAT
from serving.folder_store import FolderStore
from serving.ledger import Ledger, LedgerRaceError, State
from serving.release import report_key
from tests.pipelines.channel.desk import signing
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk, tracking_uri

PROCESSES = 8


def accuracy(context: GateContext) -> GateOutcome:
    """Stands for the gates of pipelines/gates/, which have tests of their own: the error on record."""
    test = context.details["metrics"]["test"]
    own, most = test["model"]["iv_rmse"], 0.9 * test["sticky_strike"]["iv_rmse"]
    return GateOutcome("accuracy", own <= most, own, most, f"{own:g} of at most {most:g}")


def parity(context: GateContext) -> GateOutcome:
    """The golden vectors of the stored bundle."""
    worst = max(check.excess for check in recompute(context.bundle()))
    return GateOutcome("parity", worst <= 1.0, None, 1.0, "golden vectors")


GATES: tuple[Gate, ...] = (accuracy, parity)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def promoted(desk: Desk, version: int, gates: tuple[Gate, ...] = GATES, **other: Any) -> Promotion:
    arguments: dict[str, Any] = {
        "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "ci", **other,
    }  # fmt: skip
    return promote(model="tiny", version=version, gates=gates, **arguments)


def rolled_back(desk: Desk, to: int | None = None, reason: str = "bad fills", **other: Any) -> Rollback:
    arguments: dict[str, Any] = {
        "store": desk.store, "registry": desk.registry, "channel": desk.channel, "by": "trader", **other,
    }  # fmt: skip
    return rollback(model="tiny", to=to, reason=reason, **arguments)


def kinds(desk: Desk) -> list[str]:
    return [f"{event.kind} {event.version}" for event in Ledger(desk.store, "tiny").events()]


# Promotion.


def test_a_promotion_leaves_its_whole_trail(desk: Desk) -> None:
    registered = desk.register(1)
    done = promoted(desk, 1, reason="first")
    assert (done.changed, done.release_number, done.bundle_sha256) == (True, 1, registered.bundle_sha256)
    assert kinds(desk) == ["registered 1", "gated 1", "promoted 1"]
    assert desk.aliases() == {"champion": 1}
    assert done.report_sha256 is not None
    report = desk.store.get(report_key(done.report_sha256))
    assert sha256_hex(report) == done.report_sha256
    value = json.loads(report)
    assert canonical_json(value) == report
    assert (value["bundle"], value["passed"], value["champion"]) == (registered.bundle_sha256, True, None)
    assert [outcome["name"] for outcome in value["outcomes"]] == ["integrity", "accuracy", "parity"]
    events = Ledger(desk.store, "tiny").events()
    assert events[1].details == {"passed": True, "report": done.report_sha256}
    details = dict(events[2].details)
    assert datetime.strptime(details.pop("expires_at"), TIME_FORMAT) > datetime.strptime(events[2].at, TIME_FORMAT)
    statement = desk.store.get(f"provenance/{details.pop('provenance')}.json")
    assert registered.bundle_sha256.encode() in statement
    assert details == {"gate_report": done.report_sha256}
    assert desk.channel.follow("tiny", dry_run=True) == ()  # the signed channel says so too
    assert events[2].reason == "first"


def test_failing_gates_are_all_named_and_nothing_changes(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1)
    champion = desk.state().champion
    wrong = {"change": {"iv": np.full(5, 0.5, np.float32)}}
    version = desk.register(2, iv_rmse=0.5, bundle=wrong).version
    with pytest.raises(GateError) as caught:
        promoted(desk, version)
    assert "- accuracy: " in str(caught.value)
    assert "- parity: " in str(caught.value)
    assert "integrity" not in str(caught.value)
    assert desk.state().champion == champion
    assert desk.aliases() == {"champion": 1}
    assert kinds(desk)[-1] == "gated 2"
    gated = desk.state().versions[2].gated
    assert gated is not None
    report = json.loads(desk.store.get(report_key(gated.details["report"])))
    assert [outcome["passed"] for outcome in report["outcomes"]] == [True, False, False]
    assert report["champion"]["version"] == 1
    before = kinds(desk)
    with pytest.raises(GateError):
        promoted(desk, version)
    assert kinds(desk) == before  # the same verdict isn't written twice


def test_a_tampered_bundle_is_not_promoted(desk: Desk) -> None:
    registered = desk.register(1)
    key = bundle_key(registered.bundle_sha256, "member-0/head.onnx")
    desk.store.put(key, desk.store.get(key)[:-1] + b"!")
    with pytest.raises(GateError, match=r"integrity: member-0/head.onnx: sha256 is"):
        promoted(desk, 1, gates=())
    assert desk.state().champion is None


def test_a_dry_run_writes_nothing(desk: Desk) -> None:
    desk.register(1)
    desk.register(2, iv_rmse=0.5)
    before = desk.store.list()
    done = promoted(desk, 1, dry_run=True)
    assert not done.changed
    assert all(outcome.passed for outcome in done.outcomes)
    with pytest.raises(GateError):
        promoted(desk, 2, dry_run=True)
    assert (desk.store.list(), desk.aliases()) == (before, {})


def test_promoting_the_champion_again_says_so(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1)
    desk.registry.delete_alias("tiny", "champion")
    before = kinds(desk)
    done = promoted(desk, 1)
    assert not done.changed
    assert "is the champion already, release 1" in done.message
    assert kinds(desk) == before
    assert desk.aliases() == {"champion": 1}


def test_a_champion_is_renewed_before_it_expires(desk: Desk) -> None:
    """The same version under a new release number, with gates and a lifetime of its own; typed twice it is one."""
    champions(desk, 2)
    with pytest.raises(LedgerError, match="version 1 isn't the champion, so there is nothing to renew"):
        promoted(desk, 1, renew=True)
    before = Ledger(desk.store, "tiny").events()[-1]
    done = promoted(desk, 2, renew=True)
    assert (done.changed, done.release_number, len(done.outcomes)) == (True, 3, 3)
    renewal = Ledger(desk.store, "tiny").events()[-1]
    assert renewal.details["renews"] == 2
    assert renewal.details["expires_at"] > before.details["expires_at"]
    assert desk.channel.follow("tiny", dry_run=True) == ()
    again = promoted(desk, 2, renew=True)
    assert (again.changed, again.release_number) == (False, 3)
    assert promoted(desk, 2, renew=True, reason="and again").release_number == 4
    assert desk.state().rollback_target == 1
    assert rolled_back(desk).version == 1
    assert desk.state().rollback_target is None


def test_the_next_quarters_renewal_is_another_one(desk: Desk) -> None:
    """The same person gives the same reason, and nothing else has happened in between."""
    champions(desk, 1)
    ledger, state = Ledger(desk.store, "tiny"), desk.state()
    first = ledger.events()[-1]
    event, _ = ledger.prepare(
        state, "promoted", version=1, bundle=first.bundle, by="ci", reason="quarterly",
        details={**first.details, "renews": 1},
    )  # fmt: skip
    long_ago = dataclasses.replace(event, at="2020-01-01T00:00:00.000000Z")
    desk.store.put(event.key, long_ago.to_bytes())
    done = promoted(desk, 1, renew=True, reason="quarterly")
    assert (done.changed, done.release_number) == (True, 3)
    again = promoted(desk, 1, renew=True, reason="quarterly")
    assert (again.changed, again.release_number) == (False, 3)


def test_only_the_champion_of_that_release_is_renewed(desk: Desk) -> None:
    champions(desk, 1)
    ledger, state = Ledger(desk.store, "tiny"), desk.state()
    for details in ({}, {"renews": 2}, {"renews": "1"}):
        with pytest.raises(LedgerError, match="is the champion already"):
            ledger.append(state, "promoted", version=1, bundle=state.versions[1].bundle, by="me", details=details)


def test_unknown_and_retired_versions_are_refused(desk: Desk) -> None:
    registered = desk.register(1)
    with pytest.raises(LedgerError, match="version 7 isn't registered; there are: 1"):
        promoted(desk, 7)
    ledger = Ledger(desk.store, "tiny")
    ledger.append(ledger.state(), "retired", version=1, bundle=registered.bundle_sha256, by="me")
    with pytest.raises(LedgerError, match="version 1 is retired"):
        promoted(desk, 1)


def test_a_gated_version_is_challenger_until_promoted(desk: Desk) -> None:
    for seed in (1, 2):
        desk.register(seed)
    promoted(desk, 1)
    registered = desk.state().versions[2]
    ledger = Ledger(desk.store, "tiny")
    verdict = {"passed": True, "report": "0" * 64}
    ledger.append(ledger.state(), "gated", version=2, bundle=registered.bundle, by="ci", details=verdict)
    assert reconcile("tiny", desk.store, desk.registry, desk.channel).changed == ("challenger: none -> 2",)
    assert desk.aliases() == {"champion": 1, "challenger": 2}
    promoted(desk, 2)
    assert desk.aliases() == {"champion": 2}


def test_a_familys_task_is_said_once_and_the_same_everywhere() -> None:
    """Promoting doesn't import torch, so the configuration says the task too."""
    from pipelines.tasks import task_name

    assert {name: settings.task for name, settings in FAMILIES.items()} == {name: task_name(name) for name in FAMILIES}


def test_promoting_needs_no_torch() -> None:
    code = "import sys, pipelines.promote; assert not {'torch', 'matplotlib', 'polars'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr


# Rollback.


def champions(desk: Desk, count: int) -> None:
    for seed in range(1, count + 1):
        desk.register(seed)
        promoted(desk, seed, gates=())


def test_rollbacks_walk_down_and_then_stop(desk: Desk) -> None:
    champions(desk, 3)
    assert rolled_back(desk).version == 2
    done = rolled_back(desk, reason="worse still")
    assert (done.version, done.release_number, done.changed) == (1, 5, True)
    assert desk.aliases() == {"champion": 1}
    with pytest.raises(LedgerError, match="no champion to go back to"):
        rolled_back(desk, reason="and now?")
    assert rolled_back(desk, to=3, reason="it was the feed").release_number == 6
    last = Ledger(desk.store, "tiny").events()[-1]
    assert (last.kind, last.reason, last.by, last.details["from"]) == ("rolled_back", "it was the feed", "trader", 1)
    promotion = desk.state().versions[3].promoted
    assert promotion is not None
    for name in ("gate_report", "provenance"):
        assert last.details[name] == promotion.details[name]


def test_a_rollback_typed_twice_is_one(desk: Desk) -> None:
    champions(desk, 3)
    assert rolled_back(desk).version == 2
    again = rolled_back(desk)
    assert (again.version, again.changed, again.release_number) == (2, False, 4)
    assert "by this same rollback at" in again.message
    assert rolled_back(desk, by="another").version == 1


def test_a_rollback_typed_again_after_other_events_is_still_one(desk: Desk) -> None:
    """A retraining may register a version, and be refused, between a rollback that was cut off and its second try."""
    champions(desk, 3)
    assert rolled_back(desk).version == 2
    desk.register(4, iv_rmse=0.05)
    with pytest.raises(GateError):
        promoted(desk, 4)
    before = kinds(desk)
    assert before[-2:] == ["registered 4", "gated 4"]
    again = rolled_back(desk)
    assert (again.version, again.changed) == (2, False)
    assert kinds(desk) == before
    promoted(desk, 3)
    assert rolled_back(desk).changed  # another champion, another decision


@pytest.mark.parametrize("lost", ["provenance", "gate_report"])
def test_a_rollback_that_hosts_could_not_be_given_is_not_decided(desk: Desk, lost: str) -> None:
    champions(desk, 2)
    promotion = desk.state().versions[1].promoted
    assert promotion is not None
    folder = {"provenance": "provenance", "gate_report": "gate-reports"}[lost]
    key = f"{folder}/{promotion.details[lost]}.json"
    kept = desk.store.get(key)
    desk.store.delete(key)
    before = desk.store.list()
    for dry_run in (True, False):
        with pytest.raises(LedgerError, match=rf"isn't decided.*{key}.*bring that back"):
            rolled_back(desk, dry_run=dry_run)
    assert desk.store.list() == before
    desk.store.put(key, kept)
    assert rolled_back(desk).version == 1


def test_nothing_is_decided_on_top_of_a_cut_ledger(desk: Desk) -> None:
    """It would reach no host, and keep the lost events from being brought back."""
    champions(desk, 2)
    desk.register(3)
    promoted(desk, 3)
    last = Ledger(desk.store, "tiny").events()[-1]
    desk.store.delete(last.key)
    before = desk.store.list()
    with pytest.raises(LedgerError, match="cut or rewritten"):
        rolled_back(desk)
    with pytest.raises(LedgerError, match="cut or rewritten"):
        promoted(desk, 3)
    assert desk.store.list() == before
    desk.store.put(last.key, last.to_bytes())
    assert rolled_back(desk).version == 2


@pytest.mark.parametrize(
    ("act", "given", "says"),
    [
        (
            rollback_module.run,
            ["reason=why", "version=3"],
            r"version: a rollback doesn't take it \(value 3\); to=VERSION",
        ),
        (promote_module.run, ["version=3", "to=2"], r"to: a promotion doesn't take it \(value 2\); version=NUMBER"),
    ],
)
def test_the_other_acts_key_is_not_passed_over(
    act: Callable[[Operation], Any], given: list[str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        act(load_operation([f"storage.url={tmp_path}", *given]))


def test_a_rollback_of_a_champion_that_is_gone_is_refused(desk: Desk) -> None:
    """Two people on call see version 3 fail; the second one's rollback mustn't take version 2 away as well."""
    champions(desk, 3)
    assert rolled_back(desk, instead_of=3).version == 2
    with pytest.raises(LedgerError, match=r"version 2 is the champion \(release 4\), not 3: somebody was faster"):
        rolled_back(desk, instead_of=3, by="another")
    assert desk.state().release_number == 4


def test_rollbacks_that_are_refused(desk: Desk) -> None:
    with pytest.raises(LedgerError, match="no champion yet"):
        rolled_back(desk)
    champions(desk, 2)
    desk.register(3)
    before = kinds(desk)
    with pytest.raises(LedgerError, match="needs a reason"):
        rolled_back(desk, reason=" ")
    with pytest.raises(LedgerError, match="has never been champion"):
        rolled_back(desk, to=3)
    with pytest.raises(LedgerError, match="version 9 isn't registered"):
        rolled_back(desk, to=9)
    desk.store.delete(bundle_key(desk.state().versions[1].bundle, "golden.npz"))
    with pytest.raises(BundleError, match=r"golden.npz: "):
        rolled_back(desk)
    assert kinds(desk) == before


def test_a_rollback_to_the_champion_and_a_dry_one_change_nothing(desk: Desk) -> None:
    champions(desk, 2)
    before = kinds(desk)
    assert not rolled_back(desk, to=2).changed
    done = rolled_back(desk, dry_run=True)
    assert (done.version, done.changed) == (1, False)
    assert kinds(desk) == before
    assert desk.aliases() == {"champion": 2}


def test_mlflow_away_after_the_event_is_mended_by_reconcile(desk: Desk) -> None:
    champions(desk, 2)

    class Away(Registry):
        def set_alias(self, model: str, alias: str, version: int) -> None:
            raise RegistryError("MLflow is away")

    away = Away(desk.registry.client, desk.registry.artifact_root)
    with pytest.raises(FollowUpError, match=r"(?s)version 1 is champion, release 3.*reconcile.*MLflow is away"):
        rolled_back(desk, registry=away)
    assert desk.state().resolve("champion").version == 1
    assert desk.channel.follow("tiny", dry_run=True) == ()  # hosts have it already
    assert desk.aliases() == {"champion": 2}
    again = rolled_back(desk)  # the same call completes it instead of rolling back twice
    assert (again.version, again.changed) == (1, False)
    assert desk.aliases() == {"champion": 1}


def test_a_channel_that_cannot_be_written_leaves_the_decision_and_the_aliases(desk: Desk) -> None:
    champions(desk, 1)
    desk.register(2)

    class Stuck(StoreChannel):
        def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
            raise StoreError("channel/timestamp.json: no answer")

    with pytest.raises(FollowUpError, match=r"(?s)version 2 is champion, release 2.*channel/timestamp.json: no answer"):
        promoted(desk, 2, channel=Stuck(desk.channel.bench))
    assert desk.aliases() == {"champion": 2}
    done = reconcile("tiny", desk.store, desk.registry, desk.channel)
    assert len(done.published) == 1
    assert "release 1 -> 2" in done.message


def test_what_mlflow_lacks_and_the_store_lost_leaves_the_decision_and_the_channel(desk: Desk) -> None:
    champions(desk, 2)
    lost = desk.register(3)
    desk.store.delete(bundle_key(lost.bundle_sha256, "manifest.json"))
    emptied = Desk(desk.folder / "emptied", store=desk.store).registry
    with pytest.raises(FollowUpError, match=rf"(?s)version 1 is champion, release 3.*{lost.bundle_sha256}"):
        rolled_back(desk, registry=emptied)
    assert desk.channel.follow("tiny", dry_run=True) == ()


def test_a_full_disk_after_the_decision_is_told_as_such(desk: Desk) -> None:
    champions(desk, 2)

    class Full(StoreChannel):
        def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FollowUpError, match=r"(?s)version 1 is champion, release 3.*No space left"):
        rolled_back(desk, channel=Full(desk.channel.bench))
    assert desk.aliases() == {"champion": 1}


def test_nothing_is_decided_that_could_not_be_signed(desk: Desk) -> None:
    champions(desk, 2)
    desk.register(3)
    before = desk.store.list()
    keyless = open_channel(signing(desk.folder / "keyless", kind="production"), desk.store)
    with pytest.raises(SigningError):
        promoted(desk, 3, channel=keyless)
    with pytest.raises(SigningError):
        rolled_back(desk, channel=keyless)
    assert desk.store.list() == before


def test_reconcile_rehearsed_writes_nothing(desk: Desk) -> None:
    champions(desk, 2)
    desk.registry.delete_alias("tiny", "champion")
    for key in desk.store.list("channel/"):
        desk.store.delete(key)
    before = desk.store.list()
    done = reconcile("tiny", desk.store, desk.registry, desk.channel, dry_run=True)
    assert (len(done.published) > 0, done.changed) == (True, ("champion: none -> 2",))
    assert "dry run, nothing written" in done.message
    assert (desk.store.list(), desk.aliases()) == (before, {})
    assert reconcile("tiny", desk.store, desk.registry, desk.channel).changed == ("champion: none -> 2",)
    assert desk.channel.follow("tiny", dry_run=True) == ()


def test_whoever_promotes_while_gates_run_wins(desk: Desk) -> None:
    """The verdict was about another champion, so it isn't written on top of the new one."""
    desk.register(1)
    desk.register(2)

    def overtaken(context: GateContext) -> GateOutcome:
        promoted(desk, 2, gates=(), by="the faster one")
        return GateOutcome("overtaken", True, None, None, "")

    with pytest.raises(LedgerRaceError, match="the faster one wrote it meanwhile"):
        promoted(desk, 1, gates=(overtaken,))
    assert kinds(desk) == ["registered 1", "registered 2", "gated 2", "promoted 2"]
    assert desk.aliases() == {"champion": 2}


# Races, with processes that have all seen the same state before any of them writes.


def waiting(barrier: Barrier, context: GateContext) -> GateOutcome:
    barrier.wait()
    return GateOutcome("waiting", True, None, None, "together")


def promote_at_once(folder: Path, barrier: Barrier, version: int) -> None:
    desk = Desk(folder)
    try:
        promoted(desk, version, gates=(functools.partial(waiting, barrier),), by=f"promoter {version}")
        outcome = "won"
    except LedgerRaceError as error:
        outcome = error.winner.by
    desk.store.put(f"results/{version}", outcome.encode())


def test_of_eight_promoters_one_wins(desk: Desk) -> None:
    for version in range(1, PROCESSES + 1):
        desk.register(version)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    workers = [
        context.Process(target=promote_at_once, args=(desk.folder, barrier, version))
        for version in range(1, PROCESSES + 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    outcomes = {version: desk.store.get(f"results/{version}").decode() for version in range(1, PROCESSES + 1)}
    winners = [version for version, outcome in outcomes.items() if outcome == "won"]
    assert len(winners) == 1
    assert set(outcomes.values()) == {"won", f"promoter {winners[0]}"}
    assert kinds(desk)[PROCESSES:] == [f"gated {winners[0]}", f"promoted {winners[0]}"]
    assert desk.aliases() == {"champion": winners[0]}


# Kill -9 between any two writes, to the store or to MLflow, in a real process.

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
