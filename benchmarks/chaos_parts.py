"""The parts of the chaos put together: which scenes, which stores, how many of each, and the rows they give.

In: running servers (`Bench`), a share. Out: rows and failures in the report that is handed in.
Invariant: shares below 1 choose evenly spread points, and never none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_acts import STORIES
from benchmarks.chaos_clouds import Cloud, cloud
from benchmarks.chaos_kills import Point, run_kills
from benchmarks.chaos_kills_remote import run_remote_kills, wired
from benchmarks.chaos_outage import run_outages
from benchmarks.chaos_plants import run_plants
from benchmarks.chaos_power import run_cuts, run_kills_then_cut
from benchmarks.chaos_races import PER_GROUND, VERSIONS, Racers, run_races
from benchmarks.chaos_report import Report
from benchmarks.chaos_scenes import Scene, make_scenes
from benchmarks.chaos_seeds import racing_ground, seed
from benchmarks.chaos_trace import build
from benchmarks.chaos_worker import ForkServer
from serving.blobstore import open_store
from tests import forgeries

RACES = 200
FORGED = 500  # at least so many in a whole run
# An emptied MLflow is filled anew with one kind of store only: what is written is MLflow's, the same for all.
REMOTE = ("promote", "rollback", "reconcile", "reconcile_empty_channel", "reconcile_empty_mlflow")
CUT = ("first_promotion", "promote", "rollback", "pull", "reconcile_empty_channel")


SHOWN = 160  # characters of a problem in the table

Job = Callable[[ForkServer, Path], None]


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

    def all_at_once(self, jobs: Sequence[Job]) -> None:
        """Do every job, each with a server and a folder of its own; as many at once as there are servers."""
        free = list(self.servers)

        def work(job: Job) -> None:
            server = free.pop()
            try:
                job(server, Path(tempfile.mkdtemp(dir=self.folder)))
            finally:
                free.append(server)

        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(work, jobs))


def kills(bench: Bench, report: Report) -> None:
    """SIGKILL at every write of every story."""
    clouds = [cloud for kind, cloud in bench.clouds.items() if kind != "folder"]

    def remote(server: ForkServer, folder: Path) -> None:
        with wired(clouds, folder / "wired") as wires:
            for kind, wire in wires.items():
                for name in REMOTE:
                    if name != "reconcile_empty_mlflow" or kind == clouds[0].kind:
                        points = run_remote_kills(server, bench.scenes[name], wire, folder / kind, bench.share)
                        report.points("kill_points", kind, name, points)

    def local(name: str) -> Job:
        return lambda server, folder: report.points(
            "kill_points", "folder", name, run_kills(server, bench.scenes[name], folder, bench.share)
        )

    jobs: list[Job] = [remote] if clouds else []
    bench.all_at_once([*jobs, *([local(name) for name in STORIES] if "folder" in bench.clouds else [])])
    report.sum_points("kill_points")


def power(bench: Bench, report: Report) -> None:
    """Power cuts in the folder store and a host's folder."""

    def job(case: str, part: Callable[..., Iterable[Point]], name: str) -> Job:
        return lambda server, folder: report.points(
            case, "folder", name, part(server, bench.scenes[name], folder, bench.share)
        )

    bench.all_at_once([
        *(job("power_cuts", run_cuts, name) for name in CUT),
        *(job("kill_then_power_cut", run_kills_then_cut, name) for name in CUT),
    ])  # fmt: skip
    report.sum_points("power_cuts")
    report.sum_points("kill_then_power_cut")


def races(bench: Bench, report: Report) -> None:
    """Races over each store."""
    count = max(1, round(RACES * bench.share))
    grounds = {f"race-{number}": racing_ground(f"race-{number}", VERSIONS) for number in range(-(-count // PER_GROUND))}
    with Racers.started() as racers:
        for kind, where in bench.clouds.items():
            url = where.new_store()
            store = open_store(url)
            for blobs in grounds.values():
                seed(store, blobs)
            done = run_races(count, [(url, model) for model in grounds], racers)
            report.count("races", kind, "races", len(done))
            report.count("races", kind, "double_wins", sum(race.double_wins for race in done))
            wrong = [f"race {race.number}: {problem}" for race in done for problem in race.problems]
            report.count("races", kind, "inconsistent", sum(bool(race.problems) for race in done))
            report.fail("races", kind, wrong)


def outage(bench: Bench, report: Report) -> None:
    """MLflow away while something is decided."""

    def job(server: ForkServer, folder: Path) -> None:
        promote, rollback = bench.scenes["promote"], bench.scenes["rollback"]
        cases = [(promote, False), (rollback, True)]
        if bench.share == 1.0:
            cases += [(promote, True), (rollback, False)]
        report.points("mlflow_outage", "folder", "", run_outages(server, cases, folder))

    bench.all_at_once([job])
    report.sum_points("mlflow_outage")


def forged(bench: Bench, report: Report) -> None:
    """Spoilt stores offered to hosts."""
    every = forgeries.chosen(None)
    outcome = forgeries.run(max(1, round(len(every) * bench.share)))
    report.count("forged", "folder", "repositories", outcome.repositories)
    report.count("forged", "folder", "accepted", len(outcome.accepted))
    report.fail("forged", "folder", [*(f"accepted: {name}" for name in outcome.accepted), *outcome.wrong])
    if bench.share == 1.0 and outcome.repositories < FORGED:
        report.fail("forged", "folder", [f"only {outcome.repositories} forgeries, {FORGED} were promised"])


def plants(bench: Bench, report: Report) -> None:
    """Planted defects, all of them whatever the share."""

    def job(server: ForkServer, folder: Path) -> None:
        for one in run_plants(server, bench.scenes, folder):
            report.count("planted", one.defect, "caught", int(one.caught), sign=one.sign[:SHOWN])
            report.fail("planted", one.defect, [] if one.caught else ["wasn't noticed"])

    bench.all_at_once([job])
