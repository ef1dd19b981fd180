"""History shows every event, whole or broken, and what people typed does no harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import command, history
from pipelines.ledger_walk import walk
from serving.canonical import canonical_json, sha256_hex
from serving.errors import LedgerError
from serving.events import event_key
from serving.folder_store import FolderStore
from serving.ledger import Ledger, fold
from serving.release import report_key
from tests.tiny_bundle import HASH

REPORT = "9a" * 32


def story(folder: Path) -> Ledger:
    """Two versions; 1 promoted, 2 refused, then promoted, rolled back, retired."""
    ledger = Ledger(FolderStore(folder / "store"), "pricing_lstm")
    state = ledger.state()
    bundles = {1: "11" * 32, 2: "22" * 32}
    passed, failed = {"passed": True, "report": REPORT}, {"passed": False, "report": HASH}
    decided = {"gate_report": REPORT, "approve_by": "ann"}
    for kind, version, reason, details in (
        ("registered", 1, "", {}), ("gated", 1, "", passed), ("promoted", 1, "first", decided),
        ("registered", 2, "", {}),
        ("gated", 2, "", failed), ("gated", 2, "", passed), ("promoted", 2, "better", decided),
        ("rolled_back", 1, "worse", {**decided, "from": 2}), ("retired", 2, "never again", {}),
    ):  # fmt: skip
        state = ledger.append(
            state, kind, version=version, bundle=bundles[version], by="ben", reason=reason, details=details
        )
    return ledger


def overrides(ledger: Ledger, *more: str) -> list[str]:
    assert isinstance(ledger.store, FolderStore)
    return [f"storage.url={ledger.store.root}", "registry.tracking_uri=unused", f"model={ledger.model}", *more]


def test_every_event_is_there_with_its_release_and_verdict(tmp_path: Path) -> None:
    ledger = story(tmp_path)
    found = history.history(ledger.model, ledger.store)
    events = ledger.events()
    assert [(line.seq, line.kind, line.version, line.at, line.by, line.reason) for line in found.lines] == [
        (event.seq, event.kind, event.version, event.at, event.by, event.reason) for event in events
    ]
    releases = {release.seq: release.number for release in fold(ledger.model, events).releases}
    assert {line.seq: line.release for line in found.lines if line.release} == releases == {3: 1, 7: 2, 8: 3}
    assert [line.verdict for line in found.lines if line.kind == "gated"] == ["passed", "failed", "passed"]
    assert [line.approved_by for line in found.lines if line.release] == ["ann"] * 3
    assert [line.event_sha256 for line in found.lines] == [sha256_hex(event.to_bytes()) for event in events]
    assert found.lines[4].gate_report == HASH
    assert (found.problems, found.head) == ((), ledger.state().head)


def stored_report(ledger: Ledger, *outcomes: tuple[str, bool, bool]) -> dict[str, object]:
    """Details of a `gated` event whose report, with (name, passed, asked) of each gate, lies in the store."""
    listed = [{"name": name, "passed": passed, "asked": asked} for name, passed, asked in outcomes]
    raw = canonical_json({"outcomes": listed})
    ledger.store.put(report_key(sha256_hex(raw)), raw)
    return {"passed": all(passed for _, passed, _ in outcomes), "report": sha256_hex(raw)}


def test_gates_that_said_no_or_werent_asked_are_named(tmp_path: Path) -> None:
    ledger = Ledger(FolderStore(tmp_path / "store"), "pricing_lstm")
    state = ledger.append(ledger.state(), "registered", version=1, bundle=HASH, by="ben", reason="", details={})
    for details in (
        stored_report(ledger, ("size", True, True)),
        stored_report(ledger, ("accuracy", False, True), ("clean", True, False), ("size", False, True)),
        stored_report(ledger, ("size", True, True), ("clean", True, False)),
        {"passed": True, "report": REPORT},
    ):
        state = ledger.append(state, "gated", version=1, bundle=HASH, by="ben", reason="", details=details)
    found = history.history(ledger.model, ledger.store)
    assert [line.gates_shown for line in found.lines] == [
        "", "passed", "failed: accuracy, size (not asked: clean)", "passed (not asked: clean)",
        "passed (its report can't be read)",
    ]  # fmt: skip
    assert json.loads(found.as_json)["lines"][2]["failing"] == ["accuracy", "size"]


def test_a_rollback_shows_where_it_came_from_and_went(tmp_path: Path) -> None:
    """`rolled_back` names the version that is champion now; alone it would look like the one that went."""
    ledger = story(tmp_path)
    (line,) = (line for line in history.history(ledger.model, ledger.store).lines if line.kind == "rolled_back")
    assert (line.version, line.came_from, line.version_shown) == (1, 2, "2 -> 1")


def test_as_text_and_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = story(tmp_path)
    assert command.operation(history.__doc__, history.run, overrides(ledger)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 9 + 1
    assert "ben (approved by ann)" in lines[4]
    assert lines[-1].startswith("chain whole")
    assert command.operation(history.__doc__, history.run, overrides(ledger, "json=true")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["whole"] is True
    assert [line["kind"] for line in told["lines"]][-1] == "retired"


def test_a_broken_chain_is_shown_to_its_end_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = story(tmp_path)
    key = event_key(ledger.model, 3)
    ledger.store.put(key, ledger.store.get(key).replace(b'"first"', b'"forst"'))
    found = history.history(ledger.model, ledger.store)
    assert len(found.lines) == 9
    assert found.problems[0].startswith(f"{event_key(ledger.model, 4)}: previous is")
    assert [line.release for line in found.lines if line.kind == "promoted"] == [1, None], "none is claimed past it"
    for more in ((), ("json=true",)):
        assert command.operation(history.__doc__, history.run, overrides(ledger, *more)) == LedgerError.exit_code
        told = capsys.readouterr()
        assert "never again" in told.out
        assert "the chain is broken: ledger/pricing_lstm/00000004.json" in told.err
    assert json.loads(told.out)["whole"] is False


def test_no_ledger_is_named_and_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"storage.url={tmp_path}/none", "registry.tracking_uri=unused"]
    assert command.operation(history.__doc__, history.run, arguments) == LedgerError.exit_code
    assert "is it the right store?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_hostile_words_stay_on_their_line(tmp_path: Path) -> None:
    ledger = Ledger(FolderStore(tmp_path), "tiny")
    state = ledger.state()
    ledger.append(state, "registered", version=1, bundle=HASH, by="b\x1b[2J\nroot", reason="x\n::error::\u2028\u202e")
    message = history.history("tiny", ledger.store).message
    assert message.replace("\n", "").isprintable()
    assert len(message.splitlines()) == 4


DAMAGE = ("flip", "cut", "remove", "swap", "stray", "empty")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_walk_finds_nothing_exactly_where_the_ledger_finds_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Against serving/ledger.py, which hosts and acts use: both accept, or both refuse."""
    ledger = story(tmp_path_factory.mktemp("walk"))
    store, model = ledger.store, ledger.model
    for _ in range(data.draw(st.integers(0, 2))):
        keys = store.list(f"ledger/{model}/")
        key = data.draw(st.sampled_from(keys))
        raw = store.get(key)
        kind = data.draw(st.sampled_from(DAMAGE))
        if kind == "flip" and raw:
            at = data.draw(st.integers(0, len(raw) - 1))
            store.put(key, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        elif kind == "cut":
            store.put(key, raw[: data.draw(st.integers(0, len(raw)))])
        elif kind == "remove" and len(keys) > 1:
            store.delete(key)
        elif kind == "swap":
            other = data.draw(st.sampled_from(keys))
            store.put(key, store.get(other))
        elif kind == "stray":
            store.put(f"ledger/{model}/{data.draw(st.sampled_from(['note.txt', '00000099.json']))}", raw)
        elif kind == "empty":
            store.put(key, b"")
    found = walk(store, model)
    try:
        state = ledger.state()
    except LedgerError:
        assert found.problems
    else:
        assert found.problems == ()
        assert found.state == state
        assert found.hashes[-1] == state.head
