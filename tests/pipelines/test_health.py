"""A running training can be asked how it is: while it trains, stalls, fails and ends, and no reader holds it up."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as lightning
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pytorch_lightning.callbacks import Callback

from pipelines import health, train
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.fit import AtomicCheckpointIO, fit
from pipelines.health import Heartbeat, Progress, TrainingMonitor, serve
from pipelines.tasks import open_task
from serving.errors import ConfigError
from tests.pipelines import market

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
ORIGIN = {"config_sha256": "c" * 64, "features_sha256": "f" * 64}
QUIET = ("logging.mlflow=false", "logging.health_port=0")


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Features of the tiny market; read only."""
    return market.featured(tmp_path_factory.mktemp("featured"), market.market())


def beside(featured: Config, folder: Path, *more: str) -> list[str]:
    """Overrides of a training on those features that writes into `folder`."""
    (folder / "out").mkdir(parents=True)
    (folder / "out/features").symlink_to((featured.folder / "features").resolve())
    return market.overrides(folder, Path(featured.data.path), *QUIET, *more)


class Answer(NamedTuple):
    status: int
    body: str
    headers: Any


def ask(url: str, *, method: str = "GET", accept: str = "") -> Answer:
    request = urllib.request.Request(url, method=method, headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return Answer(response.status, response.read().decode(), response.headers)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(), error.headers)


def values(text: str, parse: Callable[[str], Any] = parse_text) -> dict[str, float]:
    """Samples by name; those of the state by `name[state]`."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            state = sample.labels.get("strikeforge_training_state")
            found[f"{sample.name}[{state}]" if state else sample.name] = sample.value
    return found


def address(folder: Path) -> str:
    return str(json.loads((folder / health.FILE).read_text())["url"])


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


@pytest.mark.slow
def test_a_training_is_scraped_while_it_runs(tmp_path: Path, featured: Config) -> None:
    """A process of its own; its port found in the file it says."""
    overrides = beside(featured, tmp_path, "trainer.epochs=100000", "trainer.patience=100000")
    process = subprocess.Popen([sys.executable, "-m", "pipelines.train", *overrides], cwd=REPOSITORY,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:

        def announced() -> Path | None:
            assert process.poll() is None, process.communicate()[1]
            return next(iter((tmp_path / "out/checkpoints").glob("*/*/health.json")), None)

        told = json.loads(until(announced, "no health.json").read_text())
        assert told["pid"] == process.pid
        assert told["url"].startswith("http://127.0.0.1:")

        def scraped() -> dict[str, float]:
            answer = ask(f"{told['url']}/metrics")
            assert answer.status == 200
            return values(answer.body)

        def two_epochs() -> dict[str, float]:
            return now if (now := scraped())["strikeforge_training_epoch"] >= 2 else {}

        first = until(two_epochs, "no two epochs in time")
        assert first["strikeforge_training_state[running]"] == 1
        assert sum(value for name, value in first.items() if "_state[" in name) == 1
        assert first["strikeforge_training_epochs_planned"] == 100000
        assert first["strikeforge_training_stall_seconds"] == 300
        assert 0 < first["strikeforge_training_learning_rate"] <= 0.002
        assert first["strikeforge_training_train_loss"] > 0
        assert 0 < first["strikeforge_training_validation_iv_rmse_vol_points"] < 10
        assert 0 <= first["strikeforge_training_seconds_since_last_step"] < 60
        assert 1e7 < first["process_resident_memory_bytes"] < 1e11
        later = until(lambda: now if (now := scraped())["strikeforge_training_epoch"] > 2 else None, "it stands still")
        for name in ("batches_total", "samples_total", "epoch"):
            assert later[f"strikeforge_training_{name}"] >= first[f"strikeforge_training_{name}"]
        assert later["strikeforge_training_samples_total"] > first["strikeforge_training_samples_total"]

        answer = ask(f"{told['url']}/health")
        said = json.loads(answer.body)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert said["healthy"] is True
        assert (said["state"], said["model"], said["epochs"], said["seed"]) == ("running", "pricing_lstm", 100000, "7")
        assert (said["accelerator"], said["precision"]) == ("cpu", "32-true")
        assert len(said["config_sha256"]) == len(said["features_sha256"]) == 64

        if promtool := shutil.which("promtool"):
            lint = subprocess.run([promtool, "check", "metrics"], input=ask(f"{told['url']}/metrics").body,
                                  capture_output=True, text=True, check=False)  # fmt: skip
            assert lint.returncode == 0, lint.stdout + lint.stderr
    finally:
        process.kill()
        process.wait()
    with pytest.raises(OSError, match=r"refused"):
        ask(f"{told['url']}/health")


@pytest.fixture
def served(tmp_path: Path, featured: Config) -> Iterator[tuple[str, TrainingMonitor]]:
    """The endpoint alone, without a training; its URL and its monitor."""
    cfg = load_config(beside(featured, tmp_path))
    with serve(cfg, tmp_path / "a", ORIGIN) as (monitor,):
        assert isinstance(monitor, TrainingMonitor)
        yield address(tmp_path / "a"), monitor


def test_what_is_asked_for_is_what_is_answered(served: tuple[str, TrainingMonitor]) -> None:
    url, _ = served
    for path in ("/", "/healthz", "/health/", "/metrics/x", "/../etc/passwd"):
        assert ask(url + path).status == 404
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(f"{url}/health", method=method).status == 501
    for path in ("/health", "/metrics"):
        head = ask(url + path, method="HEAD")
        assert (head.status, head.body) == (200, "")
        assert int(head.headers["Content-Length"]) > 100
        assert ask(f"{url}{path}?a=b").status == 200


def test_both_formats_of_prometheus_say_the_same(served: tuple[str, TrainingMonitor]) -> None:
    url, monitor = served
    monitor.tell(state="running", epoch=3, epochs=9, batches=12, samples=345, train_loss=0.5)
    plain = ask(f"{url}/metrics")
    openmetrics = ask(f"{url}/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    for text, parse in ((plain.body, parse_text), (openmetrics.body, parse_openmetrics)):
        found = values(text, parse)
        assert found["strikeforge_training_samples_total"] == 345
        assert found["strikeforge_training_batches_total"] == 12
        assert found["strikeforge_training_epoch"] == 3
        assert found["strikeforge_training_info"] == 1
        assert [found[f"strikeforge_training_state[{state}]"] for state in health.STATES] == [0, 0, 1, 0, 0]
    assert "strikeforge_training_validation_iv_rmse_vol_points" not in values(plain.body), "not known yet"
    (info,) = (family for family in parse_text(plain.body) if family.name == "strikeforge_training_info")
    assert info.samples[0].labels == {"model": "pricing_lstm", "seed": "7", **ORIGIN}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_valid_json_and_a_valid_metric(
    served: tuple[str, TrainingMonitor], loss: float
) -> None:
    url, monitor = served
    monitor.tell(train_loss=loss)
    answer = ask(f"{url}/health")
    said = json.loads(answer.body, parse_constant=lambda word: pytest.fail(f"{word} isn't JSON"))
    assert said["train_loss"] is None
    assert str(values(ask(f"{url}/metrics").body)["strikeforge_training_train_loss"]) == str(loss)


@pytest.mark.parametrize(
    ("state", "idle", "status"),
    [("starting", 0, 200), ("starting", 400, 503), ("judging", 400, 503), ("running", 299, 200), ("running", 301, 503),
     ("failed", 0, 503), ("finished", 1e6, 200)],
)  # fmt: skip
def test_verdict(served: tuple[str, TrainingMonitor], state: Any, idle: float, status: int) -> None:
    url, monitor = served
    monitor.progress = Progress(state=state, last_step=time.monotonic() - idle)
    answer = ask(f"{url}/health")
    said = json.loads(answer.body)
    assert answer.status == status
    assert said["healthy"] is (status == 200)
    assert said["stalled"] is (status == 503 and state != "failed")
    assert idle <= said["seconds_since_last_step"] < idle + 10


def test_a_fit_before_the_real_one_is_seen_to_live(served: tuple[str, TrainingMonitor]) -> None:
    url, monitor = served
    monitor.progress = Progress(state="starting", last_step=time.monotonic() - 400)
    assert ask(f"{url}/health").status == 503
    Heartbeat(monitor).on_train_start(None, None)  # type: ignore[arg-type]
    answer = ask(f"{url}/health")
    assert (answer.status, json.loads(answer.body)["state"]) == (200, "judging")
    monitor.tell(last_step=time.monotonic() - 400)
    Heartbeat(monitor).on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    assert ask(f"{url}/health").status == 200


class Acting(Callback):
    """Does something after a batch (numbered from 1 in this process), while the training waits for it."""

    def __init__(self, act: Callable[[int, lightning.Trainer], None]) -> None:
        self.act, self.batches = act, 0

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        self.batches += 1
        self.act(self.batches, trainer)


def test_a_training_that_hangs_is_seen_and_so_is_its_recovery(tmp_path: Path, featured: Config) -> None:
    """The training itself waits in its third batch until the endpoint has called it stalled."""
    cfg = load_config(beside(featured, tmp_path, "logging.stall_seconds=0.5"))
    seen: list[tuple[int, int]] = []

    def act(batch: int, trainer: lightning.Trainer) -> None:
        url = f"{address(tmp_path / 'a')}/health"
        seen.append((batch, ask(url).status))
        if batch == 3:
            stalled = until(lambda: answer if (answer := ask(url)).status == 503 else None, "never stalled")
            assert json.loads(stalled.body)["stalled"] is True
            seen.append((batch, 503))

    with serve(cfg, tmp_path / "a", ORIGIN) as watching:
        fit(cfg, FeatureStore.open(cfg.folder / "features"), tmp_path / "a", callbacks=[*watching, Acting(act)])
        finished = json.loads(ask(f"{address(tmp_path / 'a')}/health").body)
    assert (3, 200) in seen
    assert (3, 503) in seen
    assert (4, 200) in seen
    assert finished["state"] == "finished"


def test_a_failed_training_is_seen_until_it_is_gone(tmp_path: Path, featured: Config) -> None:
    cfg = load_config(beside(featured, tmp_path))

    def act(batch: int, trainer: lightning.Trainer) -> None:
        raise ArithmeticError("planted")

    with serve(cfg, tmp_path / "a", ORIGIN) as watching:
        with pytest.raises(ArithmeticError, match="planted"):
            fit(cfg, FeatureStore.open(cfg.folder / "features"), tmp_path / "a", callbacks=[*watching, Acting(act)])
        url = address(tmp_path / "a")
        answer = ask(f"{url}/health")
        assert (answer.status, json.loads(answer.body)["state"]) == (503, "failed")
        assert values(ask(f"{url}/metrics").body)["strikeforge_training_state[failed]"] == 1
    with pytest.raises(OSError, match="refused"):
        ask(f"{url}/health")
    assert not (tmp_path / "a" / health.FILE).exists()


def test_counts_are_those_of_the_data(tmp_path: Path, featured: Config) -> None:
    """Of all epochs: every batch and every row of it, once."""
    cfg = load_config(beside(featured, tmp_path))
    store = FeatureStore.open(cfg.folder / "features")
    batches = open_task(cfg, store).training_batches()
    rows, count = 0, 0
    for epoch in range(cfg.trainer.epochs):
        batches.set_epoch(epoch)
        sizes = [len(batch.target) for batch in batches]
        rows, count = rows + sum(sizes), count + len(sizes)
    with serve(cfg, tmp_path / "a", ORIGIN) as watching:
        fitted = fit(cfg, store, tmp_path / "a", callbacks=watching)
        found = values(ask(f"{address(tmp_path / 'a')}/metrics").body)
    assert found["strikeforge_training_samples_total"] == rows
    assert found["strikeforge_training_batches_total"] == count
    assert found["strikeforge_training_epoch"] == found["strikeforge_training_epochs_planned"] == 4
    assert found["strikeforge_training_train_loss"] == pytest.approx(fitted.history["train_loss"][-1])
    told = found["strikeforge_training_validation_iv_rmse_vol_points"]
    assert told == pytest.approx(fitted.history["validation_iv_rmse"][-1])


def test_a_resumed_training_counts_on_from_its_epoch(
    tmp_path: Path, featured: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(beside(featured, tmp_path))
    store, folder = FeatureStore.open(cfg.folder / "features"), tmp_path / "a"
    whole = AtomicCheckpointIO.save_checkpoint
    saves = []

    def save(self: AtomicCheckpointIO, *arguments: Any, **options: Any) -> None:
        whole(self, *arguments, **options)
        saves.append(1)
        if len(saves) == 2:
            raise KeyError("end of the process")

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
        with pytest.raises(KeyError):
            fit(cfg, store, folder)
    seen: list[float] = []
    with serve(cfg, folder, ORIGIN) as watching:
        acting = Acting(lambda batch, trainer: seen.append(
            values(ask(f"{address(folder)}/metrics").body)["strikeforge_training_epoch"]
        ))  # fmt: skip
        fit(cfg, store, folder, callbacks=[*watching, acting])
    assert seen[0] == 2
    assert seen[-1] == 3


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_slow_and_broken_readers_hold_nothing_up(
    tmp_path: Path, featured: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some send half a request and wait, others hang up at once; the training ends and answers meanwhile."""
    cfg = load_config(beside(featured, tmp_path))
    with serve(cfg, tmp_path / "a", ORIGIN) as watching:
        host, port = address(tmp_path / "a").removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"GET /metrics HT")
        for _ in range(20):
            with socket.create_connection((host, int(port))) as hasty:
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                hasty.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        fit(cfg, FeatureStore.open(cfg.folder / "features"), tmp_path / "a", callbacks=watching)
        assert ask(f"{address(tmp_path / 'a')}/health").status == 200
        closing = time.monotonic()
    assert time.monotonic() - closing < 5.0, "it waited for its readers"
    for connection in slow:
        connection.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name == "health" and thread.is_alive()]


def test_one_connection_can_be_garbage(served: tuple[str, TrainingMonitor], capfd: pytest.CaptureFixture[str]) -> None:
    url, _ = served
    host, port = url.removeprefix("http://").split(":")
    for garbage in (
        b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"A" * 70000 + b"\r\n\r\n",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection)
            try:
                response.begin()
                assert response.status >= 400
            except (http.client.HTTPException, ConnectionError):
                pass  # closed without an answer: as good
    assert ask(f"{url}/health").status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_in_use_is_told_before_anything_is_made(tmp_path: Path, featured: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cfg = load_config(beside(featured, tmp_path, f"logging.health_port={port}"))
        with pytest.raises(ConfigError, match=rf"logging.health_port: .*{port} of 127.0.0.1: Address already in use"):
            train.run(cfg)
    assert not (cfg.folder / "checkpoints").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_a_wrong_value(tmp_path: Path, featured: Config, host: str) -> None:
    cfg = load_config(beside(featured, tmp_path, f"logging.health_host={host}"))
    with pytest.raises(ConfigError, match=f"of {host}: "), serve(cfg, tmp_path / "a", ORIGIN):
        pass


def test_without_a_port_there_is_no_endpoint(tmp_path: Path, featured: Config) -> None:
    cfg = load_config(beside(featured, tmp_path, "logging.health_port=null"))
    before = threading.active_count()
    with serve(cfg, tmp_path / "a", ORIGIN) as watching:
        assert watching == []
        assert threading.active_count() == before
    assert not (tmp_path / "a").exists()


def test_two_trainings_in_one_process_have_metrics_of_their_own(tmp_path: Path, featured: Config) -> None:
    cfg = load_config(beside(featured, tmp_path))
    with serve(cfg, tmp_path / "a", ORIGIN) as (one,), serve(cfg, tmp_path / "b", ORIGIN):
        assert isinstance(one, TrainingMonitor)
        one.tell(epoch=5)
        found = [values(ask(f"{address(tmp_path / name)}/metrics").body) for name in "ab"]
    assert [metrics["strikeforge_training_epoch"] for metrics in found] == [5, 0]
