"""Ingest never loses a quote, names every damage, and leaves what was there when it fails."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import quote_table, readers
from pipelines.ingest import REASONS, IngestResult, ingest
from pipelines.layouts import Layout, load
from serving import schema
from serving.errors import ConfigError, DataError, SchemaError

REPOSITORY = Path(__file__).parents[2]
SPX_SET = REPOSITORY.parent / "shared/data/spx_options_2019"
HEADER = "date,under,root,expiry,strike,cp,bid,ask,bs,as,spot,vol,oi,ccy"


def plain_layout() -> Layout:
    """One row per quote with every canonical column in the file but style, settlement and price unit."""
    return load(
        "generic",
        {
            "columns": {
                "ts": "date", "underlying": "under", "root": "root", "expiry": "expiry", "strike": "strike",
                "right": "cp", "bid": "bid", "ask": "ask", "bid_size": "bs", "ask_size": "as",
                "underlying_price": "spot", "volume": "vol", "open_interest": "oi", "currency": "ccy",
            },
            "constants": {"style": "european", "settlement": "pm", "price_unit": "money"},
            "time_zone": "America/New_York",
            "snapshot_time": "15:45",
        },
    )  # fmt: skip


@pytest.fixture
def layout() -> Layout:
    return plain_layout()


def chain(days: int = 2, strikes: int = 5) -> list[list[str]]:
    """A clean chain as fields of text, in table order."""
    return [
        f"2021-03-0{day},AB,AB,2021-04-16,{90 + strike},{right},1.25,1.5,10,,95.5,7,0,USD".split(",")
        for day in range(1, days + 1)
        for strike in range(strikes)
        for right in "CP"
    ]  # fmt: skip


def write(path: Path, rows: list[list[str]], extra: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *(",".join(row) for row in rows)]) + "\n" + extra)
    return path


def quarantine(result: IngestResult) -> list[tuple[int, str, str]]:
    return pl.read_parquet(result.quarantine_path).select("row", "reason", "detail").rows()


def changed(rows: list[list[str]], row: int, **fields: str) -> list[list[str]]:
    """A copy with some fields of one row (1-based) replaced."""
    names = HEADER.split(",")
    rows = [list(fields_of) for fields_of in rows]
    for name, value in fields.items():
        rows[row - 1][names.index(name)] = value
    return rows


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


def test_every_form_of_input_gives_the_same_table(tmp_path: Path, layout: Layout) -> None:
    rows = changed(changed(chain(4, 20), 7, bid="x"), 90, strike="nan")
    whole = write(tmp_path / "in.csv", [*rows, rows[0]])
    table = pl.DataFrame([*rows, rows[0]], schema=HEADER.split(","), orient="row")
    table.write_parquet(tmp_path / "in.parquet", row_group_size=30)
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(whole.read_bytes()))
    write(tmp_path / "folder/1.csv", rows[:50])
    table[50:120].write_parquet(tmp_path / "folder/2.parquet")
    (tmp_path / "folder/3.csv.gz").write_bytes(gzip.compress(table[120:].write_csv().encode()))
    inputs = [whole, tmp_path / "in.parquet", tmp_path / "in.csv.gz", tmp_path / "folder"]
    results = [ingest(path, layout, tmp_path / f"out{n}") for n, path in enumerate(inputs)]
    contents = {result.quotes_path.read_bytes() for result in results}
    assert len(contents) == 1
    assert {tuple(result.reasons.items()) for result in results} == {
        (("missing_value", 1), ("bad_number", 1), ("duplicate", 1))
    }


def test_small_batches_and_slices_change_nothing(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = chain(9, 20)
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    source = tmp_path / "in.parquet"
    pl.DataFrame([*shuffled, *shuffled[:40]], schema=HEADER.split(","), orient="row").write_parquet(source)
    first = pl.read_parquet(ingest(source, layout, tmp_path / "out1").quotes_path)
    monkeypatch.setattr(readers, "PARQUET_BATCH_ROWS", 23)
    monkeypatch.setattr(quote_table, "SPILL_ROWS", 50)
    monkeypatch.setattr(quote_table, "SLICE_ROWS", 30)
    result = ingest(source, layout, tmp_path / "out2")
    assert pl.read_parquet(result.quotes_path).equals(first)
    assert result.reasons == {"duplicate": 40}
    file = pq.ParquetFile(result.quotes_path)
    for group in range(file.num_row_groups):
        days = pl.DataFrame(file.read_row_group(group))["ts"].dt.date()
        assert days.n_unique() == 1


def test_intraday_slices_hold_whole_timestamps(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quote_table, "SLICE_ROWS", 25)
    monkeypatch.setattr(quote_table, "SPILL_ROWS", 40)
    rows = [
        [f"2021-03-01 10:{minute:02d}", *row[1:10], str(95 + minute), *row[11:]]
        for row in chain(days=1)
        for minute in range(12)
    ]
    result = ingest(write(tmp_path / "in.csv", [*rows, *rows]), layout, tmp_path / "out")
    assert (result.kept, result.reasons, result.snapshots) == (120, {"duplicate": 120}, 12)
    quotes = pl.read_parquet(result.quotes_path)
    assert quotes.equals(quotes.sort(schema.IDENTITY))


def test_empty_day_is_no_error_but_an_empty_input_is(
    tmp_path: Path, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "in/1.csv", chain())
    write(tmp_path / "in/2.csv", [])
    assert ingest(tmp_path / "in", layout, tmp_path / "out").kept == 20
    assert "2.csv holds a header and no quotes" in caplog.text
    with pytest.raises(DataError, match=r"2\.csv: no quotes, nothing but a header"):
        ingest(tmp_path / "in/2.csv", layout, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_nothing_kept_tells_the_counts_and_an_example(tmp_path: Path, layout: Layout) -> None:
    rows = [changed(chain(), row, bid="9")[row - 1] for row in range(1, 21)]
    with pytest.raises(DataError) as caught:
        ingest(write(tmp_path / "in.csv", changed(rows, 2, strike="x")), layout, tmp_path / "out")
    text = str(caught.value)
    assert "none of 20 quotes can be kept; nothing was written" in text
    assert "- bad_number: 1, first in" in text
    assert "- crossed: 19, first in" in text
    assert "row 1: bid is '9', ask is '1.5': the bid is above the ask" in text


def test_wrong_column_and_mixed_layouts_fail_at_once(tmp_path: Path, layout: Layout) -> None:
    write(tmp_path / "in/1.csv", chain())
    (tmp_path / "in/2.csv").write_text(HEADER.replace("strike", "stirke").replace("bid", "bd") + "\n")
    bad = pl.DataFrame(chain(), schema=HEADER.split(","), orient="row").with_columns(strike=pl.lit(True))
    bad.write_parquet(tmp_path / "in/3.parquet")
    with pytest.raises(SchemaError) as caught:
        ingest(tmp_path / "in", layout, tmp_path / "out")
    text = str(caught.value)
    assert "2.csv: column 'strike' is missing; closest: 'stirke'" in text
    assert "2.csv: column 'bid' is missing; closest: 'bd'" in text
    assert "3.parquet: column 'strike' has type bool, which can't be read as a number" in text


def failing_inputs(folder: Path) -> dict[str, Path]:
    write(folder / "bad/a.csv", chain())
    (folder / "bad/b.csv.gz").write_bytes(gzip.compress((HEADER + "\n" + "x" * 9000).encode())[:-20])
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 10)
    write(folder / "foreign/a.csv", chain())
    (folder / "foreign/notes.docx").write_bytes(b"PK")
    return {name: folder / name for name in ("bad", "binary.csv", "foreign", "gone.csv")}


@pytest.mark.parametrize("name", ["bad", "binary.csv", "foreign", "gone.csv"])
def test_a_failing_run_leaves_the_former_output(tmp_path: Path, layout: Layout, name: str) -> None:
    out = tmp_path / "out"
    ingest(write(tmp_path / "good.csv", chain()), layout, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError):
        ingest(failing_inputs(tmp_path)[name], layout, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_crash_while_writing_leaves_the_former_output(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ingest(write(tmp_path / "good.csv", chain()), layout, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quote_table, "to_arrow", full)
    with pytest.raises(OSError, match="No space left"):
        ingest(write(tmp_path / "good.csv", chain(3)), layout, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_input_inside_the_output_is_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ConfigError, match="lies in the output folder"):
        ingest(write(tmp_path / "in.csv", chain()), layout, tmp_path)


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


@pytest.mark.real_data
def test_spx_2019(tmp_path: Path) -> None:
    if not SPX_SET.exists():
        pytest.skip(f"{SPX_SET} is absent")
    result = ingest(SPX_SET, load("cboe_snapshot"), tmp_path / "out")
    assert result.quotes_in == 569_184
    assert result.snapshots == 41
    assert result.reasons == {"expired": 562}  # SPX on the morning it settles, quoted 0/0 that afternoon
    quotes = pl.scan_parquet(result.quotes_path)
    assert quotes.select(pl.col("underlying_price").first()).collect().item() == 2919.04
    original = pl.read_parquet(sorted(SPX_SET.glob("*.parquet"))[0])
    total = original.filter(pl.col("bid") > 0)["bid"].cast(pl.String).cast(pl.Decimal(12, 4)).sum()
    assert quotes.select(pl.col("bid").sum()).collect().item() == pytest.approx(float(total), rel=1e-12)
    original.head(30_000).write_csv(tmp_path / "in.csv")
    original.head(30_000).write_parquet(tmp_path / "in.parquet")
    outcomes = [ingest(tmp_path / f"in.{kind}", load("cboe_snapshot"), tmp_path / kind) for kind in ("csv", "parquet")]
    assert outcomes[0].quotes_path.read_bytes() == outcomes[1].quotes_path.read_bytes()


# The peak of this process alone: `ru_maxrss` begins at the peak of the process that started it (Linux keeps it over
# exec), here of a pytest worker that may hold gigabytes.
MEMORY_PROGRAM = """
import sys
from pathlib import Path
from pipelines.ingest import ingest
from pipelines.layouts import load
result = ingest(sys.argv[1], load("cboe_snapshot"), sys.argv[2])
lines = Path("/proc/self/status").read_text().splitlines()
print(result.kept, next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
MEMORY_DAYS, MEMORY_CONTRACTS = 300, 2_000  # of one file


def write_file(file: Path, first: int) -> None:
    """A file of 600,000 rows in contract order, the hardest for a table sorted by time."""
    day = np.arange(MEMORY_DAYS).astype("timedelta64[D]") + np.datetime64("2018-01-01")
    contract = np.repeat(np.arange(first, first + MEMORY_CONTRACTS), MEMORY_DAYS)
    pl.DataFrame(
        {
            "quote_date": np.tile(day, MEMORY_CONTRACTS).astype("datetime64[us]"),
            "root": np.full(len(contract), "SPXW"),
            "expiration": np.datetime64("2019-06-28", "us") + (contract % 20).astype("timedelta64[D]"),
            "strike": (100 + contract).astype(np.float32),
            "cp": np.full(len(contract), "C"),
            "underlying_last": np.full(len(contract), 2919.04, dtype=np.float32),
            "bid": np.full(len(contract), 1.05, dtype=np.float32),
            "ask": np.full(len(contract), 1.15, dtype=np.float32),
            "volume": contract.astype(np.int32),
            "open_interest": contract.astype(np.int32),
        }
    ).write_parquet(file, mkdir=True)


def peak_bytes(folder: Path, files: int) -> int:
    """The most memory that ingesting so many files ever held, in a process of its own."""
    for number in range(files):
        write_file(folder / f"in/{number}.parquet", number * MEMORY_CONTRACTS)
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(folder / "in"), str(folder / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    kept, peak_kilobytes = map(int, finished.stdout.split())
    assert kept == files * MEMORY_CONTRACTS * MEMORY_DAYS
    return 1024 * peak_kilobytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's own peak is read from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """From two spills on, three million rows more take no more memory; held, their columns alone would take twice what
    is allowed, whatever the machine's threads and allocator."""
    smaller, larger = 4, 9
    row_bytes = sum(dtype.itemsize for dtype in quote_table._DTYPES.values())
    rows = MEMORY_CONTRACTS * MEMORY_DAYS
    assert smaller * rows > 2 * max(quote_table.SPILL_ROWS, quote_table.SLICE_ROWS)
    growth = peak_bytes(tmp_path / "larger", larger) - peak_bytes(tmp_path / "smaller", smaller)
    assert growth < (larger - smaller) * rows * row_bytes / 2
