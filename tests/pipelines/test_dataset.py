"""What the loop is fed: windows of the right underlying, draws by (seed, epoch, snapshot) alone, weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.dataset import FILES, FeatureStore
from pipelines.tasks.pricing import SnapshotBatches, row_objective
from serving import black76
from serving.errors import DataError
from serving.features import CONTRACT_FEATURES
from tests.pipelines.conftest import TinyRun

PRIOR = CONTRACT_FEATURES.index("prior_volatility")


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


def batches(store: FeatureStore, places: np.ndarray, *, rows: int | None = 10, seed: int = 3) -> SnapshotBatches:
    """Targets are row numbers, so that a batch tells which rows it holds."""
    numbers = np.arange(len(store.rows), dtype=np.float32)
    return SnapshotBatches(store, places, target=numbers, weight=np.ones_like(numbers), snapshots_per_batch=4,
                           rows_per_snapshot=rows, seed=seed)  # fmt: skip


def drawn(source: SnapshotBatches, epoch: int) -> dict[str, tuple[float, ...]]:
    """Rows drawn, by the time of the snapshot they belong to."""
    source.set_epoch(epoch)
    times = source.store.rows["ts"].to_numpy()
    rows = np.concatenate([batch.target.numpy() for batch in source]).astype(int)
    return {str(time): tuple(np.sort(rows[times[rows] == time])) for time in np.unique(times[rows])}


def test_draws_depend_on_seed_epoch_and_snapshot_only(store: FeatureStore) -> None:
    places = store.places("train")
    first = drawn(batches(store, places), 5)
    later = batches(store, places)
    drawn(later, 4)  # what was drawn before doesn't matter
    assert drawn(later, 5) == first
    some = drawn(batches(store, places[[7, 2]]), 5)  # nor which other snapshots there are
    assert some == {time: first[time] for time in some}
    assert len(some) == 2
    assert drawn(batches(store, places), 6) != first
    assert drawn(batches(store, places, seed=4), 5) != first
    assert all(len(rows) == len(set(rows)) == 10 for rows in first.values())


def test_order_of_snapshots_changes_with_the_epoch_and_not_without_draws(store: FeatureStore) -> None:
    places = store.places("train")
    source = batches(store, places)
    orders = []
    for epoch in (0, 0, 1):
        source.set_epoch(epoch)
        orders.append([batch.window.numpy().tobytes() for batch in source])
    assert orders[0] == orders[1] != orders[2]
    everything = batches(store, places, rows=None)
    numbers = np.concatenate([batch.target.numpy() for batch in everything])
    spans = [np.arange(store.row_range(place).start, store.row_range(place).stop) for place in places.tolist()]
    np.testing.assert_array_equal(numbers, np.concatenate(spans))
    assert len(everything) == len(list(everything)) == -(-len(places) // 4)


def test_batches_hold_together(store: FeatureStore) -> None:
    for batch in batches(store, store.places("train"), rows=1000):
        rows = batch.target.numpy().astype(int)
        np.testing.assert_array_equal(batch.contracts.numpy(), store.contracts[rows])
        for number, place in zip(rows, batch.snapshot.tolist(), strict=True):
            at = store.snapshots["ts"].to_list().index(store.rows["ts"][int(number)])
            np.testing.assert_array_equal(batch.window[place].numpy(), store.window(at))


def test_window_ends_at_the_snapshot_with_zeros_in_front(store: FeatureStore) -> None:
    steps = store.spec.window
    np.testing.assert_array_equal(store.window(steps + 3), store.steps[4 : steps + 4])
    window = store.window(1)
    assert not window[:-2].any()
    np.testing.assert_array_equal(window[-2:], store.steps[:2])


def test_weights_mean_one_on_training_rows(store: FeatureStore) -> None:
    training = (store.rows["split"] == "train").to_numpy()
    for power, share in ((0.0, 0.0), (2.0, 0.5), (1.0, 1.0)):
        target, weight = row_objective(store, power, share)
        assert np.isfinite(target).all()
        assert weight[training].mean() == pytest.approx(1.0, rel=1e-5)
        assert (weight > 0).all()
        assert np.isfinite(weight).all()
    target, weight = row_objective(store, 0.0, 0.0)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)
    np.testing.assert_allclose(target, store.rows["iv_market"].to_numpy(), rtol=1e-6)


def test_weights_mean_what_they_say(store: FeatureStore) -> None:
    """Day weights undo the size of a day's error; the money share follows squared vega."""
    rows = store.rows.with_columns(weight=row_objective(store, 2.0, 0.0)[1]).with_columns(
        square=(pl.col("iv_market") - pl.Series(store.contracts[:, PRIOR].astype(float))) ** 2
    )
    days = rows.group_by("ts").agg(pl.col("weight").first(), pl.col("square").mean(), many=pl.col("weight").n_unique())
    assert days["many"].max() == 1
    product = (days["weight"] * days["square"]).to_numpy()
    np.testing.assert_allclose(product, product.mean(), rtol=1e-4)
    money = store.rows.with_columns(weight=row_objective(store, 0.0, 1.0)[1])
    one_day = money.filter(pl.col("ts") == money["ts"][0]).sort("tau", "strike")
    at_the_money = one_day.filter(pl.col("tau") == one_day["tau"].max())
    assert at_the_money["weight"].max() > 2 * at_the_money["weight"].min()


def test_the_objective_is_the_stated_sum_of_squares(store: FeatureStore) -> None:
    """Differences of weight (iv - target)^2 between two volatilities are those of the two squared errors behind it."""
    rows, share = store.rows, 0.3
    target, weight = (part.astype(float) for part in row_objective(store, 0.0, share))
    market = rows["iv_market"].to_numpy()
    columns = [rows[name].to_numpy() for name in ("forward_model", "strike", "tau")]
    rest = [rows[name].to_numpy() for name in ("discount_model", "right_sign")]
    worth = black76.value(*columns, market, *rest)
    missed = worth.price - (rows["bid"] + rows["ask"]).to_numpy() / 2
    prior_error = market - store.contracts[:, PRIOR].astype(float)
    training = (rows["split"] == "train").to_numpy()
    in_volatility = (1 - share) / (prior_error[training] ** 2).mean()
    in_money = share / ((prior_error * worth.vega)[training] ** 2).mean()

    def stated(iv: np.ndarray) -> np.ndarray:
        return in_volatility * (iv - market) ** 2 + in_money * (worth.vega * (iv - market) + missed) ** 2

    one, other = market + 0.02, market - 0.03
    found = weight * ((one - target) ** 2 - (other - target) ** 2)
    wanted = stated(one) - stated(other)
    scale = (found * wanted).sum() / (wanted**2).sum()
    np.testing.assert_allclose(found, scale * wanted, rtol=1e-3, atol=1e-4 * np.abs(scale * wanted).max())


@pytest.mark.parametrize("name", FILES)
def test_incomplete_features_are_refused(tmp_path: Path, tiny_run: TinyRun, name: str) -> None:
    shutil.copytree(tiny_run.out / "features", tmp_path / "features")
    (tmp_path / "features" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} isn't there: run python -m pipelines.features"):
        FeatureStore.open(tmp_path / "features")


def test_features_of_other_code_are_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    shutil.copytree(tiny_run.out / "features", tmp_path / "features")
    spec = tmp_path / "features/spec.json"
    content = json.loads(spec.read_text())
    content["step_features"][0] = "moon_phase"
    spec.write_text(json.dumps(content))
    with pytest.raises(DataError, match="moon_phase"):
        FeatureStore.open(tmp_path / "features")


def test_features_of_another_version_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.out / "features", tmp_path / "features")
    path = tmp_path / "features/snapshots.parquet"
    pl.read_parquet(path).drop("segment").write_parquet(path)
    with pytest.raises(DataError, match=r"another version \(snapshots.parquet lacks segment\).*pipelines.features"):
        FeatureStore.open(tmp_path / "features")
