"""The training benchmark compares equals: both loops do the same work, and what is reported is what was timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

from benchmarks import features_speed, training
from benchmarks.bare_loop import bare_fit
from models import FAMILIES
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.fit import fit
from serving.errors import DataError, StrikeforgeError
from tests.pipelines import market


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with quotes and `out/features` of the tiny market."""
    folder = tmp_path_factory.mktemp("features")
    market.featured(folder, market.market())
    return folder


def of(features: Path, family: str, *more: str) -> Config:
    return load_config(market.overrides(features, features / "quotes.parquet", *more, family=family))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("trainer.accumulate=3", "trainer.clip_norm=0.01"),
        ("trainer.epochs=12", "trainer.patience=1", "trainer.learning_rate=0.3"),
    ],
    ids=["default", "accumulated", "stopped early"],
)
def test_the_bare_loop_is_the_lightning_loop_bit_by_bit(
    tmp_path: Path, features: Path, family: str, more: tuple[str, ...]
) -> None:
    cfg, store = of(features, family, *more), FeatureStore.open(features / "out/features")
    bare = bare_fit(cfg, store, cfg.trainer.epochs)
    ours = fit(cfg, store, tmp_path)
    assert "trainer.patience=1" not in more or len(bare.losses) < cfg.trainer.epochs
    for name, value in ours.net.state_dict().items():
        assert torch.equal(bare.net.state_dict()[name], value), name
    assert bare.losses == pytest.approx(ours.history["train_loss"].to_list(), rel=1e-6)
    assert bare.validation == pytest.approx(ours.history["validation_iv_rmse"].to_list(), rel=1e-6)
    assert bare.best_epoch == ours.best_epoch


def test_without_validation_dates_both_take_the_last_epoch(tmp_path: Path, features: Path) -> None:
    market.featured(tmp_path, market.market(), "split.validation_dates=0")
    cfg, store = of(tmp_path, "pricing_lstm", "split.validation_dates=0"), FeatureStore.open(tmp_path / "out/features")
    bare, ours = bare_fit(cfg, store, 2), fit(cfg, store, tmp_path / "a", epochs=2)
    assert (bare.validation, bare.best_epoch) == ([], 2)
    assert ours.best_epoch == 2
    assert all(torch.equal(bare.net.state_dict()[name], value) for name, value in ours.net.state_dict().items())


def test_every_subject_is_run_and_found_equal(tmp_path: Path, features: Path) -> None:
    cfg, store = of(features, "surface_vae", "logging.health_port=0"), FeatureStore.open(features / "out/features")
    found = training.rounds(cfg, store, 2, 1, tmp_path / "loop")
    assert [set(runs) for runs in found] == [set(training.SUBJECTS)]
    trained_on = 2 * len(store.places("train"))
    assert {run.samples for run in found[0].values()} == {trained_on}
    assert all(run.seconds > 0 for run in found[0].values())


def stand_in(weight: float = 0.0, samples: int = 1000, seconds: float = 1.0) -> training.Run:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    return training.Run(samples, seconds, seconds / 2, net)


@pytest.mark.parametrize("cheat", [stand_in(weight=1e-7), stand_in(samples=999)])
def test_a_loop_that_does_other_work_fails_the_benchmark(tmp_path: Path, features: Path, cheat: training.Run) -> None:
    def train(subject: str, *_: Any) -> training.Run:
        return cheat if subject == "bare" else stand_in()

    store = FeatureStore.open(features / "out/features")
    with pytest.raises(StrikeforgeError, match="don't do the same work"):
        training.rounds(of(features, "pricing_lstm"), store, 1, 1, tmp_path, train)


def test_rounds_alternate_and_the_first_does_not_count(tmp_path: Path, features: Path) -> None:
    seen: list[str] = []

    def train(subject: str, *_: Any) -> training.Run:
        seen.append(subject)
        return stand_in(seconds=float(len(seen)))

    store = FeatureStore.open(features / "out/features")
    found = training.rounds(of(features, "pricing_lstm"), store, 1, 2, tmp_path, train)
    first, second, third = (tuple(seen[place : place + 3]) for place in (0, 3, 6))
    assert first == third == second[::-1]
    assert [runs[second[0]].seconds for runs in found] == [4.0, 9.0]


def test_rows_hold_medians_of_the_ratios_within_rounds() -> None:
    lightning = {1.0: 1.0, 2.0: 4.0, 10.0: 12.5}  # bare seconds: ours
    found = [
        {
            "bare": stand_in(seconds=bare),
            "lightning": dataclasses.replace(stand_in(seconds=ours), cpu_seconds=bare),
            "lightning_recorded": stand_in(seconds=2 * ours),
        }
        for bare, ours in lightning.items()
    ]
    rows = {(row["subject"], row["metric"]): row for row in training.loop_rows("a_net", found, data="none")}
    ratio = rows["ratio", "throughput"]
    assert (ratio["value"], ratio["lowest"], ratio["highest"]) == (0.8, 0.5, 1.0)
    assert (ratio["unit"], ratio["of"], ratio["against"], ratio["case"]) == ("ratio", "lightning", "bare", "a_net")
    assert rows["ratio", "cpu_throughput"]["value"] == 0.5
    assert rows["ratio_recorded", "throughput"]["value"] == 0.4
    assert rows["bare", "throughput"]["value"] == pytest.approx(1000 / 2.0 / 1e6)


def test_enlarged_quotes_are_the_originals_on_other_dates(tmp_path: Path) -> None:
    dates = ("ts", "expiry")
    as_time, as_date = pl.col("ts").str.to_datetime(time_zone="UTC"), pl.col("expiry").str.to_date()
    table = market.market(snapshots=6).select(as_time, as_date, "strike", "bid")
    source = tmp_path / "source"
    for number, part in enumerate((table[:100], table[100:])):
        market.write(part, source / f"{number}.parquet")
    count = features_speed.enlarge(source, tmp_path / "raw", dates, 28, table.height + 1)
    assert count == table.height + 100, "the first file's copy is enough"
    original, copy = (
        pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "raw").glob(f"{number}-*"))])
        for number in (0, 1)
    )
    assert original.equals(table)
    assert copy.drop(dates).equals(table[:100].drop(dates))
    for name in dates:
        assert ((copy[name] - table[:100][name]).dt.total_days() == 28).all()


def test_nothing_to_enlarge_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Parquet file"):
        features_speed.enlarge(tmp_path, tmp_path / "raw", [], 7, 1)


def test_too_few_repeats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--repeats", "2"])
    assert "too few" in capsys.readouterr().err
