"""Promotion: gates decide, every step leaves its trail, a refusal changes nothing, one promoter wins."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import subprocess
import sys
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import FAMILIES
from pipelines.gates import GateContext, GateOutcome
from pipelines.reconcile import reconcile
from serving.bundle import bundle_key
from serving.canonical import canonical_json, sha256_hex
from serving.errors import GateError, LedgerError
from serving.events import TIME_FORMAT
from serving.ledger import Ledger, LedgerRaceError
from serving.release import report_key
from tests.pipelines.decisions import champions, desk, kinds, promoted, rolled_back
from tests.tiny_registry import Desk

__all__ = ["desk"]  # fixtures

PROCESSES = 8


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
