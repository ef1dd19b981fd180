"""A fit is a function of configuration and features: one seed gives one set of weights, killed or not."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from models import FAMILIES
from pipelines import fit as fitting
from pipelines import lightning_module, train
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.fit import AtomicCheckpointIO, Fitted, fit
from pipelines.tasks.pricing import PricingTask, _shuffled, predict
from pipelines.trained import load_trained
from serving.errors import ConfigError, DataError
from serving.features import CONTRACT_FEATURES
from tests.pipelines import market
from tests.pipelines.conftest import TinyRun

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


def with_trainer(cfg: Config, **changes: Any) -> Config:
    return dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, **changes))


def same(first: Fitted, second: Fitted) -> bool:
    """Bit for bit."""
    pair = (first.net.state_dict(), second.net.state_dict())
    return all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())


def test_one_seed_gives_one_set_of_weights(tmp_path: Path, tiny_run: TinyRun, store: FeatureStore) -> None:
    first, second = (fit(tiny_run.cfg, store, tmp_path / name) for name in "ab")
    assert same(first, second)
    assert first.history.equals(second.history)
    stored = load_trained(tiny_run.out / "train/pricing_lstm", tiny_run.out / "features")
    assert "head.trust" in stored.net.state_dict()  # learned after the fit, on the validation dates
    for name, value in stored.net.state_dict().items():
        assert name == "head.trust" or torch.equal(value, first.net.state_dict()[name]), name
    other = fit(dataclasses.replace(tiny_run.cfg, seed=8), store, tmp_path / "c")
    assert not same(first, other)


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """From now on the process ends after that many checkpoints."""
    whole = AtomicCheckpointIO.save_checkpoint
    done = []

    def save(self: AtomicCheckpointIO, *arguments: Any, **options: Any) -> None:
        whole(self, *arguments, **options)
        done.append(1)
        if len(done) == saves:
            raise KilledError

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("saves", [1, 3])
def test_resume_goes_on_bit_by_bit(
    tmp_path: Path, tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, saves: int, family: str
) -> None:
    """Dropout is on (and the latent of surface_vae is drawn): the random state has to come back, too."""
    cfg = tiny_run.of(family)
    assert cfg.model.dropout > 0
    whole = fit(cfg, store, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, saves)
        with pytest.raises(KilledError):
            fit(cfg, store, tmp_path / "killed")
    (tmp_path / "killed/.last.ckpt.4711").write_bytes((tmp_path / "killed/last.ckpt").read_bytes()[:1000])
    resumed = fit(cfg, store, tmp_path / "killed")
    assert resumed.history.equals(whole.history)
    assert same(resumed, whole)
    assert (resumed.best_epoch, resumed.best_validation) == (whole.best_epoch, whole.best_validation)


def test_a_run_killed_after_it_stopped_early_trains_no_further(
    tmp_path: Path, tiny_run: TinyRun, store: FeatureStore
) -> None:
    cfg = with_trainer(tiny_run.cfg, epochs=30, patience=1, learning_rate=0.3)
    whole = fit(cfg, store, tmp_path / "a")
    assert len(whole.history) < 30
    again = fit(cfg, store, tmp_path / "a")  # the checkpoints are still there, as after a kill before the weights
    assert again.history.equals(whole.history)
    assert same(again, whole)


def test_resume_false_begins_anew(tmp_path: Path, tiny_run: TinyRun, store: FeatureStore) -> None:
    whole = fit(tiny_run.cfg, store, tmp_path / "a")
    again = fit(with_trainer(tiny_run.cfg, resume=False), store, tmp_path / "a")
    assert again.history.equals(whole.history)


@pytest.mark.slow
def test_kill_minus_nine_and_again_gives_identical_weights(tmp_path: Path, tiny_run: TinyRun) -> None:
    """A real process, killed as soon as its first checkpoint is there."""
    overrides = [*tiny_run.overrides, "trainer.epochs=12"]
    weights = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        (folder / "out").mkdir(parents=True)
        (folder / "out/features").symlink_to(tiny_run.out / "features")
        command = [sys.executable, "-m", "pipelines.train", *overrides, *market.places(folder)]
        if name == "killed":
            kill_at_first_checkpoint(command, folder / "out/checkpoints")
            assert not (folder / "out/train/pricing_lstm/weights.safetensors").exists()
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("going on from" in done.stderr) == (name == "killed")
        assert not list((folder / "out/checkpoints").rglob("*.ckpt*")), "a finished run leaves no checkpoint"
        weights.append((folder / "out/train/pricing_lstm/weights.safetensors").read_bytes())
        history = pl.read_csv(folder / "out/train/pricing_lstm/history.csv")
        assert history["epoch"].to_list() == list(range(1, len(history) + 1))
        assert history.null_count().sum_horizontal().item() == 0
    assert weights[0] == weights[1]


def kill_at_first_checkpoint(command: list[str], checkpoints: Path) -> None:
    """Stop (so that it can't finish meanwhile) and kill the process when a checkpoint appears."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while not (found := list(checkpoints.rglob("last.ckpt"))):
            assert process.poll() is None, "it ended before it wrote a checkpoint"
            assert time.monotonic() < end, "no checkpoint in time"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()
    aside = found[0].with_name(".last.ckpt.1")
    aside.write_bytes(found[0].read_bytes()[:100])  # as if it had been killed while it wrote


def test_accumulation_and_clipping_take_effect(
    tmp_path: Path, tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimiser steps are counted, and the norms of the gradients they get."""
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, closure: Any = None) -> Any:
        def then() -> Any:
            loss = closure()
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            seen.append(float(torch.sqrt(sum((g**2).sum() for g in gradients))))
            return loss

        return step(self, then)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    batches = -(-len(store.places("train")) // tiny_run.cfg.trainer.snapshots_per_batch)
    for accumulate, clip in ((1, 1e6), (3, 1e6), (1, 1e-3)):
        seen.clear()
        fit(with_trainer(tiny_run.cfg, epochs=2, accumulate=accumulate, clip_norm=clip), store,
            tmp_path / f"{accumulate}-{clip}")  # fmt: skip
        assert len(seen) == 2 * -(-batches // accumulate)
        assert (max(seen) <= 1e-3 * 1.001) == (clip == 1e-3)


class BatchesHeard(Callback):
    """Notes each batch it's told of, and the optimiser steps made by then."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, int]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        _, _, batch, index = arguments
        self.heard.append((trainer.current_epoch, index, trainer.global_step))
        assert len(batch.target) > 0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_groups_change_neither_weights_nor_what_callbacks_hear(
    tmp_path: Path, tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """A step of Lightning's is a group of batches: that mustn't show, nor where accumulation crosses groups."""
    cfg = with_trainer(tiny_run.cfg, epochs=2, accumulate=accumulate, snapshots_per_batch=1)
    batches = len(store.places("train"))
    steps = -(-batches // accumulate)  # an epoch
    expected = [
        (epoch, index, epoch * steps + (steps if index == batches - 1 else (index + 1) // accumulate))
        for epoch in range(2)
        for index in range(batches)
    ]
    found = []
    for group in (1, 4, batches - 1, batches + 1):
        monkeypatch.setattr(lightning_module, "GROUP", group)
        heard = BatchesHeard()
        found.append(fit(cfg, store, tmp_path / str(group), callbacks=[heard]))
        assert heard.heard == expected
    assert all(same(found[0], other) for other in found[1:])


def test_mixed_precision_is_for_the_forward_pass_alone(
    tmp_path: Path, tiny_run: TinyRun, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: dict[str, set[bool]] = {"loss": set(), "step": set()}
    loss, step = PricingTask.loss, torch.optim.AdamW.step

    def seen_loss(*arguments: Any) -> Any:
        enabled["loss"].add(torch.is_autocast_enabled("cpu"))
        return loss(*arguments)

    def seen_step(*arguments: Any, **options: Any) -> Any:
        enabled["step"].add(torch.is_autocast_enabled("cpu"))
        return step(*arguments, **options)

    monkeypatch.setattr(PricingTask, "loss", seen_loss)
    monkeypatch.setattr(torch.optim.AdamW, "step", seen_step)
    fit(with_trainer(tiny_run.cfg, epochs=1, precision="bf16-mixed"), store, tmp_path)
    assert enabled == {"loss": {True}, "step": {False}}


def test_a_net_that_never_improves_stays_the_prior(tmp_path: Path, tiny_run: TinyRun, store: FeatureStore) -> None:
    fitted = fit(with_trainer(tiny_run.cfg, learning_rate=50.0, clip_norm=1e9, epochs=2), store, tmp_path / "a")
    assert fitted.best_epoch == 0
    assert (fitted.history["validation_iv_rmse"] > fitted.best_validation).all()
    prior = store.contracts[:, CONTRACT_FEATURES.index("prior_volatility")]
    test = (store.rows["split"] == "test").to_numpy()
    np.testing.assert_allclose(predict(fitted.net, store, "test"), prior[test], rtol=1e-6)


def test_shuffled_labels_keep_the_other_rows(store: FeatureStore) -> None:
    shuffled = _shuffled(store, 3)
    market_iv = store.rows["iv_market"].to_numpy()
    train = (store.rows["split"] == "train").to_numpy()
    assert not np.allclose(shuffled[train], market_iv[train], atol=1e-4)
    prior = store.contracts[:, CONTRACT_FEATURES.index("prior_volatility")].astype(float)
    kept, permuted = (np.sort((values - prior)[train]) for values in (market_iv, shuffled))
    np.testing.assert_allclose(permuted, kept - kept.mean(), atol=1e-6)  # the same corrections, without their mean
    test = (store.rows["split"] == "test").to_numpy()
    np.testing.assert_allclose(shuffled[test], market_iv[test] - kept.mean(), atol=1e-6)


def test_a_gpu_that_is_not_there_is_a_wrong_value(tmp_path: Path, tiny_run: TinyRun, store: FeatureStore) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    cfg = load_config([*tiny_run.overrides, "hardware.accelerator=gpu"])
    with pytest.raises(ConfigError, match=r"hardware\.accelerator"):
        fit(cfg, store, tmp_path / "a")
    assert fitting.precision(tiny_run.cfg) == "32-true"
    assert fitting.precision(with_trainer(tiny_run.cfg, precision="bf16-mixed")) == "bf16-mixed"


def test_training_leaves_what_its_docstring_says(tiny_run: TinyRun) -> None:
    folder = tiny_run.out / "train/pricing_lstm"
    assert {path.name for path in folder.iterdir()} == {
        "weights.safetensors", "model.json", "history.csv", "metrics.json", "unseen.parquet", "tensorboard",
        "csv",
    }  # fmt: skip
    assert list((folder / "tensorboard").iterdir())
    assert [path.name for path in (folder / "csv").iterdir()] == ["metrics.csv"]
    assert not list((tiny_run.out / "checkpoints").rglob("*.ckpt"))


def test_missing_features_and_other_features_are_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    cfg = load_config(market.overrides(tmp_path, tiny_run.quotes))
    with pytest.raises(DataError, match=r"run python -m pipelines\.features"):
        train.run(cfg)
    with pytest.raises(DataError, match=r"holds no trained model: run python -m pipelines\.train"):
        load_trained(tmp_path, tiny_run.out / "features")
    other = market.featured(tmp_path, market.market(seed=6))
    with pytest.raises(DataError, match="was trained on other features"):
        load_trained(tiny_run.out / "train/pricing_lstm", other.folder / "features")
