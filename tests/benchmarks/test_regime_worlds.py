"""Regime worlds: states and labels drawn as promised, readers that read what they say, a short way to the results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import regime_worlds
from benchmarks.regime_readers import best_threshold, features_of, macro_f1, read_regimes
from benchmarks.regime_worlds import (
    DAYS,
    MEAN_STAY_DAYS,
    REGIMES,
    SEEDS,
    TEST_DAYS,
    TRAINING_DAYS,
    World,
    draw_labelled,
    draw_states,
    make_world,
    rows_of,
    well_mixed,
)
from pipelines.dataset import FeatureStore
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS
from tests.pipelines import market

SHORT = {"DAYS": 34, "VALIDATION_DAYS": 6, "TEST_DAYS": 8, "TRAINING_DAYS": 18, "MEAN_STAY_DAYS": (4.0, 4.0),
         "LABELLED_SHARE": 0.3, "WORLDS": (5,), "SEEDS": 2}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(5)


# --- the world


def test_stays_are_as_long_as_said() -> None:
    generator = np.random.default_rng(1)
    states = [draw_states(generator) for _ in range(200)]
    for one in (0, 1):
        before = np.concatenate([state[:-1] for state in states])
        after = np.concatenate([state[1:] for state in states])
        leaving = float(np.mean(after[before == one] != one))
        error = np.sqrt(leaving / np.sum(before == one))
        assert leaving == pytest.approx(1.0 / MEAN_STAY_DAYS[one], abs=5 * error)


def test_five_percent_of_the_training_days_are_labelled_and_no_other_day() -> None:
    generator = np.random.default_rng(2)
    draws = [draw_labelled(generator) for _ in range(300)]
    for days in draws:
        assert len(set(days.tolist())) == len(days) == round(0.05 * TRAINING_DAYS)
        assert days.min() >= 1
        assert days.max() < TRAINING_DAYS
    every = np.bincount(np.concatenate(draws), minlength=TRAINING_DAYS)[1:]
    assert every.min() > 0  # each of them can be drawn


def test_a_world_is_its_seed_and_holds_both_states(world: World) -> None:
    again = make_world(5)
    assert [day.spot for day in again.days] == [day.spot for day in world.days]
    assert np.array_equal(again.labelled, world.labelled)
    assert make_world(6).days[-1].spot != world.days[-1].spot
    assert len(world.days) == DAYS
    assert well_mixed(world.state, world.labelled)
    nobody = np.zeros(DAYS, dtype=np.int64)
    assert not well_mixed(nobody, world.labelled)


def test_a_days_parameters_are_its_states_and_the_variance_goes_on(world: World) -> None:
    for state in (0, 1):
        days = [day.parameters for day, one in zip(world.days, world.state, strict=True) if one == state]
        assert len({(one.long_run_variance, one.volatility_of_variance, one.correlation) for one in days}) == 1
    variance = np.array([day.parameters.variance for day in world.days])
    switches = np.flatnonzero(np.diff(world.state))
    step = np.abs(np.diff(np.sqrt(variance)))
    assert step[switches].mean() < 3.0 * step.mean()  # no jump that would give a switch away


def test_states_overlap_in_the_level_of_volatility(world: World) -> None:
    """The best threshold on the true variance, chosen with every state known, leaves much to be told."""
    variance = np.log(np.array([day.parameters.variance for day in world.days]))
    threshold, side = best_threshold(variance, world.state)
    assert macro_f1(world.state, np.where(variance > threshold, side, 1 - side)) < 0.8


# --- the readers


@pytest.mark.parametrize("side", [0, 1])
def test_the_best_threshold_separates_what_can_be_separated(side: int) -> None:
    level = np.array([0.3, 0.1, 0.25, 0.12])
    regime = np.where(level > 0.2, side, 1 - side)
    threshold, found = best_threshold(level, regime)
    assert found == side
    assert 0.12 < threshold < 0.25


def test_features_are_level_skew_curvature_and_term_slope() -> None:
    x, days = np.tile(MONEYNESS, SHAPE[0]), np.repeat(TENORS_DAYS, SHAPE[1])
    surface = 0.2 * (days / 30.0) ** 0.1 - 0.3 * x + 0.4 * x**2
    found = features_of(surface[np.newaxis])[0]
    np.testing.assert_allclose(found, [np.log(0.2), -0.3, 0.4, 0.1 * np.log(6.0)], rtol=1e-9)


def test_macro_f1_is_the_mean_of_both() -> None:
    true, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert macro_f1(true, said) == pytest.approx(0.5 * (2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)))
    assert macro_f1(true, np.zeros(4, dtype=np.int64)) == pytest.approx(0.5 * 6 / 7)


def test_readers_tell_steep_surfaces_from_flat_ones_after_four_labels(tmp_path: Path) -> None:
    market.featured(tmp_path, market.market())
    store = FeatureStore.open(tmp_path / "out" / "features")
    state = np.arange(len(store.grids)) // 3 % 2
    grids = np.array(store.grids)
    grids[:, 0] += np.where(grids[:, 1] > 0, 0.1 * state[:, np.newaxis] * np.tile(MONEYNESS, SHAPE[0]), 0.0)
    store = FeatureStore(store.spec, store.steps, store.contracts, grids, store.moves, store.rows, store.snapshots)
    training = store.places("train")
    labelled = np.concatenate([training[state[training] == one][:2] for one in (0, 1)])
    found = read_regimes(store, labelled, state[labelled])
    assert set(found) == {"level_threshold", "logistic", "logistic_shape", "mixture"}
    for name in ("logistic", "logistic_shape"):
        assert macro_f1(state[training], found[name][training]) > 0.9, name
    assert all(np.isin(said, (0, 1)).all() for said in found.values())


# --- the results


def test_rows_are_means_over_seeds_and_worlds() -> None:
    worlds = {
        1: {"net": [{"macro_f1": 0.8, "agreement": 0.5}, {"macro_f1": 1.0, "agreement": 0.5}],
            "flat": [{"macro_f1": 0.3}]},
        2: {"net": [{"macro_f1": 0.6, "agreement": 0.7}, {"macro_f1": 0.8, "agreement": 0.7}],
            "flat": [{"macro_f1": 0.5}]},
    }  # fmt: skip
    values = {(row["case"].split("/")[1], row["subject"], row["metric"]): row["value"] for row in rows_of(worlds)}
    wanted = {
        ("world_1", "net", "macro_f1"): 0.9, ("world_1", "net", "macro_f1_min"): 0.8,
        ("world_1", "net", "macro_f1_std"): np.sqrt(0.02), ("all", "net", "macro_f1"): 0.8,
        ("all", "net", "macro_f1_min"): 0.6, ("all", "net", "macro_f1_std"): np.sqrt(0.02),
        ("all", "net", "agreement"): 0.6, ("all", "flat", "macro_f1"): 0.4, ("all", "flat", "macro_f1_min"): 0.3,
    }  # fmt: skip
    assert {key: values[key] for key in wanted} == pytest.approx(wanted)
    assert ("world_1", "flat", "macro_f1_std") not in values


@pytest.mark.slow
def test_a_short_run_ends_with_results_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SHORT.items():
        monkeypatch.setattr(regime_worlds, name, value)
    original: Callable[..., object] = regime_worlds.configuration

    def small(world: World, folder: Path, seed: int) -> object:
        return original(world, folder, seed, "trainer.epochs=2", "model.width=16", "model.latent=2")

    monkeypatch.setattr(regime_worlds, "configuration", small)
    arguments = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), "--worlds", "5",
                 "--seeds", "2"]  # fmt: skip
    assert regime_worlds.main(arguments) == 0
    file = tmp_path / "results" / "regime_worlds.jsonl"
    assert str(file) in capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    table = pl.DataFrame(rows)
    assert set(table["subject"]) == {"surface_vae", "level_threshold", "logistic", "logistic_shape", "mixture"}
    assert table.filter(pl.col("metric").str.starts_with("macro_f1")
                        & ~pl.col("metric").str.ends_with("std"))["value"].is_between(0.0, 1.0).all()  # fmt: skip
    monkeypatch.setattr(regime_worlds, "run_world", None)  # nothing is run again
    assert regime_worlds.main(arguments) == 0
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_a_part_of_the_worlds_doesnt_replace_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"surface_vae": [{"macro_f1": 0.9, "macro_f1_unlabelled": 0.9}]}
    monkeypatch.setattr(regime_worlds, "finished_world", lambda *_: runs)
    monkeypatch.setattr(regime_worlds, "FOLDER", tmp_path / "whole")
    assert regime_worlds.main(["--worlds", "3", "--work", str(tmp_path)]) == 0
    assert (tmp_path / "results" / "regime_worlds.md").exists()
    assert not (tmp_path / "whole").exists()
    assert regime_worlds.main(["--work", str(tmp_path), "--seeds", str(SEEDS)]) == 0
    assert (tmp_path / "whole" / "regime_worlds.md").exists()


def test_a_wrong_number_of_trainings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        regime_worlds.main(["--seeds", "0", "--work", str(tmp_path)])
    assert refused.value.code == 2


def test_regimes_are_named_and_test_days_follow_the_training() -> None:
    assert len(REGIMES) == len(regime_worlds.STATES) == 2
    assert TRAINING_DAYS + TEST_DAYS < DAYS
