"""Kill points where store and MLflow are servers: SIGKILL before a request gets there, and before its answer is back.

In: scenes, a cloud's store, MLflow's server. Out: one `Point` per kill, as in chaos_kills.py. A first run through the
proxies counts the requests that write, to store and MLflow together; each is then killed at twice.
Invariants: every kill begins with a store of its own, filled with the scene's bytes, and with the scene's MLflow
database; checks speak to the servers directly; a kill that didn't happen where it should is an error, not a pass.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_clouds import Cloud
from benchmarks.chaos_kills import Point, spread, told
from benchmarks.chaos_places import PACKS, Place
from benchmarks.chaos_proxy import Proxy, Trap, mlflow_writes, store_writes
from benchmarks.chaos_scenes import Scene
from benchmarks.chaos_seeds import Blobs, blobs_of, seed
from benchmarks.chaos_worker import ForkServer
from tests import shared_mlflow
from tests.tiny_registry import tracking_uri

HOST_FOLDERS = ("keys", "host", PACKS)


@dataclass
class Wire:
    """The servers with a proxy in front of each, and one trap for both."""

    cloud: Cloud
    mlflow: str
    database: Path
    trap: Trap
    store_proxy: Proxy
    mlflow_proxy: Proxy

    def place(self, source: Path, folder: Path, blobs: Blobs, database: Path) -> Place:
        """A place with keys and host of the folder `source`, these blobs in a new store, and this MLflow database.

        MLflow's server holds one place at a time.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in HOST_FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name, symlinks=True)
        place = Place(folder, self.cloud.new_store(), self.mlflow)
        seed(place.store, blobs)
        copy_database(database, self.database)
        return place

    def act(self, server: ForkServer, scene: Scene, place: Place, kill_at: int = 0, *, after: bool = False) -> bool:
        """The act through the proxies; whether it was killed."""
        self.trap.reset(kill_at, after=after)
        through = Place(place.folder, place.store_url, self.mlflow_proxy.url)
        environment = self.cloud.environment(self.store_proxy.url)

        def started(process: int) -> None:
            self.trap.client = process

        ended = server.call("benchmarks.chaos_acts:act", scene.name, through, environment, started=started)
        if ended.error or ended.late:
            raise RuntimeError(f"{scene.name}: {ended.words()}")
        return ended.killed


@contextmanager
def wired(clouds: Iterable[Cloud], folder: Path) -> Iterator[dict[str, Wire]]:
    """A wire per cloud, by its kind, until the block ends; they share one MLflow server, so only one may be in use."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        database = tracking_uri(folder)
        mlflow = stack.enter_context(shared_mlflow.running(folder, database, str(folder / "artifacts")))
        trap = Trap()
        mlflow_proxy = stack.enter_context(Proxy(mlflow.uri, mlflow_writes, trap))
        wires = {}
        for cloud in clouds:
            store_proxy = stack.enter_context(Proxy(cloud.endpoint, store_writes, trap))
            wires[cloud.kind] = Wire(cloud, mlflow.uri, folder / "mlflow.db", trap, store_proxy, mlflow_proxy)
        yield wires


def run_remote_kills(server: ForkServer, scene: Scene, wire: Wire, work: Path, share: float) -> Iterator[Point]:
    """The kill points of a scene, or this share of them, evenly spread."""
    start = scene.place.folder
    blobs = blobs_of(scene.place.store)
    wire.act(server, scene, wire.place(start, work / "recorded", blobs, start / "mlflow.db"))
    writes = list(wire.trap.writes)
    points = [(number, after) for number in range(1, len(writes) + 1) for after in (False, True)]
    for number, after in spread(points, share):
        place = wire.place(start, work / "killed", blobs, start / "mlflow.db")
        where = f"{'after' if after else 'before'} request {number} of {len(writes)}, {_named(writes[number - 1])}"
        if not wire.act(server, scene, place, number, after=after):
            raise RuntimeError(f"{scene.name}: should have been killed {where}")
        killed, left = place.folder, blobs_of(place.store)
        copy_database(wire.database, work / "killed.db")
        repaired = wire.place(killed, work / "left", left, work / "killed.db")
        repair = server.call("benchmarks.chaos_checks:check_repair", repaired, scene.before, scene.after)
        again = wire.place(killed, work / "again", left, work / "killed.db")
        repeat = server.call("benchmarks.chaos_checks:check_again", scene.name, again, scene.after)
        yield Point(scene.name, where, (*told(repair), *told(repeat)))


def copy_database(source: Path, target: Path) -> None:
    """Replace an SQLite database, also under a server that has it open, in one transaction."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _named(write: str) -> str:
    """A request without what differs in every run."""
    method, _, path = write.partition(" ")
    return f"{method} {path.partition('?')[0]}"
