"""Regime labels: thresholds of training dates, a user's names by date, and every file that can't be used is named."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.regimes import CLEAR_CASES, label_regimes
from serving.errors import DataError, SchemaError

START = datetime.datetime(2024, 1, 2, 20, 45)


def snapshots(training: np.ndarray, test: np.ndarray) -> pl.DataFrame:
    realised = np.concatenate([training, test])
    ts = [START + datetime.timedelta(days=day) for day in range(len(realised))]
    split = ["train"] * len(training) + ["test"] * len(test)
    table = pl.DataFrame({"ts": ts, "split": split, "realised_volatility": realised, "underlying": "SPX"})
    return table.with_columns(pl.col("ts").cast(pl.Datetime("ns")))


TABLE = snapshots(np.random.default_rng(0).permutation(np.linspace(0.1, 0.3, 101)), np.array([0.05, 0.2, 0.9, 0.16]))


def test_clear_cases_are_those_of_the_training_dates() -> None:
    found = label_regimes(TABLE, None)
    realised = TABLE["realised_volatility"].to_numpy()
    for name, (low, high) in CLEAR_CASES.items():
        at = 0.1 + 0.2 * np.array([low, high]) + [-1e-9, 1e-9]
        inside = (realised[:101] >= at[0]) & (realised[:101] <= at[1])
        assert ((found["regime"][:101] == name).fill_null(False).to_numpy() == inside).all()
    assert found["regime"][101:].to_list() == ["calm", "normal", "stressed", None]
    assert found.drop("regime").equals(TABLE)


def test_thresholds_dont_look_at_other_dates() -> None:
    other = TABLE.with_columns(
        realised_volatility=pl.when(pl.col("split") == "test").then(9.0).otherwise(pl.col("realised_volatility"))
    )
    first, second = (label_regimes(table, None).filter(pl.col("split") == "train") for table in (TABLE, other))
    assert first["regime"].equals(second["regime"])


def test_every_underlying_has_its_own_percentiles() -> None:
    """A stock isn't stressed because it isn't an index."""
    stock = TABLE.with_columns(realised_volatility=4.0 * pl.col("realised_volatility"), underlying=pl.lit("AAPL"))
    found = label_regimes(pl.concat([TABLE, stock]), None)
    assert found["regime"][: len(TABLE)].equals(found["regime"][len(TABLE) :])


@pytest.mark.parametrize("values", [[0.2] * 40, [None] * 40, [0.1, 0.2] * 20])
def test_where_percentiles_mean_nothing_nothing_is_labelled(values: list[float | None]) -> None:
    few = snapshots(np.zeros(40), np.zeros(0)).with_columns(pl.Series("realised_volatility", values, dtype=pl.Float64))
    assert label_regimes(few, None)["regime"].null_count() == 40


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_names_dates_of_which_some_are_not_there(tmp_path: Path, suffix: str) -> None:
    named = pl.DataFrame({
        "date": [datetime.date(2024, 1, 3), datetime.date(2024, 1, 5), datetime.date(1999, 1, 1)],
        "regime": ["bull", "bear", "old"], "note": ["a", "b", "c"],
    })  # fmt: skip
    path = tmp_path / f"regimes.{suffix}"
    (named.write_csv if suffix == "csv" else named.write_parquet)(path)
    found = label_regimes(TABLE, str(path))
    assert found["regime"].to_list()[:5] == [None, "bull", None, "bear", None]
    assert found["regime"][5:].null_count() == len(TABLE) - 5
    assert found.columns == [*TABLE.columns, "regime"]
    assert found.drop("regime").equals(TABLE)


def test_a_date_holds_for_all_its_snapshots(tmp_path: Path) -> None:
    later = TABLE.head(2).with_columns((pl.col("ts") + pl.duration(minutes=30)).cast(pl.Datetime("ns")))
    twice = pl.concat([TABLE.head(2), later]).sort("ts")
    found = label_regimes(twice, write(tmp_path / "r.csv", "date,regime\n2024-01-03T00:00:00,bull\n"))
    assert found["regime"].to_list() == [None, None, "bull", "bull"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("day,regime\n2024-01-03,bull\n", r"no column date \(found day, regime\)"),
        ("a,b\n1,2\n", r"no column date, regime \(found a, b\); features.regimes needs date and regime"),
        ("date,regime\n2024-01-03,bull\n03/01/2024,bear\n", r"row 2 has date '03/01/2024' and regime 'bear' \(1 such"),
        ("date,regime\n2024-01-03,\n2024-13-01,x\n", r"row 1 has date '2024-01-03' and regime None \(2 such rows\)"),
        ("date,regime\n2024-01-03,bull\n2024-01-03,bear\n", "date 2024-01-03 is there more than once"),
        ("", "can't be read, for features.regimes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "regimes.csv"
    with pytest.raises((DataError, SchemaError), match=rf"{path}: {message}") as caught:
        label_regimes(TABLE, write(path, text))
    assert isinstance(caught.value, SchemaError) == ("no column" in message)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.parquet"])
def test_a_file_that_is_not_there_or_is_something_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/{name}: can't be read, for features.regimes"):
        label_regimes(TABLE, str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\x00\xff\xfe PAR1 not a table")
    with pytest.raises(DataError, match=f"{tmp_path}/{name}: "):
        label_regimes(TABLE, str(tmp_path / name))
