"""A version is registered with everything that decisions, provenance and people will want to know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from pipelines import diff, export, lineage_of, register, verify
from pipelines.channel.publish import open_channel
from pipelines.config import Config, config_hash, load_config, without_places
from pipelines.exam import load_exam, read_exam
from pipelines.lineage import file_hash
from pipelines.promote import promote
from pipelines.provenance import provenance_key
from pipelines.registry import lazy_registry
from serving.blobstore import open_store
from serving.errors import DataError, LedgerError
from serving.ledger import Ledger
from tests.pipelines import market
from tests.pipelines.channel.desk import signing
from tests.pipelines.conftest import TinyRun
from tests.pipelines.released import CONFIG, LINEAGE, ReleaseDesk, passing, tiny_exam
from tests.tiny_bundle import tiny_bundle

NAME = "pricing_lstm"


@pytest.fixture(scope="module")
def exported(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run up to export, which alone writes here."""
    folder = tmp_path_factory.mktemp("register")
    (folder / "out").mkdir()
    for stage in ("ingest", "features", "train", "evaluate"):
        (folder / "out" / stage).symlink_to(tiny_run.out / stage)
    cfg = load_config(market.overrides(folder, tiny_run.quotes))
    export.run(cfg)
    return cfg


def test_a_real_version_from_training_to_a_verified_release(exported: Config, tmp_path: Path) -> None:
    """register, promote, provenance, verify, lineage, diff on what the stages really write."""
    done = register.run(exported)
    store = open_store(exported.storage.url)
    details = Ledger(store, NAME).state().versions[done.version].registered.details
    assert details["config"] == without_places(exported)
    exam_path = exported.folder / "evaluate" / NAME / "exam.npz"
    assert details["dates"] == load_exam(exam_path).seen()
    assert details["dates"]["train"] < details["dates"]["validation"]
    assert len(read_exam(store, details["exam"])) == len(load_exam(exam_path))
    origin = details["lineage"]
    assert origin["config_sha256"] == config_hash(exported)
    assert origin["raw_data_sha256"] == file_hash(Path(exported.data.path))
    assert origin["training_run"] == json.loads((exported.folder / "train" / NAME / "model.json").read_text())["run_id"]

    registry = lazy_registry(exported.registry.tracking_uri)
    channel = open_channel(signing(tmp_path / "keys"), store)
    promote(
        model=NAME, version=done.version, store=store, registry=registry, channel=channel, gates=(passing,), by="ci"
    )
    promoted = Ledger(store, NAME).state().versions[done.version].promoted
    assert promoted is not None
    statement = json.loads(store.get(provenance_key(promoted.details["provenance"])))
    Statement.copy_from_pb(ParseDict(statement, statement_pb2.Statement())).validate()
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["config"] == without_places(exported)
    assert definition["internalParameters"]["seeds"] == [exported.seed]
    named = {item["name"]: item["digest"].get("sha256") for item in definition["resolvedDependencies"]}
    assert named["raw-data"] == origin["raw_data_sha256"]
    assert named["features"] == origin["features_sha256"]
    assert statement["predicate"]["runDetails"]["metadata"]["invocationId"] == done.run_id

    found = verify.verify(NAME, store, root=store.get("channel/1.root.json"), aliases=registry.aliases(NAME))
    assert found.breaks == ()
    (links,) = lineage_of.links(NAME, origin["raw_data_sha256"], store).found
    assert (links.version, links.current, links.bundle) == (done.version, True, done.bundle_sha256)
    assert diff.diff(NAME, done.version, done.version, store).part("configuration").equal > 20


def test_the_ledger_holds_no_place_and_no_password(exported: Config) -> None:
    register.run(exported)
    event = Ledger(open_store(exported.storage.url), NAME).state().versions[1].registered
    raw = event.to_bytes().decode()
    for place in (exported.out, exported.storage.url, exported.registry.tracking_uri, exported.data.path):
        assert place not in raw


def test_without_its_exam_nothing_is_registered(exported: Config, tmp_path: Path) -> None:
    (tmp_path / "out/evaluate" / NAME).mkdir(parents=True)
    for stage in ("ingest", "features", "train", "export"):
        (tmp_path / "out" / stage).symlink_to(exported.folder / stage)
    for path in (exported.folder / "evaluate" / NAME).iterdir():
        if path.name != "exam.npz":
            (tmp_path / "out/evaluate" / NAME / path.name).symlink_to(path)
    cfg = load_config([*market.overrides(tmp_path, Path(exported.data.path))])
    with pytest.raises(DataError, match=r"exam\.npz isn't there: run python -m pipelines\.evaluate"):
        register.run(cfg)
    assert open_store(cfg.storage.url).list() == []


def attempt(desk: ReleaseDesk, **changes: Any) -> register.Registered:
    arguments: dict[str, Any] = {
        "model": "tiny", "bundle_dir": tiny_bundle(desk.folder / "bundle").directory, "metrics": {}, "parity": {},
        "lineage": LINEAGE, "config": CONFIG, "exam": tiny_exam(desk.folder / "exam.npz"), "dates": {"train": []},
        "registry": desk.registry, "store": desk.store, "by": "me",
    }  # fmt: skip
    return register.register(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"config": {"x": float("nan")}}, LedgerError, "isn't plain JSON"),
        ({"dates": {"train": ["2017-01-03"] * 90_000}}, LedgerError, "at most 1048576; shorten"),
        ({"exam": b"no exam"}, DataError, "exam.npz"),
    ],
)
def test_what_cannot_be_recorded_leaves_no_trace(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    desk = ReleaseDesk(tmp_path)
    if isinstance(changes.get("exam"), bytes):
        path = tmp_path / "bad" / "exam.npz"
        path.parent.mkdir()
        path.write_bytes(changes["exam"])
        changes = {"exam": path}
    with pytest.raises(error, match=why):
        attempt(desk, **changes)
    assert desk.store.list() == []
    assert desk.registry.versions("tiny") == {}


def test_the_exam_is_stored_once_and_named(tmp_path: Path) -> None:
    desk = ReleaseDesk(tmp_path)
    done = attempt(desk)
    keys = desk.store.list()
    assert attempt(desk) == done
    assert desk.store.list() == keys
    details = desk.state().versions[1].registered.details
    assert [key for key in keys if key.startswith("exams/")] == [f"exams/{details['exam']}.npz"]
    assert details.keys() == {"metrics", "parity", "lineage", "config", "dates", "exam", "run_id"}
