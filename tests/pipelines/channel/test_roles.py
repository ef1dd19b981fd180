"""Thresholds, rotations, revocations, expiries: what the publisher refuses, and what TUF's own client refuses."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets

from pipelines.channel import documents
from pipelines.channel.ceremony import add_signatures, describe_pending, pending_files, publish_pending
from pipelines.channel.commands import RoleName
from pipelines.channel.delegate import delegate
from pipelines.channel.keys import open_key
from pipelines.channel.metadata import Held, metadata_key, read_model
from pipelines.channel.publish import StoreChannel, open_channel
from pipelines.channel.revoke import revoke
from pipelines.channel.rotate import rotate
from pipelines.channel.status import offline_warnings, release_warnings, status
from pipelines.errors import SigningError
from serving.errors import ConfigError, TrustError
from serving.folder_store import FolderStore
from tests.pipelines.channel.desk import Company, Host, later, promote, signing


@pytest.fixture
def released(company: Company, store: FolderStore) -> Company:
    """The company's channel with release 1 of model `a`, which its host has seen."""
    promote(store, "a", 1)
    company.channel().follow("a")
    assert company.host().number("a") == 1
    return company


def test_nothing_is_published_before_its_threshold(released: Company, store: FolderStore) -> None:
    before = store.list()
    lines = rotate(released.bench("ann"), "root")
    assert any("1 of the 2 signatures that root 1 wants" in line and "not published" in line for line in lines)
    assert store.list() == before
    (path,) = pending_files(released.bench())
    lines = publish_pending(released.bench("ann"))
    assert "not published" in lines[0]
    assert store.list() == before
    line = add_signatures(released.bench("ann"), path)
    assert "signed with no further key" in line, "the same key doesn't count twice"
    add_signatures(released.bench("cid"), path)
    assert "channel/2.root.json: published" in publish_pending(released.bench())
    assert released.host().number("a") == 1


def test_one_of_two_signatures_is_refused_by_publishers_and_hosts(released: Company, store: FolderStore) -> None:
    root = released.bench().view().root
    forged = documents.unsigned(documents.next_root(root, root.expires), "root")
    assert forged is not None
    (signer,) = released.bench("ann").keyring.at_hand(documents.keys_of(root, "root"))
    forged.metadata.sign(signer)
    store.put(metadata_key("root", 2), forged.metadata.to_bytes())
    with pytest.raises(TrustError, match=r"channel/2\.root\.json: root was signed by 1/2 keys of root 1; .* delete it"):
        released.channel().follow("a")
    with pytest.raises(UnsignedMetadataError, match="1/2 keys"):
        released.host().number("a")
    store.delete(metadata_key("root", 2))
    assert released.channel().follow("a") == ()
    assert released.host().number("a") == 1


def test_a_models_threshold_of_two_wants_two(released: Company, store: FolderStore) -> None:
    delegate(released.bench("ann", *released.online), "a", [released.public("new")], threshold=2)
    promote(store, "a", 2)
    with pytest.raises(SigningError, match=r"model-a: needs 2 of the keys .*, 1 of them at hand"):
        released.channel().follow("a")
    released.channel("new", *released.online).follow("a")
    assert released.host().number("a") == 2
    held = released.bench().view().snapshot
    assert held is not None
    version = held.signed.meta["model-a.json"].version
    metadata: Metadata[Targets] = Metadata.from_bytes(store.get(metadata_key("model-a", version)))
    assert set(metadata.signatures) == {released.public("new").keyid, released.public("models").keyid}


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_an_online_role_gets_another_key(released: Company, store: FolderStore, role: RoleName) -> None:
    host = released.host()
    old = released.public(role).keyid
    people = ("ann", "bob", *released.online)
    lines = rotate(released.bench(*people), role, add=[released.public("new")], remove=[old])
    assert any("until then hosts keep what they have" in line for line in lines), "the new key isn't at hand"
    with pytest.raises(UnsignedMetadataError):
        host.number("a")
    others = [name for name in released.online if name != role]
    channel = released.channel("new", *others)
    assert channel.follow("a") == ("snapshot and timestamp: signed as root 2 wants it",)
    assert host.number("a") == 1
    promote(store, "a", 2)
    with pytest.raises(SigningError, match=f"{role}: needs 1 of the keys"):
        released.channel().follow("a")
    channel.follow("a")
    assert host.number("a") == 2


def test_a_key_that_is_added_before_the_old_one_goes_leaves_no_gap(released: Company) -> None:
    host = released.host()
    everybody = released.bench("ann", "bob", "new", *released.online)
    rotate(everybody, "timestamp", add=[released.public("new")])
    assert host.number("a") == 1
    rotate(everybody, "timestamp", remove=[released.public("timestamp").keyid])
    assert host.number("a") == 1
    with pytest.raises(SigningError):
        released.channel().bench.check_keys(released.bench().view().root, "timestamp")


def test_the_targets_get_another_key(released: Company, store: FolderStore) -> None:
    host = released.host()
    removed = [released.public(name).keyid for name in ("ann", "bob")]
    rotate(released.bench("ann", "bob"), "targets", add=[released.public("new")], remove=removed)
    (path,) = pending_files(released.bench())
    assert path.name.endswith(".targets.json"), "the root is out, the targets want the new key"
    with pytest.raises(SigningError, match="root 2 wants other signatures on the targets"):
        released.channel().follow("a")
    with pytest.raises(RepositoryError):
        host.number("a")
    add_signatures(released.bench("new"), path)
    publish_pending(released.bench(*released.online))
    assert host.number("a") == 1
    with pytest.raises(SigningError, match="targets"):
        documents.sign(
            documents.first_targets(released.bench().expires("targets"), 1), "targets",
            [released.bench().view().root], released.bench("ann", "bob").keyring,
        )  # fmt: skip


def test_targets_whose_signatures_got_lost_are_proposed_anew(released: Company) -> None:
    removed = [released.public(name).keyid for name in ("ann", "bob")]
    rotate(released.bench("ann", "bob"), "targets", add=[released.public("new")], remove=removed)
    (path,) = pending_files(released.bench())
    path.unlink()
    rotate(released.bench("new", *released.online), "targets")
    assert released.host().number("a") == 1


def test_hosts_follow_three_roots_with_wholly_other_keys(released: Company, store: FolderStore) -> None:
    host = released.host("late")
    host.root = store.get("channel/1.root.json")
    add, remove = [released.public("new"), released.public("newer")], [released.public("ann").keyid]
    rotate(released.bench("ann", "bob", "new"), "root", add=add, remove=remove)
    removed = [released.public(name).keyid for name in ("bob", "cid")]
    rotate(released.bench("bob", "cid", "new", "newer"), "root", remove=removed)
    with pytest.raises(SigningError, match="root: needs 2"):
        released.bench("ann", "bob", "cid").check_keys(released.bench().view().root, "root")
    rotate(released.bench("new", "newer"), "root")
    assert released.bench().view().root.version == 4
    promote(store, "a", 2)
    released.channel().follow("a")
    assert host.number("a") == 2
    assert released.host().number("a") == 2
    shutil.copy(store.root / "channel/2.root.json", store.root / "channel/3.root.json")
    with pytest.raises(TrustError, match=r"3\.root\.json"):
        released.channel().follow("a")


def test_what_a_revoked_model_key_signed_is_refused(released: Company, store: FolderStore) -> None:
    lost = released.public("models").keyid
    with pytest.raises(SigningError, match="model-a: 0 keys for a threshold of 1; add keys"):
        revoke(released.bench("ann"), [lost])
    lines = revoke(released.bench("ann", "snapshot", "timestamp"), [lost[:12]], [released.public("new")])
    assert f"model-a: without {lost[:12]}" in lines
    assert any("model-a: stays as it was" in line for line in lines)
    with pytest.raises(UnsignedMetadataError):
        released.host("fresh").number("a")
    channel = released.channel("new", "snapshot", "timestamp")
    channel.refresh()
    assert released.host().number("a") == 1
    promote(store, "a", 2)
    with pytest.raises(SigningError, match="model-a: needs 1 of the keys"):
        released.channel().follow("a")
    snapshot = channel.bench.view().snapshot
    assert snapshot is not None
    forged = documents.unsigned(documents.model_targets({}, snapshot.version + 1, later(9)()), "model-a")
    assert forged is not None
    forged.metadata.sign(CryptoSigner(open_key(released.uri("models")).private, released.public("models")))  # type: ignore[arg-type]
    publish_by_hand(channel, Held(forged.key, forged.metadata.to_bytes(), forged.metadata))
    with pytest.raises(UnsignedMetadataError, match="model-a was signed by 0/1 keys"):
        released.host().number("a")
    assert channel.follow("a") == ("model-a: release none -> 2",)
    assert released.host().number("a") == 2


def test_what_a_thief_of_the_snapshot_key_did_to_other_models_is_mended(company: Company, store: FolderStore) -> None:
    delegate(company.bench("ann"), "b", [company.public("models")])
    channel = company.channel()
    promote(store, "a", 1)
    channel.follow("a")
    stolen: list[Held[Targets]] = []
    for seed in (1, 2):
        promote(store, "b", seed)
        channel.follow("b")
        held = read_model(store, channel.bench.view(), "model-b")
        assert held is not None
        stolen.append(held)
    publish_by_hand(channel, stolen[0], "model-b")
    assert company.host("deceived").number("b") == 1
    lost = [company.public(name).keyid for name in ("snapshot", "timestamp")]
    revoke(company.bench("ann", "bob"), lost, [company.public("new")])
    lines = company.channel("new", "models").follow("a")
    assert "model-b: release 1 -> 2" in lines
    assert company.host("fresh").number("b") == 2
    assert company.host("deceived").number("b") == 2


def publish_by_hand(channel: StoreChannel, model: Held[Targets], role: str = "model-a") -> None:
    """What somebody can do who stole the keys of snapshot and timestamp as well."""
    bench = channel.bench
    view = bench.view()
    assert view.snapshot is not None
    bench.store.put(model.key, model.raw)
    meta = view.snapshot.signed.meta | {f"{role}.json": model.named()}
    snapshot = documents.snapshot(meta, view.snapshot.version + 1, later(7)())
    held = documents.sign(snapshot, "snapshot", [view.root], bench.keyring)
    bench.store.put(held.key, held.raw)
    stamp = documents.timestamp(held, int(later(0)().timestamp() * 1000), later(1)())
    bench.store.put("channel/timestamp.json", documents.sign(stamp, "timestamp", [view.root], bench.keyring).raw)


def test_a_revoked_online_key_leaves_every_role_it_was_in(company: Company) -> None:
    everybody = company.bench("ann", "bob", *company.online)
    rotate(everybody, "snapshot", add=[company.public("timestamp")])
    lost = company.public("timestamp").keyid
    lines = revoke(company.bench("ann", "bob", "new", *company.online), [lost], [company.public("new")])
    assert [line for line in lines if "without" in line] == [
        f"snapshot: without {lost[:12]}",
        f"timestamp: without {lost[:12]}",
    ]
    root = company.bench().view().root
    assert lost not in root.keys
    with pytest.raises(SigningError, match="no role names a key"):
        revoke(everybody, [lost])


def test_a_role_is_never_left_with_too_few_keys(company: Company) -> None:
    for role, name in (("timestamp", "timestamp"), ("snapshot", "snapshot")):
        with pytest.raises(SigningError, match=f"{role}: 0 keys for a threshold of 1; add keys"):
            rotate(company.bench(), role, remove=[company.public(name).keyid])  # type: ignore[arg-type]
    with pytest.raises(SigningError, match="root: 3 keys for a threshold of 4"):
        rotate(company.bench(), "root", threshold=4)
    with pytest.raises(SigningError, match="targets: has no key 'abc'"):
        rotate(company.bench(), "targets", remove=["abc"])
    with pytest.raises(ConfigError, match="say what changes"):
        rotate(company.bench(), "timestamp")


def test_what_expires_is_refused_and_a_refresh_renews_it(released: Company) -> None:
    host = released.host()
    long_ago = released.channel(now=later(-40))
    for key in released.store.list("channel/"):
        if "root" not in key and "targets" not in key:
            released.store.delete(key)
    long_ago.refresh()
    fresh = released.host("fresh")
    with pytest.raises(ExpiredMetadataError):
        fresh.number("a")
    lines = released.channel().refresh()
    assert "model-a: renewed" in lines
    assert fresh.number("a") == 1
    assert host.number("a") == 1
    assert released.channel().refresh() == ()


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (1.3, ()),
        (1.4, ("timestamp: renewed",)),
        (4.7, ("snapshot: renewed",)),
        (20.1, ("model-a: renewed",)),
    ],
)
def test_each_role_is_renewed_in_the_last_third_of_its_life(
    released: Company, days: float, expected: tuple[str, ...]
) -> None:
    channel = released.channel(now=later(days))
    assert channel.follow("a") == expected
    assert channel.refresh() == (() if expected else ("timestamp: renewed",))
    assert channel.refresh() == ()
    assert released.host().number("a") == 1


def test_a_daily_refresh_that_comes_late_leaves_no_gap(released: Company) -> None:
    """Over two months, each run up to two hours later than a day after the last."""
    day = 0.0
    for run in range(60):
        day += 1.0 + (0.08 if run % 3 else 0.0)
        bench = released.bench(*released.online, now=later(day))
        view = bench.view()
        for held in (view.timestamp, view.snapshot, read_model(bench.store, view, "model-a")):
            assert held is not None
            assert not held.signed.is_expired(bench.now()), f"{held.key} expired before run {run}"
        StoreChannel(bench).refresh()


def test_hosts_come_back_to_a_channel_whose_root_and_targets_had_expired(tmp_path: Path, store: FolderStore) -> None:
    company = Company(tmp_path, store, now=later(-366))
    promote(store, "a", 1)
    company.channel().follow("a")
    host = company.host()
    with pytest.raises(ExpiredMetadataError):
        host.number("a")
    rotate(company.bench("ann", "bob"), "root")
    with pytest.raises(ExpiredMetadataError, match="New targets is expired"):
        host.number("a")
    rotate(company.bench("ann", *company.online), "targets")
    assert host.number("a") == 1


def test_people_are_told_of_what_they_must_renew(released: Company) -> None:
    bench = released.bench(*released.online, now=later(121))
    StoreChannel(bench).refresh()
    assert [line.split(":")[0] for line in offline_warnings(bench, bench.view())] == ["targets"]
    bench = released.bench(*released.online, now=later(244))
    with pytest.raises(SigningError, match=r"has expired:\n  - targets: expires .*rotate role=targets` renews it"):
        offline_warnings(bench, bench.view())
    assert any("targets" in line and line.endswith("EXPIRED") for line in status(bench))
    rotate(released.bench("bob", *released.online, now=later(244)), "targets")
    assert offline_warnings(bench, bench.view())[0].startswith("root: expires")
    assert len(offline_warnings(bench, bench.view())) == 1


def test_a_release_that_soon_expires_is_told_by_refresh_and_status(released: Company, store: FolderStore) -> None:
    ends = "2099-01-01T00:00:00.000000Z"  # the desk's releases
    remedy = "promote it again with renew=true, or another version"
    days = (datetime.fromisoformat(ends) - datetime.now(UTC)) / timedelta(days=1)
    for left, refresh, row in (
        (31, [], "until 2099-01-01"),
        (
            29.5,
            [f"model-a: release 1 expires at {ends}, in 29 days: {remedy}"],
            "until 2099-01-01: soon",
        ),
        (
            -1,
            [f"model-a: release 1 EXPIRED at {ends}, hosts refuse it: {remedy}"],
            "EXPIRED 2099-01-01",
        ),
    ):
        bench = released.bench(*released.online, now=later(days - left))
        told = release_warnings(bench, bench.view())
        assert [line.partition(";")[0] for line in told] == refresh
        assert status(bench)[-1].endswith(f"release 1, {row}")


def test_a_development_channel_renews_all_by_itself(store: FolderStore, channel: StoreChannel, tmp_path: Path) -> None:
    promote(store, "a", 1)
    channel.follow("a")
    host = Host(store, tmp_path / "host")
    assert host.number("a") == 1
    ahead = open_channel(signing(tmp_path / "keys"), store, now=later(300))
    lines = ahead.follow("a")
    assert {"root: renewed", "targets: renewed", "model-a: renewed"} <= set(lines)
    assert ahead.follow("a") == ()
    assert ahead.bench.view().root.version == 2
    assert host.number("a") == 1


def test_a_development_key_is_refused_by_a_production_channel(
    company: Company, store: FolderStore, tmp_path: Path
) -> None:
    other = FolderStore(tmp_path / "other")
    promote(other, "a", 1)
    development = open_channel(signing(tmp_path / "dev"), other)
    development.follow("a")
    held = development.bench.view()
    key = held.root.get_key(held.root.roles["timestamp"].keyids[0])
    everybody = company.bench("ann", "bob", *company.online)
    with pytest.raises(SigningError, match=f"timestamp: {key.keyid[:12]} is a development key"):
        rotate(everybody, "timestamp", add=[key])
    with pytest.raises(SigningError, match="is a development key"):
        delegate(everybody, "b", [key])
    root = documents.next_root(everybody.view().root, everybody.expires("root"))
    documents.set_keys(root, "timestamp", kind="development", add=[key], remove=[company.public("timestamp").keyid])
    forced = documents.sign(root, "root", [everybody.view().root, root], everybody.keyring)
    store.put(forced.key, forced.raw)
    with pytest.raises(SigningError, match=r"timestamp\.pem: is a development key, which a production channel refuses"):
        company.channel("snapshot", "models", f"file2:{tmp_path}/dev/timestamp.pem").refresh()


def test_targets_wait_for_the_root_that_lets_their_keys_sign(released: Company) -> None:
    removed = [released.public(name).keyid for name in ("ann", "bob")]
    lines = rotate(released.bench("ann", "new"), "targets", add=[released.public("new")], remove=removed)
    assert lines[-1].endswith("targets.json: not published; waits for the root")
    for path in pending_files(released.bench()):
        add_signatures(released.bench("cid"), path)
    publish_pending(released.bench(*released.online))
    assert pending_files(released.bench()) == []
    assert released.host().number("a") == 1


def test_ceremonies_dont_cross(released: Company) -> None:
    rotate(released.bench("ann"), "targets", threshold=2)
    waiting = describe_pending(released.bench())
    assert len(waiting) == 2
    with pytest.raises(SigningError, match=r"2\.root\.json: waits for signatures"):
        rotate(released.bench("ann"), "root")
    for path in pending_files(released.bench()):
        path.unlink()
    delegate(released.bench(), "b", [released.public("models")])
    (stale,) = pending_files(released.bench())
    moved = stale.rename(released.folder / stale.name)
    delegate(released.bench("ann", *released.online), "c", [released.public("models")])
    moved.rename(stale)
    add_signatures(released.bench("bob"), stale)
    with pytest.raises(SigningError, match=r"follows targets .* delete it and propose anew"):
        publish_pending(released.bench(*released.online))
    view = released.bench().view()
    assert view.targets is not None
    assert list(documents.keys_of(view.targets.signed, "model-c")) == [released.public("models").keyid]


def test_targets_that_nobody_chose_count_for_nothing(released: Company, store: FolderStore) -> None:
    """Signed, newer, but not made from those that count: what is left of a lost race or an abandoned ceremony."""
    bench = released.bench("ann", *released.online)
    held = bench.view().targets
    assert held is not None
    stray = documents.next_targets(held.signed, bench.expires("targets"), held.version + 10**9)
    stray.unrecognized_fields["x-strikeforge-follows"] = 7
    left = documents.sign(stray, "targets", [bench.view().root], bench.keyring)
    store.put(left.key, left.raw)
    store.put(metadata_key("targets", held.version + 2 * 10**9), b"{}")
    assert bench.view().targets == held
    assert released.channel().refresh() == ()


def test_a_signer_needs_the_folder_alone(released: Company, tmp_path: Path) -> None:
    rotate(released.bench("ann"), "root")
    away = tmp_path / "laptop"
    shutil.copytree(released.folder / "keys", away)
    laptop = signing(away, kind="production", keys=(released.uri("bob"),))
    bench = open_channel(laptop, FolderStore(tmp_path / "nowhere")).bench
    (path,) = pending_files(bench)
    line = add_signatures(bench, path)
    assert "2 of the 2 signatures that root 1 wants" in line
    with pytest.raises(SigningError, match="has 0 roots only; publish into the channel's store"):
        publish_pending(bench)
    shutil.copy(path, released.folder / "keys/pending" / path.name)
    publish_pending(released.bench(*released.online))
    root: Metadata[Root] = Metadata.from_bytes(released.store.get("channel/2.root.json"))
    assert len(root.signatures) == 2
