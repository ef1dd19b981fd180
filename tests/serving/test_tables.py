"""Reading and writing tables: round trips, other writers, times, what may be left out; output whole or not at all."""

from __future__ import annotations

import dataclasses
import gzip
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.demo import pack_demo, unpack_demo
from serving.errors import BundleError, DataError
from serving.problems import iso
from serving.table_files import write_table
from serving.tables import CHAIN_COLUMNS, Market, read_market
from tests.serving.market_files import edited, files, market, quote_columns, same, same_contracts, special, write_market
from tests.serving.test_pricing import small_market

__all__ = ["files", "market"]  # fixtures


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("anchors", [True, False])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, anchors: bool) -> None:
    market = small_market(3, anchors=anchors)
    assert same(read_market(*write_market(tmp_path, market, suffix)), market)


def test_demo_arrays_round_trip_is_exact(market: Market) -> None:
    for one in (market, small_market(2, anchors=False)):
        expected = np.array([0.2, np.nan, 0.3], np.float32)
        packed = pack_demo(one, expected)
        assert {array.dtype.kind for array in packed.values()} <= set("iuf")
        again, volatilities = unpack_demo(packed, "demo.npz")
        assert same(again, one)
        assert np.array_equal(volatilities, expected.astype(np.float64), equal_nan=True)


def test_demo_arrays_may_be_times_and_texts(market: Market) -> None:
    columns = quote_columns(market.chain)
    now = quote_columns([market.now.take(np.zeros(len(market.now), bool))])
    arrays = {f"chain_{name}": values for name, values in columns.items()} | {f"now_{n}": v for n, v in now.items()}
    arrays["chain_right"] = np.where(columns["right"] == "C", 1, -1)
    arrays["now_right"] = np.array([0])
    arrays |= {"path_ts": market.path.ts, "path_price": market.path.price, "demo_iv": np.zeros(3, np.float32)}
    again, _ = unpack_demo(arrays, "golden.npz")
    assert same(again, dataclasses.replace(market, now=again.now))
    assert len(again.now) == 0
    assert again.now.spot == market.now.spot
    del arrays["chain_bid"]
    with pytest.raises(BundleError, match=r"golden\.npz: lacks chain_bid"):
        unpack_demo(arrays, "golden.npz")


def test_parquet_of_other_writers(tmp_path: Path, market: Market) -> None:
    """Microseconds with a zone, dictionaries, decimals, dates, integers."""
    chain, path, now = write_market(tmp_path, market, ".parquet")
    table = pq.read_table(chain)
    table = table.set_column(0, "ts", table["ts"].cast(pa.timestamp("us", "UTC")))
    root = table.schema.get_field_index("root")
    table = table.set_column(root, "root", table["root"].dictionary_encode())
    strike = table.schema.get_field_index("strike")
    table = table.set_column(strike, "strike", table["strike"].cast(pa.int64()))
    table = table.append_column("volume", pa.nulls(len(table)))
    pq.write_table(table, chain, row_group_size=7)
    read = read_market(chain, path, now)
    assert same(read, market)
    days = market.path.ts.astype("datetime64[D]")
    pq.write_table(pa.table({"date": pa.array(days), "close": market.path.price}), path)
    assert same(read_market(chain, path, now), dataclasses.replace(market, path=market.path.until(market.path.ts[79])))


def test_closes_of_dates_get_the_chains_time_and_give_way_to_snapshots(files: tuple[Path, ...], market: Market) -> None:
    chain, path, now = files
    days = np.arange("2018-02-20", "2018-03-10", dtype="datetime64[D]")
    path.write_text("date,close\n" + "".join(f"{day},{50 + k}\n" for k, day in enumerate(days)))
    read = read_market(chain, path, now).path
    own = [quotes.ts.astype("datetime64[D]") for quotes in (*market.chain, market.now)]
    expected = [day for day in days if day not in own]
    clock = market.chain[0].ts - own[0]
    assert read.ts.tolist() == [(day + clock).astype("datetime64[ns]").tolist() for day in expected]
    assert read.price.tolist() == [50.0 + int((day - days[0]).astype(int)) for day in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-03-01T20:45:00Z", "2018-03-01T20:45:00"), ("2018-03-01 20:45", "2018-03-01T20:45:00"),
        ("2018-03-01T15:45:00-05:00", "2018-03-01T20:45:00"), ("2018-03-02T02:15:00.5+0530", "2018-03-01T20:45:00.5"),
        ("2018-03-01", "2018-03-01T00:00:00"),
    ],
)  # fmt: skip
def test_times_of_iso_8601(files: tuple[Path, ...], text: str, expected: str) -> None:
    chain, path, now = files
    edited(path, lambda rows: (rows.__delitem__(slice(1, None)), rows[0].update(ts=text)))
    assert read_market(chain, path, now).path.ts[0] == np.datetime64(expected, "ns")


def test_demo_arrays_carry_what_is_special_about_quotes(market: Market) -> None:
    """And hold no array more than before where nothing is."""
    one = special(market)
    arrays = pack_demo(one, np.zeros(5, np.float32))
    assert same(unpack_demo(arrays, "demo.npz")[0], one)
    extra = set(arrays) - set(pack_demo(market, np.zeros(5, np.float32)))
    assert extra == {f"{part}_{name}" for part in ("chain", "now") for name in ("american", "venue_forward", "coin")}
    bare = dataclasses.replace(one, now=one.now.take(np.zeros(len(one.now), dtype=bool)))
    again = unpack_demo(pack_demo(bare, np.zeros(5, np.float32)), "demo.npz")[0]
    assert same(dataclasses.replace(again, now=market.now), dataclasses.replace(one, now=market.now))
    assert len(again.now) == 0


def test_style_forward_and_coin_are_read_where_they_are_given(
    files: tuple[Path, Path, Path], market: Market, tmp_path: Path
) -> None:
    one = special(market)
    for file, snapshots in ((files[0], one.chain), (files[2], [one.now])):
        columns = quote_columns(snapshots)
        columns["style"] = np.concatenate(
            [np.where(quotes.is_american, "american", "european") for quotes in snapshots]
        )
        columns["forward"] = np.concatenate([quotes.venue_forward for quotes in snapshots])
        columns["price_unit"] = np.full(len(columns["ts"]), "coin")
        for name in ("bid", "ask"):
            columns[name] = columns[name] / columns["underlying_price"]
        write_table(file, columns)
    found = read_market(*files)
    for ours, theirs in zip([*one.chain, one.now], [*found.chain, found.now], strict=True):
        assert theirs.coin
        assert theirs.american is not None
        assert ours.american is not None
        assert theirs.venue_forward is not None
        assert ours.venue_forward is not None
        assert np.array_equal(theirs.american, ours.american)
        assert np.array_equal(theirs.venue_forward, ours.venue_forward, equal_nan=True)
        np.testing.assert_allclose(theirs.bid, ours.bid, rtol=1e-14)
        np.testing.assert_allclose(theirs.ask, ours.ask, rtol=1e-14)


def test_underlying_chosen(files: tuple[Path, ...], market: Market) -> None:
    chain, path, now = files
    for file in (chain, now):
        text = file.read_text()
        header, body = text.split("\n", 1)
        file.write_text(f"{header}\n{body}{body.replace('SPX,', 'NDX,').replace(',100.0,', ',101.0,')}")
    with pytest.raises(DataError, match="--underlying"):
        read_market(*files)
    rows = chain.read_text().splitlines()
    chain.write_text("\n".join([rows[0], *sorted(rows[1:])]) + "\n")
    assert same_contracts(read_market(chain, path, now, "SPX"), market)
    with pytest.raises(DataError, match="holds nothing of underlying 'RUT'; it holds NDX, SPX"):
        read_market(chain, path, now, "RUT")


def test_output_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("before")
    with pytest.raises(ValueError, match="shorter"):
        write_table(file, {"a": np.array([1.0, 2.0]), "b": np.array([1.0])})
    assert file.read_text() == "before"
    with pytest.raises(DataError, match=r"none/out\.csv: can't be written"):
        write_table(tmp_path / "none" / "out.csv", {"a": np.array([1.0])})
    write_table(file, {"ts": np.array(["2018-01-01T00:00:00.5"], "datetime64[ns]"), "a": np.array([np.nan])})
    assert file.read_text() == "ts,a\n2018-01-01T00:00:00.500000000Z,\n"
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


def test_a_large_chain_is_read_fast(tmp_path: Path) -> None:
    """300,000 rows, with columns that nobody wants; the time is printed and only an absurd one fails."""
    rows = 300_000
    file = tmp_path / "chain.csv.gz"
    expiry = iso(np.array(["2018-12-21T21:00", "2019-03-15T20:00"], "datetime64[ns]"))
    with gzip.open(file, "wt", compresslevel=1) as stream:
        stream.write(",".join([*CHAIN_COLUMNS, "volume", "open_interest"]) + "\n")
        stream.writelines(
            f"2018-03-{1 + k // 15_000:02d}T20:45:00Z,SPX,SPX,{expiry[k % 2]},{100 + k % 15_000 // 2 * 0.5},"
            f"{'CP'[k % 15_000 // 2 % 2]},1.5,1.6,2700.5,3,4\n"
            for k in range(rows)
        )
    path, now = tmp_path / "path.csv", tmp_path / "now.csv"
    path.write_text("ts,price\n2018-02-01,2600\n")
    now.write_text(",".join(CHAIN_COLUMNS) + "\n2018-04-01T20:45:00Z,SPX,,,,,,,2701\n")
    start = time.perf_counter()
    market = read_market(file, path, now)
    elapsed_s = time.perf_counter() - start
    assert sum(map(len, market.chain)) == rows
    assert len(market.chain) == 20
    assert elapsed_s < 30, f"{rows} rows took {elapsed_s:.1f} s"
