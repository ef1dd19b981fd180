"""Splits follow time: no date lies in two of them, embargoes stand between, and too little data is told in numbers."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import SplitConfig
from pipelines.splits import FEWEST_TRAINING_DATES, SPLITS, assign_splits
from serving.errors import TooFewSnapshotsError

FIRST = datetime.datetime(2024, 1, 1, 15)


def snapshots(count: int, *, per_day: int = 1, empty: tuple[int, ...] = ()) -> pl.DataFrame:
    """`per_day` snapshots on each of `count` days; those on the days in `empty` have no scored rows."""
    times, rows = [], []
    for day in range(count):
        for hour in range(per_day):
            times.append(FIRST + datetime.timedelta(days=day, hours=hour))
            rows.append(0 if day in empty else 12)
    return pl.DataFrame({"ts": times, "rows": rows}, schema={"ts": pl.Datetime("ns"), "rows": pl.Int64})


def split(day: int = 20, *, to: int | None = None, validation: int = 4, embargo: int = 1) -> SplitConfig:
    """A split whose test begins (and ends) the given number of days after the first."""
    dates = [None if place is None else (FIRST + datetime.timedelta(days=place)).date() for place in (day, to)]
    assert dates[0] is not None
    return SplitConfig(dates[0], dates[1], validation, embargo)


def test_sizes_and_order() -> None:
    labels = assign_splits(snapshots(25), split(embargo=2))["split"].to_list()
    assert labels == ["train"] * 12 + ["embargo"] * 2 + ["validation"] * 4 + ["embargo"] * 2 + ["test"] * 5


def test_without_embargo() -> None:
    labels = assign_splits(snapshots(25), split(embargo=0))["split"].to_list()
    assert labels == ["train"] * 16 + ["validation"] * 4 + ["test"] * 5


def test_dates_after_test_to_are_unused() -> None:
    labels = assign_splits(snapshots(25), split(to=22))["split"].to_list()
    assert labels[20:] == ["test"] * 3 + ["unused"] * 2


def test_a_date_without_scored_rows_is_unused_and_not_counted() -> None:
    labels = assign_splits(snapshots(25, empty=(0, 17, 21)), split())["split"].to_list()
    assert [place for place, label in enumerate(labels) if label == "unused"] == [0, 17, 21]
    assert labels.count("validation") == 4
    assert labels.count("embargo") == 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 3), st.integers(0, 60), st.integers(1, 10), st.integers(0, 5),
    st.sets(st.integers(0, 59), max_size=12),
)  # fmt: skip
def test_no_date_in_two_splits_and_time_goes_forward(
    count: int, per_day: int, day: int, validation: int, embargo: int, empty: set[int]
) -> None:
    table = snapshots(count, per_day=per_day, empty=tuple(empty))
    try:
        labelled = assign_splits(table, split(day, validation=validation, embargo=embargo))
    except TooFewSnapshotsError:
        scored = [place for place in range(count) if place not in empty]
        before = sum(place < day for place in scored)
        assert before < validation + 2 * embargo + FEWEST_TRAINING_DATES or before == len(scored)
        return
    assert labelled["ts"].equals(table["ts"])
    assert set(labelled["split"]) <= set(SPLITS)
    used = labelled.filter(pl.col("split") != "unused").with_columns(date=pl.col("ts").dt.date())
    assert used.group_by("date").agg(pl.col("split").n_unique())["split"].max() == 1
    dates = {name: used.filter(pl.col("split") == name)["date"] for name in ("train", "validation", "test")}
    assert dates["validation"].n_unique() == validation
    assert dates["train"].n_unique() >= FEWEST_TRAINING_DATES
    known = np.unique(used["date"].to_numpy())
    for earlier, later in (("train", "validation"), ("validation", "test")):
        end, begin = (np.datetime64(value) for value in (dates[earlier].max(), dates[later].min()))
        assert end < begin
        assert int(((known > end) & (known < begin)).sum()) == embargo


@pytest.mark.parametrize(
    ("table", "settings_of", "have", "need"),
    [
        (snapshots(25), split(10), "have 10 before split.test_from=2024-01-11 and 15 from it on", "need 11 before"),
        (snapshots(20), split(20), "have 20 before split.test_from=2024-01-21 and 0 from it on", "need 11 before"),
        (snapshots(0), split(20), "have 0 before split.test_from=2024-01-21 and 0 from it on (0 in all, none", "need"),
        (snapshots(25), split(20, to=19 + 1, validation=20), "have 20 before", "need 27 before"),
        (snapshots(25, empty=tuple(range(25))), split(), "have 0 before", "need 11 before"),
    ],
)
def test_too_few_dates_are_told_in_numbers(table: pl.DataFrame, settings_of: SplitConfig, have: str, need: str) -> None:
    with pytest.raises(TooFewSnapshotsError) as caught:
        assign_splits(table, settings_of, passed_over=["no parity forward"] * 3)
    text = str(caught.value)
    assert have in text
    assert need in text
    assert "3 snapshots passed over" in text
    assert caught.value.exit_code == 4
