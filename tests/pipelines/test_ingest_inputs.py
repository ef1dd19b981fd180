"""Every form of input gives the same table, and an input that fails leaves what was there."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines import quote_table, readers
from pipelines.ingest import ingest
from pipelines.layouts import Layout
from serving import schema
from serving.errors import ConfigError, DataError, SchemaError
from tests.pipelines.chains import HEADER, chain, changed, layout, write

__all__ = ["layout"]  # fixtures


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
