"""Layouts: found by name, refused with every problem named, times and rights read as documented."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipelines.layouts
from pipelines.ingest import ingest
from pipelines.layouts import Layout, known, load
from pipelines.layouts.base import ROW_COLUMN
from pipelines.quote_rows import read_numbers
from pipelines.quote_times import instants
from serving.errors import ConfigError

NEW_YORK = "America/New_York"
CONSTANTS: dict[str, Any] = {
    "underlying": "X",
    "style": "american",
    "settlement": "pm",
    "currency": "USD",
    "price_unit": "money",
    "underlying_price": 100.0,
}
COLUMNS = {"ts": "t", "root": "r", "expiry": "e", "strike": "k", "right": "cp", "bid": "b", "ask": "a"}


def options(**changes: Any) -> dict[str, Any]:
    return {"columns": COLUMNS, "constants": CONSTANTS, "time_zone": NEW_YORK} | changes


def utc_times(values: pl.Series, time_format: str = "iso", of_day: time | None = None) -> list[datetime | None]:
    found = instants(values, time_format, NEW_YORK, of_day)
    return found.cast(pl.Datetime("ns", "UTC")).to_list()


def test_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'cboe_snapshots' is unknown; did you mean 'cboe_snapshot'.*generic"):
        load("cboe_snapshots")
    assert {"cboe_snapshot", "generic"} <= set(known())


def test_a_new_vendor_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_test.py").write_text(
        "from pipelines.layouts.generic import layout as generic\n"
        f"def layout(options):\n    return generic({options()!r} | dict(options))\n"
    )
    monkeypatch.setattr(pipelines.layouts, "__path__", [*pipelines.layouts.__path__, str(tmp_path)])
    assert "acme_test" in known()
    assert load("acme_test", {"snapshot_time": "16:00"}).snapshot_time == "16:00"


def test_every_problem_of_a_layout_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            "generic",
            {
                "columns": {"ts": "t", "root": "r", "expiry": "e", "rihgt": "cp", "bid": "b", "ask": "a"},
                "constants": CONSTANTS | {"style": "asian", "bid": 1.0, "volume": "many", "ts": "now"},
                "time_zone": "New York",
                "snapshot_time": "25:00",
                "timestamp_format": "dd/mm",
                "settlement_by_root": {"SPX": "noon"},
            },
        )
    text = str(caught.value)
    for part in (
        "'rihgt', which is no canonical column; did you mean 'right'?",
        "strike has no origin",
        "right has no origin",
        "bid is given twice, by columns and constants",
        "settlement is given twice, by constants and settlement_by_root",
        "constants.style must be one of european, american, found 'asian'",
        "constants.volume must be a finite number, found 'many'",
        "constants.ts can't be a constant",
        "time_zone 'New York' is unknown",
        "snapshot_time must be a time of day such as '15:45' (in quotes in YAML), found '25:00'",
        "timestamp_format must be one of",
        "settlement_by_root.SPX must be one of am, pm, found 'noon'",
    ):
        assert part in text


def test_unknown_option_and_missing_options() -> None:
    with pytest.raises(ConfigError, match="'cboe_snapshot' has no option 'snapshottime'; it takes: snapshot_time"):
        load("cboe_snapshot", {"snapshottime": "15:45"})
    with pytest.raises(ConfigError, match=r"(?s)needs the option 'columns'.*needs the option 'time_zone'"):
        load("generic", {})
    assert load("cboe_snapshot", {"snapshot_time": None}).snapshot_time == "15:45"  # None counts as not given


def test_numeric_constant_may_be_text() -> None:
    layout = load("generic", options(constants=CONSTANTS | {"underlying_price": "100.5"}))
    assert layout.constants["underlying_price"] == 100.5


def test_date_stands_for_a_local_time_of_day_in_summer_and_winter() -> None:
    expected = [datetime(2019, 4, 25, 19, 45, tzinfo=UTC), datetime(2019, 1, 3, 20, 45, tzinfo=UTC)]
    at = time(15, 45)
    days = [date(2019, 4, 25), date(2019, 1, 3)]
    midnights = [datetime(2019, 4, 25), datetime(2019, 1, 3)]
    assert utc_times(pl.Series(days), of_day=at) == expected
    assert utc_times(pl.Series(midnights), of_day=at) == expected
    assert utc_times(pl.Series(["2019-04-25", "20190103"]), of_day=at) == expected
    assert utc_times(pl.Series(["2019-04-25 00:00:00", "2019-01-03T00:00:00.000000"]), of_day=at) == expected
    assert utc_times(pl.Series([20190425, 20190103]), of_day=at) == expected
    assert utc_times(pl.Series(["04/25/2019", "01/03/2019"]), "%m/%d/%Y", at) == expected
    assert utc_times(pl.Series(["04/25/2019", "01/03/2019"]), "%m/%d/%Y") == [None, None]
    assert utc_times(pl.Series(days)) == [None, None]


def test_times_with_a_time_are_local_unless_they_say() -> None:
    texts = ["2019-04-25 15:45", "2019-04-25T15:45:00.5", "2019-04-25T19:45:00Z", "2019-04-25 21:45:00+0200"]
    base = datetime(2019, 4, 25, 19, 45, tzinfo=UTC)
    assert utc_times(pl.Series(texts)) == [base, base.replace(microsecond=500_000), base, base]
    nanoseconds = instants(pl.Series(["2019-04-25T19:45:00.123456789Z"]), "iso", NEW_YORK, None)
    assert nanoseconds.to_list() == [1556221500123456789]
    assert utc_times(pl.Series([1556221500000]), "epoch_ms") == [base]
    assert utc_times(pl.Series(["1556221500", "1556221500.0", "soon"]), "epoch_s") == [base, base, None]
    aware = pl.Series([base]).dt.convert_time_zone("Asia/Tokyo")
    assert utc_times(aware) == [base]


@pytest.mark.parametrize(
    "text",
    ["2019-02-30", "soon", "", "2019-4-5", "1066-10-14", "9999-12-31", "2019-03-10 02:30", "2019-11-03 01:30"],
)
def test_unreadable_times_are_null(text: str) -> None:
    """Among them local times that a clock change skips or repeats, and years beyond int64 nanoseconds."""
    assert utc_times(pl.Series([text]), of_day=time(15, 45)) == [None]


def test_far_years_in_typed_columns_are_null() -> None:
    assert utc_times(pl.Series([datetime(2999, 1, 1)]), of_day=time(16)) == [None]
    assert utc_times(pl.Series([10**18, -5]), "epoch_s") == [None, None]


def test_single_precision_is_read_as_its_shortest_decimal() -> None:
    texts = [2919.04, 0.05, 12345.67, 800.0, 0.1]
    values, garbled = read_numbers(pl.Series(texts, dtype=pl.Float32))
    assert values.tolist() == texts
    assert not garbled.any()


def test_numbers_in_text() -> None:
    values, garbled = read_numbers(pl.Series([" 1.5 ", "nan", "", "N/A", "1,5", "abc", "inf", "1e3", "12O"]))
    assert garbled.tolist() == [False, False, False, False, True, True, True, False, True]
    assert values[0] == 1.5
    assert values[7] == 1000.0


def test_settlement_follows_the_root_and_expiry_the_settlement(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(
        "quote_date,root,expiration,strike,cp,underlying_last,bid,ask,volume,open_interest\n"
        "2019-04-25,SPX,2019-05-17,2900,Call,2919.04,50,51,1,2\n"
        "2019-04-25,SPXW,2019-05-17,2900,put,2919.04,30,31,1,2\n"
        "2019-04-25,XSP,2019-05-17,290,p,2919.04,3,4,1,2\n"
        "2019-05-17,SPX,2019-05-17,2900,C,2919.04,3,4,1,2\n"
        "2019-05-17,SPXW,2019-05-17,2900,C,2919.04,3,4,1,2\n"
    )
    result = ingest(tmp_path / "in.csv", load("cboe_snapshot"), tmp_path / "out")
    kept = pl.read_parquet(result.quotes_path)
    assert kept["settlement"].to_list() == ["am", "pm", "pm"]
    assert kept["right"].to_list() == ["C", "P", "C"]
    assert kept["expiry"].to_list()[:2] == [
        datetime(2019, 5, 17, 13, 30, tzinfo=UTC),
        datetime(2019, 5, 17, 20, 0, tzinfo=UTC),
    ]
    refused = pl.read_parquet(result.quarantine_path)
    assert refused.select("row", "reason").rows() == [(3, "unknown_root"), (4, "expired")]
    assert "settlement_by_root of layout cboe_snapshot knows SPX, SPXW" in refused["detail"][0]


def test_what_a_layout_may_say_beyond_columns_is_checked() -> None:
    columns = COLUMNS | {"volume": "v"}
    with pytest.raises(ConfigError) as caught:
        Layout(name="x", columns=columns, constants=CONSTANTS, time_zone=NEW_YORK, may_lack=("b", "v"),
               underlying_tolerance=1.5)  # fmt: skip
    assert "may_lack has 'b', which a quote needs" in str(caught.value)
    assert "underlying_tolerance must lie between 0 and 1, found 1.5" in str(caught.value)
    layout = Layout(name="x", columns=columns, constants=CONSTANTS, time_zone=NEW_YORK, may_lack=("v",))
    assert "v" not in layout.needed_columns


def test_an_underlying_price_may_jitter_if_the_layout_says_so(tmp_path: Path) -> None:
    """The median counts, however the rows are ordered; without a tolerance nearly all must agree."""
    columns = COLUMNS | {"underlying_price": "s"}
    constants = {name: value for name, value in CONSTANTS.items() if name != "underlying_price"}
    prices = ["100.6", "100.01", "99.98", "100.02", "99.99"]
    rows = [f"2021-01-04,X,2021-02-19,{90 + place},C,1,2,{price}" for place, price in enumerate(prices)]
    (tmp_path / "in.csv").write_text("\n".join(["t,r,e,k,cp,b,a,s", *rows]) + "\n")
    fields = {"columns": columns, "constants": constants, "time_zone": NEW_YORK, "snapshot_time": "16:00"}
    loose = ingest(tmp_path / "in.csv", Layout(name="x", underlying_tolerance=0.005, **fields), tmp_path / "loose")
    assert loose.reasons == {"underlying_price_conflict": 1}
    assert set(pl.read_parquet(loose.quotes_path)["underlying_price"]) == {100.01}
    refused = pl.read_parquet(loose.quarantine_path)
    assert refused["row"].to_list() == [1]
    assert "s: the median of this time and underlying is 100.01" in refused["detail"][0]
    strict = ingest(tmp_path / "in.csv", Layout(name="x", **fields), tmp_path / "strict")
    assert strict.reasons == {"underlying_price_conflict": 4}


def test_unpivot_counts_quotes_not_rows(tmp_path: Path) -> None:
    def unpivot(table: pl.DataFrame) -> pl.DataFrame:
        shared = ["date", "expiry", "strike", "spot", ROW_COLUMN]
        sides = [
            table.select(*shared, pl.lit(right).alias("right"), bid=f"{side}_bid", ask=f"{side}_ask")
            for right, side in (("C", "call"), ("P", "put"))
        ]
        return pl.concat(sides)

    layout = Layout(
        name="two_in_a_row",
        columns={
            "ts": "date", "expiry": "expiry", "strike": "strike", "underlying_price": "spot",
            "right": "right", "bid": "bid", "ask": "ask",
        },
        constants={key: value for key, value in CONSTANTS.items() if key != "underlying_price"} | {"root": "X"},
        time_zone=NEW_YORK,
        snapshot_time="16:00",
        unpivot=unpivot,
        file_columns=("date", "expiry", "strike", "spot", "call_bid", "call_ask", "put_bid", "put_ask"),
    )  # fmt: skip
    (tmp_path / "in.csv").write_text(
        "date,expiry,strike,spot,call_bid,call_ask,put_bid,put_ask\n"
        "2021-01-04,2021-02-19,100,101,3,4,2,3\n"
        "2021-01-04,2021-02-19,105,101,1,2,5,-4\n"
        "2021-01-04,2021-02-19,100,101,3,4,2,2.5\n"
    )
    result = ingest(tmp_path / "in.csv", layout, tmp_path / "out")
    assert (result.quotes_in, result.kept, result.quarantined) == (6, 3, 3)
    refused = pl.read_parquet(result.quarantine_path).sort("row", "reason")
    assert refused.select("row", "reason").rows() == [
        (2, "negative_price"), (3, "duplicate"), (3, "duplicate_conflict"),
    ]  # fmt: skip
    assert '"right":"P"' in refused["raw"][0]
