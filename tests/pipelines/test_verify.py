"""Verify looks at every byte that a model's releases rest on: whichever is touched is named, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from pipelines import command, verify
from pipelines.channel.keys import Keyring
from pipelines.channel.publish import open_channel
from pipelines.stored import stored_manifest
from pipelines.verify import Verification
from pipelines.verify_channel import read_signed_side
from pipelines.verify_content import check_provenance
from serving.blobstore import open_store
from serving.canonical import canonical_json, parse_canonical, sha256_hex
from serving.errors import ConfigError, LedgerError, TrustError
from serving.events import event_key
from serving.release import parse_release, release_key, release_target
from tests.pipelines.channel.desk import Host, signing
from tests.pipelines.released import ReleaseDesk

ROLE = "model-tiny"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ReleaseDesk:
    """Two versions; 1, then 2 promoted, then rolled back to 1: three releases."""
    desk = ReleaseDesk(tmp_path_factory.mktemp("original"))
    desk.registered(1)
    desk.registered(2)
    desk.release(1)
    desk.release(2)
    desk.go_back()
    return desk


@pytest.fixture
def desk(original: ReleaseDesk, tmp_path: Path) -> ReleaseDesk:
    """A copy that may be damaged; MLflow is the original's."""
    for name in ("store", "keys"):
        shutil.copytree(original.folder / name, tmp_path / name)
    return ReleaseDesk(tmp_path, registry=original.registry)


def checked(desk: ReleaseDesk, root: bytes | None = None, **more: datetime) -> Verification:
    return verify.verify("tiny", desk.store, root=root, aliases={"champion": 1}, **more)


def layers(found: Verification) -> list[str]:
    return [layer.name for layer in found.layers if layer.problems]


def named_now(desk: ReleaseDesk) -> dict[str, str]:
    """Keys of the metadata that counts now, by role."""
    snapshot_version = Metadata[Timestamp].from_bytes(desk.store.get("channel/timestamp.json")).signed.snapshot_meta
    key = f"channel/{snapshot_version.version}.snapshot.json"
    meta = Metadata[Snapshot].from_bytes(desk.store.get(key)).signed.meta
    named = {role.removesuffix(".json"): f"channel/{one.version}.{role}" for role, one in meta.items()}
    return {"root": "channel/1.root.json", "timestamp": "channel/timestamp.json", "snapshot": key, **named}


def release_now(desk: ReleaseDesk) -> str:
    """Key of the release file that is signed now."""
    role = Metadata[Targets].from_bytes(desk.store.get(named_now(desk)[ROLE])).signed
    return release_key(role.targets[release_target("tiny", "champion")].hashes["sha256"])


def test_what_was_decided_and_signed_is_fine(original: ReleaseDesk) -> None:
    before = {path: path.stat().st_mtime_ns for path in original.folder.rglob("*")}
    found = verify.verify("tiny", original.store, root=original.root, aliases=original.aliases())
    assert found.breaks == ()
    assert {layer.name: layer.looked_at for layer in found.layers} == {
        "signatures": 5, "release": 9, "ledger": 7, "bundle files": 2 * 6, "gate reports": 5, "exams": 2,
        "provenance": 3, "MLflow's aliases": 2,
    }  # fmt: skip
    (note,) = found.notes
    assert "a development channel" in note
    assert "BROKEN" not in found.message
    assert {path: path.stat().st_mtime_ns for path in original.folder.rglob("*")} == before, "it wrote something"


def superseded(desk: ReleaseDesk) -> set[str]:
    """What nothing rests on any more: metadata and release files of earlier releases, and pages drawn for people."""
    keys = set(desk.store.list())
    current = {*named_now(desk).values(), release_now(desk)}
    return {key for key in keys if key.startswith(("channel/", "releases/")) and key not in current} | {
        key for key in keys if key.endswith(".html")
    }


def flip(raw: bytes) -> bytes:
    """One bit of the middle byte, which stays a printable character in text."""
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


TAMPER: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flip,
    "first byte": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "truncated": lambda raw: raw[:-1],
    "emptied": lambda raw: b"",
    "longer": lambda raw: raw + b" ",
    "removed": lambda raw: None,
}


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


def sign_as(desk: ReleaseDesk, key: str, signer: CryptoSigner | None, change: Callable[[Timestamp], None]) -> None:
    """Rewrite the timestamp and sign it with somebody's key, or not at all."""
    metadata = Metadata[Timestamp].from_bytes(desk.store.get(key))
    change(metadata.signed)
    metadata.signatures.clear()
    if signer is not None:
        metadata.sign(signer)
    desk.store.put(key, metadata.to_bytes())


def later(signed: Timestamp | Targets) -> None:
    signed.expires = signed.expires + timedelta(days=300)


@pytest.mark.parametrize("signer", [None, CryptoSigner.generate_ed25519()])
def test_a_strangers_signature_or_none_is_named(desk: ReleaseDesk, signer: CryptoSigner | None) -> None:
    sign_as(desk, "channel/timestamp.json", signer, later)
    found = checked(desk)
    assert layers(found) == ["signatures"]
    (one,) = found.breaks
    assert one.startswith("signatures: channel/timestamp.json: timestamp was signed by 0/1 keys")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_metadata_however_mangled_is_accepted_or_ends_it(desk: ReleaseDesk, data: st.DataObject) -> None:
    """Pieces of JSON put anywhere: another number, a fraction, deep nesting, other types."""
    key = data.draw(st.sampled_from(sorted({*named_now(desk).values(), release_now(desk)})))
    raw = desk.store.get(key)
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start, min(len(raw), start + 12)))
    piece = data.draw(
        st.sampled_from([b"1.5", b"0", b"[" * 5000, b"null", b"{}", b'""', b"\xff", b"-1", b'"a":1,', b" "])
    )
    mangled = raw[:start] + piece + raw[end:]
    desk.store.put(key, mangled)
    try:
        found = checked(desk, (desk.folder / "keys/public/channel/1.root.json").read_bytes())
        assert found.breaks or _same_signed(mangled, raw)
    finally:
        desk.store.put(key, raw)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", ROLE])
def test_a_fraction_in_metadata_is_named(desk: ReleaseDesk, role: str) -> None:
    """Canonical JSON has none, so what is signed can't even be computed."""
    key = named_now(desk)[role]
    content = json.loads(desk.store.get(key))
    content["signed"]["x-note"] = 1.5
    desk.store.put(key, json.dumps(content).encode())
    assert any(f"{key}: holds what signed metadata can't hold" in one for one in checked(desk).breaks)


def _same_signed(one: bytes, other: bytes) -> bool:
    """Nobody signs how it is written down, nor what stands beside the signatures."""
    try:
        return bool(json.loads(one)["signed"] == json.loads(other)["signed"])
    except (ValueError, RecursionError):
        return False


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", ROLE])
def test_what_expired_is_named(desk: ReleaseDesk, role: str) -> None:
    key = named_now(desk)[role]
    expires = Metadata.from_bytes(desk.store.get(key)).signed.expires
    at = checked(desk, now=expires + timedelta(seconds=1))
    assert any(one.startswith(f"signatures: {key}: expired at") for one in at.breaks)
    before = checked(desk, now=expires - timedelta(seconds=1))
    assert not any(f"{key}: expired" in one for one in before.breaks)


def test_another_root_than_the_trusted_one(desk: ReleaseDesk, tmp_path: Path) -> None:
    other = ReleaseDesk(tmp_path / "other", registry=desk.registry)
    channel = open_channel(signing(tmp_path / "other-keys"), other.store)
    shutil.copytree(desk.folder / "store", tmp_path / "other/store", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "other/store/channel")
    channel.follow("tiny")  # everything else is the same: only the keys are somebody else's
    assert checked(other).breaks == ()
    found = checked(other, desk.root)
    assert found.breaks == ("signatures: channel/1.root.json: isn't the root you trust",)
    assert "the first root is the store's own word" in checked(other).message
    assert "the first root is the store's own word" not in found.message
    assert layers(checked(desk, b"{}")) == ["signatures"]


def test_a_rotated_root_is_followed_and_an_old_copy_is_not(desk: ReleaseDesk) -> None:
    """A second root signed by the first; then the store is put back to a time before it."""
    old = desk.root
    first = Metadata[Root].from_bytes(old)
    again = Metadata(Root.from_dict(first.signed.to_dict()))
    again.signed.version = 2
    role = first.signed.roles["root"]
    keyring = Keyring((), folder=desk.folder / "keys", allow_development=True)
    keys = {keyid: first.signed.keys[keyid] for keyid in role.keyids}
    for signer in keyring.signers("root", keys, role.threshold):
        again.sign(signer, append=True)
    desk.store.put("channel/2.root.json", again.to_bytes())
    for trusted in (old, again.to_bytes(), None):
        assert checked(desk, trusted).breaks == ()
    unsigned = Metadata(again.signed)
    desk.store.put("channel/2.root.json", unsigned.to_bytes())
    assert all("channel/2.root.json: root was signed by 0/" in one for one in checked(desk, old).breaks)
    desk.store.delete("channel/2.root.json")
    (one,) = checked(desk, again.to_bytes()).breaks[:1]
    assert "channel/2.root.json: the root you trust isn't there" in one


def sign_anew(desk: ReleaseDesk, role: str, change: Callable[[Targets], None], *, publish_it: bool = True) -> str:
    """Change targets or the model's role and sign it and all above it with the channel's own keys; its key.

    Not published, it takes the place of the one that the snapshot names.
    """
    now = named_now(desk)
    root = Metadata[Root].from_bytes(desk.root).signed
    keyring = Keyring((), folder=desk.folder / "keys", allow_development=True)
    delegations = Metadata[Targets].from_bytes(desk.store.get(now["targets"])).signed.delegations
    assert delegations is not None
    assert delegations.roles is not None

    def publish(name: str, metadata: Metadata[Any], key: str | None = None) -> MetaFile:
        named, known = (delegations.roles[name], delegations.keys) if name == ROLE else (root.roles[name], root.keys)
        metadata.signed.version += 1
        metadata.signatures.clear()
        keys = {keyid: known[keyid] for keyid in named.keyids}
        for signer in keyring.signers(name, keys, named.threshold):
            metadata.sign(signer, append=True)
        raw = metadata.to_bytes()
        desk.store.put(key or f"channel/{metadata.signed.version}.{name}.json", raw)
        return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])

    changed = Metadata[Targets].from_bytes(desk.store.get(now[role]))
    change(changed.signed)
    if not publish_it:
        changed.signed.version -= 1  # which publish adds
        publish(role, changed)
        return now[role]
    snapshot = Metadata[Snapshot].from_bytes(desk.store.get(now["snapshot"]))
    snapshot.signed.meta[f"{role}.json"] = publish(role, changed)
    timestamp = Metadata[Timestamp].from_bytes(desk.store.get(now["timestamp"]))
    timestamp.signed.snapshot_meta = publish("snapshot", snapshot)
    publish("timestamp", timestamp, now["timestamp"])
    return named_now(desk)[role]


def of_bundle(targets: Targets) -> str:
    return next(path for path in sorted(targets.targets) if path.endswith("golden.npz"))


def test_the_channels_own_keys_can_sign_anew(desk: ReleaseDesk) -> None:
    """What the next test builds on: signed anew and unchanged, all is fine."""
    for role in ("targets", ROLE):
        sign_anew(desk, role, lambda targets: None)
        assert checked(desk, desk.root).breaks == ()


def another_hash(targets: Targets) -> None:
    targets.targets[of_bundle(targets)].hashes["sha256"] = "00" * 32


def another_length(targets: Targets) -> None:
    targets.targets[of_bundle(targets)].length += 1


def another_release(targets: Targets) -> None:
    custom = targets.targets["tiny/champion/release.json"].custom
    assert custom is not None
    custom["release"] = 7


def not_ending(targets: Targets) -> None:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles[ROLE].terminating = False


def other_paths(targets: Targets) -> None:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles[ROLE].paths = ["*/*/*"]


def no_delegation(targets: Targets) -> None:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles.pop(ROLE)


def itself(targets: Targets) -> None:
    targets.targets["tiny/x"] = TargetFile.from_data("tiny/x", b"x", ["sha256"])


def of_another(targets: Targets) -> None:
    targets.targets["tony/x"] = TargetFile.from_data("tony/x", b"x", ["sha256"])


@pytest.mark.parametrize(
    ("role", "change", "layer", "why"),
    [
        (ROLE, lambda targets: targets.targets.pop(of_bundle(targets)), "release", "golden.npz: isn't signed"),
        (ROLE, lambda targets: targets.targets.clear(), "release", "isn't signed, yet release 3 was decided"),
        (ROLE, itself, "release", "tiny/x: is signed, but isn't of the release"),
        (ROLE, of_another, "signatures", "signs 'tony/x', which isn't of model tiny"),
        (ROLE, another_hash, "release", f"golden.npz: signed with sha256 {'00' * 32}"),
        (ROLE, another_length, "release", "golden.npz: signed with 1511 bytes, expected 1510"),
        (ROLE, another_release, "release", "'release': 7"),
        ("targets", itself, "signatures", "signs 'tiny/x' itself; it may only delegate"),
        ("targets", not_ending, "signatures", "isn't terminating"),
        ("targets", other_paths, "signatures", r"covers \['\*/\*/\*'\]"),
        ("targets", no_delegation, "signatures", "delegates nothing to model-tiny"),
    ],
)
def test_a_key_may_not_sign_whatever_it_likes(
    desk: ReleaseDesk, role: str, change: Callable[[Targets], None], layer: str, why: str
) -> None:
    """Stolen or careless, the right keys sign something that isn't what was decided."""
    sign_anew(desk, role, change)
    found = checked(desk, desk.root)
    assert layer in layers(found)
    assert any(re.search(why, one) for one in found.breaks), found.breaks


def test_what_is_signed_but_was_not_published_is_named(desk: ReleaseDesk) -> None:
    """The right keys, the right version number: but the snapshot names another file."""
    key = sign_anew(desk, ROLE, later, publish_it=False)
    assert [one for one in checked(desk).breaks if "isn't what was published" not in one] == []
    assert checked(desk).breaks[0].startswith(f"signatures: {key}: isn't what was published")


@pytest.mark.parametrize(
    "said", [{"version": 2}, {"kind": "promoted"}, {"at": "2001-01-01T00:00:00.000000Z"}, {"release": 2},
             {"expires_at": "2999-01-01T00:00:00.000000Z"}, {"provenance": "00" * 32}, {"event": "00" * 32},
             {"seq": 6}],
)  # fmt: skip
def test_a_signed_release_that_was_not_decided_is_named(desk: ReleaseDesk, said: dict[str, Any]) -> None:
    """The role's keys sign a release file that says other than the ledger's event."""
    release = dataclasses.replace(parse_release(desk.store.get(release_now(desk))), **said)
    raw = release.to_bytes()
    desk.store.put(release_key(sha256_hex(raw)), raw)

    def change(targets: Targets) -> None:
        path = release_target("tiny", "champion")
        targets.targets[path] = TargetFile.from_data(path, raw, ["sha256"])
        targets.targets[path].unrecognized_fields["custom"] = release.custom()

    sign_anew(desk, ROLE, change)
    found = checked(desk, desk.root)
    assert layers(found) == ["release"]
    assert release_key(sha256_hex(raw)) in found.breaks[0]


def test_a_root_that_the_one_before_did_not_sign_is_named(desk: ReleaseDesk) -> None:
    """A thief's root of the next number, signed by its own key alone."""
    thief = CryptoSigner.generate_ed25519()
    root = Root.from_dict(Metadata[Root].from_bytes(desk.root).signed.to_dict())
    root.version = 2
    for role in root.roles:
        root.add_key(thief.public_key, role)
    root.roles["root"].threshold = 1
    root.roles["root"].keyids = [thief.public_key.keyid]
    metadata = Metadata(root)
    metadata.sign(thief)
    desk.store.put("channel/2.root.json", metadata.to_bytes())
    (one,) = checked(desk, desk.root).breaks
    assert one.startswith("signatures: channel/2.root.json: root was signed by 0/")


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


def test_a_report_about_something_else_is_named(desk: ReleaseDesk) -> None:
    """Its bytes are what the ledger names, but they speak of another version: whoever wrote the event lied."""
    ledger = verify.walk(desk.store, "tiny")
    gated = next(event for event in ledger.events if event.kind == "gated" and event.version == 2)
    other = next(event for event in ledger.events if event.kind == "gated" and event.version == 1)
    lying = dataclasses.replace(gated, details=other.details)
    desk.store.put(gated.key, lying.to_bytes())
    breaks = checked(desk).breaks
    report = f"gate-reports/{other.details['report']}.json"
    assert f"gate reports: {report}: version is 1, event {gated.seq} says 2" in breaks


def test_provenance_of_something_else_is_named(desk: ReleaseDesk) -> None:
    """A good statement, but of another bundle, or of other gates than the event's."""
    events = [event for event in verify.walk(desk.store, "tiny").events if event.kind == "promoted"]
    manifests = {event.bundle: stored_manifest(desk.store, event.bundle) for event in events}
    first, second = events
    for name, why in (("provenance", f"isn't of bundle {second.bundle}"), ("gate_report", "doesn't name gate report")):
        lying = dataclasses.replace(second, details={**second.details, name: first.details[name]})
        (problem,) = check_provenance(desk.store, [first, lying], manifests).problems
        assert f"event {second.seq}: provenance/{lying.details['provenance']}.json: provenance: {why}" in problem


@pytest.mark.parametrize("how", ["flipped", "emptied", "removed"])
def test_it_refuses_what_a_host_refuses(desk: ReleaseDesk, tmp_path: Path, how: str) -> None:
    """Against python-tuf's own client, which walks the same metadata another way."""
    root = desk.root
    for number, key in enumerate([*desk.store.list("channel/"), *desk.store.list("releases/")]):
        raw = desk.store.get(key)
        new = TAMPER[how](raw)
        if new is None:
            desk.store.delete(key)
        else:
            desk.store.put(key, new)
        refusal = None
        try:
            release = Host(desk.store, tmp_path / f"host-{number}", root).number("tiny")
        except Exception as error:  # noqa: BLE001 (whatever stops a host)
            refusal = error
        if refusal is None:
            assert release == 3
        else:
            assert checked(desk, root).breaks, f"{key}: a host refuses: {refusal!r}"
        desk.store.put(key, raw)


def test_as_a_command(desk: ReleaseDesk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    places = [f"storage.url={desk.folder}/store", f"signing.folder={desk.folder}/keys"]
    database = f"registry.tracking_uri=sqlite:///{desk.folder}/none.db"

    def asked(*more: str) -> tuple[int, str, str]:
        code = command.operation(verify.__doc__, verify.run, [*places, *more])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, _, err = asked(database)
    assert (code, "pricing_lstm: there is no ledger" in err) == (LedgerError.exit_code, True)
    monkeypatch.setattr(verify, "walk", lambda store, model, walk=verify.walk: walk(store, "tiny"))
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
