"""The promises of a ledger: append-only, chained, one winner, and a state that follows from the events alone."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.canonical import canonical_json, sha256_hex
from serving.errors import LedgerError
from serving.events import EVENT_FIELDS, Event, event_key, parse_event
from serving.folder_store import FolderStore
from serving.ledger import GENESIS, Ledger, LedgerRaceError, State, fold

MODEL = "tiny"
PROCESSES = 8


def bundle_of(version: int) -> str:
    return sha256_hex(str(version).encode())


def add(ledger: Ledger, state: State, kind: str, version: int) -> State:
    details = {"passed": True} if kind == "gated" else {}
    return ledger.append(
        state, kind, version=version, bundle=bundle_of(version), by="me", reason="because", details=details
    )


def play(ledger: Ledger, story: str) -> State:
    """`r1 g1 p1 b1 x1`: registered, gated, promoted, rolled back to, retired."""
    kinds = {"r": "registered", "g": "gated", "p": "promoted", "b": "rolled_back", "x": "retired"}
    state = ledger.state()
    for word in story.split():
        state = add(ledger, state, kinds[word[0]], int(word[1:]))
    return state


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(FolderStore(tmp_path), MODEL)


def test_an_empty_ledger_has_a_state(ledger: Ledger) -> None:
    state = ledger.state()
    assert (state.seq, state.head, state.champion, state.release_number) == (0, GENESIS, None, 0)
    for channel in ("champion", "challenger"):
        with pytest.raises(LedgerError, match=f"no {channel} yet"):
            state.resolve(channel)


def test_a_life(ledger: Ledger) -> None:
    returned = play(ledger, "r1 g1 p1 r2 g2 p2 r3 g3 b1 x2")
    state = ledger.state()
    assert state == returned
    assert [(release.number, release.version, release.kind) for release in state.releases] == [
        (1, 1, "promoted"),
        (2, 2, "promoted"),
        (3, 1, "rolled_back"),
    ]
    assert state.resolve("champion").bundle == bundle_of(1)
    assert state.resolve("challenger").version == 3
    assert (state.retired, state.release_number, state.rollback_target) == (frozenset({2}), 3, None)
    with pytest.raises(LedgerError, match="no channel 'canary'"):
        state.resolve("canary")


def test_an_event_is_what_the_architecture_says(ledger: Ledger) -> None:
    play(ledger, "r1 g1")
    first, second = (ledger.store.get(event_key(MODEL, seq)) for seq in (1, 2))
    value = json.loads(second)
    assert second == canonical_json(value)
    assert set(value) == EVENT_FIELDS
    assert value["previous"] == sha256_hex(first)
    assert json.loads(first)["previous"] == GENESIS
    assert event_key(MODEL, 2) == "ledger/tiny/00000002.json"


@pytest.mark.parametrize(
    ("story", "target"),
    [
        ("r1 g1 p1", None),
        ("r1 g1 p1 r2 g2 p2", 1),
        ("r1 g1 p1 r2 g2 p2 b1", None),  # not back to 2, which was rolled back from
        ("r1 g1 p1 r2 g2 p2 r3 g3 p3 b2", 1),
        ("r1 g1 p1 r2 g2 p2 r3 g3 p3 x2", 1),
        ("r1 g1 p1 r2 g2 p2 p1", 2),
        ("r1 g1 p1 r2 g2 p2 p1 x2", None),  # the champion itself is no target
        ("r1 g1 p1 r2 g2 p2 p1 r3 g3 p3 b1", 2),
        ("r1 g1 p1 r2 g2 p2 b1 b2", 1),  # asked for by number
    ],
)
def test_rollback_target(ledger: Ledger, story: str, target: int | None) -> None:
    assert play(ledger, story).rollback_target == target


@pytest.mark.parametrize(
    ("story", "challenger"),
    [
        ("r1", None),
        ("r1 g1", 1),
        ("r1 g1 p1", None),
        ("r1 g1 p1 r2 g2 r3", 2),
        ("r1 g1 p1 r2 g2 r3 g3", 3),
        ("r1 g1 p1 r2 g2 r3 g3 x3", 2),
        ("r1 g1 p1 r2 g2 p2", None),  # 1 has been champion
        ("r1 g1 p1 r2 g2 p2 b1", None),  # so has 2
    ],
)
def test_challenger(ledger: Ledger, story: str, challenger: int | None) -> None:
    found = play(ledger, story).challenger
    assert (found.version if found else None) == challenger


@pytest.mark.parametrize(
    ("story", "wrong", "why"),
    [
        ("r1", "r1", "is registered already"),
        ("r1", "g2", "isn't registered"),
        ("r1", "p1", "hasn't passed its gates"),
        ("r1 g1 p1", "p1", "is the champion already"),
        ("r1 g1 p1", "x1", "is the champion;"),
        ("r1 g1 p1 r2 g2", "b2", "has never been champion"),
        ("r1 x1", "g1", "is retired"),
        ("r1 g1 p1 r2 g2 p2 x1", "b1", "is retired"),
    ],
)
def test_contradictions_are_refused_and_not_written(ledger: Ledger, story: str, wrong: str, why: str) -> None:
    before = play(ledger, story)
    with pytest.raises(LedgerError, match=f"^{event_key(MODEL, before.seq + 1)}: .*{why}"):
        play(ledger, wrong)
    assert ledger.state() == before


def test_a_bundle_has_one_version_and_a_version_one_bundle(ledger: Ledger) -> None:
    state = play(ledger, "r1")
    with pytest.raises(LedgerError, match="registered already, as version 1"):
        ledger.append(state, "registered", version=2, bundle=bundle_of(1), by="me")
    with pytest.raises(LedgerError, match="registered was"):
        ledger.append(state, "gated", version=1, bundle=bundle_of(2), by="me", details={"passed": True})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("version", True),
        ("version", "1"),
        ("bundle", "abc"),
        ("by", " "),
        ("kind", "blessed"),
        ("details", {"passed": float("nan")}),
        ("details", {"passed": "yes"}),
        ("details", {"passed": True, "big": "x" * (1 << 20)}),
    ],
)
def test_unusable_fields_are_refused_and_not_written(ledger: Ledger, field: str, value: object) -> None:
    state = play(ledger, "r1")
    fields = {"kind": "gated", "version": 1, "bundle": bundle_of(1), "by": "me", "details": {"passed": True}}
    arguments = {**fields, field: value}
    with pytest.raises(LedgerError, match=event_key(MODEL, 2)):
        ledger.append(state, str(arguments.pop("kind")), **arguments)  # type: ignore[arg-type]
    assert ledger.state() == state


def test_a_rollback_needs_a_reason(ledger: Ledger) -> None:
    state = play(ledger, "r1 g1 p1 r2 g2 p2")
    with pytest.raises(LedgerError, match="reason"):
        ledger.append(state, "rolled_back", version=1, bundle=bundle_of(1), by="me")


@pytest.mark.parametrize("name", ["", "Tiny", "a/b", "../x", "a.b", "x" * 64, "-a"])
def test_model_names_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(LedgerError, match="model name"):
        Ledger(FolderStore(tmp_path), name)


def test_the_loser_is_told_who_won(ledger: Ledger) -> None:
    state = play(ledger, "r1")
    ledger.append(state, "registered", version=2, bundle=bundle_of(2), by="alice")
    with pytest.raises(LedgerRaceError, match=r"00000002.json: alice .*registered version 2") as caught:
        ledger.append(state, "registered", version=3, bundle=bundle_of(3), by="bob")
    assert caught.value.winner.by == "alice"
    assert sorted(ledger.state().versions) == [1, 2]


def race(root: Path, barrier: Barrier, number: int) -> None:
    ledger = Ledger(FolderStore(root), MODEL)
    state = ledger.state()
    barrier.wait()
    try:
        ledger.append(state, "registered", version=number + 1, bundle=bundle_of(number + 1), by=f"worker {number}")
        outcome = "won"
    except LedgerRaceError as error:
        outcome = error.winner.by
    ledger.store.put(f"results/{number}", outcome.encode())


def test_of_eight_processes_one_appends(ledger: Ledger, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(PROCESSES)
    workers = [context.Process(target=race, args=(tmp_path, barrier, number)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    outcomes = [ledger.store.get(f"results/{number}").decode() for number in range(PROCESSES)]
    assert outcomes.count("won") == 1
    winner = f"worker {outcomes.index('won')}"
    assert outcomes.count(winner) == PROCESSES - 1
    assert [event.by for event in ledger.events()] == [winner]


# Tampering: the file changed is named, and what is wrong with it.

STORY = "r1 g1 p1 r2 g2 p2 b1"


def rewrite(ledger: Ledger, seq: int, changes: dict[str, object]) -> None:
    value = json.loads(ledger.store.get(event_key(MODEL, seq))) | changes
    ledger.store.put(event_key(MODEL, seq), canonical_json({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "named", "why"),
    [
        ({"reason": "another"}, 4, "previous is"),  # well formed: the next one's hash tells
        ({"previous": "0" * 64}, 3, "previous is"),
        ({"model": "other"}, 3, "model 'other'"),
        ({"seq": 4}, 3, "says it is event 4"),
        ({"format": 2}, 3, "format"),
        ({"kind": "deleted"}, 3, "kind"),
        ({"extra": 1}, 3, "unknown fields"),
        ({"by": None}, 3, "missing fields"),
        ({"at": "yesterday"}, 3, "unusable at"),
        ({"details": []}, 3, "details"),
    ],
)
def test_a_changed_event_is_refused(ledger: Ledger, changes: dict[str, object], named: int, why: str) -> None:
    play(ledger, STORY)
    rewrite(ledger, 3, changes)
    with pytest.raises(LedgerError, match=f"^{event_key(MODEL, named)}: .*{why}"):
        ledger.events()


def test_gaps_strangers_and_repetitions_are_refused(ledger: Ledger) -> None:
    play(ledger, STORY)
    whole = ledger.store.get(event_key(MODEL, 3))
    ledger.store.delete(event_key(MODEL, 3))
    with pytest.raises(LedgerError, match=r"00000003.json: is missing, yet there is .*00000004.json"):
        ledger.events()
    ledger.store.put(event_key(MODEL, 3), whole)
    ledger.store.put("ledger/tiny/notes.txt", b"")
    with pytest.raises(LedgerError, match=r"ledger/tiny/notes.txt: isn't an event"):
        ledger.events()
    ledger.store.delete("ledger/tiny/notes.txt")
    ledger.store.put(event_key(MODEL, 3), ledger.store.get(event_key(MODEL, 2)))
    with pytest.raises(LedgerError, match=r"00000003.json: says it is event 2"):
        ledger.events()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_shows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ledger = Ledger(FolderStore(tmp_path_factory.mktemp("store")), MODEL)
    before = play(ledger, STORY)
    key = event_key(MODEL, data.draw(st.integers(1, before.seq)))
    raw = bytearray(ledger.store.get(key))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    ledger.store.put(key, bytes(raw))
    try:
        after = ledger.state()
    except LedgerError:
        return
    # Only the last event can be changed into another well-formed one; then the head shows it.
    assert key == event_key(MODEL, before.seq)
    assert after.head != before.head


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | st.just(b"[" * 100_000))
def test_rubbish_is_a_ledger_error(raw: bytes) -> None:
    with pytest.raises(LedgerError, match=r"ledger/tiny/00000001.json: "):
        parse_event(raw, model=MODEL, seq=1)


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of allowed events: the fold agrees with a naive model and with itself from the store."""

    @initialize()
    def start(self) -> None:
        self.events: list[Event] = []
        self.state = State(MODEL)
        self.champions: list[int] = []
        self.versions: dict[int, str] = {}

    def try_event(self, kind: str, version: int, passed: bool = True) -> bool:
        event = Event(
            model=MODEL,
            seq=self.state.seq + 1,
            kind=kind,
            version=version,
            bundle=bundle_of(version),
            at="2026-01-01T00:00:00.000000Z",
            by="me",
            reason="because",
            previous=self.state.head,
            details={"passed": passed} if kind == "gated" else {},
        )
        try:
            self.state = fold(MODEL, [*self.events, event])
        except LedgerError:
            return False
        self.events.append(event)
        return True

    @rule(version=st.integers(1, 6))
    def register(self, version: int) -> None:
        assert self.try_event("registered", version) == (version not in self.versions)
        self.versions.setdefault(version, "registered")

    @rule(version=st.integers(1, 6), passed=st.booleans())
    def gate(self, version: int, passed: bool) -> None:
        if self.try_event("gated", version, passed):
            self.versions[version] = "passed" if passed else "failed"

    @rule(version=st.integers(1, 6))
    def promote(self, version: int) -> None:
        allowed = self.versions.get(version) == "passed" and self.champions[-1:] != [version]
        assert self.try_event("promoted", version) == allowed
        if allowed:
            self.champions.append(version)

    @precondition(lambda self: self.champions)
    @rule()
    def roll_back(self) -> None:
        target = self.state.rollback_target
        if target is not None:
            before = self.state.release_number
            assert target in self.champions
            assert target != self.champions[-1]
            assert self.try_event("rolled_back", target)
            assert self.state.release_number == before + 1
            self.champions.append(target)

    @rule(version=st.integers(1, 6))
    def retire(self, version: int) -> None:
        allowed = self.versions.get(version, "retired") != "retired" and self.champions[-1:] != [version]
        assert self.try_event("retired", version) == allowed
        if allowed:
            self.versions[version] = "retired"

    @invariant()
    def agrees(self) -> None:
        state = self.state
        assert [release.version for release in state.releases] == self.champions
        assert [release.number for release in state.releases] == list(range(1, len(self.champions) + 1))
        assert state.retired == {number for number, what in self.versions.items() if what == "retired"}
        assert state.champion is None or state.champion.version not in state.retired
        if state.challenger is not None:
            assert state.challenger.version not in self.champions
            assert self.versions[state.challenger.version] == "passed"
        assert state == fold(MODEL, self.events)

    @invariant()
    def rollbacks_end(self) -> None:
        """Rolling back again and again stops: nothing is gone back to twice."""
        saved = self.events[:], self.state
        for _ in range(len(self.champions) + 1):
            target = self.state.rollback_target
            if target is None:
                break
            assert self.try_event("rolled_back", target)
        else:
            pytest.fail("rollbacks go in circles")
        self.events, self.state = saved


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        State(MODEL).seq = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        State(MODEL).versions[1] = None  # type: ignore[index]
