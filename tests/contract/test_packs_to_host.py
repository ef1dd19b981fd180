"""Engine packs from promotion to host: signed with the bundle, pulled by target, refused by name, brought back by a
rollback.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.channel.content import check_releasable
from pipelines.verify_content import check_packs
from serving.engine_pack import load_pack, packed_key, store_pack
from serving.errors import BundleError, LedgerError, TrustError
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from serving.pull import pull_unsigned
from serving.release import parse_release
from tests.contract.packed_release import (
    MODEL,
    TRT,
    Released,
    Trading,
    moves,
    native_pack,
    promote,
    released,
    small_bundle,
    store,
)
from tests.pipelines.channel import desk
from tests.pipelines.channel.desk import Company
from tests.stand_in_native import Moves

__all__ = ["moves", "released", "store"]  # fixtures


def test_packs_arrive_by_target_and_verified(released: Released) -> None:
    _, host, bundle, packs = released
    pulled = host.pull()
    assert pulled.installed.installed_targets() == ["native_bf16", "native_fp32"]
    assert dict(pulled.installed.packs) == {pack.manifest.target: pack.sha256 for pack in packs}
    assert {pack.sha256 for pack in pulled.installed.load_packs(pulled.installed.load())} == {
        pack.sha256 for pack in packs if pack.manifest.backend == "native"
    }
    assert not host.pull().changed
    again = host.pull("native", TRT)
    assert again.changed  # the release stays the same, another pack comes along
    assert again.installed.installed_targets() == ["native_bf16", "native_fp32", TRT]
    assert again.installed.release == pulled.installed.release
    with pytest.raises(TrustError, match=f"--target trt_rtx_sm80_fp16: .* there are: native_bf16, native_fp32, {TRT}"):
        host.pull("trt_rtx_sm80_fp16")
    assert again.installed.load().sha256 == bundle.sha256


def test_a_release_without_packs_keeps_its_bytes_and_is_pulled(
    tmp_path: Path, store: FolderStore, moves: Moves
) -> None:
    promote(store, small_bundle(tmp_path / "bundle"), [])
    Company(tmp_path, store).channel().follow(MODEL)
    (key,) = store.list("releases/")
    raw = store.get(key)
    assert b"packs" not in raw
    assert parse_release(raw).format == 1
    host = Trading(tmp_path / "host", store)
    assert host.pull().installed.installed_targets() == []
    with pytest.raises(TrustError, match="there are: none"):
        host.pull(TRT)


def test_a_rollback_brings_the_packs_of_then(tmp_path: Path, released: Released, store: FolderStore) -> None:
    company, host, bundle, packs = released
    other = small_bundle(tmp_path / "other", members=2)
    promote(store, other, [native_pack(tmp_path / "others", other, "int8")])
    company.channel().follow(MODEL)
    pulled = host.pull()
    assert (pulled.installed.bundle, pulled.installed.installed_targets()) == (other.sha256, ["native_int8"])
    desk.roll_back(store, MODEL)
    company.channel().follow(MODEL)
    pulled = host.pull()
    assert (pulled.installed.bundle, pulled.installed.release) == (bundle.sha256, 3)
    assert pulled.installed.installed_targets() == ["native_bf16", "native_fp32"]
    assert dict(pulled.installed.packs) == {pack.manifest.target: pack.sha256 for pack in packs}


def test_a_channel_made_again_from_nothing_names_the_same_packs(released: Released, store: FolderStore) -> None:
    company, host, _, _ = released
    host.pull("native", TRT)
    for key in store.list("channel/"):
        store.delete(key)
    company.channel().rebuild()
    assert not host.pull("native", TRT).changed


@pytest.mark.parametrize("name", ["pack.json", "golden.npz"])
@pytest.mark.parametrize("how", ["tampered", "missing", "of another bundle"])
def test_a_damaged_pack_is_refused_by_name_and_nothing_is_installed(
    tmp_path: Path, released: Released, store: FolderStore, name: str, how: str
) -> None:
    _, host, _, packs = released
    path = store.root / packed_key(packs[1].sha256, name)
    path.chmod(0o600)
    if how == "missing":
        path.unlink()
    elif how == "tampered":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        other = native_pack(tmp_path / "others", small_bundle(tmp_path / "other", members=2), "bf16")
        path.write_bytes(other.read(name))
    with pytest.raises(TrustError, match=name):
        host.pull()
    assert not (host.folder / MODEL / "champion" / "current").exists()
    layer, _ = check_packs(store, Ledger(store, MODEL).events())
    assert [problem for problem in layer.problems if name in problem]


def test_a_pack_of_another_bundle_cant_be_decided_or_signed(tmp_path: Path, store: FolderStore, moves: Moves) -> None:
    bundle, other = small_bundle(tmp_path / "bundle"), small_bundle(tmp_path / "other", members=2)
    theirs = native_pack(tmp_path / "packs", other, "bf16")
    promote(store, bundle, [theirs])
    with pytest.raises(LedgerError, match=f"a pack of bundle {other.sha256}"):
        check_releasable(store, MODEL, 1, Ledger(store, MODEL).events()[-1])
    with pytest.raises(TrustError, match=f"a pack of bundle {other.sha256}"):
        Company(tmp_path, store).channel().follow(MODEL)
    layer, _ = check_packs(store, Ledger(store, MODEL).events())
    assert f"is for native_bf16 of bundle {other.sha256}" in layer.problems[0]
    with pytest.raises(TrustError, match=f"it is of bundle {other.sha256}, not {bundle.sha256}"):
        pull_unsigned(store, directory=tmp_path / "host", model=MODEL, channel="champion")


def test_an_old_pack_played_back_under_a_new_release_is_refused(
    tmp_path: Path, released: Released, store: FolderStore
) -> None:
    """The same bundle, released with another pack: the old pack's bytes aren't what the new release's name says."""
    _, host, bundle, packs = released
    newer = native_pack(tmp_path / "newer", bundle, "bf16", notes=["measured again"])
    promote_again = {pack.manifest.target: pack.sha256 for pack in packs} | {"native_bf16": newer.sha256}
    store_pack(store, newer)
    ledger = Ledger(store, MODEL)
    decided = dict(ledger.events()[-1].details) | {"packs": promote_again, "renews": 1}
    ledger.append(ledger.state(), "promoted", version=1, bundle=bundle.sha256, by="test", details=decided)
    released[0].channel().follow(MODEL)
    path = store.root / packed_key(newer.sha256, "pack.json")
    path.chmod(0o600)
    path.write_bytes(packs[1].read("pack.json"))
    with pytest.raises(TrustError, match=r"pack\.json"):
        host.pull()


def test_a_pack_tampered_with_after_installation_is_refused_and_fetched_again(
    released: Released, capsys: pytest.CaptureFixture[str]
) -> None:
    _, host, bundle, _ = released
    installed = host.pull().installed
    path = installed.folder / "packs" / "native_bf16" / "golden.npz"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        installed.load_packs(bundle)
    assert host.pull().changed
    assert "is damaged and is fetched again: golden.npz" in capsys.readouterr().err
    assert len(installed.load_packs(bundle)) == 2
    (installed.folder / "packs" / "native_bf17").mkdir()
    with pytest.raises(TrustError, match="the release names no engine pack 'native_bf17'"):
        installed.load_packs(bundle)


def test_packs_of_a_folder_are_loaded_as_they_were_made(released: Released) -> None:
    _, host, bundle, packs = released
    folder = host.pull(TRT).installed.folder / "packs" / TRT
    assert load_pack(folder, expected_sha256=packs[2].sha256, bundle=bundle, target=TRT).manifest == packs[2].manifest
