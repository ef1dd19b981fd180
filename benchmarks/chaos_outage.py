"""MLflow's server killed in the middle of a decision, and away from the start: the decision stands.

In: scenes whose act decides something. Out: a `Point` per outage. A real server process gets SIGKILL when the first
request reaches it after the decision is in the ledger; then the act must end with exit code 13, hosts must get the new
release without MLflow, and `reconcile` must complete everything once the server is back.
Invariant: the outage is exactly where it is said to be; a server that was never asked is an error, not a pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos_checks import Facts
from benchmarks.chaos_kills import Point, told
from benchmarks.chaos_kills_remote import copy_database
from benchmarks.chaos_places import MODEL, Place, copy_local
from benchmarks.chaos_proxy import Proxy, Trap
from benchmarks.chaos_scenes import Scene
from benchmarks.chaos_worker import ForkServer
from pipelines.errors import FollowUpError
from serving.ledger import Ledger
from tests import shared_mlflow
from tests.tiny_registry import tracking_uri


def run_outages(server: ForkServer, cases: Iterable[tuple[Scene, bool]], work: Path) -> Iterator[Point]:
    """Each a scene and whether MLflow is away all the time; else it dies right after the decision."""
    folder = work / "mlflow"
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        database = tracking_uri(folder)
        mlflow = stack.enter_context(shared_mlflow.running(folder, database, str(folder / "artifacts")))
        trap = Trap()
        proxy = stack.enter_context(Proxy(mlflow.uri, lambda method, path: True, trap))
        for scene, away in cases:
            shutil.rmtree(work / "place", ignore_errors=True)
            local = copy_local(scene.place, Place.local(work / "place"))
            copy_database(local.folder / "mlflow.db", folder / "mlflow.db")
            if away:
                mlflow.kill()
            yield _outage(server, scene, local, mlflow, proxy, away=away)


def _outage(
    server: ForkServer, scene: Scene, local: Place, mlflow: shared_mlflow.Server, proxy: Proxy, *, away: bool
) -> Point:
    decided = len(scene.after.events)
    died: list[str] = []

    def arrived(number: int, what: str) -> None:
        if not died and not away and len(Ledger(local.store, MODEL).events()) == decided:
            mlflow.kill()
            died.append(what)

    proxy.trap.reset()
    proxy.trap.on_write = arrived
    place = Place(local.folder, local.store_url, proxy.url)
    ended = server.call("benchmarks.chaos_acts:act", scene.name, place, {})
    proxy.trap.on_write = None
    problems = []
    if not (died or away):
        raise RuntimeError(f"{scene.name}: MLflow was never asked after the decision; {ended.words()}")
    if ended.exit_code != FollowUpError.exit_code:
        problems.append(f"should have ended with {FollowUpError.exit_code}: {ended.exit_code}, {ended.words()}")
    now: Facts = server.call("benchmarks.chaos_checks:facts", local).value()
    if now.decisions != scene.after.decisions:
        problems.append(f"the decision doesn't stand: {now.decisions}")
    if now.fresh != scene.after.fresh:
        problems.append(f"a host gets {now.fresh} while MLflow is away")
    mlflow.start()
    problems += told(server.call("benchmarks.chaos_checks:check_repair", place, scene.before, scene.after))
    where = "MLflow away from the start" if away else "MLflow killed after the decision"
    return Point(scene.name, where, tuple(problems))
