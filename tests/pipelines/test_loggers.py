"""Whatever a training writes to, every epoch is there once, under one run, killed or not; and no secret is."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import loggers, train
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.fit import AtomicCheckpointIO, Fitted, fit
from pipelines.lineage import lineage
from pipelines.register import register
from serving.errors import ConfigError
from tests.pipelines import market
from tests.pipelines.logged import (
    METRICS,
    assert_is_history,
    csv_points,
    mlflow_points,
    mlflow_runs,
    service_processes,
    tensorboard_points,
    wandb_points,
    wandb_records,
)
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
SECRET = "5ec2e7" * 7


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Features of the tiny market; read only."""
    return market.featured(tmp_path_factory.mktemp("featured"), market.market())


def beside(featured: Config, folder: Path) -> list[str]:
    """Overrides of a training on those features that writes into `folder`."""
    (folder / "out").mkdir(parents=True)
    (folder / "out/features").symlink_to((featured.folder / "features").resolve())
    return market.overrides(folder, Path(featured.data.path))


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


class Outside(http.server.BaseHTTPRequestHandler):
    """Stands for the internet: notes who calls and refuses."""

    calls: list[str]

    def do_POST(self) -> None:
        self.calls.append(self.path)
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def do_CONNECT(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """An environment in which every way out leads to us, with a W&B key in it; and the calls so far."""
    calls: list[str] = []
    handler = type("Noting", (Outside,), {"calls": calls})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        names = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        yield {**os.environ, **dict.fromkeys(names, url), "WANDB_API_KEY": SECRET, "HOME": str(tmp_path / "home"),
               "NO_PROXY": "", "no_proxy": ""}, calls  # fmt: skip
        server.shutdown()


def command(overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "pipelines.train", *overrides]


@pytest.mark.slow
def test_killed_with_minus_nine_every_destination_holds_every_epoch_once(
    tmp_path: Path, featured: Config, outside: tuple[dict[str, str], list[str]]
) -> None:
    environment, calls = outside
    overrides = [*beside(featured, tmp_path), "trainer.epochs=40", "trainer.patience=40", "logging.wandb=offline"]
    uri = market.places(tmp_path)[0].split("=", 1)[1]
    process = subprocess.Popen(command(overrides), cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    try:

        def some_epochs() -> bool:
            assert process.poll() is None, "it ended before it wrote three epochs"
            found = list((tmp_path / "out/checkpoints").glob("*/*/logs/csv/metrics.csv"))
            return bool(found) and len(pl.read_csv(found[0])) >= 3

        until(some_epochs, "no epoch in time")
        os.kill(process.pid, signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out/train").exists() or not list((tmp_path / "out/train").iterdir())
    (run,) = mlflow_runs(uri)
    assert run.info.status == "RUNNING"
    assert 2 <= len(mlflow_points(uri)["train_loss"]) < 40
    until(lambda: not service_processes(process.pid), "W&B's service outlived its training")

    done = subprocess.Popen(command(overrides), cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip
    out, err = done.communicate(timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, err
    assert "going on from" in err
    folder = tmp_path / "out/train/pricing_lstm"
    assert len(pl.read_csv(folder / "history.csv")) == 40
    assert_is_history(csv_points(folder / "csv/metrics.csv"), folder)
    assert_is_history(tensorboard_points(folder / "tensorboard"), folder)
    assert_is_history(mlflow_points(uri), folder)
    assert_is_history(wandb_points(folder / "wandb"), folder)
    (again,) = mlflow_runs(uri)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert json.loads((folder / "model.json").read_text())["run_id"] == run.info.run_id

    assert not service_processes(done.pid)
    assert calls == [], "offline, and yet somebody was called"
    assert SECRET not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_wandb_that_refuses_is_an_error_with_a_remedy(
    tmp_path: Path, featured: Config, outside: tuple[dict[str, str], list[str]]
) -> None:
    """It also shows that the calls counted in the test above would have been seen."""
    environment, calls = outside
    overrides = [*beside(featured, tmp_path), "logging.wandb=online"]
    done = subprocess.run(command(overrides), cwd=REPOSITORY, env=environment, capture_output=True, text=True,
                          check=False, timeout=DEADLINE_SECONDS)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "logging.wandb=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert calls
    (run,) = mlflow_runs(market.places(tmp_path)[0].split("=", 1)[1])
    assert run.info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_service_of_wandb_ends_with_its_training(
    tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """In a process that goes on; the run tells how it ended."""
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    cfg = load_config([*beside(featured, tmp_path), "logging.wandb=offline", "logging.mlflow=false"])
    ended = pytest.raises(error) if error else contextlib.nullcontext()
    with ended, loggers.build(cfg, tmp_path / "a", {"config_sha256": "c" * 64}):
        assert service_processes(os.getpid())
        if error:
            raise error
    assert not service_processes(os.getpid())
    (path,) = (tmp_path / "a").rglob("*.wandb")
    records = list(wandb_records(path))
    (exit_record,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert exit_record.exit_code == (1 if error else 0)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert run.project == "strikeforge"
    assert config["config_sha256"] == "c" * 64
    assert config["trainer"]["epochs"] == 4
    assert not {"storage", "registry", "out"} & set(config)
    assert run.host == "unnamed"
    assert not [private for private in (sys.executable, str(REPOSITORY)) if private in str(records)]


class KilledError(Exception):
    """Stands for the end of the process: nothing runs after it."""


def cut(cfg: Config, monkeypatch: pytest.MonkeyPatch, *, epoch: int, saved: bool) -> None:
    """A training that ends in that epoch, right before its checkpoint is written or right after."""
    checkpoints = cfg.folder / "checkpoints"
    whole = AtomicCheckpointIO.save_checkpoint
    count = []

    def save(self: AtomicCheckpointIO, *arguments: Any, **options: Any) -> None:
        count.append(1)
        if len(count) < epoch or saved:
            whole(self, *arguments, **options)
        if len(count) == epoch:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
        log = loggers.build(cfg, checkpoints, {"origin": "test"})  # no `with`: a killed process leaves none either
        with pytest.raises(KilledError):
            fit(cfg, FeatureStore.open(cfg.folder / "features"), checkpoints, callbacks=[log])


def whole(cfg: Config) -> tuple[Fitted, loggers.TrainingLog]:
    checkpoints = cfg.folder / "checkpoints"
    with loggers.build(cfg, checkpoints, {"origin": "test"}) as log:
        fitted = fit(cfg, FeatureStore.open(cfg.folder / "features"), checkpoints, callbacks=[log])
    target = cfg.folder / "copied"
    log.copy_files(target)
    fitted.history.write_csv(target / "history.csv")
    return fitted, log


@pytest.mark.parametrize("saved", [False, True], ids=["before its checkpoint", "after its checkpoint"])
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_cut_at_either_side_of_a_checkpoint(
    tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch, epoch: int, saved: bool
) -> None:
    """Of four epochs. A value that isn't part of the result, such as the threads, may change meanwhile."""
    cfg = load_config(beside(featured, tmp_path))
    cut(cfg, monkeypatch, epoch=epoch, saved=saved)
    (first,) = mlflow_runs(cfg.registry.tracking_uri)
    seen = mlflow_points(cfg.registry.tracking_uri).get("train_loss", [])
    assert len(seen) == epoch - 1, "an epoch is told when its checkpoint is complete, and not before"
    _, log = whole(load_config([*market.overrides(tmp_path, Path(featured.data.path)), "hardware.threads=2"]))
    assert log.run_id == first.info.run_id
    folder = tmp_path / "out/copied"
    assert len(pl.read_csv(folder / "history.csv")) == 4
    assert_is_history(csv_points(folder / "csv/metrics.csv"), folder)
    assert_is_history(tensorboard_points(folder / "tensorboard"), folder)
    assert_is_history(mlflow_points(cfg.registry.tracking_uri), folder)


def test_a_training_killed_when_all_was_done_is_the_same_run(tmp_path: Path, featured: Config) -> None:
    """Between the last epoch and the removal of its checkpoints."""
    cfg = load_config(beside(featured, tmp_path))
    _, first = whole(cfg)
    _, second = whole(cfg)
    assert second.run_id == first.run_id
    assert_is_history(mlflow_points(cfg.registry.tracking_uri), tmp_path / "out/copied")


def test_resume_false_begins_a_new_run(tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config([*beside(featured, tmp_path), "trainer.resume=false"])
    cut(cfg, monkeypatch, epoch=2, saved=True)
    _, log = whole(cfg)
    runs = {run.info.run_id: run.info.status for run in mlflow_runs(cfg.registry.tracking_uri)}
    assert len(runs) == 2
    assert runs[log.run_id] == "FINISHED"
    assert_is_history(csv_points(tmp_path / "out/copied/csv/metrics.csv"), tmp_path / "out/copied")


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"),
                                               (SystemExit, "KILLED")])  # fmt: skip
def test_how_a_training_ended_is_in_mlflow(
    tmp_path: Path, featured: Config, error: type[BaseException], status: str
) -> None:
    cfg = load_config(beside(featured, tmp_path))
    with pytest.raises(error), loggers.build(cfg, tmp_path / "a", {}):
        raise error
    assert mlflow_runs(cfg.registry.tracking_uri)[0].info.status == status
    with loggers.build(cfg, tmp_path / "a", {}):
        (run,) = mlflow_runs(cfg.registry.tracking_uri)
        assert run.info.status == "RUNNING"


def test_what_mlflow_is_told_holds_no_address(tmp_path: Path, featured: Config) -> None:
    """A store's or a database's URL may hold a password."""
    cfg = load_config([*beside(featured, tmp_path), "storage.url=s3://someone:pass4711@host/bucket"])
    with loggers.build(cfg, tmp_path / "a", {"config_sha256": "c" * 64}, parent="p" * 32) as log:
        pass
    (run,) = mlflow_runs(cfg.registry.tracking_uri)
    assert run.data.params["trainer/epochs"] == "4"
    assert run.data.params["model/hidden"] == "8"
    assert run.data.tags["config_sha256"] == "c" * 64
    assert run.data.tags["mlflow.parentRunId"] == "p" * 32
    assert run.info.run_id == log.run_id
    assert not [value for value in run.data.params.values() if "pass4711" in value or "sqlite" in value]


def test_without_mlflow_the_run_is_none_and_can_still_be_registered(tmp_path: Path, featured: Config) -> None:
    overrides = [*beside(featured, tmp_path), "logging.mlflow=false"]
    cfg = load_config(overrides)
    result = train.run(cfg)
    assert result.run_id == "none"
    assert mlflow_runs(cfg.registry.tracking_uri) == []
    description = json.loads((result.folder / "model.json").read_text())
    origin = lineage(cfg, description)
    assert origin["training_run"] == "none"
    desk = Desk(tmp_path / "desk")
    done = register(model="tiny", bundle_dir=tiny_bundle(tmp_path / "bundle").directory, metrics={}, parity={},
                    lineage=origin, registry=desk.registry, store=desk.store, by="trainer")  # fmt: skip
    assert desk.registry.version_tags("tiny", done.version)["training_run"] == "none"


RESULTS = {"weights.safetensors", "model.json", "history.csv", "metrics.json", "unseen.parquet"}


@pytest.mark.parametrize("asked", [(), ("csv",), ("tensorboard",), ("csv", "tensorboard")])
def test_only_what_was_asked_for_is_written_and_a_new_training_replaces_it(
    tmp_path: Path, featured: Config, asked: tuple[str, ...]
) -> None:
    switches = [f"logging.{name}={str(name in asked).lower()}" for name in ("mlflow", "csv", "tensorboard")]
    overrides = [*beside(featured, tmp_path), *switches, "trainer.epochs=2"]
    for seed in (7, 8):
        result = train.run(load_config([*overrides, f"seed={seed}"]))
        assert {path.name for path in result.folder.iterdir()} == RESULTS | set(asked)
        assert json.loads((result.folder / "model.json").read_text())["seed"] == seed
    if "tensorboard" in asked:
        assert_is_history(tensorboard_points(result.folder / "tensorboard"), result.folder)
    assert [path.name for path in result.folder.parent.iterdir()] == [result.folder.name]


def test_a_failed_training_leaves_the_former_result(
    tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config([*beside(featured, tmp_path), "logging.mlflow=false", "trainer.epochs=2"])
    folder = train.run(cfg).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        train.run(dataclasses.replace(cfg, seed=8))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_without_validation_dates_there_is_no_validation_metric(tmp_path: Path) -> None:
    cfg = market.featured(tmp_path, market.market(), "split.validation_dates=0", "trainer.epochs=2")
    folder = train.run(cfg).folder
    expected = METRICS - {"validation_iv_rmse"}
    for points in (csv_points(folder / "csv/metrics.csv"), tensorboard_points(folder / "tensorboard"),
                   mlflow_points(cfg.registry.tracking_uri)):  # fmt: skip
        assert set(points) == expected
        assert [step for step, _ in points["train_loss"]] == [1, 2]


def test_a_missing_wandb_is_told_before_anything_is_made(
    tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = load_config([*beside(featured, tmp_path), "logging.wandb=offline"])
    with pytest.raises(ConfigError, match=r"logging.wandb: .*pip install 'strikeforge\[wandb\]'"):
        train.run(cfg)
    assert mlflow_runs(cfg.registry.tracking_uri) == []
    assert not (cfg.folder / "checkpoints").exists()
