"""Reading and writing tables: round trips, every problem named at once, no traceback for any damage."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.demo import pack_demo, unpack_demo
from serving.errors import BundleError, DataError, SchemaError
from serving.problems import iso
from serving.surface import Quotes
from serving.table_files import write_table
from serving.tables import CHAIN_COLUMNS, Market, read_market
from tests.serving.test_pricing import small_market

Columns = dict[str, Any]
Edit = Callable[[list[dict[str, str]]], object]


def quote_columns(snapshots: list[Quotes], underlying: str = "SPX") -> Columns:
    """Canonical columns; a snapshot without contracts becomes one row that carries time and price."""
    parts: dict[str, list[Any]] = {name: [] for name in CHAIN_COLUMNS}
    for quotes in snapshots:
        count = max(len(quotes), 1)
        nothing = not len(quotes)
        values = {
            "ts": np.full(count, quotes.ts), "underlying": np.full(count, underlying),
            "root": np.array([""]) if nothing else quotes.root,
            "expiry": np.array(["NaT"], "datetime64[ns]") if nothing else quotes.expiry,
            "right": np.array([""]) if nothing else np.where(quotes.right > 0, "C", "P"),
            "underlying_price": np.full(count, quotes.spot),
            **{name: np.array([np.nan]) if nothing else getattr(quotes, name) for name in ("strike", "bid", "ask")},
        }  # fmt: skip
        for name in CHAIN_COLUMNS:
            parts[name].append(values[name])
    return {name: np.concatenate(values) for name, values in parts.items()}


def write_market(folder: Path, market: Market, suffix: str = ".csv") -> tuple[Path, Path, Path]:
    """The three files of a market."""
    files = tuple(folder / f"{name}{suffix}" for name in ("chain", "path", "now"))
    write_table(files[0], quote_columns(market.chain, market.underlying))
    write_table(files[1], {"ts": market.path.ts, "price": market.path.price})
    now = quote_columns([market.now], market.underlying)
    if suffix == ".parquet" and not len(market.now):
        now = {name: values for name, values in now.items() if name != "expiry"}
        now["expiry"] = np.array(["NaT"], "datetime64[ns]")
    write_table(files[2], now)
    return files  # type: ignore[return-value]


def same(left: Market, right: Market) -> bool:
    def quotes(one: Quotes, other: Quotes) -> bool:
        pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Quotes))
        return all(
            np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")
            for left, right in pairs
        )

    pairs = list(zip(left.chain, right.chain, strict=True))
    return (
        left.underlying == right.underlying
        and np.array_equal(left.path.ts, right.path.ts)
        and np.array_equal(left.path.price, right.path.price)
        and all(quotes(*pair) for pair in [*pairs, (left.now, right.now)])
    )


def edited(file: Path, edit: Edit) -> Path:
    """Rewrite a CSV with its rows changed in place."""
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        names = list(reader.fieldnames or [])
    edit(rows)
    names += [name for name in rows[0] if name not in names] if rows else []
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture
def market() -> Market:
    return small_market(3, strikes=np.array([90.0, 100.0, 110.0]))


@pytest.fixture
def files(market: Market, tmp_path: Path) -> tuple[Path, Path, Path]:
    return write_market(tmp_path, market)


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


# Damage.


def test_every_problem_of_every_file_is_listed_at_once(files: tuple[Path, ...]) -> None:
    chain, path, now = files

    def damage(rows: list[dict[str, str]]) -> None:
        rows[0]["strike"] = "nan"
        rows[1]["bid"] = "-1.5"
        rows[2]["ask"] = "lots"
        rows[3]["right"] = "X"
        rows[4]["expiry"] = "next Friday"
        rows[5]["underlying_price"] = "0"
        rows[6]["root"] = ""
        rows[7]["ask"] = ""
        rows[9].update({name: rows[8][name] for name in ("root", "expiry", "strike", "right")})

    edited(chain, damage)
    edited(path, lambda rows: (rows[3].update(price="-2"), rows[6].update(ts=rows[5]["ts"])))
    edited(now, lambda rows: rows[0].update(ts="2017-01-01T00:00:00Z"))
    with pytest.raises(DataError) as caught:
        read_market(chain, path, now)
    text = str(caught.value)
    for expected in (
        "chain.csv: row 1, column strike: found nothing, expected a positive number",
        "chain.csv: row 2, column bid: found -1.5, expected a number, 0 where nobody bids",
        "chain.csv: row 3, column ask: found 'lots'", "chain.csv: row 4, column right: found 'X', expected C or P",
        "chain.csv: row 5, column expiry: found 'next Friday', expected an ISO 8601 time in UTC",
        "chain.csv: row 6, column underlying_price: found 0.0", "chain.csv: row 7, column root: found nothing",
        "chain.csv: row 8, column ask: found nothing, expected a number, 0 where nobody offers",
        "chain.csv: row 10, column strike", "each contract once per ts",
        "path.csv: row 4, column price: found -2.0", "path.csv: row 7, column ts",
        "now.csv: holds several times", "now.csv: now (2017-01-01T00:00:00Z) isn't after the chain's last snapshot",
    ):  # fmt: skip
        assert expected in text, text
    assert text.count("column strike: found nothing") == 1


def test_many_rows_with_one_problem_are_counted(files: tuple[Path, ...]) -> None:
    chain, path, now = files
    edited(chain, lambda rows: [row.update(bid="-1") for row in rows])
    with pytest.raises(DataError) as caught:
        read_market(chain, path, now)
    assert str(caught.value).count("found -1.0") == 10
    assert "column bid: 80 more rows like these" in str(caught.value)


def test_missing_columns_are_all_named(files: tuple[Path, ...]) -> None:
    chain, path, now = files
    chain.write_text("ts,underlying,root,expiry,strike,right,bid\n")
    path.write_text("when,close\n2018-01-01,3\n")
    with pytest.raises(SchemaError) as caught:
        read_market(chain, path, now)
    for name in ("chain.csv: column ask", "chain.csv: column underlying_price", "path.csv: column ts or date"):
        assert name in str(caught.value)


def _swap(rows: list[dict[str, str]]) -> None:
    rows.append(rows.pop(0))


def _two_prices(rows: list[dict[str, str]]) -> object:
    return rows[1].update(underlying_price="1")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("chain", _swap, "times in ascending order: sort the rows by ts"),
        ("chain", _two_prices, "the same price in all rows of one ts"),
        ("chain", lambda rows: rows[5].update(underlying="NDX"), r"several underlyings \(NDX, SPX\).*--underlying"),
        ("chain", lambda rows: rows.clear(), "chain.csv: has no rows"),
        ("now", lambda rows: [row.update(underlying="NDX") for row in rows], "holds nothing of underlying 'SPX'"),
        ("now", lambda rows: rows[0].update(ts=""), "now.csv: row 1, column ts: found nothing"),
        ("now", lambda rows: rows[0].update(root=""), "row 1, column root: found nothing"),
        ("path", lambda rows: rows[0].update(ts="9999-01-01"), "row 1, column ts: found '9999-01-01'"),
        ("path", lambda rows: rows[0].update(price="inf"), "row 1, column price: found inf"),
    ],
)
def test_what_doesnt_fit_is_refused(files: tuple[Path, ...], name: str, edit: Edit, message: str) -> None:
    edited(files[("chain", "path", "now").index(name)], edit)
    with pytest.raises(DataError, match=message):
        read_market(*files)


@pytest.mark.parametrize(
    ("column", "usual", "other", "message"),
    [
        ("price_unit", "money", "coin", "price_unit: found 'coin', expected money or coin, one unit"),
        ("currency", "USD", "EUR", "currency: found 'EUR', expected one currency"),
    ],
)
def test_units_are_looked_at_where_they_are_given(
    files: tuple[Path, Path, Path], market: Market, column: str, usual: str, other: str, message: str
) -> None:
    chain, path, now = files

    def add(value: str) -> Edit:
        def edit(rows: list[dict[str, str]]) -> None:
            for row in rows:
                row[column] = usual
            rows[3][column] = value

        return edit

    assert same(read_market(edited(chain, add(usual)), path, now), market)
    with pytest.raises(DataError, match=message):
        read_market(edited(chain, add(other)), path, now)


def special(market: Market) -> Market:
    """The same market, half American, with the venue's forwards for one expiry, its prices made of coin."""

    def change(quotes: Quotes) -> Quotes:
        american = np.arange(len(quotes)) % 2 == 0
        forward = np.where(quotes.expiry == quotes.expiry.max(), quotes.spot * 1.01, np.nan)
        return dataclasses.replace(quotes, american=american, venue_forward=forward, coin=True)

    return dataclasses.replace(market, chain=[change(one) for one in market.chain], now=change(market.now))


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


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("style", "asian", "column style: found 'asian', expected european or american"),
        ("forward", "-3", "column forward: found -3.0, expected the positive forward"),
        ("forward", "soon", "column forward: found 'soon', expected the positive forward"),
        ("price_unit", "shells", "column price_unit: found 'shells', expected money or coin"),
    ],
)
def test_special_columns_are_checked(files: tuple[Path, ...], column: str, value: str, message: str) -> None:
    def edit(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row[column] = ""
        rows[2][column] = value

    edited(files[0], edit)
    with pytest.raises(DataError, match=message):
        read_market(*files)


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


def same_contracts(left: Market, right: Market) -> bool:
    return [len(quotes) for quotes in left.chain] == [len(quotes) for quotes in right.chain]


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".csv", lambda file: file.write_bytes(b""), "is empty"),
        (".csv", lambda file: file.write_bytes(b"\xff\xfe\x00ts"), "isn't UTF-8 text"),
        (".csv", lambda file: file.write_bytes(file.read_bytes().replace(b"SPX", b"S\xe9X")), "isn't UTF-8 text"),
        (".csv", lambda file: file.write_bytes(file.read_bytes()[:-30]), r"found '\d fields', expected 9 fields"),
        (".csv", lambda file: file.write_text(file.read_text().replace("SPX", '"SPX', 1)), "isn't CSV|fields"),
        (".csv", lambda file: file.unlink(), "there is no such file"),
        (".csv", lambda file: (file.unlink(), file.mkdir()), "can't be read: Is a directory"),
        (".csv.gz", _truncate, "is truncated or not gzip"),
        (".csv.gz", lambda file: file.write_bytes(b"ts,price"), "is truncated or not gzip"),
        (".parquet", _truncate, "is truncated or not Parquet"),
        (".parquet", lambda file: file.write_bytes(b""), "is truncated or not Parquet"),
        (".parquet", lambda file: file.unlink(), "there is no such file"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, market: Market, suffix: str, damage: Callable[[Path], object], message: str
) -> None:
    files = write_market(tmp_path, market, suffix)
    damage(files[0])
    with pytest.raises(DataError, match=message) as caught:
        read_market(*files)
    assert f"chain{suffix}" in str(caught.value)


def test_parquet_columns_of_wrong_types_are_refused(tmp_path: Path, market: Market) -> None:
    chain, path, now = write_market(tmp_path, market, ".parquet")
    table = pq.read_table(chain)
    pq.write_table(table.set_column(0, "ts", pa.array(np.arange(len(table)))), chain)
    pq.write_table(pa.table({"ts": ["2018-01-01", "soon"], "price": [True, False]}), path)
    with pytest.raises(SchemaError) as caught:
        read_market(chain, path, now)
    for text in ("chain.parquet: column ts has type int64", "path.parquet: row 2, column ts: found 'soon'",
                 "path.parquet: column price has type bool"):  # fmt: skip
        assert text in str(caught.value)


def test_unknown_suffix_is_refused(files: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown kind of file: use"):
        read_market(tmp_path / "chain.xlsx", files[1], files[2])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_ends_in_a_traceback(
    data: st.DataObject, market: Market, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = write_market(tmp_path_factory.mktemp("damage"), market, data.draw(st.sampled_from([".csv", ".parquet"])))
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    file.write_bytes(bytes(raw))
    assert file.name in (refusal(files) or file.name)


def refusal(files: tuple[Path, Path, Path]) -> str | None:
    """Why the files are refused, if they are."""
    try:
        read_market(*files)
    except DataError as error:
        return str(error)
    return None


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


@pytest.mark.parametrize(("column", "value", "other"), [("price_unit", "coin", "money"), ("currency", "USD", "EUR")])
def test_chain_and_now_are_in_one_unit(files: tuple[Path, Path, Path], column: str, value: str, other: str) -> None:
    """A chain in coin beside quotes of now that don't say so would lose every anchor."""
    chain, path, now = files

    def add(text: str) -> Edit:
        def edit(rows: list[dict[str, str]]) -> None:
            for row in rows:
                row[column] = text

        return edit

    edited(chain, add(value))
    if column == "price_unit":
        with pytest.raises(DataError, match=r"now.*price_unit is money here and coin in .*: give both the same"):
            read_market(chain, path, now)
    edited(now, add(other))
    with pytest.raises(DataError, match=rf"{column} is {other} here and {value} in"):
        read_market(chain, path, now)
    edited(now, add(value))
    assert len(read_market(chain, path, now).chain)
