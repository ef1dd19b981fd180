"""Promotion, rollback and reconcile under kills, power cuts, races and outages: a tenth of `make chaos-release`; and
that what judges them can tell right from wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.chaos_disk import Disk, Tree
from benchmarks.chaos_kills import kill_points, spread
from benchmarks.chaos_races import Task, Told, judged
from benchmarks.chaos_trace import Kind, Mode, Operation, arm, build, disarm, preloaded, read_log
from serving.events import Event
from serving.folder_store import FolderStore
from serving.ledger import Ledger

PROJECT = Path(__file__).parents[2]
STORES = ("folder", "s3", "gcs", "azure")


@pytest.mark.slow
@pytest.mark.cloud
def test_a_tenth_of_the_chaos_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos_release", "--share", "0.1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "chaos-release.jsonl").read_text().splitlines()]
    found = {(row["case"], row["subject"], row["metric"]): row["value"] for row in rows}
    for store in STORES:
        assert found["kill_points", store, "points"] >= 5
        assert found["kill_points", store, "inconsistent"] == 0
        assert (found["races", store, "races"], found["races", store, "double_wins"]) == (20, 0)
    assert found["forged", "folder", "repositories"] >= 50
    assert found["forged", "folder", "accepted"] == 0
    caught = {subject: value for (case, subject, _), value in found.items() if case == "planted"}
    assert set(caught.values()) == {1}
    assert {
        "no fsync", "put_if_absent overwrites", "engine packs named and not stored", "expiry ignored",
        "signature threshold ignored",
    } <= caught.keys()  # fmt: skip


# The disk after a power cut.


def operation(kind: Kind, path: str, second: str = "", content: bytes = b"", failed: bool = False) -> Operation:
    return Operation(kind, 1, 0o644, path, second, failed, content)


def disks(folder: Path, operations: Sequence[Operation]) -> list[Tree]:
    disk = Disk(folder)
    for each in operations:
        disk.apply(each)
    return [{name: leaf[0] for name, leaf in tree.items()} for _, tree in disk.worst()]  # type: ignore[misc]


def test_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_bytes(b"old")
    assert disks(tmp_path, []) == [{"folder": None, "folder/old": b"old"}]


def test_a_file_is_on_disk_when_it_and_its_name_are_synced(tmp_path: Path) -> None:
    made, file_synced, name_synced = (
        operation(Kind.CREATE, f"{tmp_path}/a"),
        operation(Kind.SYNC, f"{tmp_path}/a", content=b"all"),
        operation(Kind.SYNC, f"{tmp_path}"),
    )
    assert disks(tmp_path, [made]) == [{}, {"a": b""}]
    assert disks(tmp_path, [made, file_synced]) == [{}, {"a": b"all"}]
    assert disks(tmp_path, [made, name_synced]) == [{"a": b""}]
    assert disks(tmp_path, [made, file_synced, name_synced]) == [{"a": b"all"}]


def test_an_unsynced_rename_may_or_may_not_have_happened(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "place").write_bytes(b"old")
    moved = operation(Kind.RENAME, f"{tmp_path}/new", f"{tmp_path}/place")
    assert disks(tmp_path, [moved]) == [{"new": b"new", "place": b"old"}, {"place": b"new"}]
    failed = operation(Kind.RENAME, f"{tmp_path}/new", f"{tmp_path}/place", failed=True)
    assert disks(tmp_path, [failed]) == [{"new": b"new", "place": b"old"}]


def test_a_folder_is_lost_with_its_name_whatever_is_synced_in_it(tmp_path: Path) -> None:
    steps = [
        operation(Kind.MKDIR, f"{tmp_path}/f"),
        operation(Kind.CREATE, f"{tmp_path}/f/a"),
        operation(Kind.SYNC, f"{tmp_path}/f/a", content=b"all"),
        operation(Kind.SYNC, f"{tmp_path}/f"),
    ]
    assert disks(tmp_path, steps) == [{}, {"f": None, "f/a": b"all"}]


def test_names_of_two_folders_are_lost_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    steps = [operation(Kind.SYMLINK, f"{tmp_path}/{name}/link", "there") for name in ("one", "two")]
    here: Tree = {"one": None, "two": None}  # type: ignore[dict-item]
    only = [{**here, f"{name}/link": "there"} for name in ("one", "two")]
    found = disks(tmp_path, steps)
    assert len(found) == 4
    assert all(tree in found for tree in (here, {**only[0], **only[1]}, *only))


# The tracer.

WRITER = """
import os, sys
from pathlib import Path
from benchmarks.chaos_trace import Mode, arm, disarm
folder, mode, stop_at, log = Path(sys.argv[1]), Mode(int(sys.argv[2])), int(sys.argv[3]), Path(sys.argv[4])
(folder.parent / "outside").write_bytes(b"unseen")
arm(folder, mode, stop_at, log)
(folder / "a").write_bytes(b"0123456789")
os.replace(folder / "a", folder / "b")
(folder.parent / "outside").write_bytes(b"unseen")
disarm()
"""


def traced(folder: Path, mode: Mode, stop_at: int) -> tuple[int, list[Operation]]:
    inside, log = folder / "inside", folder / "log"
    inside.mkdir()
    command = [sys.executable, "-c", WRITER, str(inside), str(int(mode)), str(stop_at), str(log)]
    environment = {**preloaded(build(folder)), "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode, read_log(log)


def test_every_write_below_the_folder_is_seen(tmp_path: Path) -> None:
    code, operations = traced(tmp_path, Mode.RECORD, 0)
    assert code == 0
    assert [each.kind for each in operations] == [Kind.CREATE, Kind.WRITE, Kind.RENAME]
    assert [each.number for each in operations] == [1, 2, 3]
    assert operations[2].second == f"{tmp_path}/inside/b"


@pytest.mark.parametrize(
    ("mode", "stop_at", "left"),
    [
        (Mode.BEFORE, 1, {}),
        (Mode.BEFORE, 2, {"a": b""}),
        (Mode.HALF, 2, {"a": b"01234"}),
        (Mode.AFTER, 2, {"a": b"0123456789"}),
        (Mode.BEFORE, 3, {"a": b"0123456789"}),
        (Mode.AFTER, 3, {"b": b"0123456789"}),
    ],
)
def test_the_process_dies_exactly_there(tmp_path: Path, mode: Mode, stop_at: int, left: dict[str, bytes]) -> None:
    code, _ = traced(tmp_path, mode, stop_at)
    assert code == -9
    assert {path.name: path.read_bytes() for path in (tmp_path / "inside").iterdir()} == left


def test_arming_a_process_that_was_not_started_for_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="wasn't started with"):
        arm(tmp_path, Mode.RECORD)
    with pytest.raises(AttributeError):
        disarm()


def test_kill_points_are_before_after_and_in_the_middle_of_writes() -> None:
    operations = [
        Operation(Kind.CREATE, 1, 0, "store/a", "", False, b""),
        Operation(Kind.WRITE, 2, 0, "store/a", "", False, b""),
        Operation(Kind.SYNC, 2, 0, "store/a", "", False, b"x"),
        Operation(Kind.LINK, 3, 0, "store/a", "store/b", False, b""),
    ]
    points = [(mode.name, number) for mode, number, _ in kill_points(operations)]
    assert points == [
        ("BEFORE", 1), ("AFTER", 1), ("BEFORE", 2), ("HALF", 2), ("AFTER", 2), ("BEFORE", 3), ("AFTER", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("share", "chosen"), [(1.0, list(range(10))), (0.2, [2, 7]), (0.01, [5])])
def test_a_share_is_spread_evenly_and_never_nothing(share: float, chosen: list[int]) -> None:
    assert spread(list(range(10)), share) == chosen


# The judge of races.


def appended(store: FolderStore, by: str) -> Event:
    ledger = Ledger(store, "tiny")
    state = ledger.state()
    ledger.append(state, "registered", version=state.seq + 1, bundle=os.urandom(32).hex(), by=by)
    return ledger.events()[-1]


def told(by: str, *, winner: Event | None = None, keys: tuple[str, ...] = ()) -> Told:
    task = Task("register", 1, by, 2, "", "tiny")
    return Told(task, winner is None, winner, None, keys)


def test_a_race_with_one_winner_is_fine(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    won = appended(store, "a")
    race, _ = judged(1, store, "tiny", [], [told("a", keys=(won.key,)), told("b", winner=won)])
    assert (race.problems, race.winner, race.double_wins) == ((), "a", 0)


def test_two_winners_are_noticed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    won = appended(store, "b")
    race, _ = judged(1, store, "tiny", [], [told("a", keys=(won.key,)), told("b", keys=(won.key,))])
    assert race.double_wins == 1
    assert any("2 of 2 say they succeeded" in problem for problem in race.problems)


def test_a_loser_told_of_somebody_else_is_noticed(tmp_path: Path) -> None:
    won = appended(FolderStore(tmp_path / "here"), "a")
    other = appended(FolderStore(tmp_path / "elsewhere"), "somebody else")
    store = FolderStore(tmp_path / "here")
    race, _ = judged(1, store, "tiny", [], [told("a", keys=(won.key,)), told("b", winner=other)])
    assert any("which isn't so" in problem for problem in race.problems)


def test_a_lost_event_is_noticed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    before = [appended(store, "earlier")]
    store.delete(before[0].key)
    won = appended(store, "a")
    race, _ = judged(1, store, "tiny", before, [told("a", keys=(won.key,))])
    assert any("has changed or is lost" in problem for problem in race.problems)
