"""Reads back what a training logged: the points of every metric in TensorBoard, CSV, MLflow and W&B's offline files."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.registry import open_registry

METRICS = {"train_loss", "validation_iv_rmse", "learning_rate"}

Points = dict[str, list[tuple[int, float]]]  # of each metric: epoch and value


def tensorboard_points(folder: Path) -> Points:
    """All files of the folder, each read on its own, so that nothing is purged that a viewer would show twice."""
    found: Points = {}
    for path in sorted(folder.iterdir()):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def csv_points(path: Path) -> Points:
    table = pl.read_csv(path)
    assert table["time_seconds"].is_sorted()
    return {name: list(zip(table["epoch"], table[name], strict=True)) for name in METRICS & set(table.columns)}


def mlflow_runs(uri: str) -> list[Any]:
    client = open_registry(uri).client
    experiments = [str(experiment.experiment_id) for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def mlflow_points(uri: str) -> Points:
    """Of the only run there."""
    (run,) = mlflow_runs(uri)
    client = open_registry(uri).client
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: a LevelDB log (blocks of 32 KiB) of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, place, whole = path.read_bytes(), 32768, 7, b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        assert zlib.crc32(bytes([kind]) + part) == checksum
        whole, place = whole + part, place + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def wandb_points(folder: Path) -> Points:
    """Of the only run there."""
    (path,) = folder.rglob("*.wandb")
    found: Points = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            assert items["epoch"] == items["_step"]
            for name in METRICS & set(items):
                found.setdefault(name, []).append((items["epoch"], items[name]))
    return found


def assert_is_history(points: Points, folder: Path) -> None:
    """Every epoch of history.csv, once, in order, with its values (TensorBoard keeps 32 bits)."""
    history = pl.read_csv(folder / "history.csv")
    assert set(points) == METRICS
    for name, values in points.items():
        assert [step for step, _ in values] == history["epoch"].to_list(), name
        if name in history.columns:
            assert [value for _, value in values] == pytest.approx(history[name].to_list(), rel=1e-6)


def service_processes(pid: int) -> list[str]:
    """Command lines of W&B services of that process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if b"wandb-core" in words[0] and str(pid).encode() in words:
            found.append(str(words))
    return found
