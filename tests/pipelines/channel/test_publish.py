"""What is published, seen by TUF's own client: releases of several models, rollbacks, fences, disasters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tuf.api.exceptions import RepositoryError

from pipelines.channel.metadata import TIMESTAMP_KEY
from pipelines.channel.publish import StoreChannel, open_channel
from pipelines.errors import SigningError
from serving.canonical import canonical_json
from serving.errors import BlobMissingError, LedgerError, StoreError, TrustError
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from serving.pull import pull
from serving.release import content_key
from tests.pipelines.channel.desk import Company, Host, bundle, promote, roll_back, signing


def keys_and_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}


def test_a_host_accepts_every_release_and_finds_all_it_names(
    store: FolderStore, channel: StoreChannel, host: Host
) -> None:
    promote(store, "a", 1)
    assert "model-a: release none -> 1" in channel.follow("a")
    promote(store, "a", 2)
    assert channel.follow("a") == ("model-a: release 1 -> 2",)
    release = host.release("a")
    assert release is not None
    assert (release.release, release.version, release.bundle) == (2, 2, bundle("a", 2).sha256)
    names = ["manifest.json", *bundle("a", 2).manifest.files]
    keys = [f"bundles/{release.bundle}/{name}" for name in names]
    keys += [f"gate-reports/{release.gate_report}.json", f"provenance/{release.provenance}.json"]
    for key in keys:
        found = host.target(f"a/{key}")
        assert found is not None, key
        found.verify_length_and_hashes(store.get(content_key("a", found.path)))
    assert host.target(f"a/bundles/{bundle('a', 1).sha256}/manifest.json") is None, "only the current release's"


def test_our_own_host_installs_it_and_wants_to_be_told_of_development(
    store: FolderStore, company: Company, tmp_path: Path
) -> None:
    promote(store, "a", 1)
    company.channel().follow("a")
    root = company.bench().kept.root_file()
    assert pull(store, root, directory=tmp_path / "desk", model="a").installed.release == 1
    other = FolderStore(tmp_path / "other")
    promote(other, "a", 1)
    development = open_channel(signing(tmp_path / "dev"), other)
    development.follow("a")
    root = development.bench.kept.root_file()
    with pytest.raises(TrustError, match="is a development root"):
        pull(other, root, directory=tmp_path / "dev-desk", model="a")
    assert pull(other, root, directory=tmp_path / "dev-desk", model="a", development=True).installed.release == 1


def test_a_rollback_is_a_new_release_over_the_old_bundle(store: FolderStore, channel: StoreChannel, host: Host) -> None:
    for seed in (1, 2):
        promote(store, "a", seed)
        channel.follow("a")
    roll_back(store, "a")
    assert channel.follow("a") == ("model-a: release 2 -> 3",)
    release = host.release("a")
    assert release is not None
    assert (release.release, release.version, release.kind) == (3, 1, "rolled_back")


def test_following_again_writes_nothing(store: FolderStore, channel: StoreChannel, tmp_path: Path) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    before = keys_and_bytes(tmp_path)
    assert channel.follow("a") == ()
    assert channel.refresh() == ()
    assert keys_and_bytes(tmp_path) == before


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    store: FolderStore, channel: StoreChannel, tmp_path: Path
) -> None:
    promote(store, "a", 1)
    before = keys_and_bytes(tmp_path)
    assert "model-a: release none -> 1" in channel.follow("a", dry_run=True)
    channel.ready("a")
    assert keys_and_bytes(tmp_path) == before
    assert not (tmp_path / "keys").exists()


def test_a_model_without_a_champion_leaves_the_channel_alone(store: FolderStore, channel: StoreChannel) -> None:
    assert channel.follow("a") == ()
    assert store.list("channel/") == []


def test_models_dont_disturb_each_other(store: FolderStore, channel: StoreChannel, host: Host) -> None:
    for model in ("a", "b"):
        promote(store, model, 1)
        channel.follow(model)
    promote(store, "b", 2)
    channel.follow("b")
    assert (host.number("a"), host.number("b")) == (1, 2)


def test_a_models_role_signs_nothing_of_another_model(store: FolderStore, channel: StoreChannel, host: Host) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    held = channel.bench.view().targets
    assert held is not None
    assert held.signed.delegations is not None
    assert held.signed.delegations.roles is not None
    role = held.signed.delegations.roles["model-a"]
    assert role.is_delegated_path("a/champion/release.json")
    assert not role.is_delegated_path("b/champion/release.json")
    assert not role.is_delegated_path("a")
    assert held.signed.targets == {}, "the top level delegates only"


def test_an_emptied_store_gets_its_channel_back_and_old_hosts_accept_it(
    store: FolderStore, channel: StoreChannel, host: Host, tmp_path: Path
) -> None:
    for model, count in (("a", 3), ("b", 1)):
        for seed in range(count):
            promote(store, model, seed)
            channel.follow(model)
    assert (host.number("a"), host.number("b")) == (3, 1)
    shutil.rmtree(store.root / "channel")
    shutil.rmtree(store.root / "releases")
    open_channel(signing(tmp_path / "keys"), store).follow("b")
    assert (host.number("a"), host.number("b")) == (3, 1)
    fresh = Host(store, tmp_path / "another-host")
    assert (fresh.number("a"), fresh.number("b")) == (3, 1)


def test_release_files_come_back_byte_for_byte(store: FolderStore, channel: StoreChannel) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    before = {key: store.get(key) for key in store.list("releases/")}
    shutil.rmtree(store.root / "channel")
    shutil.rmtree(store.root / "releases")
    channel.follow("a")
    assert {key: store.get(key) for key in store.list("releases/")} == before


def test_a_cut_ledger_is_refused_and_the_channel_stays(store: FolderStore, channel: StoreChannel, host: Host) -> None:
    for seed in (1, 2):
        promote(store, "a", seed)
        channel.follow("a")
    for key in store.list("ledger/a/")[3:]:
        store.delete(key)
    stamp = store.get(TIMESTAMP_KEY)
    with pytest.raises(LedgerError, match=r"names event 6 \(release 2\).* ends before it: it was cut or rewritten"):
        channel.follow("a")
    with pytest.raises(SigningError, match="cut or rewritten"):
        channel.refresh()
    assert store.get(TIMESTAMP_KEY) == stamp
    assert host.number("a") == 2


def test_a_rewritten_ledger_is_refused(store: FolderStore, channel: StoreChannel) -> None:
    for seed in (1, 2):
        promote(store, "a", seed)
        channel.follow("a")
    for key in store.list("ledger/a/")[3:]:
        store.delete(key)
    promote(store, "a", 3)
    with pytest.raises(LedgerError, match="has another one there"):
        channel.follow("a")


def test_a_cut_ledger_is_refused_without_the_release_file_too(store: FolderStore, channel: StoreChannel) -> None:
    for seed in (1, 2):
        promote(store, "a", seed)
        channel.follow("a")
    for key in (*store.list("ledger/a/")[3:], *store.list("releases/")):
        store.delete(key)
    with pytest.raises(LedgerError, match=r"names release 2, .*the ledger was cut or rewritten"):
        channel.follow("a")


class StaleLedger(FolderStore):
    """Sees a ledger as it once was."""

    hidden: tuple[str, ...] = ()

    def list(self, prefix: str = "") -> list[str]:
        return [key for key in super().list(prefix) if key not in self.hidden]


def test_a_publisher_with_an_old_view_of_the_ledger_cant_lower_the_release(
    store: FolderStore, channel: StoreChannel, host: Host, tmp_path: Path
) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    promote(store, "a", 2)
    channel.follow("a")
    stale = StaleLedger(store.root)
    stale.hidden = tuple(store.list("ledger/a/")[3:])
    with pytest.raises(LedgerError, match="ends before it"):
        open_channel(signing(tmp_path / "keys"), stale).follow("a")
    assert host.number("a") == 2


class Overtaken(FolderStore):
    """Just before the first write of the timestamp somebody else publishes."""

    def __init__(self, root: Path, act: StoreChannel, model: str) -> None:
        super().__init__(root)
        self.act: StoreChannel | None = act
        self.model = model

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        act, self.act = self.act, None
        if act is not None:
            promote(act.bench.store, self.model, 7)
            act.follow(self.model)
        return super().put_if_match(key, data, etag)


@pytest.mark.parametrize("model", ["a", "b"])
def test_whoever_is_overtaken_reads_everything_anew(
    store: FolderStore, channel: StoreChannel, host: Host, tmp_path: Path, model: str
) -> None:
    for name in ("a", "b"):
        promote(store, name, 1)
        channel.follow(name)
    promote(store, "a", 2)
    overtaken = open_channel(signing(tmp_path / "keys"), Overtaken(store.root, channel, model))
    overtaken.follow("a")
    assert host.number("a") == (3 if model == "a" else 2)
    assert host.number("b") == (1 if model == "a" else 2)


@pytest.mark.parametrize("what", ["gate-reports", "provenance", "bundle"])
def test_nothing_is_published_that_the_store_lacks(store: FolderStore, channel: StoreChannel, what: str) -> None:
    promote(store, "a", 1)
    prefix = f"bundles/{bundle('a', 1).sha256}/member-0/" if what == "bundle" else f"{what}/"
    for key in store.list(prefix):
        store.delete(key)
    with pytest.raises(StoreError, match=prefix):
        channel.follow("a")
    with pytest.raises(BlobMissingError):
        store.get(TIMESTAMP_KEY)


def test_a_changed_gate_report_isnt_published(store: FolderStore, channel: StoreChannel) -> None:
    promote(store, "a", 1)
    (key,) = store.list("gate-reports/")
    store.put(key, canonical_json({"passed": "certainly"}))
    with pytest.raises(TrustError, match=f"{key}: its content has sha256"):
        channel.follow("a")


def test_a_champion_from_before_signing_is_named(store: FolderStore, channel: StoreChannel) -> None:
    ledger, made = Ledger(store, "a"), bundle("a", 1)
    state = ledger.append(ledger.state(), "registered", version=1, bundle=made.sha256, by="test")
    state = ledger.append(state, "gated", version=1, bundle=made.sha256, by="test", details={"passed": True})
    ledger.append(state, "promoted", version=1, bundle=made.sha256, by="test", details={"gate_report": "0" * 64})
    with pytest.raises(LedgerError, match=r"00000003\.json: .* says nothing of provenance, expires_at"):
        channel.follow("a")
    promote(store, "b", 1)
    lines = channel.follow("b")
    assert any(line.startswith("model-a: not published: ") for line in lines)
    assert channel.follow("b") == ()


@pytest.mark.parametrize("key", ["timestamp", "snapshot", "targets", "model-a", "root"])
def test_damaged_metadata_is_named_and_restored(
    store: FolderStore, channel: StoreChannel, host: Host, key: str
) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    assert host.number("a") == 1
    promote(store, "a", 2)
    damaged = next(name for name in reversed(store.list("channel/")) if name.endswith(f"{key}.json"))
    raw = store.get(damaged)
    store.put(damaged, raw.replace(b'"spec_version":"1.0.', b'"spec_version":"1.1.'))
    with pytest.raises(TrustError, match=damaged):
        channel.follow("a")
    with pytest.raises(RepositoryError):
        Host(store, host.folder.with_name("fresh")).number("a")
    channel.rebuild()
    assert host.number("a") == 2


def test_other_keys_are_another_channel(store: FolderStore, channel: StoreChannel, tmp_path: Path) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    promote(store, "a", 2)
    with pytest.raises(SigningError, match="0 of them at hand"):
        open_channel(signing(tmp_path / "no-keys"), store).ready("a")
    other = FolderStore(tmp_path / "other-store")
    promote(other, "a", 1)
    another = open_channel(signing(tmp_path / "other-keys"), other)
    another.follow("a")
    with pytest.raises(TrustError, match=r"channel/1\.root\.json: isn't the root that is kept here"):
        open_channel(signing(tmp_path / "other-keys"), store).follow("a")


def test_stores_that_share_a_keys_folder_share_the_root(
    store: FolderStore, channel: StoreChannel, tmp_path: Path
) -> None:
    other = FolderStore(tmp_path / "other-store")
    for place in (store, other):
        for model in ("a", "b", "c"):
            promote(place, model, 1)
            open_channel(signing(tmp_path / "keys"), place).follow(model)
    assert store.get("channel/1.root.json") == other.get("channel/1.root.json")
    for place in (store, other):
        host = Host(place, tmp_path / f"host-{place.root.name}")
        assert [host.number(model) for model in ("a", "b", "c")] == [1, 1, 1]


def test_production_lets_no_model_in_by_itself(store: FolderStore, company: Company) -> None:
    promote(store, "b", 1)
    channel = company.channel()
    for act in (channel.ready, channel.follow):
        with pytest.raises(SigningError, match=r"model-b: .* pipelines\.channel\.delegate model=b"):
            act("b")


def test_production_needs_no_offline_key_to_publish_refresh_and_restore(store: FolderStore, company: Company) -> None:
    for name in ("ann", "bob", "cid"):
        (company.keys / f"{name}.pem").unlink()
    channel, host = company.channel(), company.host()
    promote(store, "a", 1)
    channel.ready("a")
    assert channel.follow("a") == ("model-a: release none -> 1",)
    assert host.number("a") == 1
    shutil.rmtree(store.root / "channel")
    with pytest.raises(SigningError, match=r"has no channel; .* pipelines\.channel\.restore"):
        channel.follow("a")
    channel.rebuild()
    assert host.number("a") == 1


def test_a_missing_online_key_is_named_before_anything_is_decided(store: FolderStore, company: Company) -> None:
    promote(store, "a", 1)
    channel = company.channel("snapshot", "models")
    with pytest.raises(
        SigningError, match=f"timestamp: needs 1 of the keys {company.public('timestamp').keyid[:12]}, 0"
    ):
        channel.ready("a")
    before = store.list()
    with pytest.raises(SigningError, match="timestamp: needs 1"):
        channel.follow("a")
    assert store.list() == before


def test_development_and_production_dont_mix(store: FolderStore, company: Company, tmp_path: Path) -> None:
    with pytest.raises(SigningError, match="has a production channel, but signing is development"):
        open_channel(signing(tmp_path / "dev"), store).follow("a")
    other = FolderStore(tmp_path / "other")
    promote(other, "a", 1)
    open_channel(signing(tmp_path / "dev"), other).follow("a")
    with pytest.raises(SigningError, match="has a development channel, but signing is production"):
        open_channel(signing(tmp_path / "prod", kind="production"), other).follow("a")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "model-a"])
def test_a_fraction_in_metadata_is_told(store: FolderStore, channel: StoreChannel, role: str) -> None:
    """TUF's canonical JSON holds no fractions, so nobody can have signed one."""
    promote(store, "a", 1)
    channel.follow("a")
    (key,) = [key for key in store.list("channel/") if key.endswith(f"{role}.json")]
    value = json.loads(store.get(key))
    value["signed"]["x"] = 1.5
    store.put(key, json.dumps(value).encode())
    with pytest.raises(TrustError, match=f"^{key}: "):
        channel.follow("a")
