"""Nothing tampered with gets onto a host: a tenth of tests/forgeries.py is offered here, all by `make chaos-release`.

Controls: what isn't spoilt is installed; and with each defect planted in the client the same stores get through.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuf.api import _payload
from tuf.api.metadata import Signed

from serving import downloads, npz, pull, pull_files, trust
from serving.blobstore import open_store
from serving.engine_pack import parse_pack
from serving.folder_store import FolderStore
from serving.installed import Place
from tests import forgeries
from tests.forged import MODEL, Files, write_store
from tests.forgeries import Outcome, chosen, installed_tree, offer
from tests.forgery import Forgery, sealed, whole

TENTH = 10
EVERY_KIND = {
    "flipped", "truncated", "emptied", "extended", "missing", "value changed", "value changed, named anew", "swapped",
    "replayed", "mixed", "version lowered", "expired", "wrong key", "unsigned", "below threshold", "counted twice",
    "revoked key", "other model", "delegation", "lower release", "wrong model", "wrong channel", "custom",
    "release file", "length or hash", "path escape", "manifest", "zip bomb", "provenance", "oversized", "root chain",
    "root file", "symbolic link", "engine pack",
}  # fmt: skip


def test_there_are_more_than_five_hundred_of_every_kind() -> None:
    everything = chosen(None)
    assert len(everything) >= 500
    assert {forgery.kind for forgery in everything} >= EVERY_KIND
    assert len({(forgery.kind, forgery.what, forgery.fresh) for forgery in everything}) == len(everything)


def test_a_tenth_of_them_is_refused_by_name_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    count = len(chosen(None)) // TENTH
    outcome = forgeries.run(count)
    with capsys.disabled():
        sys.stdout.write(f"\nforged stores: {outcome.repositories} offered, {len(outcome.accepted)} accepted\n")
    assert outcome.repositories == count
    assert outcome.accepted == []
    assert outcome.wrong == []


def test_what_isnt_forged_is_accepted(tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(sealed(1)["channel/1.root.json"])
    seen: Files = {}
    for number in (1, 2, 3):
        seen |= sealed(number)
        store = FolderStore(write_store(tmp_path / "store", seen))
        pulled = pull.pull(store, root, directory=tmp_path / "host", model=MODEL)
        assert (pulled.installed.release, pulled.changed) == (3 + number, True)
    before = installed_tree(tmp_path / "host")
    assert not pull.pull(store, root, directory=tmp_path / "host", model=MODEL).changed
    assert installed_tree(tmp_path / "host") == before
    fresh = pull.pull(store, root, directory=tmp_path / "new", model=MODEL)
    assert (fresh.installed.release, fresh.before) == (6, None)


def _ignoring(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, instead: Any) -> None:
    monkeypatch.setattr(owner, name, instead)


Plant = Callable[[pytest.MonkeyPatch], object]
DEFECTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "expiry of metadata ignored": (
        lambda patch: _ignoring(patch, Signed, "is_expired", lambda *_: False),
        ("expired",),
    ),
    "expiry of releases ignored": (
        lambda patch: _ignoring(patch, pull.ReleaseFile, "expired", lambda *_: False),
        ("expired",),
    ),
    "signature threshold ignored": (
        lambda patch: _ignoring(
            patch, _payload.VerificationResult, "verified", property(lambda result: bool(result.signed))
        ),
        ("below threshold", "counted twice"),
    ),
    "signatures ignored": (
        lambda patch: _ignoring(patch, _payload._DelegatorMixin, "verify_delegate", lambda *_: None),
        ("wrong key", "unsigned", "value changed"),
    ),
    "hashes of engine packs ignored": (
        lambda patch: (
            _ignoring(patch, downloads, "_sha256_of", lambda path: path.name),
            _ignoring(patch, pull, "_check_packs", lambda *_: None),
        ),
        ("flipped: packs/", "replayed: member-0/weights of the pack before", "replayed: golden.npz of the pack"),
    ),
    "what an engine pack is of ignored": (
        lambda patch: (
            _ignoring(patch, pull_files, "pack_of_release", lambda raw, *_: parse_pack(raw)),
            _ignoring(patch, pull, "_check_packs", lambda *_: None),
        ),
        ("engine pack: of the bundle before", "engine pack: released: of the bundle before"),
    ),
    "hashes of content ignored": (
        lambda patch: _ignoring(patch, downloads, "_sha256_of", lambda path: path.name),
        ("flipped",),
    ),
    "installed release ignored": (lambda patch: _ignoring(patch, Place, "floor", lambda _: 0), ("lower release",)),
    "custom ignored": (lambda patch: _ignoring(patch, pull, "_check_release", lambda *_: None), ("custom",)),
    "delegations ignored": (
        lambda patch: _ignoring(patch, trust, "_check_delegations", lambda *_: None),
        ("delegation",),
    ),
    "chain of roots ignored": (
        lambda patch: _ignoring(patch, trust, "_check_roots", lambda *_: None),
        ("root chain", "root file"),
    ),
    "provenance ignored": (
        lambda patch: _ignoring(patch, pull_files, "check_statement", lambda *_: None),
        ("provenance",),
    ),
    "unpacked size ignored": (lambda patch: _ignoring(patch, npz, "FREE_BYTES", 1 << 40), ("zip bomb",)),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_lets_some_through(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forgeries.pulled_before()  # pulled by the client as it is
    plant, kinds = DEFECTS[defect]
    offered = [forgery for forgery in chosen(None) if f"{forgery.kind}: {forgery.what}".startswith(kinds)]
    plant(monkeypatch)
    outcome = Outcome()
    for forgery in offered:
        offer(forgery, outcome)
        if outcome.accepted:
            return
    pytest.fail(f"{len(offered)} stores of {kinds} were refused although {defect}")


@pytest.mark.cloud
def test_a_sample_over_s3(s3_store_url: str, tmp_path: Path) -> None:
    places = iter(range(1000))

    def uploaded(folder: Path) -> Any:
        store = open_store(f"{s3_store_url}/{next(places)}")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.put(path.relative_to(folder).as_posix(), path.read_bytes())
        return store

    by_kind: dict[str, Forgery] = {forgery.kind: forgery for forgery in chosen(None) if forgery.spoil is None}
    outcome = Outcome(by_kind=Counter())
    for forgery in by_kind.values():
        offer(forgery, outcome, uploaded)
    assert (outcome.repositories, outcome.accepted, outcome.wrong) == (len(by_kind), [], [])
    root = tmp_path / "root.json"
    root.write_bytes(sealed(1)["channel/1.root.json"])
    store = uploaded(write_store(tmp_path / "store", whole()))
    assert pull.pull(store, root, directory=tmp_path / "host", model=MODEL).installed.release == 6
