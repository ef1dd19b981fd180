"""The states chaos begins with, and the acts that are disturbed.

In: a `Place`. Out: a prepared place; what an act reported. Tiny real bundles, each with an engine pack, a real channel
with development keys.
Invariants: an act here is the function its command calls; the same name does the same at every place; nothing outside
the place is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.chaos_defects import DEFECTS
from benchmarks.chaos_hosts import pull_or_fail
from benchmarks.chaos_places import ENVIRONMENT, MODEL, Place
from benchmarks.chaos_trace import Mode, arm, disarm
from pipelines import promote as promoting
from pipelines import reconcile as reconciling
from pipelines import rollback as rolling_back
from pipelines.channel.publish import Channel
from pipelines.errors import FollowUpError
from pipelines.register import register
from serving.blobstore import open_store
from serving.engine_pack import write_pack
from serving.errors import StoreError
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import LINEAGE, metrics, tracking_uri

OPERATOR = "operator"
TARGET = "native_fp32"  # of the packs: hosts take the native engine's unasked
REASON = "chaos"


@dataclass(frozen=True)
class Story:
    """A state and an act on it; `prepare` continues from the state of the story `after`."""

    prepare: Callable[[Place], None]
    act: Callable[[Place], Any]
    after: str | None = None


class AwayError(StoreError):
    """Something isn't reachable, on purpose."""


class _AwayChannel:
    """Keys are there, the store's channel isn't."""

    def ready(self, model: str) -> None:
        pass

    def follow(self, model: str, *, dry_run: bool = False) -> NoReturn:
        raise AwayError("the channel is away")


def add_version(place: Place, seed: int) -> None:
    """Register another tiny net, and compile it: the engine pack of version `seed` waits to be released with it."""
    bundle = tiny_bundle(place.folder / "work" / f"bundle-{seed}", seed=seed)
    register(
        model=MODEL, bundle_dir=bundle.directory, metrics=metrics(0.01), parity={"iv": 1e-7}, lineage=LINEAGE,
        registry=place.registry, store=place.store, by="trainer",
    )  # fmt: skip
    write_pack(
        place.pack(seed), bundle=bundle, target=TARGET, backend="native", precision="fp32", library="chaos",
        version="1", files={"golden.npz": bundle.read("golden.npz"), "member-0/weights": bytes([seed]) * 2000},
    )  # fmt: skip
    shutil.rmtree(place.folder / "work")


def do_promote(place: Place, version: int, channel: Channel | None = None) -> Any:
    """As the command does it, with the pack that was compiled; integrity is asked."""
    return promoting.promote(
        model=MODEL, version=version, store=place.store, registry=place.registry, channel=channel or place.channel,
        gates=(), by=OPERATOR, reason=REASON, approve_by="risk", packs=[place.pack(version)],
    )  # fmt: skip


def do_rollback(place: Place) -> Any:
    return rolling_back.rollback(
        model=MODEL, reason=REASON, store=place.store, registry=place.registry, channel=place.channel, by=OPERATOR
    )


def do_reconcile(place: Place) -> Any:
    return reconciling.reconcile(MODEL, place.store, place.registry, place.channel)


def do_pull(place: Place) -> Any:
    return pull_or_fail(place, place.folder / "host")


def _new_desk(place: Place) -> None:
    add_version(place, 1)


def _two_releases(place: Place) -> None:
    """Version 2 is champion and on the host, 1 was champion before, 3 is registered."""
    do_promote(place, 1)
    for seed in (2, 3):
        add_version(place, seed)
    do_promote(place, 2)
    do_pull(place)


def _third_release(place: Place) -> None:
    do_promote(place, 3)


def _nothing(place: Place) -> None:
    pass


def _decided_only(place: Place) -> None:
    """The ledger says version 3, neither channel nor MLflow has followed."""
    try:
        do_promote(place, 3, _AwayChannel())
    except FollowUpError:
        place.registry.set_alias(MODEL, "champion", 2)
        return
    raise RuntimeError("a channel that is away should be told of")


def _without_mlflow(place: Place) -> None:
    """One release, one version that is only registered, and MLflow set up anew."""
    do_promote(place, 1)
    add_version(place, 2)
    do_pull(place)
    (place.folder / "mlflow.db").unlink()
    shutil.rmtree(place.folder / "mlruns")
    tracking_uri(place.folder)


def _without_channel(place: Place) -> None:
    for prefix in ("channel/", "releases/"):
        for key in place.store.list(prefix):
            place.store.delete(key)


STORIES: Mapping[str, Story] = {
    "first_promotion": Story(_new_desk, lambda place: do_promote(place, 1)),
    "promote": Story(_two_releases, lambda place: do_promote(place, 3), after="first_promotion"),
    "rollback": Story(_nothing, do_rollback, after="promote"),
    "pull": Story(_third_release, do_pull, after="promote"),
    "reconcile": Story(_decided_only, do_reconcile, after="promote"),
    "reconcile_empty_mlflow": Story(_without_mlflow, do_reconcile, after="first_promotion"),
    "reconcile_empty_channel": Story(_without_channel, do_reconcile, after="promote"),
}


def prepare(name: str, place: Place) -> None:
    """The state a story begins with, in a place that holds the state of the story it comes after, or nothing."""
    os.environ.update(ENVIRONMENT)
    if place.is_local:
        tracking_uri(place.folder)
    STORIES[name].prepare(place)


def act(name: str, place: Place, environment: Mapping[str, str]) -> str:
    """Do it; what it reports."""
    os.environ.update({**ENVIRONMENT, **environment})
    return repr(STORIES[name].act(place))


def traced(name: str, place: Place, mode: Mode, stop_at: int, log: Path | None, plant: str = "") -> str:
    """As `act`, with the tracer armed for everything below the place's folder; `plant` names a planted defect."""
    if plant:
        DEFECTS[plant]()
    arm(place.folder, mode, stop_at, log)
    try:
        return act(name, place, {})
    finally:
        disarm()


def warm_up() -> None:
    """Do everything once, SDKs included, so that forked processes find it imported, parsed and compiled."""
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        place = Place.local(Path(folder))
        prepare("first_promotion", place)
        do_promote(place, 1)
        do_pull(place)
        do_reconcile(place)
    for url in ("s3://chaos", "gs://chaos", "az://chaos"):
        with suppress(StoreError):  # without credentials; the SDK is imported by then
            open_store(url)
