"""How a running training is: Prometheus metrics on /metrics, a verdict on /health.

In: what Lightning tells a callback; `logging.health_port`, `health_host`, `stall_seconds`. Out: text for Prometheus;
JSON with 200 while batches arrive (and once finished), 503 when none has for `stall_seconds` or the training failed;
`health.json` (url, pid) in the folder of the checkpoints while the endpoint is up.

Invariants: the training only puts a new `Progress` in place, the server's threads only read it, so a slow reader
holds nothing up and sees no half-made state; the endpoint ends with the training. Nothing here is authenticated or
encrypted: it listens on the local host unless told otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as lightning
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from pytorch_lightning.callbacks import Callback

from pipelines.config import Config
from serving.errors import ConfigError

log = logging.getLogger("strikeforge.health")

PREFIX = "strikeforge_training"
STATES = ("starting", "judging", "running", "finished", "failed")
FILE = "health.json"


@dataclass(frozen=True)
class Progress:
    """Where a training stands; `last_step` is a time.monotonic() in seconds."""

    state: Literal["starting", "judging", "running", "finished", "failed"] = "starting"
    epoch: int = 0  # whole epochs done
    epochs: int = 0  # planned
    batches: int = 0  # trained on by this process
    samples: int = 0
    train_loss: float | None = None  # of the last whole epoch
    validation_iv_rmse: float | None = None  # vol points
    learning_rate: float | None = None
    last_step: float = field(default_factory=time.monotonic)


class TrainingMonitor(Callback):
    """Follows a training; `labels` are those of `strikeforge_training_info`."""

    def __init__(self, labels: Mapping[str, str], epochs: int, stall_seconds: float) -> None:
        self.labels, self.stall_seconds = dict(labels), stall_seconds
        self.progress = Progress(epochs=epochs)

    def tell(self, **changes: Any) -> None:
        """Put the next state in place."""
        self.progress = dataclasses.replace(self.progress, **changes)

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        precision, place = str(trainer.precision), module.device.type
        self.labels = {**self.labels, "accelerator": place, "precision": precision}
        self.tell(state="running", epochs=trainer.max_epochs)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.tell(epoch=trainer.current_epoch, last_step=time.monotonic())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self.progress
        self.tell(batches=now.batches + 1, samples=now.samples + len(batch.target), last_step=time.monotonic(),
                  learning_rate=float(trainer.optimizers[0].param_groups[0]["lr"]))  # fmt: skip

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.tell(last_step=time.monotonic())

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        known = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.tell(epoch=trainer.current_epoch + 1, train_loss=known.get("train_loss"),
                  validation_iv_rmse=known.get("validation_iv_rmse"))  # fmt: skip

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.tell(state="failed")

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.tell(state="finished")

    def verdict(self) -> tuple[bool, dict[str, Any]]:
        """Whether all is well, and the reasons as JSON values; a number that isn't finite is null there."""
        now = dataclasses.asdict(self.progress)
        idle = time.monotonic() - now.pop("last_step")
        stalled = now["state"] in ("starting", "judging", "running") and idle > self.stall_seconds
        healthy = not stalled and now["state"] != "failed"
        told = {"healthy": healthy, "stalled": stalled, **self.labels, **now, "seconds_since_last_step": idle,
                "stall_seconds": self.stall_seconds}  # fmt: skip
        bad = {name for name, value in told.items() if isinstance(value, float) and not math.isfinite(value)}
        return healthy, {name: None if name in bad else value for name, value in told.items()}


class Heartbeat(Callback):
    """Says of a fit before the real one (pipelines/trust.py) that it lives, and nothing else of it."""

    def __init__(self, monitor: TrainingMonitor) -> None:
        self.monitor = monitor

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.monitor.tell(state="judging", last_step=time.monotonic())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.monitor.tell(last_step=time.monotonic())


class _Metrics(Collector):
    """The monitor's progress as Prometheus metrics; one scrape shows one moment."""

    def __init__(self, monitor: TrainingMonitor) -> None:
        self.monitor = monitor

    def collect(self) -> Iterable[Metric]:
        now = self.monitor.progress
        yield InfoMetricFamily(PREFIX, "What is being trained.", value=self.monitor.labels)
        yield StateSetMetricFamily(f"{PREFIX}_state", "State of the training.",
                                   value={state: state == now.state for state in STATES})  # fmt: skip
        for name, text, count in (
            ("batches", "Batches trained on since this process began.", now.batches),
            ("samples", "Rows (pricing) or surfaces trained on since this process began.", now.samples),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=count)
        for name, text, value in (
            ("epoch", "Whole epochs done, those before a resume included.", now.epoch),
            ("epochs_planned", "Epochs after which the training ends at the latest.", now.epochs),
            ("train_loss", "Mean loss of the last whole epoch.", now.train_loss),
            ("validation_iv_rmse_vol_points", "IV RMSE over the validation dates, vol points.", now.validation_iv_rmse),
            ("learning_rate", "Learning rate of the last batch.", now.learning_rate),
            ("seconds_since_last_step", "Since the last batch of training or validation.",
             time.monotonic() - now.last_step),
            ("stall_seconds", "Without a batch for longer, the training counts as stalled.",
             self.monitor.stall_seconds),
        ):  # fmt: skip
            if value is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, monitor: TrainingMonitor) -> None:
        self.monitor = monitor
        self.registry = CollectorRegistry()
        self.registry.register(_Metrics(monitor))
        ProcessCollector(registry=self.registry)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if self.address_family == socket.AF_INET6 else host
        return f"http://{shown!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), OSError):  # the reader went away
            log.debug("%s went away", client_address)
        else:
            log.exception("answering %s", client_address)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of two paths; anything else is 404, or 501 for another method."""

    server: _Server
    server_version, sys_version = "strikeforge", ""
    timeout = 10.0  # seconds a reader may take for its request

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, kind, encode(self.server.registry))
        elif path == "/health":
            healthy, told = self.server.monitor.verdict()
            self._answer(200 if healthy else 503, "application/json", json.dumps(told, allow_nan=False).encode())
        else:
            self._answer(404, "text/plain; charset=utf-8", b"there are /health and /metrics\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


@contextmanager
def serve(cfg: Config, folder: Path, labels: Mapping[str, str]) -> Iterator[list[TrainingMonitor]]:
    """An endpoint for the length of a `with`; gives the callback `fit` needs for it (none without a port).

    Raises ConfigError, naming host and port, where that can't be listened on.
    """
    host, port = cfg.logging.health_host, cfg.logging.health_port
    if port is None:
        yield []
        return
    monitor = TrainingMonitor(
        {"model": cfg.model.name, "seed": str(cfg.seed), **labels}, cfg.trainer.epochs, cfg.logging.stall_seconds
    )
    try:
        server = _Server(host, port, monitor)
    except OSError as error:
        raise ConfigError(
            [f"logging.health_port: can't listen on port {port} of {host}: {error.strerror}; give another port, 0 for "
             "any free one or null for none, and a logging.health_host of this machine"]
        ) from error  # fmt: skip
    path = folder / FILE
    with server:
        threading.Thread(target=server.serve_forever, args=(0.05,), name="health", daemon=True).start()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{FILE}.{os.getpid()}")
            aside.write_text(json.dumps({"url": server.url, "pid": os.getpid()}) + "\n")
            aside.replace(path)
            log.info("health of this training: %s/health, metrics: %s/metrics (%s)", server.url, server.url, path)
            yield [monitor]
        finally:
            server.shutdown()
            path.unlink(missing_ok=True)
