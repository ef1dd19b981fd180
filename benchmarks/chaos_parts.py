"""The parts of the chaos put together: which scenes, which stores, how many of each, and the rows they give.

In: running servers (`Bench`), a share. Out: rows and failures in the report that is handed in.
Invariant: shares below 1 choose evenly spread points, and never none.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.chaos_acts import STORIES
from benchmarks.chaos_clouds import Cloud, cloud
from benchmarks.chaos_kills import Point, run_kills
from benchmarks.chaos_kills_remote import Wired, run_remote_kills
from benchmarks.chaos_outage import run_outages
from benchmarks.chaos_places import MODEL
from benchmarks.chaos_plants import run_plants
from benchmarks.chaos_power import run_cuts, run_kills_then_cut
from benchmarks.chaos_races import VERSIONS, Racers, run_races
from benchmarks.chaos_scenes import Scene, make_scenes
from benchmarks.chaos_seeds import racing_ground, seed
from benchmarks.chaos_trace import build
from benchmarks.chaos_worker import ForkServer
from serving.blobstore import open_store
from tests import forgeries

if TYPE_CHECKING:
    from benchmarks.chaos_release import Report

RACES = 200
FORGED = 500  # at least so many in a whole run
DECIDING = ("promote", "rollback")
REMOTE = ("promote", "rollback", "reconcile", "reconcile_empty_channel", "reconcile_empty_mlflow")
MLFLOW_REBUILT_ON = "s3"  # emptied MLflow is filled from a store's bundles: what is written is the same for all stores
CUT = ("first_promotion", "promote", "rollback", "pull", "reconcile_empty_channel")


@dataclass(frozen=True)
class Bench:
    """Fork servers (one per core), the scenes, and the clouds asked for, all running."""

    servers: Sequence[ForkServer]
    scenes: dict[str, Scene]
    clouds: dict[str, Cloud]
    folder: Path
    share: float

    @classmethod
    def started(cls, stack: ExitStack, folder: Path, stores: Sequence[str], share: float) -> Bench:
        """Everything lives until the stack unwinds."""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        clouds = {kind: stack.enter_context(cloud(kind, folder / "folder-stores")) for kind in stores}
        library = build(folder)
        servers = [
            stack.enter_context(ForkServer(library, folder / f"server-{number}.log"))
            for number in range(len(os.sched_getaffinity(0)))
        ]
        scenes = make_scenes(servers[0], folder / "scenes", list(STORIES))
        return cls(servers, scenes, clouds, folder, share)

    def spread_over_servers(self, jobs: Sequence[Callable[[ForkServer, Path], list[Point]]]) -> list[list[Point]]:
        """Every job, each with a server and a folder of its own; as many at once as there are servers."""
        free = list(self.servers)

        def work(numbered: tuple[int, Callable[[ForkServer, Path], list[Point]]]) -> list[Point]:
            number, job = numbered
            server = free.pop()
            try:
                return job(server, self.folder / f"job-{number}")
            finally:
                free.append(server)

        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(work, enumerate(jobs)))
