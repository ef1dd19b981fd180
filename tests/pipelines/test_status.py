"""Status says what the ledger says, writes nothing, and shows whatever was typed as harmless text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import command, status
from pipelines.gates import Gate, GateContext, GateOutcome
from pipelines.plain_text import printable
from pipelines.promote import promote
from pipelines.retire import retire
from serving.errors import GateError, LedgerError
from serving.ledger import Ledger
from serving.release import report_key
from tests.tiny_registry import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def passing(context: GateContext) -> GateOutcome:
    return GateOutcome("taste", True, 1.0, 2.0, "1 <= 2")


def failing(context: GateContext) -> GateOutcome:
    return GateOutcome("taste", False, 3.0, 2.0, "3 > 2\x1b[31m\nnot a line")


def promoted(desk: Desk, version: int, reason: str = "", gate: Gate = passing) -> None:
    promote(
        model="tiny", version=version, store=desk.store, registry=desk.registry, channel=desk.channel, gates=(gate,),
        by="ci", reason=reason,
    )  # fmt: skip


def test_a_story(desk: Desk) -> None:
    """Registered, promoted, refused, retired: each version has its role, and the numbers are those recorded."""
    for seed, error in enumerate((0.5, 0.4, 0.3, 0.9, 0.8), start=1):
        desk.register(seed, iv_rmse=error)
    promoted(desk, 1)
    promoted(desk, 2)
    promoted(desk, 3)
    with pytest.raises(GateError):
        promoted(desk, 4, gate=failing)
    retire(
        model="tiny", version=2, reason="stale", store=desk.store, registry=desk.registry, channel=desk.channel, by="me"
    )
    found = status.status("tiny", desk.store, desk.channel)
    assert (found.champion, found.challenger, found.rollback_target, found.release_number) == (3, None, 1, 3)
    assert [(line.version, line.role, line.test_error) for line in found.versions] == [
        (1, "former champion", 0.5), (2, "retired", 0.4), (3, "champion", 0.3), (4, "refused", 0.9),
        (5, "registered", 0.8),
    ]  # fmt: skip
    assert [line.gates.split()[0] for line in found.versions] == ["passed", "passed", "passed", "failed", "not"]
    state = desk.state()
    assert (found.seq, found.head) == (state.seq, state.head)
    assert (found.gated, [outcome.split(":")[0] for outcome in found.outcomes]) == (
        4, ["integrity passed", "taste FAILED"],
    )  # fmt: skip
    assert len(found.events) == status.EVENTS_SHOWN
    assert found.events[-1].seq == found.seq
    lines = found.message.splitlines()
    assert lines[0] == "tiny: champion version 3, release 3; challenger none; a rollback would go to version 1"
    assert "  taste FAILED: 3 > 2\\x1b[31m\\nnot a line" in lines
    assert lines[-1].endswith("retired version 2 by me: stale")


def test_a_release_that_hosts_refuse_or_soon_will_is_told(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1)
    ends = Ledger(desk.store, "tiny").events()[-1].details["expires_at"]

    def lines(days: float) -> list[str]:
        now = datetime.now(UTC) + timedelta(days=days)
        text = status.status("tiny", desk.store, desk.channel, now=now).message
        return [line for line in text.splitlines() if line.startswith("release 1 ")]

    assert lines(59.9) == []
    assert lines(60.1)[0].startswith(f"release 1 expires at {ends}, in 30 days: promote it again with renew=true")
    assert lines(90.1)[0].startswith(f"release 1 EXPIRED at {ends}, hosts refuse it")


def test_a_version_that_could_follow_is_the_challenger(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1)
    registered = desk.register(2)
    ledger = Ledger(desk.store, "tiny")
    verdict = {"passed": True, "report": "0" * 64}
    ledger.append(ledger.state(), "gated", version=2, bundle=registered.bundle_sha256, by="ci", details=verdict)
    found = status.status("tiny", desk.store, desk.channel)
    assert found.channel == ("says release 1",)
    assert (found.challenger, found.versions[1].role) == (2, "challenger")
    assert found.outcomes == (f"{report_key('0' * 64)} isn't in the store",)


def test_a_channel_that_is_behind_or_damaged_is_told(desk: Desk) -> None:
    for seed in (1, 2):
        desk.register(seed)
    promoted(desk, 1)
    promoted(desk, 2)
    rolled = desk.state()
    ledger = Ledger(desk.store, "tiny")
    first = rolled.versions[1]
    assert first.promoted is not None
    details = {**first.promoted.details, "from": 2}
    ledger.append(rolled, "rolled_back", version=1, bundle=first.bundle, by="me", reason="why", details=details)
    (line,) = status.status("tiny", desk.store, desk.channel).channel
    assert line.startswith("is behind, reconcile: ")
    desk.store.put("channel/timestamp.json", b"{}")
    (line,) = status.status("tiny", desk.store, desk.channel).channel
    assert line.startswith("can't be relied on: channel/timestamp.json: ")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"outcomes": [{}]}', b"\xff"])
def test_a_damaged_gate_report_is_told(desk: Desk, content: bytes) -> None:
    desk.register(1)
    promoted(desk, 1)
    gated = desk.state().versions[1].gated
    assert gated is not None
    desk.store.put(report_key(gated.details["report"]), content)
    (line,) = status.status("tiny", desk.store, desk.channel).outcomes
    assert "can't be read" in line


def test_nothing_registered_names_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"storage.url={tmp_path}/sto re", "registry.tracking_uri=unused"]
    assert command.operation(status.__doc__, status.run, arguments) == LedgerError.exit_code
    assert f"no ledger in FolderStore('{tmp_path}/sto re'); is it the right store?" in capsys.readouterr().err
    assert not (tmp_path / "sto re").exists()


def test_it_writes_nothing(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1)
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    assert status.status("tiny", desk.store, desk.channel).message
    assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")} == before


@given(st.text())
def test_typed_text_stays_on_one_line_and_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    if text.isprintable():
        assert shown == text


def test_hostile_reasons_do_not_make_lines(desk: Desk) -> None:
    desk.register(1)
    promoted(desk, 1, reason="fine\n::error::not\r\x1b[2J\u202e\u2028")
    message = status.status("tiny", desk.store, desk.channel).message
    assert not [line for line in message.splitlines() if line.lstrip().startswith("::")]
    assert message.replace("\n", "").isprintable()
    assert "fine\\n::error::not\\r\\x1b[2J\\u202e\\u2028" in message
