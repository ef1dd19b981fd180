"""Binance's tables to records: every value arrives, what is wrong is quarantined or refused, nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.errors import DataError, SchemaError
from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats
from serving.host.records import LEVEL_SHIFT, QUOTE, TRADE, Kind, QuoteFlags, TradeFlags
from tests.serving.feeds import tables
from tests.serving.feeds.tables import START_NS, write

REAL = Path(__file__).parents[4] / "shared/data/binance_l2_20240808"
BOTH = QuoteFlags.HAS_BID | QuoteFlags.HAS_ASK


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_each_kind_of_file_keeps_every_digit(tmp_path: Path, suffix: str) -> None:
    trades = write(tmp_path / f"trades{suffix}", tables.trades())
    bbo = write(tmp_path / f"bbo{suffix}", tables.bbo(recv_ns=[START_NS + 1 + 1000 * at for at in range(3)]))
    records = read_tape("binance_l2", [bbo, trades]).records
    assert records["event_ns"].tolist() == [START_NS + 1000 * at + extra for at in range(3) for extra in (0, 1)]
    assert records["sequence"].tolist() == [1, 2, 3, 4, 5, 6]
    taken = records[records["kind"] == Kind.TRADE].view(TRADE)
    assert taken["price"].tolist() == [100.0, 101.0, 102.0]
    assert taken["size"].tolist() == [0.5] * 3
    assert taken["flags"].tolist() == [TradeFlags.BUYER_TOOK, TradeFlags.SELLER_TOOK, 0]
    quotes = records[records["kind"] == Kind.QUOTE].view(QUOTE)
    assert quotes["flags"].tolist() == [BOTH] * 3
    assert quotes[["bid", "bid_size", "ask", "ask_size"]].tolist() == [(99.5, 1.0, 100.5, 2.0)] * 3
    assert (records["instrument"] == 0).all()


@pytest.mark.parametrize("depth", [1, 5, 10])
def test_a_picture_has_a_record_for_each_level(tmp_path: Path, depth: int) -> None:
    file = write(tmp_path / "book.csv", tables.book(2, depth))
    levels = read_tape("binance_l2", [file]).records.view(QUOTE).reshape(2, depth)
    assert (levels["kind"] == Kind.LEVEL).all()
    assert (levels["flags"] >> LEVEL_SHIFT).tolist() == [list(range(depth))] * 2
    assert ((levels["flags"] & QuoteFlags.FIRST) != 0).tolist() == [[at == 0 for at in range(depth)]] * 2
    assert ((levels["flags"] & QuoteFlags.LAST) != 0).tolist() == [[at == depth - 1 for at in range(depth)]] * 2
    assert levels["bid"][1].tolist() == [99.0 - at for at in range(depth)]
    assert levels["ask_size"][0].tolist() == [2.0 + 2 * at for at in range(depth)]
    assert (levels["event_ns"][0] == START_NS).all()


def test_a_short_side_ends_early(tmp_path: Path) -> None:
    columns = tables.book(3, 3, bid_px3=[0.0, 97.0, 0.0], bid_sz3=[0.0, 1.0, 0.0])
    columns |= {f"{side}_{what}{level}": [5.0, 5.0, 0.0] if what == "sz" else [*columns[f"{side}_px{level}"][:2], 0.0]
                for side in ("bid", "ask") for what in ("px", "sz") for level in (1, 2)}  # fmt: skip
    columns |= {"ask_px3": [103.0, None, 0.0], "ask_sz3": [1.0, None, 0.0]}
    levels = read_tape("binance_l2", [write(tmp_path / "b.parquet", columns)]).records.view(QUOTE)
    sides = (levels["flags"] & 3).tolist()
    assert sides == [3, 3, QuoteFlags.HAS_ASK, 3, 3, QuoteFlags.HAS_BID, 0]  # the third picture is an empty book
    assert levels[2]["bid"] == 0
    assert levels[6]["flags"] == QuoteFlags.FIRST | QuoteFlags.LAST


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"bid_px2": [98.0, 99.5, 98.0]}, "levels out of order"),
        ({"bid_px2": [98.0, 99.0, 98.0]}, "levels out of order"),
        ({"ask_px3": [103.0, 101.5, 103.0]}, "levels out of order"),
        ({"ask_px2": [102.0, 0.0, 102.0], "ask_sz2": [1.0, 0.0, 1.0]}, "a level is missing"),
        ({"ask_sz2": [1.0, 0.0, 1.0]}, "price or size can't be"),
        ({"bid_sz1": [1.0, -1.0, 1.0]}, "price or size can't be"),
        ({"bid_px1": [99.0, float("inf"), 99.0]}, "price or size can't be"),
        ({"recv_ns": [START_NS, None, START_NS + 1]}, "no time"),
    ],
)
def test_a_wrong_picture_is_quarantined_whole(
    tmp_path: Path, changed: dict[str, list[float | None]], reason: str
) -> None:
    tape = read_tape("binance_l2", [write(tmp_path / "book.parquet", tables.book(3, 3, **changed))])
    assert tape.quarantined() == {reason: 1}
    (count,) = tape.files
    assert count.quarantined[reason].tolist() == [2]
    assert (count.rows, count.kept, len(tape.records)) == (3, 2, 6)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"price": [1.0, 0.0, 1.0]}, "price isn't positive"),
        ({"price": [1.0, None, 1.0]}, "price isn't positive"),
        ({"qty": [1.0, float("inf"), 1.0]}, "size isn't positive"),
        ({"aggressor": [1, 2, -1]}, "aggressor isn't 1, -1 or unknown"),
    ],
)
def test_a_wrong_trade_is_quarantined(tmp_path: Path, changed: dict[str, list[float | None]], reason: str) -> None:
    tape = read_tape("binance_l2", [write(tmp_path / "t.parquet", tables.trades(**changed))])
    assert tape.quarantined() == {reason: 1}
    assert len(tape.records) == 2


def test_an_empty_side_of_a_quote_is_said(tmp_path: Path) -> None:
    changed = {"bid_px": [99.5, 0.0, None], "bid_sz": [1.0, 0.0, None], "ask_px": [100.5, 100.5, None]}
    tape = read_tape("binance_l2", [write(tmp_path / "q.parquet", tables.bbo(**changed))])
    assert tape.records.view(QUOTE)[["flags", "bid", "bid_size"]].tolist() == [(BOTH, 99.5, 1.0), (BOTH, 0.0, 0.0)]
    assert tape.quarantined() == {"no price": 1}


def test_rows_out_of_order_are_moved_and_counted(tmp_path: Path) -> None:
    times = [START_NS + 5, START_NS, START_NS + 5]
    tape = read_tape("binance_l2", [write(tmp_path / "t.csv", tables.trades(recv_ns=times))])
    assert tape.files[0].out_of_order == 1
    assert tape.records.view(TRADE)["price"].tolist() == [101.0, 100.0, 102.0]


def test_columns_that_nobody_needs_are_passed_over(tmp_path: Path) -> None:
    extra = {**tables.book(2, 10), "bid_px11": [1.0, 1.0], "note": ["a", "b"]}
    assert len(read_tape("binance_l2", [write(tmp_path / "b.csv", extra)]).records) == 20


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"recv_ns": [1_723_161_254_087] * 3}, "row 1, column recv_ns: found 1723161254087, expected nanoseconds"),
        ({"recv_ns": ["x", "2", "3"]}, "row 1, column recv_ns: found 'x', expected a whole number"),
        ({"recv_ns": ["1" * 30, "2", "3"]}, "column recv_ns: found '1"),
        ({"price": ["1", "2,5", "3"]}, "row 2, column price: found '2,5', expected a number"),
    ],
)
def test_cells_that_cannot_be_read_refuse_the_file(tmp_path: Path, columns: dict[str, list[str]], told: str) -> None:
    file = write(tmp_path / "trades.csv", tables.trades(**columns))
    with pytest.raises(DataError) as error:
        read_tape("binance_l2", [file])
    assert told in str(error.value)
    assert "trades.csv" in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def refused(name: str, data: bytes | None, told: str) -> None:
        file = tmp_path / name
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(DataError, match=told):
            read_tape("binance_l2", [file])

    refused("absent.csv", None, "there is no such file")
    refused("empty.csv", b"", "is empty")
    refused("rows.csv", b"recv_ns,price,qty,aggressor\n", "has no rows")
    refused("ragged.csv", b"recv_ns,price,qty,aggressor\n1,2,3\n", "row 1, column .all.: found '3 fields'")
    refused("cut.parquet", b"PAR1 and then nothing", "truncated or not Parquet")
    refused("cut.csv.gz", b"\x1f\x8b\x08", "truncated or not gzip")
    refused("latin.csv", b"recv_ns,price,qty,aggressor\n\xff,1,1,1\n", "isn't UTF-8")
    refused("what.txt", b"", "unknown kind of file")
    refused("other.csv", b"a,b\n1,2\n", "isn't a Binance table: .* there are: a, b")
    refused("twice.csv", b"recv_ns,price,qty,aggressor,qty\n1,2,3,4,5\n", "column qty is there twice")
    (tmp_path / "lacks.csv").write_text("recv_ns,price,qty\n1,2,3\n")
    with pytest.raises(SchemaError, match="column aggressor is missing; there are: recv_ns, price, qty"):
        read_tape("binance_l2", [tmp_path / "lacks.csv"])
    floats = write(tmp_path / "floats.parquet", tables.trades(recv_ns=[1.7e18] * 3))
    with pytest.raises(SchemaError, match="column recv_ns has type double: write it as int64"):
        read_tape("binance_l2", [floats])
    beyond = write(tmp_path / "beyond.parquet", tables.trades(recv_ns=[np.uint64(2**63 + 5)] * 3))
    with pytest.raises(DataError, match=r"column recv_ns: .*9223372036854775813.*: write it as int64"):
        read_tape("binance_l2", [beyond])
    nothing = write(tmp_path / "nothing.csv", tables.trades(price=[0, 0, 0]))
    with pytest.raises(DataError, match=r"no row is market data .price isn't positive: 3"):
        read_tape("binance_l2", [nothing])


def test_files_of_two_instruments_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "usdm_btcusdt_20240808_trades.csv", tables.trades())
    other = write(tmp_path / "usdm_ethusdt_20240808_09_bbo.csv", tables.bbo())
    with pytest.raises(DataError, match=r"usdm btcusdt, usdm ethusdt: a feed replays one instrument"):
        read_tape("binance_l2", [one, other])
    later = write(tmp_path / "usdm_BTCUSDT_20250101_bbo.csv", tables.bbo())
    assert len(read_tape("binance_l2", [one, later]).records) == 6
    with pytest.raises(DataError, match="named twice"):
        read_tape("binance_l2", [one, one])


@pytest.mark.real_data
@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_the_real_set_arrives_whole(market: str) -> None:
    """Against pyarrow's own reading of the files."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} isn't here")
    import pyarrow.parquet

    files = {kind: next(REAL.glob(f"{market}_*_{kind}.parquet")) for kind in ("bbo", "book10", "trades")}
    plain = {kind: pyarrow.parquet.read_table(file) for kind, file in files.items()}
    tape = read_tape("binance_l2", list(files.values()), Heartbeats(1_000_000_000))
    assert tape.quarantined() == {}
    assert tape.by_kind["trade"] == plain["trades"].num_rows
    assert tape.by_kind["quote"] == plain["bbo"].num_rows
    assert tape.by_kind["level"] == 10 * plain["book10"].num_rows
    records = tape.records
    assert (np.diff(records["event_ns"]) >= 0).all()
    assert (np.diff(records["sequence"].astype(np.int64)) == 1).all()
    for kind, name, columns in (
        (Kind.TRADE, "trades", {"price": "price", "size": "qty"}),
        (Kind.QUOTE, "bbo", {"bid": "bid_px", "bid_size": "bid_sz", "ask": "ask_px", "ask_size": "ask_sz"}),
    ):
        mine = records[records["kind"] == kind].view(TRADE if kind == Kind.TRADE else QUOTE)
        assert mine["event_ns"].tolist() == plain[name]["recv_ns"].to_pylist()
        for field, column in columns.items():
            assert mine[field].tolist() == plain[name][column].to_pylist()
    levels = records[records["kind"] == Kind.LEVEL].view(QUOTE).reshape(-1, 10)
    for level in range(10):
        for field, column in (("bid", "bid_px"), ("bid_size", "bid_sz"), ("ask", "ask_px"), ("ask_size", "ask_sz")):
            assert levels[field][:, level].tolist() == plain["book10"][f"{column}{level + 1}"].to_pylist()
