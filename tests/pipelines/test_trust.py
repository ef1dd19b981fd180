"""How far corrections are trusted: limits of the share, what is held out, that test dates have no part in it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.pricing import PricingNet
from pipelines.config import Config, load_config
from pipelines.dataset import FeatureStore
from pipelines.tasks.pricing import predict, prior_volatility
from pipelines.trained import load_trained
from pipelines.trust import (
    BELIEF,
    BELIEF_DATES,
    HELD_OUT,
    UNSEEN,
    believed_by_others,
    fit_trusted,
    share_of,
    without_last,
)
from serving.features import CONTRACT_FEATURES
from tests.pipelines.conftest import TinyRun

DAYS = np.array(["2024-01-01"], "datetime64[D]") + np.arange(6)


def _by_day(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=rows * len(DAYS)), np.repeat(DAYS, rows)


def test_a_correction_that_is_right_is_believed_whole() -> None:
    wanted, dates = _by_day(50, 1)
    assert share_of(wanted, wanted, dates) == pytest.approx(1.0)


def test_a_correction_in_the_wrong_direction_is_not_believed() -> None:
    wanted, dates = _by_day(50, 2)
    assert share_of(-wanted, wanted, dates) == 0.0


def test_a_correction_three_times_too_large_is_cut_to_a_third() -> None:
    wanted, dates = _by_day(50, 3)
    assert share_of(3.0 * wanted, wanted, dates) == pytest.approx(1 / 3, abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_few_days_are_weighed_against_what_is_believed_before(count: int) -> None:
    wanted, dates = _by_day(50, 4)
    few = np.isin(dates, DAYS[:count])
    wanted, dates = wanted[few], dates[few]
    for right, least_squares in ((1.0, 1.0), (0.25, 0.25), (-1.0, 0.0)):  # a share below none is none
        expected = (count * least_squares + BELIEF_DATES * BELIEF) / (count + BELIEF_DATES)
        assert share_of(wanted, right * wanted, dates) == pytest.approx(expected)
    assert share_of(0.1 * wanted, wanted, dates) == 1.0  # a correction far too small is believed whole


def test_enough_days_give_the_least_squares_share() -> None:
    wanted, dates = _by_day(50, 4)
    mixed = np.where(np.isin(dates, DAYS[:3]), wanted, 5.0 * wanted)
    assert share_of(mixed, wanted, dates) == pytest.approx(float(mixed @ wanted / (mixed @ mixed)))


@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_the_share_lies_between_none_and_all_whatever_the_units(seed: int, unit: float) -> None:
    correction, dates = _by_day(10, seed)
    wanted, _ = _by_day(10, seed + 1)
    share = share_of(correction, wanted, dates)
    assert 0.0 <= share <= 1.0
    assert share_of(unit * correction, unit * wanted, dates) == pytest.approx(share, abs=1e-9)


def test_no_correction_needs_no_doubt() -> None:
    wanted, dates = _by_day(10, 5)
    assert share_of(np.zeros_like(wanted), wanted, dates) == 1.0


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


def test_the_last_training_dates_are_held_out_behind_an_embargo(store: FeatureStore) -> None:
    held = without_last(store, 0.4, 1)
    assert held is not None
    dates = held.snapshots.with_columns(date=pl.col("ts").dt.date())
    last_training = dates.filter(pl.col("split") == "train")["date"].max()
    first_held = dates.filter(pl.col("split") == HELD_OUT)["date"].min()
    before = store.snapshots.filter(pl.col("split") == "train")["ts"].dt.date().unique().sort()
    assert held.rows.filter(pl.col("split") == HELD_OUT)["ts"].dt.date().n_unique() == round(0.4 * len(before))
    between = [date for date in before if last_training < date < first_held]
    assert len(between) == 1
    assert (held.rows["split"] == "test").sum() == (store.rows["split"] == "test").sum()


def test_too_few_dates_are_left_alone(store: FeatureStore) -> None:
    count = store.snapshots.filter(pl.col("split") == "train")["ts"].dt.date().n_unique()
    assert without_last(store, 0.95, 1) is None
    assert without_last(store, 0.25, count) is None


def test_unseen_rows_are_the_validation_rows_answered_by_the_net(tiny_run: TinyRun, store: FeatureStore) -> None:
    trained = load_trained(tiny_run.out / "train/pricing_lstm", tiny_run.out / "features")
    assert trained.unseen is not None
    assert dict(trained.unseen.schema) == UNSEEN
    rows = np.flatnonzero((store.rows["split"] == "validation").to_numpy())
    np.testing.assert_array_equal(trained.unseen["row"].to_numpy(), rows)
    np.testing.assert_array_equal(trained.unseen["iv_model"].to_numpy(), predict(trained.net, store, "validation"))


def test_a_held_out_date_is_answered_with_the_share_of_the_others(tiny_run: TinyRun, store: FeatureStore) -> None:
    """Its own labels don't move its answers; those of the other held-out dates decide between net and prior."""
    held = without_last(store, 0.4, 1)
    assert held is not None
    net = load_trained(tiny_run.out / "train/pricing_lstm", tiny_run.out / "features").net
    assert isinstance(net, PricingNet)
    torch.nn.init.constant_(net.head.linear.weight, 0.1)  # the tiny run's net may have stayed its prior
    net.head.trust.fill_(1.0)
    chosen = (held.rows["split"] == HELD_OUT).to_numpy()
    dates = held.rows["ts"].dt.date().to_numpy()[chosen]
    first = dates == dates[0]
    whole, prior = predict(net, held, HELD_OUT), prior_volatility(held)[chosen]
    assert np.abs(whole - prior).max() > 1e-4

    def answers(others: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Of the first held-out date, with these labels."""
        labels = held.rows["iv_market"].to_numpy().copy()
        labels[chosen] = np.where(first, own, others)
        relabelled = dataclasses.replace(held, rows=held.rows.with_columns(iv_market=pl.Series(labels)))
        return np.asarray(believed_by_others(net, relabelled, HELD_OUT)[first])

    opposite = 2.0 * prior - whole
    others = len(np.unique(dates)) - 1
    for labels, spoken in ((whole, 1.0), (opposite, 0.0)):
        share = (others * spoken + BELIEF_DATES * BELIEF) / (others + BELIEF_DATES)
        expected = prior * (whole / prior) ** share  # the head corrects the logarithm
        for own in (whole, opposite):
            np.testing.assert_allclose(answers(labels, own), expected[first], atol=1e-6)
    assert float(net.head.trust) == 1.0


def _short(tiny_run: TinyRun, tmp_path: Path) -> Config:
    """The tiny run without validation dates."""
    shutil.copytree(tiny_run.out / "features", tmp_path / "features")
    for name in ("rows", "snapshots"):
        path = tmp_path / "features" / f"{name}.parquet"
        table = pl.read_parquet(path)
        table.with_columns(split=pl.col("split").replace({"validation": "train"})).write_parquet(path)
    trainer = dataclasses.replace(tiny_run.cfg.trainer, epochs=2, trust_share=0.4)
    return dataclasses.replace(tiny_run.cfg, out=str(tmp_path), trainer=trainer)


@pytest.mark.slow
def test_the_share_travels_with_the_weights_and_ignores_the_test_dates(tiny_run: TinyRun, tmp_path: Path) -> None:
    cfg = _short(tiny_run, tmp_path)
    store = FeatureStore.open(tmp_path / "features")
    fitted = fit_trusted(cfg, store, tmp_path / "a")
    assert isinstance(fitted.net, PricingNet)
    share = float(fitted.net.head.trust)
    assert 0.0 <= share <= 1.0
    assert "head.trust" in fitted.net.state_dict()
    held = without_last(store, cfg.trainer.trust_share, cfg.split.embargo)
    assert held is not None
    assert fitted.unseen is not None
    named = np.flatnonzero((held.rows["split"] == HELD_OUT).to_numpy())
    np.testing.assert_array_equal(fitted.unseen["row"].to_numpy(), named)
    wrong = store.rows.with_columns(
        iv_market=pl.when(pl.col("split") == "test").then(2.0 * pl.col("iv_market")).otherwise(pl.col("iv_market"))
    )
    other = fit_trusted(cfg, dataclasses.replace(store, rows=wrong), tmp_path / "b")
    for name, tensor in fitted.net.state_dict().items():
        assert (tensor == other.net.state_dict()[name]).all(), name
    assert other.unseen is not None
    assert other.unseen.equals(fitted.unseen)


@pytest.mark.slow
def test_a_net_that_cannot_be_judged_is_believed_by_half(tiny_run: TinyRun, tmp_path: Path) -> None:
    cfg = _short(tiny_run, tmp_path)
    cfg = dataclasses.replace(cfg, split=dataclasses.replace(cfg.split, embargo=100))
    fitted = fit_trusted(cfg, FeatureStore.open(tmp_path / "features"), tmp_path / "a")
    assert isinstance(fitted.net, PricingNet)
    assert float(fitted.net.head.trust) == BELIEF
    assert fitted.unseen is not None
    assert fitted.unseen.is_empty()


@pytest.mark.slow
def test_a_net_that_is_not_trusted_is_the_prior(tiny_run: TinyRun, tmp_path: Path) -> None:
    cfg = _short(tiny_run, tmp_path)
    store = FeatureStore.open(tmp_path / "features")
    fitted = fit_trusted(cfg, store, tmp_path / "a")
    assert isinstance(fitted.net, PricingNet)
    fitted.net.head.trust.fill_(0.0)
    prior = store.contracts[(store.rows["split"] == "test").to_numpy(), CONTRACT_FEATURES.index("prior_volatility")]
    assert np.abs(predict(fitted.net, store, "test") - prior).max() < 1e-6


def test_the_share_held_out_is_configured_and_checked() -> None:
    assert load_config(["trainer.trust_share=0.5"]).trainer.trust_share == 0.5
