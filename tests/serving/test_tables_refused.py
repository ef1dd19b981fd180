"""Tables that are refused: every problem named at once, no traceback for any damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import DataError, SchemaError
from serving.tables import Market, read_market
from tests.serving.market_files import Edit, edited, files, market, same, write_market

__all__ = ["files", "market"]  # fixtures


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
