"""Rollback: one champion back at a time, once however often it is typed, never to what hosts couldn't be given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import promote as promote_module
from pipelines import rollback as rollback_module
from pipelines.config import Operation, load_operation
from serving.bundle import bundle_key
from serving.errors import BundleError, ConfigError, GateError, LedgerError
from serving.ledger import Ledger
from tests.pipelines.decisions import champions, desk, kinds, promoted, rolled_back
from tests.tiny_registry import Desk

__all__ = ["desk"]  # fixtures


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
