"""The smiles behind the grids are those the features were made of, and a host's."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from pipelines.dataset import FeatureStore
from pipelines.surface_days import SurfaceDays
from serving.errors import DataError
from serving.surface_grid import carried, fill, surface_grid
from tests.pipelines.conftest import TinyRun


@pytest.fixture
def store(tiny_run: TinyRun) -> FeatureStore:
    return FeatureStore.open(tiny_run.out / "features")


def read(tiny_run: TinyRun, store: FeatureStore) -> SurfaceDays:
    return SurfaceDays.read(store, tiny_run.out / "ingest" / "quotes.parquet")


def test_grids_and_moves_of_the_store_come_back(tiny_run: TinyRun, store: FeatureStore) -> None:
    days = read(tiny_run, store)
    for place in (int(place) for name in ("train", "validation", "test") for place in store.places(name)):
        now, last = days.pair(place)
        grid, before = surface_grid(now), carried(last, now.ts, now.spot)
        for part, wanted in enumerate((grid.volatility, grid.mask, fill(before), before.mask)):
            np.testing.assert_array_equal(store.grids[place, part], wanted.astype(np.float32))
        assert np.float32(days.move(place)) == store.moves[place, 0]
        assert days.changes(place).log_return == days.move(place)
        assert len(days.changes(place).tau)
    assert days.before[0] is None


def test_nothing_comes_before_a_split_or_another_underlying(tiny_run: TinyRun, store: FeatureStore) -> None:
    segment = np.array(store.snapshots["segment"])
    segment[6:] += 1
    split = dataclasses.replace(store, snapshots=store.snapshots.with_columns(segment=pl.Series(segment)))
    before = read(tiny_run, split).before
    assert [place for place, last in enumerate(before) if last is None] == [0, 6]


def test_quotes_that_lack_a_snapshot_are_refused_by_its_time(tiny_run: TinyRun, store: FeatureStore) -> None:
    later = store.snapshots.with_columns(
        ts=pl.when(pl.int_range(pl.len()) == 3).then(pl.col("ts") + pl.duration(hours=1)).otherwise(pl.col("ts"))
    )
    with pytest.raises(DataError, match=f"no quotes of AB at {str(later['ts'].to_numpy()[3])[:13]}.* features"):
        read(tiny_run, dataclasses.replace(store, snapshots=later))
