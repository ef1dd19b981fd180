"""MLflow as the record, and registration: idempotent, in an order a crash can't spoil.

The contract holds for SQLite with a folder, and for a server on PostgreSQL that keeps artifacts in S3 for clients that
have no access to either (marked cloud and slow).
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import mlflow_numbers
from pipelines.mlflow_model import signature_of
from pipelines.register import flatten, register, restore_versions
from pipelines.registry import Registry, RegistryError, open_registry
from serving.bundle import fetch_bundle, load_bundle
from serving.errors import BundleError, LedgerError
from serving.ledger import Ledger
from tests import servers, shared_mlflow
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import LINEAGE, Desk, metrics, tracking_uri

SETTLED = 120.0
PLACES = ["sqlite", pytest.param("server", marks=[pytest.mark.cloud, pytest.mark.slow])]


@dataclass(frozen=True)
class Shared:
    """A server, its database and its bucket."""

    uri: str
    database: str
    s3: Any
    bucket: str


@pytest.fixture(scope="session")
def shared(s3_server: str, postgresql_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    boto3 = pytest.importorskip("boto3", reason="pip install 'strikeforge[s3]'")
    keys = {"aws_access_key_id": "the-servers", "aws_secret_access_key": "own", "region_name": "us-east-1"}
    s3, bucket = boto3.client("s3", endpoint_url=s3_server, **keys), f"mlflow-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=bucket)
    database = servers.new_database(postgresql_server)
    environment = {"AWS_ENDPOINT_URL": s3_server, **{name.upper(): value for name, value in keys.items()}}
    environment["AWS_DEFAULT_REGION"] = environment.pop("REGION_NAME")
    folder = tmp_path_factory.mktemp("mlflow-server")
    with shared_mlflow.running(folder, database, f"s3://{bucket}/artifacts", **environment) as server:
        yield Shared(server.uri, database, s3, bucket)


@dataclass
class Place:
    """An MLflow of one kind; `uri` is where it is."""

    uri: str
    folder: Path
    shared: Shared | None

    def desk(self) -> Desk:
        return Desk(self.folder, registry=open_registry(self.uri))

    def bundle_of(self, source: str, folder: Path) -> str:
        """The sha256 of the bundle in a version's source, fetched as a user would."""
        import mlflow

        found = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=self.uri, dst_path=str(folder))
        return load_bundle(Path(found) / "bundle").sha256

    def lost(self) -> Registry:
        """The same place with an empty MLflow."""
        if self.shared is not None:
            shared_mlflow.empty(self.shared.database)
        else:
            self.uri = tracking_uri(self.folder / secrets.token_hex(4))
        return open_registry(self.uri)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "sqlite":
        return Place(tracking_uri(tmp_path), tmp_path, None)
    shared: Shared = request.getfixturevalue("shared")
    for name in [name for name in os.environ if name.startswith("AWS_")]:  # the server's business alone
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", servers.HOST)
    shared_mlflow.empty(shared.database)
    return Place(shared.uri, tmp_path, shared)


@pytest.fixture
def desk(place: Place) -> Desk:
    return place.desk()


def test_importing_is_cheap_and_opening_is_quiet(tmp_path: Path) -> None:
    code = (
        "import sys, pipelines.registry, pipelines.promote, pipelines.rollback, pipelines.register\n"
        "assert 'mlflow' not in sys.modules and 'onnxruntime' not in sys.modules\n"
        f"registry = pipelines.registry.open_registry('sqlite:///{tmp_path}/deep/er/mlflow.db')\n"
        "registry.log_run('e', 'r', params={'a': 1}, metrics={'b': 2.0})\n"
        "print(registry.versions('tiny'), registry.aliases('tiny'))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=SETTLED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{} {}\n", "")


def test_a_run_is_logged_and_its_key_found_again(desk: Desk, tmp_path: Path) -> None:
    report, plots = tmp_path / "report.html", tmp_path / "plots"
    report.write_text("fine")
    plots.mkdir()
    (plots / "a.png").write_bytes(b"png")
    params = {f"p{number}": number for number in range(230)}

    def log() -> str:
        return desk.registry.log_run(
            "experiment", "run", params=params, metrics={"test/iv": 0.5}, tags={"commit": "abc"},
            artifacts=[report, plots], run_key="key",
        )  # fmt: skip

    run_id = log()
    assert log() == run_id
    run = desk.registry.client.get_run(run_id)
    assert run.data.params == {name: str(value) for name, value in params.items()}
    assert run.data.metrics == {"test/iv": 0.5}
    assert run.data.tags["commit"] == "abc"
    assert run.info.status == "FINISHED"
    artifacts = Path(desk.registry.client.download_artifacts(run_id, "", str(tmp_path)))
    assert (artifacts / "report.html").read_text() == "fine"
    assert (artifacts / "plots/a.png").read_bytes() == b"png"
    assert desk.registry.log_run("experiment", "run") != run_id


def test_a_registered_version_says_where_it_comes_from(desk: Desk) -> None:
    registered = desk.register(1)
    assert registered.version == 1
    tags = desk.registry.version_tags("tiny", 1)
    assert tags == {**LINEAGE, "bundle_sha256": registered.bundle_sha256}
    assert desk.registry.find_version_by_bundle("tiny", registered.bundle_sha256) == 1
    assert desk.registry.find_version_by_bundle("tiny", "0" * 64) is None
    event = desk.state().versions[1].registered
    assert event.details == {
        "metrics": metrics(0.01),
        "parity": {"iv": 1e-7},
        "lineage": LINEAGE,
        "run_id": registered.run_id,
    }
    run = desk.registry.client.get_run(registered.run_id)
    assert run.data.metrics["metrics/test/model/iv_rmse"] == 0.01
    assert run.data.params["net/seed"] == "1"
    fetch_bundle(desk.store, registered.bundle_sha256, desk.folder / "host")


def test_the_version_holds_the_bundle_and_its_signature(place: Place, desk: Desk, tmp_path: Path) -> None:
    registered = desk.register(1)
    import mlflow

    version = desk.registry.client.get_model_version("tiny", "1")
    assert place.bundle_of(version.source, tmp_path) == registered.bundle_sha256
    mlflow.set_tracking_uri(place.uri)
    info = mlflow.models.get_model_info("models:/tiny/1")
    assert [(spec.name, spec.shape) for spec in info.signature.inputs] == [
        ("window", (1, 4, 3)),
        ("contracts", (-1, 3)),
    ]
    assert [(spec.name, spec.shape, spec.type) for spec in info.signature.outputs] == [
        ("iv", (-1,), np.dtype("float32"))
    ]
    assert info.flavors.keys() == {"strikeforge"}


def test_a_streaming_bundle_has_a_signature_too(tmp_path: Path) -> None:
    manifest = tiny_bundle(tmp_path / "b").manifest
    files = {role: file for role, file in manifest.members[0].files.items() if role != "window"}
    object.__setattr__(manifest.members[0], "files", files)
    signature = signature_of(manifest)
    assert signature is not None
    assert signature.inputs.input_names() == ["x", "sum", "contracts"]
    object.__setattr__(manifest.members[0], "files", {})
    assert signature_of(manifest) is None


def test_registering_again_returns_the_version_and_writes_nothing(desk: Desk) -> None:
    first = desk.register(1)
    head, keys = desk.state().head, desk.store.list()
    assert desk.register(1) == first
    assert (desk.state().head, desk.store.list()) == (head, keys)
    assert desk.registry.versions("tiny").keys() == {1}
    second = desk.register(2)
    assert second.version == 2
    assert second.bundle_sha256 != first.bundle_sha256


@pytest.mark.parametrize(
    ("wrong", "error", "why"),
    [
        ({"metrics": {"test": float("nan")}}, LedgerError, "isn't plain JSON"),
        ({"metrics": {"test": np.float32(1)}}, LedgerError, "isn't plain JSON"),
        ({"by": " "}, LedgerError, "unusable by"),
        ({"model": "other"}, BundleError, "of model 'tiny', expected 'other'"),
    ],
)
def test_what_cant_be_registered_leaves_no_trace(
    desk: Desk, tmp_path: Path, wrong: dict[str, Any], error: type[Exception], why: str
) -> None:
    arguments: dict[str, Any] = {
        "model": "tiny",
        "bundle_dir": tiny_bundle(tmp_path / "b").directory,
        "metrics": metrics(0.1),
        "parity": {},
        "lineage": LINEAGE,
        "registry": desk.registry,
        "store": desk.store,
        "by": "me",
    }
    with pytest.raises(error, match=why):
        register(**(arguments | wrong))
    assert desk.store.list() == []
    assert desk.registry.versions("tiny") == {}


def test_aliases(desk: Desk) -> None:
    assert desk.aliases() == {}
    desk.register(1)
    desk.register(2)
    desk.registry.set_alias("tiny", "champion", 1)
    desk.registry.set_alias("tiny", "champion", 2)
    assert desk.aliases() == {"champion": 2}
    desk.registry.delete_alias("tiny", "champion")
    desk.registry.delete_alias("tiny", "champion")
    assert desk.aliases() == {}


def test_mlflows_refusals_have_a_name(desk: Desk) -> None:
    with pytest.raises(RegistryError, match="setting alias champion of tiny to version 7"):
        desk.registry.set_alias("tiny", "champion", 7)
    with pytest.raises(RegistryError, match="reading tiny version 7"):
        desk.registry.version_tags("tiny", 7)
    with pytest.raises(RegistryError, match="opening"):
        open_registry("nosuch://registry")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a/b": 1, "d": [1]}


def test_an_emptied_mlflow_is_rebuilt(place: Place, desk: Desk, tmp_path: Path) -> None:
    desk.register(1)
    orphan = tiny_bundle(tmp_path / "orphan", seed=99)  # a version the ledger never heard of, as after a crash
    run_id = desk.registry.log_run("tiny", "crashed")
    assert desk.registry.register_version("tiny", run_id, orphan, {}) == 2
    assert desk.register(3).version == 3
    before = {number: tags for number, tags in desk.registry.versions("tiny").items() if number != 2}

    desk.registry = place.lost()
    assert desk.registry.versions("tiny") == {}
    assert restore_versions(desk.state(), desk.store, desk.registry) == (1, 3)
    assert desk.registry.versions("tiny") == before
    assert restore_versions(desk.state(), desk.store, desk.registry) == ()
    desk.registry.set_alias("tiny", "champion", 3)
    assert desk.aliases() == {"champion": 3}
    assert desk.register(4).version == 4


def test_registering_into_an_emptied_mlflow_takes_no_number_twice(place: Place, desk: Desk) -> None:
    desk.register(1)
    desk.register(2)
    desk.registry = place.lost()
    assert desk.register(3).version == 3
    assert desk.registry.versions("tiny").keys() == {1, 2, 3}


def test_a_strangers_mlflow_is_refused(place: Place, desk: Desk, tmp_path: Path) -> None:
    desk.register(1)
    stranger = Desk(tmp_path / "stranger", registry=place.lost())
    stranger.register(2)
    with pytest.raises(RegistryError, match="doesn't belong to this store"):
        restore_versions(desk.state(), desk.store, stranger.registry)


def register_at_once(place: Place, barrier: Barrier, seed: int) -> None:
    desk = place.desk()
    bundle = tiny_bundle(place.folder / f"bundle-of-{multiprocessing.current_process().pid}", seed=seed)
    barrier.wait()
    register(
        model="tiny", bundle_dir=bundle.directory, metrics=metrics(0.01), parity={}, lineage=LINEAGE,
        registry=desk.registry, store=desk.store, by="trainer",
    )  # fmt: skip


def restore_at_once(place: Place, barrier: Barrier, seed: int) -> None:
    desk = place.desk()
    barrier.wait()
    restore_versions(desk.state(), desk.store, desk.registry)


def all_at_once(work: Any, place: Place, seeds: list[int]) -> None:
    context = multiprocessing.get_context("fork")  # MLflow is imported once, here
    barrier = context.Barrier(len(seeds))
    workers = [context.Process(target=work, args=(place, barrier, seed)) for seed in seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SETTLED)
        assert worker.exitcode == 0


def test_processes_register_at_once(place: Place) -> None:
    """Four bundles, twice each: everybody is served, each bundle gets one version."""
    desk = place.desk()
    all_at_once(register_at_once, place, [1, 1, 2, 2, 3, 3, 4, 4])
    state = desk.state()
    assert len(state.versions) == 4
    there = desk.registry.versions("tiny")
    assert {number: tags["bundle_sha256"] for number, tags in there.items()} == {
        number: version.bundle for number, version in state.versions.items()
    }
    assert [event.kind for event in Ledger(desk.store, "tiny").events()] == ["registered"] * 4


def test_processes_rebuild_an_emptied_mlflow_at_once(place: Place, desk: Desk) -> None:
    """MLflow never gives a number twice, so one made by mistake would be lost for good."""
    for seed in (1, 2, 3):
        desk.register(seed)
    before = desk.registry.versions("tiny")
    registry = place.lost()
    all_at_once(restore_at_once, place, [0, 0, 0, 0])
    assert registry.versions("tiny") == before
    found = {model.name for model in registry.client.search_registered_models()}
    assert found == {"tiny"}, "no lock is left behind"


@pytest.mark.parametrize("times", [3, 1000])
def test_a_bundle_somebody_else_is_copying_is_copied_again(
    place: Place, desk: Desk, tmp_path: Path, times: int
) -> None:
    """MLflow's local copy looks whether a folder is there and then makes it: between the two another may have."""

    class Overtaken:
        left = times

        def __getattr__(self, name: str) -> Any:
            return getattr(desk.registry.client, name)

        def log_artifacts(self, *arguments: Any) -> None:
            self.left -= 1
            if self.left >= 0:
                raise FileExistsError(arguments)
            desk.registry.client.log_artifacts(*arguments)

    client: Any = Overtaken()
    registry = Registry(client, desk.registry.artifact_root)
    run_id = desk.registry.log_run("tiny", "run")
    bundle = tiny_bundle(tmp_path / "b")
    if times == 1000:
        with pytest.raises(RegistryError, match=f"others kept copying bundle {bundle.sha256}"):
            registry.register_version("tiny", run_id, bundle, {})
        assert desk.registry.versions("tiny") == {}
        return
    assert registry.register_version("tiny", run_id, bundle, {}, description="what it is") == 1
    version = desk.registry.client.get_model_version("tiny", "1")
    assert version.description == "what it is"
    assert place.bundle_of(version.source, tmp_path) == bundle.sha256


@pytest.mark.cloud
@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_for_good(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_mlflow.empty(shared.database)
    monkeypatch.setattr(mlflow_numbers, "LEASE_SECONDS", 0.5)
    desk = Desk(tmp_path, registry=open_registry(shared.uri))
    desk.registry.client.create_registered_model("tiny.being-rebuilt", tags={mlflow_numbers.HOLDER_TAG: "killed"})
    run_id = desk.registry.log_run("tiny", "run")
    assert desk.registry.register_version("tiny", run_id, tiny_bundle(tmp_path / "b"), {}, version=2) == 2
    assert desk.registry.versions("tiny").keys() == {2}
    assert desk.registry.versions("tiny.being-rebuilt") == {}
    assert {model.name for model in desk.registry.client.search_registered_models()} == {"tiny"}


@pytest.mark.cloud
@pytest.mark.slow
def test_the_servers_files_lie_in_its_bucket(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared_mlflow.empty(shared.database)
    monkeypatch.chdir(tmp_path)
    registered = Desk(tmp_path, registry=open_registry(shared.uri)).register(1)
    found = shared.s3.list_objects_v2(Bucket=shared.bucket, Prefix="artifacts/")["Contents"]
    names = [entry["Key"] for entry in found if f"/{registered.run_id}/" in entry["Key"]]
    assert {"model/MLmodel", "model/bundle/manifest.json"} <= {name.partition("/artifacts/")[2] for name in names}
    assert not list(tmp_path.rglob("mlruns")), "nothing is kept on the client's machine"


def open_at_once(folder: Path, barrier: Barrier) -> None:
    barrier.wait()
    open_registry(f"sqlite:///{folder}/mlflow.db").log_run("e", "r")


@pytest.mark.slow
def test_processes_create_the_schema_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(3)
    workers = [context.Process(target=open_at_once, args=(tmp_path, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SETTLED)
        assert worker.exitcode == 0
