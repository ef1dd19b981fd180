"""Kill points in a folder store with SQLite's MLflow: SIGKILL before, in the middle of and after every write.

In: scenes. Out: one `Point` per kill, with what chaos_checks.py found wrong. A first run records the writes of the act,
every one below the place's folder as libc saw it: the store's, MLflow's database and files, the signing keys'.
Invariants: each kill happens in a process of its own, in a fresh copy of the scene; one that didn't happen where it
should is an error, not a pass. Of a transaction of SQLite's, the journal's making, the database's first page and the
commit (the journal's removal) are killed at, not every page.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.chaos_places import Place, copy_local
from benchmarks.chaos_scenes import Scene
from benchmarks.chaos_trace import Kind, Mode, Operation, read_log
from benchmarks.chaos_worker import Ended, ForkServer

DATABASE = "mlflow.db"
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One kill and what was wrong afterwards."""

    story: str
    where: str
    problems: tuple[str, ...]


def recorded(server: ForkServer, scene: Scene, work: Path) -> list[Operation]:
    """The operations of an undisturbed act."""
    place = copy_local(scene.place, Place.local(work / "recorded"))
    log = work / "log"
    log.unlink(missing_ok=True)
    server.call("benchmarks.chaos_acts:traced", scene.name, place, Mode.RECORD, 0, log).value()
    shutil.rmtree(place.folder)
    return [_relative(operation, place.folder) for operation in read_log(log)]


def kill_points(operations: Sequence[Operation]) -> list[tuple[Mode, int, str]]:
    """Every kill: before and after each write, and in the middle of those that have one."""
    points = []
    writes = [operation for operation in operations if operation.kind is not Kind.SYNC]
    for before, write in zip([None, *writes], writes, strict=False):
        if _inside_transaction(before, write):
            continue
        what = f"{write.kind.name.lower()} {write.path} (number {write.number})"
        points.append((Mode.BEFORE, write.number, f"before {what}"))
        if write.kind is Kind.WRITE:
            points.append((Mode.HALF, write.number, f"in the middle of {what}"))
        points.append((Mode.AFTER, write.number, f"after {what}"))
    return points


def run_kill(server: ForkServer, scene: Scene, work: Path, point: tuple[Mode, int, str]) -> Point:
    """Kill there, copy what is left, check both copies."""
    mode, number, where = point
    left, again = Place.local(work / "left"), Place.local(work / "again")
    for place in (left, again):
        shutil.rmtree(place.folder, ignore_errors=True)
    copy_local(scene.place, left)
    killed = server.call("benchmarks.chaos_acts:traced", scene.name, left, mode, number, None)
    if not killed.killed or killed.late:
        raise RuntimeError(f"{scene.name}: should have been killed {where}; it {killed.words()}")
    copy_local(left, again)
    return Point(scene.name, where, checked(server, scene, left, again))


def checked(server: ForkServer, scene: Scene, left: Place, again: Place) -> tuple[str, ...]:
    """What is wrong with the two copies of what was left: one is reconciled, in one the act is typed again."""
    return (
        *told(server.call("benchmarks.chaos_checks:check_repair", left, scene.before, scene.after)),
        *told(server.call("benchmarks.chaos_checks:check_again", scene.name, again, scene.after)),
    )


def told(ended: Ended) -> tuple[str, ...]:
    """The problems a check found; that it didn't end well is one."""
    return tuple(ended.result) if ended.returned else (f"the check {ended.words()}",)


def run_kills(server: ForkServer, scene: Scene, work: Path, share: float) -> Iterator[Point]:
    """The kill points of a scene, or this share of them, evenly spread."""
    work.mkdir(parents=True, exist_ok=True)
    for point in spread(kill_points(recorded(server, scene, work)), share):
        yield run_kill(server, scene, work, point)
    for name in ("left", "again"):
        shutil.rmtree(work / name, ignore_errors=True)


def spread(items: Sequence[T], share: float) -> list[T]:
    """This share of the items, evenly spread; at least one."""
    count = max(1, round(len(items) * share))
    return [items[int((place + 0.5) * len(items) / count)] for place in range(count)]


def _inside_transaction(before: Operation | None, write: Operation) -> bool:
    """Whether it is one of many pages of one transaction of SQLite's, of which the first of the database is enough."""
    if write.kind not in (Kind.WRITE, Kind.TRUNCATE) or not write.path.startswith(DATABASE):
        return False
    return write.path != DATABASE or (before is not None and (before.kind, before.path) == (write.kind, write.path))


def _relative(operation: Operation, folder: Path) -> Operation:
    """With its path below the folder, for people to read."""
    return dataclasses.replace(operation, path=operation.path.removeprefix(f"{folder.resolve()}/"))
