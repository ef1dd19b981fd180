"""What follows a decision, the aliases and the channel: lost to MLflow, a store or the disk, it is told and mended."""

from __future__ import annotations

import errno
import os

import pytest

from pipelines.channel.publish import StoreChannel, open_channel
from pipelines.errors import FollowUpError, SigningError
from pipelines.reconcile import reconcile
from pipelines.registry import Registry, RegistryError
from serving.bundle import bundle_key
from serving.errors import StoreError
from tests.pipelines.channel.desk import signing
from tests.pipelines.decisions import champions, desk, promoted, rolled_back
from tests.tiny_registry import Desk

__all__ = ["desk"]  # fixtures


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
