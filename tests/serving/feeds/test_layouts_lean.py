"""Lean's ticks to records: New York's time to UTC, one side at a time, conditions sifted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DataError, SchemaError
from serving.feeds.layouts import read_tape
from serving.feeds.layouts_lean import REFUSED_QUOTES, REFUSED_TRADES, TAKEN_QUOTES, TAKEN_TRADES
from serving.feeds.tape import Heartbeats
from serving.host.records import QUOTE, TRADE, Kind, QuoteFlags
from tests.serving.feeds import tables
from tests.serving.feeds.tables import write

REAL = Path(__file__).parents[4] / "shared/data/us_equity_ticks_2013"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_row_speaks_of_its_side(tmp_path: Path, suffix: str) -> None:
    columns = tables.lean_quotes(3, ask=[181.0, 181.0, 0.0], ask_size=[200, 200, 0])
    tape = read_tape("lean_ticks", [write(tmp_path / f"ibm_quotes{suffix}", columns)])
    quotes = tape.records.view(QUOTE)
    assert quotes["flags"].tolist() == [3, QuoteFlags.HAS_ASK, QuoteFlags.HAS_BID]
    assert quotes[["bid", "bid_size", "ask", "ask_size"]].tolist() == [
        (180.0, 100.0, 181.0, 200.0), (0.0, 0.0, 181.0, 200.0), (180.0, 100.0, 0.0, 0.0)
    ]  # fmt: skip


@given(st.datetimes(datetime(2005, 1, 1), datetime(2035, 12, 31)))
def test_new_yorks_clock_becomes_utc(tmp_path_factory: pytest.TempPathFactory, local: datetime) -> None:
    """Against zoneinfo, row by row, also of hours that come twice or never."""
    local = local.replace(microsecond=local.microsecond // 1000 * 1000)
    since_midnight = local - local.replace(hour=0, minute=0, second=0, microsecond=0)
    ms = round(since_midnight.total_seconds() * 1000)
    file = tmp_path_factory.mktemp("lean") / "x.csv"
    write(file, tables.lean_trades(1, date=[f"{local:%Y%m%d}"], ms=[ms]))
    expected = local.replace(tzinfo=ZoneInfo("America/New_York")).astimezone(UTC)
    found = int(read_tape("lean_ticks", [file]).records["event_ns"][0])
    assert found == round(expected.timestamp() * 1000) * 1_000_000


@pytest.mark.parametrize(
    ("date", "utc"),
    [
        ("20131007", "2013-10-07T13:30:00.000"),  # summer time, UTC-4
        ("20131101", "2013-11-01T13:30:00.000"),  # the last week of it
        ("20131104", "2013-11-04T14:30:00.000"),  # UTC-5
        ("20140310", "2014-03-10T13:30:00.000"),
        ("2014-03-07", "2014-03-07T14:30:00.000"),
    ],
)
def test_the_open_of_half_past_nine(tmp_path: Path, date: str, utc: str) -> None:
    file = write(tmp_path / "x.csv", tables.lean_trades(1, date=[date], ms=[34_200_000]))
    found = read_tape("lean_ticks", [file]).records["event_ns"].astype("datetime64[ns]")
    assert found.tolist() == np.array([utc], "datetime64[ns]").tolist()


def test_every_condition_is_taken_or_refused() -> None:
    for refused, taken in ((REFUSED_TRADES, TAKEN_TRADES), (REFUSED_QUOTES, TAKEN_QUOTES)):
        assert not set(refused) & set(taken)
    assert set(REFUSED_TRADES) | set(TAKEN_TRADES) == set(range(32)) - {30}  # 30: nobody says what it means


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("", None), ("0", None), ("1", None), ("20000020", None), ("80002001", None), ("20100200", "derivatively priced"),
     ("1000000", "official close, no trade"), ("102000", "average price"),
     ("40000000", "condition of no known meaning"), ("100000000", "condition of no known meaning")],
)  # fmt: skip
def test_conditions_of_trades(tmp_path: Path, condition: str, reason: str | None) -> None:
    file = write(tmp_path / "x.csv", tables.lean_trades(2, condition=["20", condition]))
    tape = read_tape("lean_ticks", [file])
    assert tape.quarantined() == ({} if reason is None else {reason: 1})
    assert len(tape.records) == (2 if reason is None else 1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"suspicious": [0, 1]}, "suspicious"),
        ({"condition": ["1", "400"]}, "not firm"),
        ({"ms": [34_200_000, 86_400_000]}, "ms isn't a time of day"),
        ({"ms": [34_200_000, -1]}, "ms isn't a time of day"),
        ({"ms": [34_200_000, None]}, "ms isn't a time of day"),
        ({"ask": [0.0, 0.0], "ask_size": [0, 0]}, "no price"),
        ({"ask_size": [0, 0]}, "price without size"),
        ({"ask": [0.0, -1.0]}, "price or size can't be"),
    ],
)
def test_a_wrong_quote_is_quarantined(tmp_path: Path, changed: dict[str, list[int | None]], reason: str) -> None:
    tape = read_tape("lean_ticks", [write(tmp_path / "q.parquet", tables.lean_quotes(2, **changed))])
    assert tape.quarantined() == {reason: 1}
    assert tape.files[0].quarantined[reason].tolist() == [2]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"date": ["20131007", "20131340"]}, "row 2, column date: found '20131340', expected a date such as 20131007"),
        ({"condition": ["1", "zz"]}, "row 2, column condition: found 'zz', expected hexadecimal flags"),
        ({"ms": ["1", "1.5"]}, "row 2, column ms: found '1.5', expected a whole number"),
    ],
)
def test_cells_that_cannot_be_read_refuse_the_file(tmp_path: Path, changed: dict[str, list[str]], told: str) -> None:
    with pytest.raises(DataError) as error:
        read_tape("lean_ticks", [write(tmp_path / "q.csv", tables.lean_quotes(2, **changed))])
    assert told in str(error.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    columns = tables.lean_quotes()
    del columns["suspicious"]
    with pytest.raises(SchemaError, match="column suspicious is missing"):
        read_tape("lean_ticks", [write(tmp_path / "q.csv", columns)])
    with pytest.raises(DataError, match="isn't a table of Lean ticks"):
        read_tape("lean_ticks", [write(tmp_path / "b.csv", tables.bbo())])
    with pytest.raises(DataError, match="layout 'x' isn't known: use binance_l2, lean_ticks"):
        read_tape("x", [tmp_path / "q.csv"])
    with pytest.raises(DataError, match="no files"):
        read_tape("lean_ticks", [])


def test_symbols_must_agree(tmp_path: Path) -> None:
    one = write(tmp_path / "ibm_quotes.csv", tables.lean_quotes())
    with pytest.raises(DataError, match="files of aapl, ibm"):
        read_tape("lean_ticks", [one, write(tmp_path / "aapl_trades.csv", tables.lean_trades())])
    other = write(tmp_path / "IBM_20131007_trades.csv", tables.lean_trades())
    merged = read_tape("lean_ticks", [one, other]).records
    assert merged["kind"].tolist() == [Kind.TRADE, Kind.QUOTE] * 2  # at the same time the trade comes first


@pytest.mark.real_data
def test_the_real_set_arrives_whole() -> None:
    """Against pyarrow's own reading of the files, and what zoneinfo says of its five dates."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} isn't here")
    import pyarrow.parquet

    quotes, trades = (pyarrow.parquet.read_table(REAL / f"ibm_{kind}.parquet") for kind in ("quotes", "trades"))
    tape = read_tape("lean_ticks", [REAL / "ibm_quotes.parquet", REAL / "ibm_trades.parquet"], Heartbeats(10**9))
    for count, plain in zip(tape.files, (quotes, trades), strict=True):
        assert count.rows == plain.num_rows == count.kept + sum(map(len, count.quarantined.values()))
        assert count.out_of_order == 0
    assert tape.by_kind["quote"] == tape.files[0].kept
    assert tape.by_kind["trade"] == tape.files[1].kept
    suspicious = quotes["suspicious"].to_numpy()
    assert tape.files[0].quarantined["suspicious"].tolist() == (np.flatnonzero(suspicious) + 1).tolist()
    mine = tape.records[tape.records["kind"] == Kind.QUOTE].view(QUOTE)
    for field in ("bid", "bid_size", "ask", "ask_size"):
        assert (mine[field] == quotes[field].to_numpy()[suspicious == 0]).all()
    ms = quotes["ms"].to_numpy()[suspicious == 0]
    days = {day: f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in quotes["date"].unique().to_pylist()}
    midnight = np.array([days[day] for day in quotes["date"].to_pylist()], "datetime64[ns]")
    expected = midnight[suspicious == 0] + (ms + 4 * 3_600_000) * np.timedelta64(1, "ms")
    assert (mine["event_ns"].astype("datetime64[ns]") == expected).all()
    refused = set().union(*(set(rows.tolist()) for rows in tape.files[1].quarantined.values()))
    prices = [price for row, price in enumerate(trades["price"].to_pylist(), 1) if row not in refused]
    assert tape.records[tape.records["kind"] == Kind.TRADE].view(TRADE)["price"].tolist() == prices
