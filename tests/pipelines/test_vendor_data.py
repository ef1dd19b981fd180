"""Whole data sets through their layouts: a made-up coin market, SPY 2021 and US equities 2013 to 2015.

The coin market is tests/pipelines/coins.py; the real sets lie in ../shared/data, and their tests skip where they don't.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import run
from pipelines.config import load_config
from pipelines.ingest import ingest
from pipelines.layouts import load
from pipelines.snapshots import read_snapshots
from serving.errors import TooFewSnapshotsError
from serving.last_seen import last_seen
from serving.quotes import Quotes
from serving.surface import Surface, build_surface
from tests.pipelines import coins, market
from tests.pipelines.test_vendors import ingested

SHARED = Path(__file__).parents[2].parent / "shared/data"
SPY, LEAN = SHARED / "spy_options_2021", SHARED / "equity_options_hourly_2014"


# --- a made-up coin market


@pytest.fixture(scope="module")
def coin_quotes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coins")
    return ingest(market.write(coins.market(2), folder / "coins.csv"), load("deribit"), folder / "out").quotes_path


def test_coin_surfaces_give_back_the_venues_volatilities(coin_quotes: Path) -> None:
    """Away from the tick's noise; where the forward is missing, within what parity can tell on Deribit's tick."""
    truth = coins.market(2)
    known_volatility = {
        (row["currency"], row["timestamp"][:19], row["expiry"][:10], row["strike"]): row["implied_volatility"]
        for row in truth.iter_rows(named=True)
    }
    errors: dict[str, list[float]] = {}
    for underlying, quotes in read_snapshots(coin_quotes):
        for key, smile in build_surface(quotes).smiles.items():
            days = np.round(smile.tau * 365.0)
            exact = float((key.expiry - quotes.ts) / np.timedelta64(1, "h")) / 24.0  # quoted in hours, read in days
            for strike, volatility in zip(smile.strike, smile.volatility, strict=True):
                if days < 6 or abs(np.log(strike / smile.forward)) > 0.5 * np.sqrt(smile.tau):
                    continue
                name = (underlying, str(quotes.ts)[:19], str(key.expiry)[:10], strike)
                found = volatility * np.sqrt(days / exact)
                errors.setdefault(smile.origin, []).append(found - known_volatility[name])
    assert set(errors) == {"venue", "parity"}
    for origin, limit in (("venue", 0.0015), ("parity", 0.0015)):
        assert float(np.sqrt(np.mean(np.square(errors[origin])))) < limit, origin


def test_one_currency_of_several(coin_quotes: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything = list(read_snapshots(coin_quotes))
    with caplog.at_level("INFO"):
        chosen = list(read_snapshots(coin_quotes, ["ETH"]))
    assert {name for name, _ in everything} == {"BTC", "ETH"}
    assert [quotes.ts for _, quotes in chosen] == [quotes.ts for name, quotes in everything if name == "ETH"]
    left = sum(len(quotes) for name, quotes in everything if name == "BTC")
    assert f"left out BTC ({left} quotes)" in caplog.text
    with pytest.raises(
        Exception, match=r"data\.underlyings names SOL, which the quotes don't hold; they hold BTC, ETH"
    ):
        list(read_snapshots(coin_quotes, ["SOL"]))


@pytest.mark.slow
def test_several_currencies_in_one_run(tmp_path: Path) -> None:
    """As a user runs it; the net is small, so no claim about its error is made here."""
    path = market.write(coins.market(14), tmp_path / "deribit.csv")
    test_from = coins.first_day() + datetime.timedelta(days=10)
    cfg = load_config([
        "experiment=spx_2019", "data.layout=deribit", f"data.path={path}", f"split.test_from={test_from}",
        *market.SMALL_NET, *market.places(tmp_path),
    ])  # fmt: skip
    run.run(cfg)
    rows = pl.read_parquet(cfg.folder / "features/rows.parquet")
    assert set(rows["underlying"]) == {"BTC", "ETH"}
    summary = json.loads((cfg.folder / "features/summary.json").read_text())
    assert summary["passed_over"] == []
    found = json.loads((cfg.folder / "metrics.json").read_text())["test"]
    assert found["anchored_sticky_strike"]["iv_rmse"] < found["sticky_strike"]["iv_rmse"]
    assert np.isfinite(found["model"]["iv_rmse"])


# --- real sets


def usable(quotes_path: Path) -> list[tuple[str, Quotes, Surface]]:
    found = ((name, quotes, build_surface(quotes)) for name, quotes in read_snapshots(quotes_path))
    return [(name, quotes, surface) for name, quotes, surface in found if last_seen(surface).usable]


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not SPY.exists(), reason="../shared/data/spy_options_2021 isn't there")
def test_spy_2021(tmp_path: Path) -> None:
    """Twenty contracts a day: a few days have three pairs in one expiry, which is what a forward needs."""
    result, table, refused = ingested(SPY, "historicaloptiondata", tmp_path)
    assert (result.quotes_in, result.snapshots) == (5040, 252)
    assert result.reasons == {"crossed": 17} == dict(refused["reason"].value_counts().iter_rows())
    assert table.select("underlying", "root", "style").unique().rows() == [("SPY", "SPY", "american")]
    surfaces = usable(result.quotes_path)
    assert len(surfaces) >= 40
    for _, quotes, surface in surfaces:
        for smile in surface.smiles.values():
            if smile.from_parity and 0.02 < smile.tau < 0.5:
                assert abs(smile.forward / quotes.spot - 1.0) < 0.01
                assert 0.05 < np.median(smile.volatility) < 0.6


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not LEAN.exists(), reason="../shared/data/equity_options_hourly_2014 isn't there")
def test_lean_2014(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counts, the split of AAPL, and smiles in which calls and puts agree at the money."""
    result, table, _ = ingested(LEAN, "lean_hourly", tmp_path)
    assert (result.quotes_in, result.snapshots) == (62066, 61)
    assert result.reasons == {"expired": 136, "no_price": 6602, "crossed": 4}
    assert (table["expiry"].dt.convert_time_zone("America/New_York").dt.weekday() <= 5).all()
    with caplog.at_level("WARNING"):
        surfaces = usable(result.quotes_path)
    assert len([message for message in caplog.messages if "split" in message]) == 1
    assert "AAPL: the price goes from 645.57 to 92.31" in caplog.text
    kinks = []
    for name, quotes, surface in surfaces:
        assert quotes.american is not None
        for smile in surface.smiles.values():
            assert smile.exercise_rate is not None
            below, above = np.flatnonzero(smile.right < 0), np.flatnonzero(smile.right > 0)
            if name in ("AAPL", "GOOG") and smile.tau > 0.04 and below.size and above.size:
                kinks.append(abs(smile.volatility[above[0]] - smile.volatility[below[-1]]))
    assert len(kinks) > 150
    assert np.median(kinks) < 0.004, "call and put next to the forward agree within 0.4 vol points"


@pytest.mark.real_data
@pytest.mark.skipif(not LEAN.exists(), reason="../shared/data/equity_options_hourly_2014 isn't there")
def test_lean_2014_is_too_short_for_a_run_and_says_so(tmp_path: Path) -> None:
    cfg = load_config([
        "experiment=spx_2019", "data.layout=lean_hourly", f"data.path={LEAN}", "split.test_from=2014-06-09",
        *market.places(tmp_path),
    ])  # fmt: skip
    with pytest.raises(TooFewSnapshotsError, match="too few dates with scored quotes: have 5 before"):
        run.run(cfg)


@pytest.mark.slow
def test_a_coin_market_is_never_priced_much_worse_than_by_the_anchors(tmp_path: Path) -> None:
    """The default net on six weeks of coins: at most 5 % above anchored sticky strike."""
    path = market.write(coins.market(45), tmp_path / "deribit.csv")
    test_from = coins.first_day() + datetime.timedelta(days=31)
    cfg = load_config([
        "experiment=spx_2019", "data.layout=deribit", f"data.path={path}", f"split.test_from={test_from}",
        *market.places(tmp_path),
    ])  # fmt: skip
    run.run(cfg)
    found = json.loads((cfg.folder / "metrics.json").read_text())["test"]
    assert found["model"]["iv_rmse"] <= 1.05 * found["anchored_sticky_strike"]["iv_rmse"]
    assert found["anchored_sticky_strike"]["iv_rmse"] < 0.6 * found["sticky_strike"]["iv_rmse"]
