"""Power cuts: an act in a folder store (or a host's folder) replayed onto the worst disks a cut may leave.

In: scenes. Out: a `Point` per different disk, with what chaos_checks.py found wrong. Two kinds:
    cut      anywhere in the act; MLflow's database is whatever the same cut leaves of it
    kill     a process is killed anywhere, the same act typed again reports success, then the power goes: what the
             second run found lying there from the first must be as safe as what it wrote itself
Invariants: what was reported as done before the cut must be in the ledger after it; disks differ from one another.
Cuts in the middle of SQLite's own transactions aren't tried: that is SQLite's promise, not ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos_disk import Disk, Tree, write_tree
from benchmarks.chaos_kills import Point, checked, spread, told
from benchmarks.chaos_places import Place, copy_local, rebase
from benchmarks.chaos_scenes import Scene
from benchmarks.chaos_trace import Kind, Mode, Operation, read_log
from benchmarks.chaos_worker import ForkServer

MLFLOW = ("mlflow.db", "mlruns")


def run_cuts(server: ForkServer, scene: Scene, work: Path, share: float, plant: str = "") -> Iterator[Point]:
    """Power cuts in the story's act: after its end, and this share of the different disks before, evenly spread."""
    place = _fresh(scene, work / "recorded")
    disk = Disk(place.folder)
    operations = _run(server, scene, place, Mode.RECORD, 0, work / "log", plant)
    cuts = [cut for cut in disk.cuts(operations) if cut[0] is None or not _within_mlflow(cut[0], place)]
    for name, tree in disk.worst():
        yield _point(server, scene, work, f"after the end, {name}", tree, place, reported=True)
    for operation, name, tree in spread(cuts, share):
        after = f"after {_what(operation, place)}" if operation else "before anything"
        yield _point(server, scene, work, f"cut {after}, {name}", tree, place, reported=False)


def run_kills_then_cut(server: ForkServer, scene: Scene, work: Path, share: float) -> Iterator[Point]:
    """Kill after a write, before anything is synced; act again; cut the power: this share of the writes, spread."""
    place = _fresh(scene, work / "recorded")
    operations = _run(server, scene, place, Mode.RECORD, 0, work / "log", "")
    writes = [each for each in operations if each.kind is not Kind.SYNC and not _within_mlflow(each, place)]
    for write in spread(writes, share):
        place = _fresh(scene, work / "recorded")
        disk = Disk(place.folder)
        for mode, stop_at in ((Mode.AFTER, write.number), (Mode.RECORD, 0)):
            for operation in _run(server, scene, place, mode, stop_at, work / "log", ""):
                disk.apply(operation)
        name, tree = next(disk.worst())
        where = f"killed after {_what(write, place)}, typed again, then cut, {name}"
        left = _written(tree, work / "left", place)
        problems = [
            *told(server.call("benchmarks.chaos_checks:check_reported", left, scene.after)),
            *told(server.call("benchmarks.chaos_checks:check_repair", left, scene.before, scene.after)),
        ]
        yield Point(scene.name, where, tuple(problems))


def _fresh(scene: Scene, folder: Path) -> Place:
    shutil.rmtree(folder, ignore_errors=True)
    return copy_local(scene.place, Place.local(folder))


def _run(
    server: ForkServer, scene: Scene, place: Place, mode: Mode, stop_at: int, log: Path, plant: str
) -> list[Operation]:
    """The operations of one run of the act, ended as asked for."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    ended = server.call("benchmarks.chaos_acts:traced", scene.name, place, mode, stop_at, log, plant)
    if ended.killed != (mode is not Mode.RECORD) or ended.late or ended.error:
        raise RuntimeError(f"{scene.name}: {mode.name} {stop_at}: {ended.words()}")
    return read_log(log)


def _point(
    server: ForkServer, scene: Scene, work: Path, where: str, tree: Tree, source: Place, *, reported: bool
) -> Point:
    """Check the disk twice: one copy is reconciled, in one the act is typed again."""
    left, again = (_written(tree, work / name, source) for name in ("left", "again"))
    problems: tuple[str, ...] = ()
    if reported:
        problems = told(server.call("benchmarks.chaos_checks:check_reported", left, scene.after))
    return Point(scene.name, where, (*problems, *checked(server, scene, left, again)))


def _written(tree: Tree, folder: Path, source: Place) -> Place:
    """The disk in a folder, with MLflow's paths leading there."""
    shutil.rmtree(folder, ignore_errors=True)
    write_tree(tree, folder)
    rebase(folder / "mlflow.db", {source.folder.as_uri(): folder.as_uri()})
    return Place.local(folder)


def _what(operation: Operation, place: Place) -> str:
    path = operation.second if operation.kind in (Kind.LINK, Kind.RENAME) else operation.path
    return f"{operation.kind.name.lower()} {path.removeprefix(f'{place.folder.resolve()}/')}"


def _within_mlflow(operation: Operation, place: Place) -> bool:
    return operation.path.removeprefix(f"{place.folder.resolve()}/").startswith(MLFLOW)
