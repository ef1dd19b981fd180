"""Planted defects: each one must turn the part of the chaos that guards against it red.

In: scenes and a fork server. Out: `Caught` per defect, with what was seen. Defects and how they are planted:
chaos_defects.py. Invariant: a defect lives in one forked process or one set of racing processes, never in this one.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_defects import DEFECTS
from benchmarks.chaos_kills import told
from benchmarks.chaos_places import MODEL, Place, copy_local
from benchmarks.chaos_power import run_cuts
from benchmarks.chaos_races import VERSIONS, Racers, run_races
from benchmarks.chaos_scenes import Scene
from benchmarks.chaos_seeds import racing_ground, seed
from benchmarks.chaos_trace import Mode
from benchmarks.chaos_worker import ForkServer
from serving.blobstore import open_store
from tests import forgeries, forgeries_metadata

OVERWRITES = "put_if_absent overwrites"
RACES = 5
CUTS = 0.1
IN_ACTS = {
    "reconcile skips the channel": "promote",
    "rollback uses a release number again": "rollback",
    "engine packs named and not stored": "promote",
}
IN_HOSTS = ("expiry ignored", "signature threshold ignored")


@dataclass(frozen=True)
class Caught:
    """Whether a defect was noticed, and the first thing that gave it away."""

    defect: str
    caught: bool
    sign: str


def run_plants(server: ForkServer, scenes: Mapping[str, Scene], work: Path) -> Iterator[Caught]:
    """Plant each of them; needs the scenes `promote` and `rollback`."""
    cuts = run_cuts(server, scenes["promote"], work / "cuts", CUTS, "no fsync")
    yield _judged("no fsync", itertools.chain.from_iterable(point.problems for point in cuts))
    yield _judged(OVERWRITES, _overwriting(work / "races"))
    for defect, story in IN_ACTS.items():
        yield _judged(defect, _planted(server, scenes[story], work / "planted", defect))
    for defect in IN_HOSTS:
        ended = server.call("benchmarks.chaos_plants:accepted_under", defect)
        yield _judged(defect, ended.value())


def accepted_under(defect: str) -> list[str]:
    """Expired and wrongly signed stores that a host with this defect accepts."""
    DEFECTS[defect]()
    outcome = forgeries.Outcome()
    for forgery in (*forgeries_metadata.expired(), *forgeries_metadata.wrong_signatures()):
        forgeries.offer(forgery, outcome)
    return [f"a host accepts {name}" for name in outcome.accepted]


def _judged(defect: str, problems: Iterable[str]) -> Caught:
    sign = next(iter(problems), "")
    return Caught(defect, bool(sign), sign)


def _planted(server: ForkServer, scene: Scene, folder: Path, defect: str) -> Iterator[str]:
    """The act and the check of it, both with the defect."""
    shutil.rmtree(folder, ignore_errors=True)
    place = copy_local(scene.place, Place.local(folder))
    acted = server.call("benchmarks.chaos_acts:traced", scene.name, place, Mode.RECORD, 0, None, defect)
    if not acted.returned:
        yield acted.words()
    yield from told(server.call("benchmarks.chaos_checks:check_repair", place, scene.before, scene.after, defect))


def _overwriting(folder: Path) -> Iterator[str]:
    ground = racing_ground(MODEL, VERSIONS)
    stores = [folder / str(number) for number in range(RACES)]
    for store in stores:
        seed(open_store(store), ground)
    with Racers.started("overwrite") as racers:
        for race in run_races(RACES, [(str(store), MODEL) for store in stores], racers, per_ground=1):
            yield from race.problems
