"""Snapshots come back in order of time, one underlying at a time, in money; a damaged history is refused by name."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.snapshots import read_history, read_snapshots, to_quotes
from serving.errors import DataError, SchemaError
from serving.quotes import Quotes, is_split

AT = np.timedelta64(15 * 3600 + 45 * 60, "s")
UTC_NS = pl.Datetime("ns", "UTC")


def quotes(units: tuple[str, ...] = ("money",), days: int = 3) -> pl.DataFrame:
    """Canonical columns: two underlyings, two snapshots a day, two quotes each."""
    rows = []
    for day in range(1, days + 1):
        for hour in (10, 15):
            for underlying, spot in (("AB", 100.0 + day), ("ZZ", 50.0)):
                for place, right in enumerate("CP"):
                    rows.append({
                        "ts": datetime.datetime(2024, 1, day, hour, tzinfo=datetime.UTC), "underlying": underlying,
                        "root": underlying, "expiry": datetime.datetime(2024, 3, 15, 16, tzinfo=datetime.UTC),
                        "strike": 100.0, "right": right, "bid": 0.02, "ask": 0.03, "underlying_price": spot,
                        "style": "european", "forward": None, "price_unit": units[place % len(units)],
                    })  # fmt: skip
    return pl.DataFrame(rows).with_columns(pl.col("ts", "expiry").cast(UTC_NS), pl.col("forward").cast(pl.Float64))


def test_order_of_time_then_underlying(tmp_path: Path) -> None:
    """Whatever the row groups: a date may span several."""
    table = quotes()
    table.write_parquet(tmp_path / "q.parquet", row_group_size=4)
    found = [(name, snapshot.ts) for name, snapshot in read_snapshots(tmp_path / "q.parquet")]
    assert found == sorted(found, key=lambda pair: (pair[1], pair[0]))
    assert len(found) == len(set(found)) == 12
    total = sum(len(snapshot) for _, snapshot in read_snapshots(tmp_path / "q.parquet"))
    assert total == len(table)


def test_no_quotes_no_snapshots(tmp_path: Path) -> None:
    quotes().clear().write_parquet(tmp_path / "q.parquet")
    assert list(read_snapshots(tmp_path / "q.parquet")) == []


def test_coin_quotes_become_money_at_the_index() -> None:
    rows = quotes(("coin", "money"), days=1).head(2)
    snapshot = to_quotes(rows)
    assert snapshot.spot == 101.0
    np.testing.assert_allclose(snapshot.bid, [0.02 * 101.0, 0.02])
    np.testing.assert_allclose(snapshot.ask, [0.03 * 101.0, 0.03])
    assert snapshot.right.tolist() == [1.0, -1.0]
    assert snapshot.ts == np.datetime64("2024-01-01T10:00")


def test_style_and_the_venues_forward_are_carried() -> None:
    rows = (
        quotes(days=1).head(2).with_columns(style=pl.Series(["american", "european"]), forward=pl.Series([105.5, None]))
    )
    snapshot = to_quotes(rows)
    assert snapshot.american is not None
    assert snapshot.american.tolist() == [True, False]
    assert snapshot.venue_forward is not None
    np.testing.assert_array_equal(snapshot.venue_forward, [105.5, np.nan])
    assert not snapshot.coin
    plain = to_quotes(quotes(days=1).head(2))
    assert plain.american is None
    assert plain.venue_forward is None
    assert to_quotes(quotes(("coin",), days=1).head(2)).coin


def chain(spot: float, strikes: list[float], hour: int = 10) -> Quotes:
    count = len(strikes)
    expiry = np.full(count, "2024-03-15T20:00", "datetime64[ns]")
    return Quotes(np.datetime64(f"2024-01-02T{hour}:00", "ns"), spot, np.full(count, "AB"), expiry,
                  np.array(strikes), np.ones(count), np.ones(count), np.ones(count) + 1.0)  # fmt: skip


@pytest.mark.parametrize(
    ("spot", "strikes", "split"),
    [
        (100.0, [80.0, 90.0, 100.0, 110.0], False),
        (50.0, [40.0, 45.0, 50.0, 55.0], True),  # two for one
        (14.3, [11.43, 12.86, 14.29, 15.71], True),  # seven for one
        (1000.0, [800.0, 900.0, 1000.0, 1100.0], True),  # one for ten
        (60.0, [50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0], False),  # a crash: what was listed stays
        (60.0, [90.0, 100.0], False),  # a crash, seen by its anchors alone
        (60.0, [], False),  # a crash of which the underlying alone is known
        (99.0, [81.0, 91.0, 101.0], False),  # other strikes, the same price
    ],
)
def test_a_split_moves_price_and_strikes_at_once(spot: float, strikes: list[float], split: bool) -> None:
    assert is_split(chain(100.0, [80.0, 90.0, 100.0, 110.0]), chain(spot, strikes, hour=15)) is split


def test_a_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    later = pl.col("ts") > datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    table = quotes().with_columns(
        pl.when(later & (pl.col("underlying") == "AB")).then(pl.col(name) / 4).otherwise(pl.col(name)).alias(name)
        for name in ("strike", "underlying_price")
    )
    table.write_parquet(tmp_path / "q.parquet")
    assert len(list(read_snapshots(tmp_path / "q.parquet"))) == 12
    (said,) = caplog.messages
    assert said.startswith("AB: the price goes from 101 to 25.5 until 2024-01-02T10")


def test_only_the_underlyings_asked_for(tmp_path: Path) -> None:
    quotes().write_parquet(tmp_path / "q.parquet", row_group_size=4)
    assert {name for name, _ in read_snapshots(tmp_path / "q.parquet", ("ZZ",))} == {"ZZ"}
    with pytest.raises(DataError, match=r"names XX, which the quotes don't hold; they hold AB, ZZ"):
        list(read_snapshots(tmp_path / "q.parquet", ("ZZ", "XX")))


def history(folder: Path, text: str, name: str = "history.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_history_is_sorted_and_stands_at_the_time_of_day(tmp_path: Path) -> None:
    path = history(tmp_path, "close,date,volume\n102.5,2024-01-03,7\n101,2024-01-02T00:00:00,\n")
    table = read_history(path, AT)
    assert table["price"].to_list() == [101.0, 102.5]
    expected = [np.datetime64("2024-01-02T15:45"), np.datetime64("2024-01-03T15:45")]
    assert table["ts"].to_numpy().tolist() == [value.astype("datetime64[ns]").item() for value in expected]


def test_history_of_a_parquet_file_with_typed_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"date": [datetime.date(2024, 1, 3), datetime.date(2024, 1, 2)], "close": [3, 2]})
    frame.write_parquet(tmp_path / "h.parquet")
    assert read_history(tmp_path / "h.parquet", AT)["price"].to_list() == [2.0, 3.0]


def test_history_with_nothing_but_a_header_is_empty(tmp_path: Path) -> None:
    assert read_history(history(tmp_path, "date,close\n"), AT).is_empty()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("day,close\n2024-01-02,1\n", SchemaError, "no column date (found day, close)"),
        ("day,price\n2024-01-02,1\n", SchemaError, "no column date, close (found day, price)"),
        ("date,close\n2024-01-02,1\n02/01/2024,1\n", DataError, "row 2 has date '02/01/2024' and close '1' (1 such"),
        ("date,close\n2024-02-30,1\n,2\n", DataError, "row 1 has date '2024-02-30' and close '1' (2 such"),
        ("date,close\n2024-01-02,\n", DataError, "row 1 has date '2024-01-02' and close None"),
        ("date,close\n2024-01-02,-1\n", DataError, "close '-1'"),
        ("date,close\n2024-01-02,0\n", DataError, "close '0'"),
        ("date,close\n2024-01-02,nan\n", DataError, "close 'nan'"),
        ("date,close\n2024-01-02,inf\n", DataError, "close 'inf'"),
        ("date,close\n2024-01-02,n/a\n", DataError, "close 'n/a'"),
        ("date,close\n2024-01-02,1\n2024-01-02,2\n", DataError, "date 2024-01-02 is there more than once"),
        ("date,close\n2024-01-02,1,2,3\n", DataError, "can't be read, for data.history"),
        ("", DataError, "can't be read, for data.history"),
    ],
)
def test_damaged_history_is_refused(tmp_path: Path, text: str, kind: type[DataError], words: str) -> None:
    path = history(tmp_path, text)
    with pytest.raises(kind) as caught:
        read_history(path, AT)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_history_that_is_no_table(tmp_path: Path) -> None:
    for path in (history(tmp_path, "not parquet", "h.parquet"), tmp_path / "nowhere.csv"):
        with pytest.raises(DataError, match="can't be read"):
            read_history(path, AT)
