"""Verify looks at every byte that a model's releases rest on: whichever is touched is named, and nothing else."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from pipelines import command, verify
from pipelines.ledger_walk import walk
from pipelines.stored import stored_manifest
from pipelines.verify_channel import read_signed_side
from pipelines.verify_content import check_provenance
from serving.blobstore import open_store
from serving.canonical import canonical_json, parse_canonical, sha256_hex
from serving.errors import ConfigError, LedgerError, TrustError
from serving.events import event_key
from tests.pipelines.released import ReleaseDesk
from tests.pipelines.tampered import (
    TAMPER,
    checked,
    copy_of,
    flip,
    layers,
    named_now,
    release_now,
    release_story,
    superseded,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ReleaseDesk:
    return release_story(tmp_path_factory.mktemp("original"))


@pytest.fixture
def desk(original: ReleaseDesk, tmp_path: Path) -> ReleaseDesk:
    return copy_of(original, tmp_path)


def test_what_was_decided_and_signed_is_fine(original: ReleaseDesk) -> None:
    before = {path: path.stat().st_mtime_ns for path in original.folder.rglob("*")}
    found = verify.verify("tiny", original.store, root=original.root, aliases=original.aliases())
    assert found.breaks == ()
    assert {layer.name: layer.looked_at for layer in found.layers} == {
        "signatures": 5, "release": 9, "ledger": 7, "bundle files": 2 * 6, "gate reports": 5, "engine packs": 0,
        "exams": 2, "provenance": 3, "MLflow's aliases": 2,
    }  # fmt: skip
    (note,) = found.notes
    assert "a development channel" in note
    assert "BROKEN" not in found.message
    assert {path: path.stat().st_mtime_ns for path in original.folder.rglob("*")} == before, "it wrote something"


@pytest.mark.parametrize("how", ["flipped", *(pytest.param(how, marks=pytest.mark.slow) for how in list(TAMPER)[1:])])
def test_every_byte_that_counts_is_looked_at(desk: ReleaseDesk, how: str) -> None:
    """Each blob of the store in turn: it is named, and the blobs that weren't touched aren't accused first."""
    ignored = superseded(desk)
    keys = desk.store.list()
    assert len(set(keys) - ignored) >= 30
    for key in keys:
        raw = desk.store.get(key)
        new = TAMPER[how](raw)
        if new is None:
            desk.store.delete(key)
        else:
            desk.store.put(key, new)
        found = checked(desk, (desk.folder / "keys/public/channel/1.root.json").read_bytes())
        if key in ignored:
            assert found.breaks == (), key
        elif key == "channel/timestamp.json" and how == "longer":
            assert found.breaks == (), "what was signed is its content, to which a space adds nothing"
        else:
            assert any(key in one for one in found.breaks), f"{key} {how}: {found.breaks}"
        desk.store.put(key, raw)
    assert checked(desk).breaks == ()


NAMED = {"exam": "exams/{}.npz", "provenance": "provenance/{}.json", "gate_report": "gate-reports/{}.json"}


def test_blobs_swapped_for_other_good_ones_are_named(desk: ReleaseDesk) -> None:
    """A file of one version in the place of the other's."""
    first, second = (desk.state().versions[number] for number in (1, 2))
    assert first.promoted is not None
    assert second.promoted is not None
    details = first.registered.details | first.promoted.details, second.registered.details | second.promoted.details
    pairs = [
        *(
            (f"bundles/{first.bundle}/{name}", f"bundles/{second.bundle}/{name}")
            for name in ("golden.npz", "manifest.json")
        ),
        *(tuple(pattern.format(one[name]) for one in details) for name, pattern in NAMED.items()),
    ]
    for here, there in pairs:
        raw = desk.store.get(here)
        desk.store.put(here, desk.store.get(there))
        breaks = checked(desk).breaks
        assert breaks
        assert all(here in one for one in breaks), breaks
        desk.store.put(here, raw)


def test_a_file_beside_the_bundle_is_named(desk: ReleaseDesk) -> None:
    bundle = desk.state().versions[2].bundle
    desk.store.put(f"bundles/{bundle}/extra.onnx", b"x")
    assert checked(desk).breaks == (f"bundle files: bundles/{bundle}/extra.onnx: isn't in the manifest",)


def test_the_first_break_is_the_one_nearest_the_root(desk: ReleaseDesk) -> None:
    """All are named, in the order of trust, whatever the order they were made in."""
    now = named_now(desk)
    bundle = desk.state().versions[1].bundle
    touched = [f"bundles/{bundle}/golden.npz", event_key("tiny", 2), release_now(desk), now["snapshot"]]
    for key in touched:
        desk.store.put(key, flip(desk.store.get(key)))
    found = checked(desk)
    assert layers(found)[0] == "signatures"
    assert now["snapshot"] in found.breaks[0]
    text = found.message
    assert text.index("first break:") < text.index(found.breaks[0]) < text.index("all others:")
    for key in touched[:2]:
        assert any(key in one for one in found.breaks)


def test_a_cut_or_rewritten_ledger_is_named(desk: ReleaseDesk) -> None:
    last = event_key("tiny", 7)
    raw = desk.store.get(last)
    desk.store.delete(last)
    assert any(f"rests on {last}, which isn't there" in one for one in checked(desk).breaks)
    event = parse_canonical(raw)
    desk.store.put(last, canonical_json({**event, "reason": "another"}))
    (one,) = checked(desk).breaks
    assert one.startswith(f"release: {release_now(desk)}: rests on {last} with sha256 {sha256_hex(raw)}")
    desk.store.put(last, raw)
    assert checked(desk).breaks == ()


def test_a_channel_left_behind_asks_for_reconcile(desk: ReleaseDesk) -> None:
    """As after a crash between the decision and its publication."""
    behind = {key: desk.store.get(key) for key in desk.store.list("channel/")}
    desk.release(2)
    for key in desk.store.list("channel/"):
        if key in behind:
            desk.store.put(key, behind[key])
    found = checked(desk)
    assert layers(found) == ["release", "MLflow's aliases"]
    assert re.search(r"is release 3 of event 7; the ledger decided release 4 in event \d+: reconcile", found.breaks[0])


def test_an_unsigned_store_is_said_to_be_one(desk: ReleaseDesk, tmp_path: Path) -> None:
    shutil.rmtree(desk.folder / "store/channel")
    (one,) = checked(desk).breaks
    assert "there is no signed channel; the store is unsigned" in one
    fresh = ReleaseDesk(tmp_path / "fresh")
    fresh.registered(1)
    found = verify.verify("tiny", fresh.store)
    assert found.breaks == ()
    assert any("the store is unsigned" in note and "nothing is released yet" in note for note in found.notes)


def test_another_models_ledger_is_none_of_this_ones(desk: ReleaseDesk) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        verify.verify("tony", desk.store)


def test_aliases_that_lag_are_told(desk: ReleaseDesk) -> None:
    found = verify.verify("tiny", desk.store, aliases={"champion": 2})
    assert found.breaks == ("MLflow's aliases: champion is version 2, the ledger says 1: reconcile",)
    assert verify.verify("tiny", desk.store).breaks == (), "who has no MLflow isn't blamed for it"


def test_a_page_that_was_changed_is_a_note(desk: ReleaseDesk) -> None:
    key = next(key for key in desk.store.list("gate-reports/") if key.endswith(".html"))
    desk.store.put(key, desk.store.get(key).replace(b"tiny", b"tony"))
    found = checked(desk)
    assert found.breaks == ()
    assert any(key in note and "trust the .json" in note for note in found.notes)


def test_pages_of_older_code_are_one_note(desk: ReleaseDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a ledger is, a new template doesn't bury what matters."""
    monkeypatch.setattr("pipelines.verify_content.render", lambda report: "a page of another day")
    pages = [key for key in desk.store.list("gate-reports/") if key.endswith(".html")]
    assert len(pages) > 1
    found = checked(desk)
    (note,) = (note for note in found.notes if ".html" in note)
    assert note.startswith(f"{len(pages)} of {len(pages)} pages aren't what this code draws")
    assert found.breaks == ()


def test_every_line_says_what_it_counts_and_the_first_who_is_champion(desk: ReleaseDesk) -> None:
    first, *lines = checked(desk).message.splitlines()
    assert first.endswith(": champion version 1, release 3")
    events = len(walk(desk.store, "tiny").events)
    assert f"  ledger: fine; {events} events" in lines
    assert any(line.startswith("  gate reports: fine; ") and line.endswith(" events that name one") for line in lines)
    key = event_key("tiny", 2)
    desk.store.put(key, desk.store.get(key)[:-2])
    assert checked(desk).message.splitlines()[0].endswith(" before the ledger's first break")


def test_a_report_about_something_else_is_named(desk: ReleaseDesk) -> None:
    """Its bytes are what the ledger names, but they speak of another version: whoever wrote the event lied."""
    ledger = walk(desk.store, "tiny")
    gated = next(event for event in ledger.events if event.kind == "gated" and event.version == 2)
    other = next(event for event in ledger.events if event.kind == "gated" and event.version == 1)
    lying = dataclasses.replace(gated, details=other.details)
    desk.store.put(gated.key, lying.to_bytes())
    breaks = checked(desk).breaks
    report = f"gate-reports/{other.details['report']}.json"
    assert f"gate reports: {report}: version is 1, event {gated.seq} says 2" in breaks


def test_provenance_of_something_else_is_named(desk: ReleaseDesk) -> None:
    """A good statement, but of another bundle, or of other gates than the event's."""
    events = [event for event in walk(desk.store, "tiny").events if event.kind == "promoted"]
    manifests = {event.bundle: stored_manifest(desk.store, event.bundle) for event in events}
    first, second = events
    for name, why in (("provenance", f"isn't of bundle {second.bundle}"), ("gate_report", "doesn't name gate report")):
        lying = dataclasses.replace(second, details={**second.details, name: first.details[name]})
        (problem,) = check_provenance(desk.store, [first, lying], manifests).problems
        assert f"event {second.seq}: provenance/{lying.details['provenance']}.json: provenance: {why}" in problem


def test_as_a_command(desk: ReleaseDesk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    places = [f"storage.url={desk.folder}/store", f"signing.folder={desk.folder}/keys"]
    database = f"registry.tracking_uri=sqlite:///{desk.folder}/none.db"

    def asked(*more: str) -> tuple[int, str, str]:
        code = command.operation(verify.__doc__, verify.run, [*places, *more])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, _, err = asked(database)
    assert (code, "pricing_lstm: there is no ledger" in err) == (LedgerError.exit_code, True)
    monkeypatch.setattr(verify, "walk", lambda store, model, walk=walk: walk(store, "tiny"))
    monkeypatch.setattr(
        verify, "read_signed_side", lambda store, model, **more: read_signed_side(store, "tiny", **more)
    )
    code, out, _ = asked(database)
    assert code == 0
    assert "the root trusted is the newest kept in" in out
    assert "MLflow's aliases weren't looked at: there is no" in out
    assert not (desk.folder / "none.db").exists()
    root = desk.folder / "given.json"
    root.write_bytes(desk.root)
    code, out, _ = asked(database, f"root={root}")
    assert (code, "the newest kept" in out) == (0, False)
    code, _, err = asked(database, f"root={desk.folder}/nothing.json")
    assert (code, "there is no file" in err) == (ConfigError.exit_code, True)
    desk.store.put("channel/timestamp.json", flip(desk.store.get("channel/timestamp.json")))
    code, out, err = asked(database)
    assert code == TrustError.exit_code
    assert "first break:" in out
    assert "channel/timestamp.json" in err


@pytest.mark.cloud
def test_over_an_object_store(desk: ReleaseDesk, s3_store_url: str) -> None:
    """The same words as over the folder, whole and damaged."""
    store = open_store(s3_store_url)
    for key in desk.store.list():
        store.put(key, desk.store.get(key))
    assert verify.verify("tiny", store, root=desk.root).breaks == ()
    key = f"bundles/{desk.state().versions[2].bundle}/golden.npz"
    for damaged in (desk.store, store):
        damaged.put(key, flip(damaged.get(key)))
        damaged.delete("channel/timestamp.json")
    there, here = (verify.verify("tiny", one, root=desk.root).breaks for one in (store, desk.store))
    assert there == here
    assert there[0] == "signatures: channel/timestamp.json: is missing"
    assert any(key in one for one in there)
