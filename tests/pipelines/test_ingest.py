"""Ingest never loses a quote and names every damage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import quote_table
from pipelines.ingest import REASONS, ingest
from pipelines.layouts import Layout
from serving import schema
from serving.errors import DataError
from tests.pipelines.chains import HEADER, chain, changed, layout, plain_layout, quarantine, write

__all__ = ["layout"]  # fixtures


def test_clean_chain_is_kept_as_it_is(tmp_path: Path, layout: Layout) -> None:
    result = ingest(write(tmp_path / "in.csv", chain()), layout, tmp_path / "out")
    assert (result.quotes_in, result.kept, result.quarantined, result.reasons) == (20, 20, 0, {})
    assert result.snapshots == 2
    assert result.first == datetime(2021, 3, 1, 20, 45, tzinfo=UTC)
    assert result.last == datetime(2021, 3, 2, 20, 45, tzinfo=UTC)
    quotes = pl.read_parquet(result.quotes_path)
    assert tuple(quotes.columns) == schema.NAMES
    assert quotes["bid"].to_list() == [1.25] * 20
    assert quotes["ask_size"].null_count() == 20
    assert quotes.equals(quotes.sort(schema.IDENTITY))
    schema.check({name: quotes[name].to_numpy() for name in quotes.columns})
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert counts["kept"] == 20
    assert counts["files"] == {str(tmp_path / "in.csv"): 20}
    assert pq.read_metadata(result.quotes_path).num_row_groups == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "counts.json", "quarantine.parquet", "quotes.parquet",
    ]  # fmt: skip


DAMAGE = [
    ({"strike": "nan"}, "missing_value", "strike is 'nan': a quote needs it"),
    ({"strike": ""}, "missing_value", "strike is '': a quote needs it"),
    ({"strike": "9O"}, "bad_number", "strike is '9O': not a finite number"),
    ({"strike": "inf"}, "bad_number", "strike is 'inf': not a finite number"),
    ({"strike": "-90"}, "strike_not_positive", "strike is '-90': must be above 0"),
    ({"strike": "0"}, "strike_not_positive", "strike is '0': must be above 0"),
    ({"date": "yesterday"}, "bad_timestamp", "date is 'yesterday': no iso time in America/New_York"),
    ({"date": ""}, "missing_value", "date is '': a quote needs it"),
    ({"expiry": "2021-02-31"}, "bad_expiry", "expiry is '2021-02-31': no iso date or time in America/New_York"),
    (
        {"expiry": "2021-02-26"},
        "expired",
        "date is '2021-03-01', expiry is '2021-02-26': the contract's expiry isn't after the quote",
    ),
    ({"cp": "X"}, "bad_right", "cp is 'X': must be C, P, call or put"),
    ({"root": " "}, "missing_value", "root is ' ': a quote needs it"),
    ({"bid": ""}, "no_price", "bid is '': no price"),
    ({"ask": "NaN"}, "no_price", "ask is 'NaN': no price"),
    ({"bid": "garbage"}, "bad_number", "bid is 'garbage': not a finite number"),
    ({"bid": "-0.05"}, "negative_price", "bid is '-0.05': must be 0 or more"),
    ({"ask": "-1", "bid": "0"}, "negative_price", "ask is '-1': must be 0 or more"),
    ({"bid": "1.6"}, "crossed", "bid is '1.6', ask is '1.5': the bid is above the ask"),
    ({"spot": "0"}, "underlying_price_not_positive", "spot is '0': must be above 0"),
    ({"spot": "null"}, "missing_value", "spot is 'null': a quote needs it"),
    ({"spot": "95.6"}, "underlying_price_conflict", "spot: most quotes of this time and underlying have 95.5"),
    ({"vol": "-1"}, "negative_quantity", "vol is '-1': must be 0 or more"),
    ({"oi": "many"}, "bad_number", "oi is 'many': not a finite number"),
    ({"ccy": "EUR"}, "currency", "most quotes of this underlying are in USD; ingest one currency per underlying"),
    ({"ccy": "$"}, "bad_value", "ccy is '$': must be a currency code such as USD"),
]


@pytest.mark.parametrize(("fields", "reason", "detail"), DAMAGE)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_damaged_field_is_quarantined(
    tmp_path: Path, layout: Layout, fields: dict[str, str], reason: str, detail: str, suffix: str
) -> None:
    rows = changed(chain(), 3, **fields)
    source = write(tmp_path / "in.csv", rows)
    if suffix == "parquet":
        table = pl.DataFrame(rows, schema=HEADER.split(","), orient="row")
        source = tmp_path / "in.parquet"
        table.write_parquet(source)
    result = ingest(source, layout, tmp_path / "out")
    assert quarantine(result) == [(3, reason, detail)]
    assert (result.quotes_in, result.kept, result.reasons) == (20, 19, {reason: 1})
    refused = pl.read_parquet(result.quarantine_path)
    assert refused["file"].to_list() == [str(source)]
    assert list(json.loads(refused["raw"][0]).values()) == rows[2]
    assert reason in REASONS


@pytest.mark.parametrize(
    "fields",
    [
        {"bid": "0"},
        {"bid": "0", "ask": "0"},
        {"bid": "1.5"},
        {"expiry": "2021-03-01"},  # pm-settled, quoted at 15:45 of its last day
        {"cp": "call"},
        {"vol": ""},
        {"spot": "95.5001"},
    ],
)
def test_unusual_but_sound_quotes_are_kept(tmp_path: Path, layout: Layout, fields: dict[str, str]) -> None:
    result = ingest(write(tmp_path / "in.csv", changed(chain(), 3, **fields)), layout, tmp_path / "out")
    assert (result.kept, result.reasons) == (20, {})


def test_typed_parquet_with_nulls_and_nan(tmp_path: Path, layout: Layout) -> None:
    table = pl.DataFrame(chain(), schema=HEADER.split(","), orient="row").with_columns(
        pl.col("strike", "bid", "ask", "spot").cast(pl.Float64),
        pl.col("vol").cast(pl.Int32),
        pl.col("date", "expiry").str.to_date(),
        pl.col("cp").cast(pl.Categorical),
    )
    row = pl.int_range(pl.len())
    table = table.with_columns(
        strike=pl.when(row == 0).then(float("nan")).otherwise("strike"),
        expiry=pl.when(row == 1).then(None).otherwise("expiry"),
        bid=pl.when(row == 2).then(None).otherwise("bid"),
        ask=pl.when(row == 3).then(float("inf")).otherwise("ask"),
    )
    table.write_parquet(tmp_path / "in.parquet")
    assert quarantine(ingest(tmp_path / "in.parquet", layout, tmp_path / "out")) == [
        (1, "missing_value", "strike is nan: a quote needs it"),
        (2, "missing_value", "expiry is null: a quote needs it"),
        (3, "no_price", "bid is null: no price"),
        (4, "bad_number", "ask is inf: not a finite number"),
    ]


def test_malformed_rows_and_a_line_cut_short(tmp_path: Path, layout: Layout) -> None:
    source = write(tmp_path / "in.csv", chain(), 'one,two\n"2021-03-01,AB\n2021-03-01,AB,AB,2021-04-')
    refused = quarantine(ingest(source, layout, tmp_path / "out"))
    assert [(row, reason) for row, reason, _ in refused] == [(row, "malformed_row") for row in (21, 22, 23)]
    assert refused[0][2] == "2 fields, the header has 14"
    raw = pl.read_parquet(tmp_path / "out/quarantine.parquet")["raw"]
    assert json.loads(raw[1]) == {"line": '"2021-03-01,AB'}


def test_duplicates_name_the_row_they_repeat(tmp_path: Path, layout: Layout) -> None:
    rows = chain()
    again = changed([*rows, *rows[:3]], 23, ask="1.75")
    result = ingest(write(tmp_path / "in.csv", again), layout, tmp_path / "out")
    file = tmp_path / "in.csv"
    assert quarantine(result) == [
        (21, "duplicate", f"the same quote as row 1 of {file}"),
        (22, "duplicate", f"the same quote as row 2 of {file}"),
        (
            23,
            "duplicate_conflict",
            f"row 3 of {file} has the same contract and time with other values; that one is kept",
        ),
    ]  # fmt: skip
    assert set(pl.read_parquet(result.quotes_path)["ask"]) == {1.5}


def test_duplicate_snapshot_in_another_file(tmp_path: Path, layout: Layout) -> None:
    write(tmp_path / "in/a.csv", chain())
    write(tmp_path / "in/b.csv", chain(days=1))
    result = ingest(tmp_path / "in", layout, tmp_path / "out")
    assert (result.kept, result.reasons) == (20, {"duplicate": 10})
    assert set(pl.read_parquet(result.quarantine_path)["file"]) == {str(tmp_path / "in/b.csv")}


def test_majorities_and_ties(tmp_path: Path, layout: Layout) -> None:
    rows = chain(days=1)
    half = [changed(rows, row, ccy="EUR")[row - 1] for row in range(6, 11)]
    result = ingest(write(tmp_path / "in.csv", [*rows[:5], *half]), layout, tmp_path / "out")
    assert result.reasons == {"currency": 5}  # a tie: the currency seen first stays
    assert set(pl.read_parquet(result.quotes_path)["currency"]) == {"USD"}
    rows = [changed(rows, row, spot="96")[row - 1] if row > 3 else rows[row - 1] for row in range(1, 11)]
    result = ingest(write(tmp_path / "in.csv", rows), layout, tmp_path / "out")
    assert [row for row, _, _ in quarantine(result)] == [1, 2, 3]
    assert set(pl.read_parquet(result.quotes_path)["underlying_price"]) == {96.0}


def test_other_underlyings_may_have_other_currencies(tmp_path: Path, layout: Layout) -> None:
    rows = chain(days=1)
    others = [[*row[:1], "DAX", "ODAX", *row[3:10], "13000", *row[11:13], "EUR"] for row in rows]
    result = ingest(write(tmp_path / "in.csv", [*rows, *others]), layout, tmp_path / "out")
    assert (result.kept, result.snapshots) == (20, 2)


TEXTS = st.one_of(
    st.sampled_from(["", "nan", "-1", "0", "1e400", "2021-03-01", "USD", "C", '"', 'x"y', "EUR", "95.5"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8),
)
DAMAGES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 13), TEXTS), max_size=12)


@settings(max_examples=80, deadline=None)
@given(damages=DAMAGES, repeated=st.lists(st.integers(0, 29), max_size=4))
def test_no_quote_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[int, int, str]], repeated: list[int]
) -> None:
    """Whatever happens to some fields: every row is kept or quarantined, and the untouched ones are kept unchanged."""
    folder = tmp_path_factory.mktemp("damage")
    rows = chain(3)
    for row, field, text in damages:
        rows[row][field] = text
    lines = [*rows, *(rows[row] for row in repeated)]
    file = write(folder / "in.csv", lines)
    try:
        result = ingest(file, plain_layout(), folder / "out")
    except DataError as error:
        assert "none of" in str(error)  # noqa: PT017
        return
    quotes, refused = pl.read_parquet(result.quotes_path), pl.read_parquet(result.quarantine_path)
    assert result.quotes_in == len(lines) == quotes.height + refused.height
    numbers = refused["row"].to_list()
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(1, len(lines) + 1))
    assert result.reasons == dict(refused["reason"].value_counts().iter_rows())
    untouched = [row for row in range(30) if row not in {damaged for damaged, _, _ in damages}]
    by_others = refused.filter(pl.col("reason").is_in(quote_table.TABLE_REASONS))["row"].to_list()
    kept = {(str(ts.date()), strike, right) for ts, strike, right in quotes.select("ts", "strike", "right").rows()}
    for row in untouched:
        if row + 1 not in by_others:
            assert row + 1 not in numbers
            assert (rows[row][0], float(rows[row][4]), rows[row][5]) in kept
