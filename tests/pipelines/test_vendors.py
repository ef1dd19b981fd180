"""Every vendor's layout reads a small file made by hand: counts, times, units, styles.

Fixtures: tests/fixtures/<layout>.csv or .txt. That a new vendor needs one file only is shown with a layout that is no
part of the project.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pipelines.layouts
from pipelines import run
from pipelines.config import load_config
from pipelines.ingest import IngestResult, ingest
from pipelines.layouts import known, load
from pipelines.snapshots import read_snapshots
from serving import schema
from serving.errors import ConfigError, SchemaError
from tests.pipelines import market

FIXTURES = Path(__file__).parents[1] / "fixtures"


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=datetime.UTC)  # type: ignore[misc, arg-type]


def ingested(path: Path, layout: str, out: Path, **options: Any) -> tuple[IngestResult, pl.DataFrame, pl.DataFrame]:
    """The result, the table and the quarantine; what holds for every layout is asserted here."""
    result = ingest(path, load(layout, options), out)
    table, refused = pl.read_parquet(result.quotes_path), pl.read_parquet(result.quarantine_path)
    assert result.quotes_in == result.kept + result.quarantined == len(table) + len(refused)
    assert table.equals(table.sort(schema.IDENTITY))
    numbers = {name: pl.col(name).fill_null(np.nan) for name in schema.NULLABLE}
    schema.check({name: table.with_columns(**numbers)[name].to_numpy() for name in schema.NAMES})
    return result, table, refused


def test_historicaloptiondata(tmp_path: Path) -> None:
    result, table, refused = ingested(FIXTURES / "historicaloptiondata.csv", "historicaloptiondata", tmp_path)
    assert (result.quotes_in, result.kept, result.quarantined) == (7, 5, 2)
    assert refused.select("row", "reason").rows() == [(6, "crossed"), (7, "underlying_price_conflict")]
    spx, spxw = (table.filter(pl.col("root") == root) for root in ("SPX", "SPXW"))
    assert table["underlying"].to_list() == ["IBM", "SPX", "SPX", "SPY", "SPY"]
    assert (spx["style"][0], spx["settlement"][0]) == ("european", "am")
    assert (spxw["style"][0], spxw["settlement"][0]) == ("european", "pm")
    assert spx["expiry"][0] == utc(2021, 2, 19, 14, 30)
    spy = table.filter(pl.col("root") == "SPY")
    assert spy["style"].to_list() == ["american"] * 2
    assert spy["ts"].to_list() == [utc(2021, 1, 4, 21)] * 2
    assert spy["expiry"].to_list() == [utc(2021, 1, 29, 21)] * 2
    assert spy.select("right", "strike", "bid", "ask", "volume", "open_interest").row(0) == (
        "P", 345.0, 2.76, 2.78, 7424.0, 48199.0,
    )  # fmt: skip
    saturday = table.filter(pl.col("root") == "IBM")
    assert saturday["expiry"][0] == utc(2014, 6, 20, 20), "a Saturday's expiry is the Friday's"
    earlier = ingested(FIXTURES / "historicaloptiondata.csv", "historicaloptiondata", tmp_path, snapshot_time="15:45")
    assert earlier[0].last == utc(2021, 1, 4, 20, 45)


def test_lean_hourly(tmp_path: Path) -> None:
    result, table, refused = ingested(FIXTURES / "lean_hourly.csv", "lean_hourly", tmp_path)
    assert (result.quotes_in, result.kept, result.quarantined) == (7, 4, 3)
    assert refused.select("row", "reason").rows() == [(4, "expired"), (6, "no_price"), (7, "bad_timestamp")]
    assert "20140609 noon:00" in refused["detail"][2]
    assert table["ts"].to_list() == [utc(2014, 6, 6, 14)] * 2 + [utc(2014, 6, 6, 20), utc(2014, 6, 9, 14)], (
        "a quote stands at its hour's end"
    )
    assert table["expiry"].unique().sort().to_list() == [utc(2014, 6, 13, 20), utc(2014, 6, 20, 20)]
    assert set(table["style"]) == {"american"}
    assert table.select("strike", "bid", "bid_size", "ask_size", "underlying_price").row(3) == (
        92.14, 1.9, 100.0, 120.0, 93.3,
    )  # fmt: skip


def test_optionsdx(tmp_path: Path) -> None:
    result, table, refused = ingested(FIXTURES / "optionsdx.txt", "optionsdx", tmp_path)
    assert (result.quotes_in, result.kept, result.quarantined) == (6, 4, 2), "quotes are counted after unpivoting"
    assert sorted(refused.select("row", "reason").rows()) == [(2, "no_price"), (3, "crossed")]
    assert table["ts"].to_list() == [utc(2020, 1, 2, 21)] * 3 + [utc(2020, 1, 3, 21)]
    assert set(table["expiry"]) == {utc(2020, 1, 17, 21)}
    call, put = table.row(0, named=True), table.row(1, named=True)
    assert (call["right"], call["strike"], call["bid"], call["ask"]) == ("C", 3260.0, 30.9, 31.3)
    assert (put["right"], put["strike"], put["bid"], put["ask"]) == ("P", 3260.0, 30.1, 30.5)
    assert (call["volume"], call["bid_size"], call["ask_size"]) == (120.0, 12.0, 40.0)
    assert (put["volume"], put["bid_size"], put["ask_size"]) == (55.0, 8.0, 9.0)
    assert table.select("underlying", "root", "style", "settlement").unique().rows() == [
        ("SPX", "SPX", "european", "pm")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({"underlying": "SPY"}, ("SPY", "SPY", "american", "pm")),
        ({"underlying": "NDX", "root": "NDXP"}, ("NDX", "NDXP", "european", "pm")),
        ({"underlying": "XYZ", "style": "european", "settlement": "am"}, ("XYZ", "XYZ", "european", "am")),
    ],
)
def test_optionsdx_is_told_what_the_file_does_not_say(
    tmp_path: Path, constants: dict[str, str], expected: tuple[str, ...]
) -> None:
    table = ingested(FIXTURES / "optionsdx.txt", "optionsdx", tmp_path, constants=constants)[1]
    assert table.select("underlying", "root", "style", "settlement").unique().rows() == [expected]


def test_optionsdx_header_may_be_written_in_other_ways(tmp_path: Path) -> None:
    """Without brackets, without blanks, with the least of columns, as CSV or Parquet: the same quotes."""
    expected = ingested(FIXTURES / "optionsdx.txt", "optionsdx", tmp_path / "as-it-is")[1]
    lines = (FIXTURES / "optionsdx.txt").read_text().splitlines()
    (tmp_path / "plain.csv").write_text("\n".join(line.replace("[", "").replace("]", "") for line in lines) + "\n")
    assert ingested(tmp_path / "plain.csv", "optionsdx", tmp_path / "plain")[1].equals(expected)
    least = ["QUOTE_UNIXTIME", "UNDERLYING_LAST", "EXPIRE_DATE", "STRIKE", "C_BID", "C_ASK", "P_BID", "P_ASK"]
    rows = [line.split(",") for line in lines]
    names = [name.strip(" []") for name in rows[0]]
    columns = {f" [{name}]": [row[names.index(name)].strip() for row in rows[1:]] for name in least}
    pl.DataFrame(columns).write_parquet(tmp_path / "least.parquet")
    found = ingested(tmp_path / "least.parquet", "optionsdx", tmp_path / "least")[1]
    lacking = ["volume", "bid_size", "ask_size"]
    assert found.drop(lacking).equals(expected.drop(lacking))
    assert all(found[name].null_count() == len(found) for name in lacking)


def test_text_files_are_for_vendors_that_write_them(tmp_path: Path) -> None:
    (tmp_path / "quotes.txt").write_text((FIXTURES / "deribit.csv").read_text())
    with pytest.raises(Exception, match=r"must end in \.csv, \.csv\.gz, \.parquet$"):
        ingest(tmp_path / "quotes.txt", load("deribit"), tmp_path / "out")


def test_deribit(tmp_path: Path) -> None:
    result, table, refused = ingested(FIXTURES / "deribit.csv", "deribit", tmp_path)
    assert (result.quotes_in, result.kept, result.quarantined) == (7, 4, 3)
    assert refused.select("row", "reason").rows() == [
        (5, "no_price"), (7, "forward_not_positive"), (6, "underlying_price_conflict"),
    ]  # fmt: skip
    assert "the median of this time and underlying is 64210.0" in refused["detail"][2]
    assert table["ts"].to_list() == [utc(2024, 3, 4, 8)] * 3 + [utc(2024, 3, 4, 16)]
    assert set(table["expiry"]) == {utc(2024, 3, 29, 8)}, "a date alone is 08:00 UTC"
    assert table["underlying"].to_list() == ["BTC", "BTC", "ETH", "BTC"]
    assert table["underlying_price"].to_list() == [63250.1, 63250.1, 3480.0, 64210.0], "one index per snapshot"
    assert table["forward"].to_list() == [63875.25, 63875.25, None, 64900.0]
    assert table.select("style", "currency", "price_unit").unique().rows() == [("european", "USD", "coin")]
    first, ether, last = (quotes for _, quotes in read_snapshots(result.quotes_path))
    assert first.coin
    assert first.spot == 63250.1
    np.testing.assert_allclose(first.bid, [0.0515 * 63250.1, 0.0530 * 63250.1])
    assert first.venue_forward is not None
    assert ether.venue_forward is None
    assert last.spot == 64210.0


def test_deribit_times_may_be_typed_and_forwards_absent(tmp_path: Path) -> None:
    expected = ingested(FIXTURES / "deribit.csv", "deribit", tmp_path / "text")[1].drop("forward")
    typed = pl.read_csv(FIXTURES / "deribit.csv").filter(pl.col("forward_price").fill_null(1.0) != 0.0)
    naive = pl.col("timestamp").str.replace(" ", "T").str.replace("Z", "").str.to_datetime("%Y-%m-%dT%H:%M:%S")
    typed = typed.with_columns(naive, pl.col("expiry").str.slice(0, 10).str.to_date())
    typed.drop("forward_price").write_parquet(tmp_path / "typed.parquet")
    found = ingested(tmp_path / "typed.parquet", "deribit", tmp_path / "out")[1]
    assert found.drop("forward").equals(expected)
    assert found["forward"].null_count() == len(found)


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    for layout, name in (("optionsdx", "P_ASK"), ("deribit", "index_price"), ("lean_hourly", "hour_start_et"),
                         ("historicaloptiondata", "optionroot")):  # fmt: skip
        source = next(FIXTURES.glob(f"{layout}.*"))
        (tmp_path / "in.csv").write_text(source.read_text().replace(name, "else", 1))
        with pytest.raises(SchemaError, match=f"column '{name}' is missing"):
            ingest(tmp_path / "in.csv", load(layout), tmp_path / "out")


def test_options_a_layout_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'deribit' has no option 'constants'; it takes: snapshot_time"):
        load("deribit", {"constants": {"currency": "EUR"}})
    with pytest.raises(ConfigError, match=r"constants.price_unit can't be given.*underlying, root, style"):
        load("optionsdx", {"constants": {"price_unit": "coin"}})
    with pytest.raises(ConfigError, match=r"constants\.style must be one of european, american, found 'asian'"):
        load("optionsdx", {"constants": {"style": "asian"}})


@pytest.mark.parametrize("layout", ["historicaloptiondata", "lean_hourly", "optionsdx", "deribit"])
def test_layouts_run_on_top_of_another_choice(layout: str) -> None:
    """`data.layout=NAME` over the defaults of cboe_snapshot leaves the layout its own times and columns."""
    base = ["experiment=spx_2019", "data.path=x", "split.test_from=2020-01-01", "out=y"]
    over, own = load_config([*base, f"data.layout={layout}"]), load_config([*base, f"data={layout}"])
    for cfg in (over, own):
        assert cfg.data.layout == layout
        assert (cfg.data.time_zone, cfg.data.snapshot_time) == (None, None)
        assert cfg.data.columns == cfg.data.constants == cfg.data.settlement_by_root == {}
        assert cfg.data.underlyings == ()


# --- a new vendor


VENDOR = '''
from pipelines.layouts.base import ROW_COLUMN, Layout, refuse_unknown_options
import polars as pl

def both(table):
    shared = ["when", "until", "at", "stock", ROW_COLUMN]
    return pl.concat(
        table.select(*shared, pl.lit(right).alias("right"), bid=f"{right}b", ask=f"{right}a") for right in "CP"
    )

def layout(options):
    refuse_unknown_options("acme_two_sided", options, ())
    return Layout(
        name="acme_two_sided", time_zone="UTC", unpivot=both,
        columns={"ts": "when", "expiry": "until", "strike": "at", "underlying_price": "stock", "right": "right",
                 "bid": "bid", "ask": "ask"},
        constants={"underlying": "AB", "root": "AB", "style": "european", "settlement": "pm", "currency": "EUR",
                   "price_unit": "money"},
        file_columns=("when", "until", "at", "stock", "Cb", "Ca", "Pb", "Pa"),
    )
'''  # fmt: skip


@pytest.mark.slow
def test_a_new_vendor_is_one_file_from_quotes_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor/acme_two_sided.py").write_text(VENDOR)
    monkeypatch.setattr(pipelines.layouts, "__path__", [*pipelines.layouts.__path__, str(tmp_path / "vendor")])
    assert "acme_two_sided" in known()
    table = market.market()
    sides = [
        table.filter(pl.col("right") == right).select(
            when="ts", until="expiry", at="strike", stock="underlying_price",
            **{f"{right}b": pl.col("bid"), f"{right}a": pl.col("ask")},
        )
        for right in "CP"
    ]  # fmt: skip
    wide = sides[0].join(sides[1], on=["when", "until", "at", "stock"])
    wide.write_csv(tmp_path / "acme.csv")
    cfg = load_config([
        "experiment=spx_2019", "data.layout=acme_two_sided", f"data.path={tmp_path / 'acme.csv'}",
        f"split.test_from={market.TEST_FROM}", "features.window=5", "features.smallest_rows=5", *market.SMALL_NET,
        *market.places(tmp_path),
    ])  # fmt: skip
    run.run(cfg)
    counts = json.loads((cfg.folder / "ingest/counts.json").read_text())
    assert counts["layout"] == "acme_two_sided"
    assert counts["quotes_in"] == 2 * len(wide) == counts["kept"] + counts["quarantined"]
    assert (cfg.folder / "report.html").exists()
