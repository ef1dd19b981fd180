"""Races on one ledger: 2 to 8 long-lived processes that have all seen the same state decide at the same moment.

In: ledgers with registered versions, one per few races. Out: `Race`s, each with what is wrong with it.
Each process promotes, rolls back or registers; a barrier holds all of them at their first write to the ledger, after
everything they look at. Losers then publish the channel at the same time as the winner does, if there is one.
What must hold: exactly one succeeds; its event, and nothing of anybody else's decisions, is in the ledger; events are
numbered one after the other, chained, and none of those before has changed; every loser is told the event it lost to,
as it is in the ledger; no number is believed won by two.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks.chaos_defects import overwriting
from benchmarks.chaos_stand_ins import StillChannel, memory_registry
from serving.blobstore import BlobStore, open_store
from serving.errors import StrikeforgeError
from serving.events import Event
from serving.ledger import Ledger, LedgerRaceError, State, fold

LEAST, MOST = 2, 8
DEADLINE_SECONDS = 60.0
VERSIONS = 3  # registered with a bundle before the first race, 1 and 2 promoted
PER_GROUND = 5  # races on one ledger, which is read again and again and grows
ACTS = ("promote", "rollback", "register")


@dataclass(frozen=True)
class Task:
    """What one process does in one race; `by` is its name in it, used once."""

    act: str
    version: int
    by: str
    parties: int
    store_url: str
    model: str


@dataclass(frozen=True)
class Told:
    """What one process says of its race: success, the event it lost to, or an error; `keys` it believes its own."""

    task: Task
    succeeded: bool
    winner: Event | None
    error: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Race:
    """One race and everything wrong with it; `double_wins` counts numbers believed won by more than one."""

    number: int
    parties: int
    winner: str
    problems: tuple[str, ...]
    double_wins: int


class Meeting:
    """A store in which the first write to the ledger waits for all the others'; otherwise the store within."""

    def __init__(self, store: BlobStore, barrier: Barrier) -> None:
        self._store = store
        self._barrier: Barrier | None = barrier
        self.keys: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if not key.startswith("ledger/"):
            return self._store.put_if_absent(key, data)
        if self._barrier is not None:
            barrier, self._barrier = self._barrier, None
            barrier.wait(DEADLINE_SECONDS)
        won = self._store.put_if_absent(key, data)
        if won:
            self.keys.append(key)
        return won


@dataclass
class Racers:
    """The processes; started once, told what to do before each race."""

    barriers: dict[int, Barrier]
    pipes: list[Connection] = field(default_factory=list)
    processes: list[SpawnProcess] = field(default_factory=list)

    @classmethod
    def started(cls, plant: str = "") -> Racers:
        """All of them, ready; `plant` names a defect of their store (chaos_plants.py)."""
        context = multiprocessing.get_context("spawn")
        barriers = {parties: context.Barrier(parties) for parties in range(LEAST, MOST + 1)}
        racers = cls(barriers)
        for _ in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, barriers, plant), daemon=True)
            process.start()
            theirs.close()
            racers.pipes.append(ours)
            racers.processes.append(process)
        for pipe in racers.pipes:
            if not pipe.poll(2 * DEADLINE_SECONDS) or pipe.recv() != "ready":
                raise RuntimeError("a racing process didn't start")
        return racers

    def __enter__(self) -> Racers:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(DEADLINE_SECONDS)

    def run(self, tasks: Sequence[Task]) -> list[Told]:
        """One race. RuntimeError if a process says nothing."""
        used = self.pipes[: len(tasks)]
        for pipe, task in zip(used, tasks, strict=True):
            pipe.send(task)
        told = []
        for pipe in used:
            if not pipe.poll(2 * DEADLINE_SECONDS):
                raise RuntimeError("a racing process hangs")
            told.append(pipe.recv())
        barrier = self.barriers[len(tasks)]
        if barrier.broken:
            barrier.reset()
        return told


def run_races(
    count: int, grounds: Iterable[tuple[str, str]], racers: Racers, *, per_ground: int = PER_GROUND, seed: int = 1
) -> list[Race]:
    """`count` races; each of the `grounds` is a store's URL and a model with VERSIONS registered versions."""
    draw = random.Random(seed)
    races: list[Race] = []
    left = iter(grounds)
    while len(races) < count:
        url, model = next(left)
        store = open_store(url)
        events = Ledger(store, model).events()
        for _ in range(min(per_ground, count - len(races))):
            number = len(races) + 1
            tasks = _tasks(draw, number, url, fold(model, events))
            race, events = judged(number, store, model, events, racers.run(tasks))
            races.append(race)
            if race.problems:  # the ledger may be beyond use
                break
    return races


def _tasks(draw: random.Random, number: int, url: str, state: State) -> list[Task]:
    """Acts that are all allowed in this state, each by a name of its own."""
    parties = draw.randint(LEAST, MOST)
    champion = state.champion.version if state.champion else 0
    promotable = [version for version in state.versions if version != champion and version <= VERSIONS]
    former = [version for version, known in state.versions.items() if known.was_champion and version != champion]
    tasks = []
    for place in range(parties):
        act = draw.choice(ACTS)
        choices = {"promote": promotable, "rollback": former, "register": [max(state.versions) + 1]}[act]
        tasks.append(Task(act, draw.choice(choices), f"{act}-{number}-{place}", parties, url, state.model))
    return tasks


def judged(
    number: int, store: BlobStore, model: str, before: Sequence[Event], told: Sequence[Told]
) -> tuple[Race, list[Event]]:
    """The race with its problems, and the events there are now (none if the ledger is broken)."""
    problems = [f"{one.task.by}: {one.error}" for one in told if one.error is not None]
    try:
        events = Ledger(store, model).events()
        fold(model, events)
    except StrikeforgeError as error:
        events = []
        problems.append(f"the ledger is broken: {error}")
    if events[: len(before)] != list(before):
        problems.append("an event written before the race has changed or is lost")
    names = {one.task.by for one in told}
    decided = [event for event in events[len(before) :] if event.kind != "gated"]
    winners = [one.task.by for one in told if one.succeeded]
    if len(winners) != 1:
        problems.append(f"{len(winners)} of {len(told)} say they succeeded: {', '.join(winners)}")
    if [event.by for event in decided] != winners or any(event.by not in names for event in events[len(before) :]):
        problems.append(f"succeeded: {winners}; new in the ledger: {[(event.kind, event.by) for event in decided]}")
    for one in told:
        if one.winner is not None and (one.winner not in events or one.winner.by == one.task.by):
            problems.append(
                f"{one.task.by} was told it lost to {one.winner.by}, event {one.winner.seq}, which isn't so"
            )
    believed = [key for one in told for key in one.keys]
    double_wins = len(believed) - len(set(believed))
    if double_wins:
        problems.append(f"{double_wins} numbers were won twice: {sorted(believed)}")
    return Race(number, len(told), winners[0] if winners else "", tuple(problems), double_wins), events


def _work(pipe: Connection, barriers: dict[int, Barrier], plant: str) -> None:
    from pipelines import promote, rollback  # noqa: F401 (imported before the first race)

    pipe.send("ready")
    stores: dict[str, BlobStore] = {}
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if task.store_url not in stores:
            stores = {task.store_url: open_store(task.store_url)}
        store = stores[task.store_url]
        meeting = Meeting(overwriting(store) if plant == "overwrite" else store, barriers[task.parties])
        pipe.send(_told(task, meeting))


def _told(task: Task, meeting: Meeting) -> Told:
    winner, error, succeeded = None, None, False
    try:
        _act(task, meeting)
        succeeded = True
    except LedgerRaceError as lost:
        winner = lost.winner
    except threading.BrokenBarrierError:
        error = "never met the others at the ledger"
    except Exception as other:  # noqa: BLE001 (told to the judge of the race)
        error = f"{type(other).__name__}: {other}"
    return Told(task, succeeded, winner, error, tuple(meeting.keys))


def _act(task: Task, store: Any) -> None:
    from pipelines.promote import promote
    from pipelines.rollback import rollback

    ledger = Ledger(store, task.model)
    registry, channel = memory_registry(ledger), StillChannel()
    if task.act == "promote":
        promote(
            model=task.model, version=task.version, store=store, registry=registry, channel=channel, gates=(),
            by=task.by, approve_by="risk",
        )  # fmt: skip
    elif task.act == "rollback":
        rollback(
            model=task.model, to=task.version, reason=f"race {task.by}", store=store, registry=registry,
            channel=channel, by=task.by,
        )  # fmt: skip
    else:
        ledger.append(
            ledger.state(), "registered", version=task.version, bundle=os.urandom(32).hex(), by=task.by, details={}
        )
