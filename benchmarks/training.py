"""What training costs: our Lightning loop against a bare PyTorch loop, features of a million quotes, a real training.

In: the sample market (data/), and SPX 2019 where ../shared/data holds it. Out: `benchmarks/results/training.jsonl` and
`.md`. Everything is made anew in a scratch folder.

- Each model: samples a second (a sample is a contract row for pricing, a surface for surface_vae) over whole epochs,
  validation included, from the start of the first epoch until the net of the best one is back. `bare`: benchmarks/
  bare_loop.py. `lightning`: `pipelines.fit.fit` with its checkpoints, early stopping and the monitor that serves
  /metrics and /health; a step of Lightning's is a group of batches (pipelines/lightning_module.py), the optimiser steps
  are the same. `lightning_recorded`: besides the record that pipelines.train keeps by default (MLflow,
  TensorBoard, CSV). Default batch sizes, one thread; runs alternate, in an order turned round every time. `ratio` is
  the median over rounds of lightning/bare within a round; `cpu_throughput` is the same by the process's CPU time, which
  other processes disturb less. `ratio_recorded` is lightning_recorded/bare.
- Features: benchmarks/features_speed.py. Real training: `python -m pipelines.train experiment=spx_2019` of both pricing
  families at default size, the first fit that judges the net included.

Invariant: within a round all three end with the same weights, bit for bit, or the benchmark fails: nobody does less.

Run: python -m benchmarks.training [--repeats 5]
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from benchmarks.bare_loop import bare_fit
from benchmarks.features_speed import SAMPLE, SPX, feature_rows, require_sample, run_stage
from benchmarks.results import write_results
from models import FAMILIES
from pipelines import health, loggers
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.fit import fit
from serving.errors import StrikeforgeError, run_command

FEWEST_REPEATS = 5
SPX_OVERRIDES = ("experiment=spx_2019", f"data.path={SPX}", "split.test_from=2019-06-03")
SAMPLE_EPOCHS = {"pricing_lstm": 3, "pricing_transformer": 2, "surface_vae": 20}  # a few seconds each
SUBJECTS = ("bare", "lightning", "lightning_recorded")


@dataclass(frozen=True)
class Run:
    """One training: samples trained on, seconds on the clock and of CPU time they took, the net at its end."""

    samples: int
    seconds: float
    cpu_seconds: float
    net: nn.Module


class _Stopwatch(Callback):
    """Notes when the first epoch begins."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()


def run_subject(subject: str, cfg: Config, store: FeatureStore, epochs: int, folder: Path) -> Run:
    """Train once; `folder` is emptied before."""
    if folder.exists():
        shutil.rmtree(folder)
    gc.collect()
    if subject == "bare":
        bare = bare_fit(cfg, store, epochs)
        return Run(bare.samples, time.perf_counter() - bare.began, time.process_time() - bare.cpu_began, bare.net)
    watch = _Stopwatch()
    with ExitStack() as stack:
        watching = stack.enter_context(health.serve(cfg, folder, {}))
        recorded = subject == "lightning_recorded"
        record = [stack.enter_context(loggers.build(cfg, folder, {}))] if recorded else []
        fitted = fit(cfg, store, folder, epochs=epochs, callbacks=[watch, *record, *watching])
        seconds, cpu_seconds = time.perf_counter() - watch.began, time.process_time() - watch.cpu_began
    return Run(watching[0].progress.samples, seconds, cpu_seconds, fitted.net)


def same_work(runs: dict[str, Run]) -> None:
    """Raises StrikeforgeError unless all runs of a round saw as many samples and ended with equal weights."""
    bare = runs["bare"]
    for subject, run in runs.items():
        theirs = run.net.state_dict()
        differing = [name for name, value in bare.net.state_dict().items() if not torch.equal(value, theirs[name])]
        if differing or run.samples != bare.samples:
            raise StrikeforgeError(
                f"{subject} trained on {run.samples} samples, the bare loop on {bare.samples}, and they differ in "
                f"{', '.join(differing) or 'no weight'}: they don't do the same work, so their times can't be compared"
            )


def rounds(
    cfg: Config, store: FeatureStore, epochs: int, repeats: int, folder: Path,
    train: Callable[..., Run] = run_subject,
) -> list[dict[str, Run]]:  # fmt: skip
    """`repeats` rounds of every subject, after one that doesn't count; every second round goes the other way round."""
    found = []
    for number in range(repeats + 1):
        order = SUBJECTS if number % 2 else SUBJECTS[::-1]
        runs = {subject: train(subject, cfg, store, epochs, folder) for subject in order}
        same_work(runs)
        found.append(runs)
    return found[1:]


def loop_rows(case: str, found: Sequence[dict[str, Run]], **extra: Any) -> list[dict[str, Any]]:
    """Throughput of each subject (median) and of the ratios (median over rounds, with the lowest and the highest)."""
    rows: list[dict[str, Any]] = []

    def add(subject: str, metric: str, unit: str, values: list[float], **more: Any) -> None:
        rows.append({"case": case, "subject": subject, "metric": metric, "unit": unit,
                     "value": statistics.median(values), "lowest": min(values), "highest": max(values),
                     "rounds": len(found), **more, **extra})  # fmt: skip

    for ratio, ours in (("ratio", "lightning"), ("ratio_recorded", "lightning_recorded")):
        clock = [runs["bare"].seconds / runs[ours].seconds for runs in found]
        cpu = [runs["bare"].cpu_seconds / runs[ours].cpu_seconds for runs in found]
        add(ratio, "throughput", "ratio", clock, of=ours, against="bare")
        add(ratio, "cpu_throughput", "ratio", cpu, of=ours, against="bare")
    for subject in SUBJECTS:
        add(subject, "throughput", "million/s", [runs[subject].samples / runs[subject].seconds / 1e6 for runs in found])
    return rows


def _features(folder: Path, overrides: Sequence[str]) -> FeatureStore:
    given = [*overrides, f"out={folder}"]
    for stage in ("ingest", "features"):
        run_stage(stage, given)
    return FeatureStore.open(folder / "features")


def _loops(name: str, folder: Path, overrides: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """All families on one data set; cases of another than the sample market carry its name."""
    store, rows = _features(folder, overrides), []
    for family in FAMILIES:
        cfg = load_config([*overrides, *_places(folder), f"model={family}", "hardware=cpu", "logging.health_port=0"])
        epochs = SAMPLE_EPOCHS[family] if name == "sample" else cfg.trainer.epochs
        found = rounds(cfg, store, epochs, repeats, folder / "loop")
        case = family if name == "sample" else f"{family}_{name}"
        measured = loop_rows(case, found, data=name, epochs=epochs, samples=found[0]["bare"].samples)
        sys.stderr.write(f"{case}: {measured[0]['value']:.3f} of the bare loop's samples/s\n")
        rows += measured
    return rows


def _places(folder: Path) -> list[str]:
    tracking = f"registry.tracking_uri=sqlite:///{folder / 'mlflow.db'}"
    return [f"out={folder}", f"storage.url={folder / 'store'}", tracking]


def _real_training(folder: Path) -> list[dict[str, Any]]:
    """Seconds of the command that trains on SPX 2019, on the features that are in `folder`."""
    rows: list[dict[str, Any]] = []
    for family in ("pricing_lstm", "pricing_transformer"):
        seconds = run_stage("train", [*SPX_OVERRIDES, *_places(folder), f"model={family}"])
        rows.append({"case": "spx_2019_training", "subject": family, "metric": "seconds", "unit": "s",
                     "value": seconds, "data": "spx_2019"})  # fmt: skip
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure all of it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=FEWEST_REPEATS, help=f"rounds, at least {FEWEST_REPEATS}")
    repeats = parser.parse_args(arguments).repeats
    if repeats < FEWEST_REPEATS:
        parser.error(f"--repeats: {repeats} rounds are too few for a median here; give {FEWEST_REPEATS} or more")
    require_sample()
    with tempfile.TemporaryDirectory(prefix="strikeforge-training-") as scratch:
        folder = Path(scratch)
        rows = _loops("sample", folder / "sample", [f"data.path={SAMPLE}"], repeats)
        note = "Within every round all loops ended with the same weights, bit for bit."
        if SPX.is_dir():
            rows += _loops("spx_2019", folder / "spx", SPX_OVERRIDES, repeats) + _real_training(folder / "spx")
        else:
            note += " SPX 2019 isn't there: no rows of it."
        rows += feature_rows(folder / "features")
    for path in write_results("training", rows, note=note):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main, None))
