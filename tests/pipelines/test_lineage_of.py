"""From any hash, run, version or release of a model to all the others, and back; hosts' reports can't mislead it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import command, lineage_of
from pipelines.lineage_of import Links, links
from serving.errors import ConfigError, LedgerError
from tests.pipelines.released import LINEAGE, ReleaseDesk

NEWER = {**LINEAGE, "raw_data_sha256": "77" * 32, "git_commit": "d00d" * 10, "training_run": "cd" * 16}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> ReleaseDesk:
    """Versions 1 and 2 of the same data, 3 of newer; releases 1: version 1, 2: version 3, 3: version 1 again."""
    desk = ReleaseDesk(tmp_path_factory.mktemp("links"))
    desk.registered(1)
    desk.registered(2)
    desk.registered(3, lineage=NEWER)
    desk.release(1)
    desk.release(3)
    desk.go_back()
    return desk


def versions(desk: ReleaseDesk, of: str) -> list[int]:
    return [found.version for found in links("tiny", of, desk.store).found]


def test_data_leads_to_versions_runs_bundles_and_releases(desk: ReleaseDesk) -> None:
    assert versions(desk, LINEAGE["raw_data_sha256"]) == [1, 2]
    assert versions(desk, NEWER["raw_data_sha256"][:9]) == [3]
    first, second = links("tiny", LINEAGE["raw_data_sha256"], desk.store).found
    state = desk.state()
    assert (first.bundle, second.bundle) == (state.versions[1].bundle, state.versions[2].bundle)
    assert [release.number for release in first.releases] == [1, 3]
    assert (first.current, second.current) == (True, False)
    assert second.releases == ()
    assert first.named["run_id"] == state.versions[1].registered.details["run_id"]


def test_everything_named_leads_back(desk: ReleaseDesk) -> None:
    """Both ways: whatever is shown of a version, asked for, finds that version."""
    for number in (1, 2, 3):
        (found,) = links("tiny", str(number), desk.store).found
        identifiers = [value for value in found.named.values() if lineage_of.IDENTIFIER.fullmatch(value)]
        assert len(identifiers) >= 10
        for value in (*identifiers, found.bundle):
            assert number in versions(desk, value)
            assert number in versions(desk, value[:12].upper())
        for release in found.releases:
            assert versions(desk, f"release:{release.number}") == [number]
    promoted = desk.state().versions[3].promoted
    assert promoted is not None
    for name in ("gate_report", "provenance"):
        assert versions(desk, promoted.details[name]) == [3]


@pytest.mark.parametrize(
    "of", ["4", "release:9", "release:0", "abcdef", "unknown", "true", "99" * 32, "6" * 65, "é" * 8]
)
def test_what_nothing_is_tied_to_is_refused_with_what_to_give(desk: ReleaseDesk, of: str) -> None:
    with pytest.raises(LedgerError, match=r"nothing is tied to .*release:NUMBER"):
        links("tiny", of, desk.store)


def report(desk: ReleaseDesk, host: str, content: object) -> str:
    key = f"reports/{host}/latest.json"
    desk.store.put(key, content if isinstance(content, bytes) else json.dumps(content).encode())
    return key


def test_hosts_are_shown_by_their_own_word_and_others_counted(tmp_path: Path) -> None:
    desk = ReleaseDesk(tmp_path)
    bundle = desk.registered(1).bundle_sha256
    report(desk, "desk-1", {"model": "tiny", "bundle": bundle, "release": 1})
    report(desk, "desk-2\u202e\u200b", {"model": "tiny", "bundle": bundle})
    report(desk, "elsewhere", {"model": "other", "bundle": bundle})
    report(desk, "old", {"model": "tiny", "bundle": "00" * 32})
    for number, junk in enumerate((b"", b"[" * 100_000, b"\xff", b"{}", b'{"bundle": 7}', b" " * 70_000)):
        report(desk, f"junk-{number}", junk)
    found = links("tiny", "1", desk.store)
    assert found.found[0].hosts == ("desk-1", "desk-2\u202e\u200b")
    assert found.unread == 6
    assert found.message.replace("\n", "").isprintable()
    assert "6 host reports say nothing usable" in found.message
    with pytest.raises(LedgerError, match="nothing is tied to"):
        links("tiny", "00" * 32, desk.store)


HOST_REPORTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.just("tiny"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "bundle", "x"]), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | HOST_REPORTS.map(lambda value: json.dumps(value).encode()))
def test_no_report_changes_what_the_ledger_ties_together(desk: ReleaseDesk, content: bytes) -> None:
    def without_hosts(found: Links) -> list[object]:
        return [(one.version, one.bundle, dict(one.named), one.releases, one.current) for one in found.found]

    before = without_hosts(links("tiny", "1", desk.store))
    key = report(desk, "host", content)
    try:
        assert without_hosts(links("tiny", "1", desk.store)) == before
    finally:
        desk.store.delete(key)


def test_as_a_command(desk: ReleaseDesk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    places = [f"storage.url={desk.folder}/store", "registry.tracking_uri=unused"]

    def asked(*more: str) -> tuple[int, str]:
        code = command.operation(lineage_of.__doc__, lineage_of.run, [*places, *more])
        told = capsys.readouterr()
        return code, told.out + told.err

    assert asked()[0] == ConfigError.exit_code
    code, text = asked("of=release:2")
    assert code == LedgerError.exit_code
    assert "pricing_lstm: there is no ledger" in text
    monkeypatch.setattr(lineage_of, "links", lambda model, of, store: links("tiny", of, store))
    for of, expected in (("release:2", 3), ("3", 3), ("d00dd00d", 3), ("'77777777'", 3), ("77777777", 3)):
        code, text = asked(f"of={of}")
        assert (code, f"version {expected}" in text) == (0, True), of
        assert "1 version\n" in text
    code, text = asked("of=1e70000")
    assert code == ConfigError.exit_code
    assert "of: " in text
