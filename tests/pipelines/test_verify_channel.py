"""Verify follows the signatures: what the right keys didn't sign, or the ledger didn't decide, is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp

from pipelines.channel.keys import Keyring
from pipelines.channel.publish import open_channel
from serving.canonical import sha256_hex
from serving.release import parse_release, release_key, release_target
from tests.pipelines.channel.desk import Host, signing
from tests.pipelines.released import ReleaseDesk
from tests.pipelines.tampered import (
    ROLE,
    TAMPER,
    checked,
    copy_of,
    layers,
    named_now,
    release_now,
    release_story,
    sign_anew,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ReleaseDesk:
    return release_story(tmp_path_factory.mktemp("original"))


@pytest.fixture
def desk(original: ReleaseDesk, tmp_path: Path) -> ReleaseDesk:
    return copy_of(original, tmp_path)


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
    assert any(f"{key}: holds what TUF's canonical JSON can't" in one for one in checked(desk).breaks)


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
