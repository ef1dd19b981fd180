"""MLflow as the record, and registration: idempotent, in an order a crash can't spoil."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.reconcile import reconcile
from pipelines.register import flatten, register
from pipelines.registry import Registry, RegistryError, open_registry, signature_of
from serving.bundle import fetch_bundle, load_bundle
from serving.errors import BundleError, LedgerError
from serving.ledger import Ledger
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import LINEAGE, Desk, metrics

SETTLED = 60.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


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
    artifacts = tmp_path / "mlruns/experiment" / run_id / "artifacts"
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


def test_the_version_holds_the_bundle_and_its_signature(desk: Desk) -> None:
    registered = desk.register(1)
    import mlflow

    version = desk.registry.client.get_model_version("tiny", "1")
    source = Path(version.source.removeprefix("file://"))
    assert load_bundle(source / "bundle").sha256 == registered.bundle_sha256
    mlflow.set_tracking_uri(f"sqlite:///{desk.folder}/mlflow.db")
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


def test_an_emptied_mlflow_is_rebuilt(desk: Desk, tmp_path: Path) -> None:
    desk.register(1)
    orphan = tiny_bundle(tmp_path / "orphan", seed=99)  # a version the ledger never heard of, as after a crash
    run_id = desk.registry.log_run("tiny", "crashed")
    assert desk.registry.register_version("tiny", run_id, orphan, {}) == 2
    assert desk.register(3).version == 3
    before = {number: tags for number, tags in desk.registry.versions("tiny").items() if number != 2}

    fresh = Desk(tmp_path / "fresh", store=desk.store)
    done = reconcile("tiny", fresh.store, fresh.registry)
    assert done.restored == (1, 3)
    assert fresh.registry.versions("tiny") == before
    assert reconcile("tiny", fresh.store, fresh.registry).restored == ()
    fresh.folder = tmp_path
    assert fresh.register(4).version == 4


def test_registering_into_an_emptied_mlflow_takes_no_number_twice(desk: Desk, tmp_path: Path) -> None:
    desk.register(1)
    desk.register(2)
    fresh = Desk(tmp_path / "fresh", store=desk.store)
    assert fresh.register(3).version == 3
    assert fresh.registry.versions("tiny").keys() == {1, 2, 3}


def test_a_strangers_mlflow_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.register(1)
    stranger = Desk(tmp_path / "stranger")
    stranger.register(2)
    with pytest.raises(RegistryError, match="doesn't belong to this store"):
        reconcile("tiny", desk.store, stranger.registry)
    with pytest.raises(LedgerError, match="is it the right store"):
        reconcile("tiny", Desk(tmp_path / "empty").store, desk.registry)


def register_at_once(folder: Path, barrier: Barrier, seed: int) -> None:
    desk = Desk(folder)
    bundle = tiny_bundle(folder / f"bundle-of-{multiprocessing.current_process().pid}", seed=seed)
    barrier.wait()
    register(
        model="tiny", bundle_dir=bundle.directory, metrics=metrics(0.01), parity={}, lineage=LINEAGE,
        registry=desk.registry, store=desk.store, by="trainer",
    )  # fmt: skip


def test_processes_register_at_once(tmp_path: Path) -> None:
    """Two bundles, twice each: everybody is served, each bundle gets one version."""
    Desk(tmp_path)
    context = multiprocessing.get_context("fork")  # MLflow is imported once, here
    barrier = context.Barrier(4)
    workers = [context.Process(target=register_at_once, args=(tmp_path, barrier, seed)) for seed in (1, 1, 2, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SETTLED)
        assert worker.exitcode == 0
    desk = Desk(tmp_path)
    state = desk.state()
    assert len(state.versions) == 2
    there = desk.registry.versions("tiny")
    assert {number: tags["bundle_sha256"] for number, tags in there.items()} == {
        number: version.bundle for number, version in state.versions.items()
    }
    assert [event.kind for event in Ledger(desk.store, "tiny").events()] == ["registered"] * 2


@pytest.mark.parametrize("times", [3, 1000])
def test_a_bundle_somebody_else_is_copying_is_copied_again(desk: Desk, tmp_path: Path, times: int) -> None:
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
    assert load_bundle(Path(version.source.removeprefix("file://")) / "bundle").sha256 == bundle.sha256


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
