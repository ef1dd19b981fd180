"""Tick features of real markets: futures and spot with ten levels, a stock with one-sided quotes of many exchanges.

Checked against sums made otherwise (NumPy over the whole tape), the slow reference, and what is known of such markets.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from serving.host.reference.tick_features import reference_rows
from serving.host.tick_features import STEP_FEATURES, TickRows, tick_rows
from serving.normal import Array
from tests.serving.host.tick_records import QUOTE, TRADE, Records
from tests.serving.native.built import built_core

built_core()
pytest.importorskip("pyarrow", reason="the sets are Parquet: pip install strikeforge[parquet]")

DATA = Path(__file__).parents[4] / "shared" / "data"
BINANCE, LEAN = DATA / "binance_l2_20240808", DATA / "us_equity_ticks_2013"
MARKETS = {
    "futures": ("binance_l2", BINANCE, "usdm_*.parquet", 10**8),
    "spot": ("binance_l2", BINANCE, "spot_*.parquet", 10**8),
    "stock": ("lean_ticks", LEAN, "ibm_*.parquet", 10**9),
}
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (BINANCE.exists() and LEAN.exists()), reason=f"the tick sets aren't in {DATA}"),
]


@cache
def market(name: str) -> tuple[Records, int, TickRows]:
    from serving.feeds.layouts import read_tape

    layout, folder, pattern, step_ns = MARKETS[name]
    records = read_tape(layout, sorted(folder.glob(pattern))).records[:200_000]
    return records, step_ns, tick_rows(records, step_ns)


def column(rows: Array, name: str) -> Array:
    return rows[:, STEP_FEATURES.index(name)]


@pytest.mark.parametrize("name", MARKETS)
def test_every_number_is_taken_and_finite(name: str) -> None:
    _, _, rows = market(name)
    assert len(rows.closed) > 1000
    assert np.isfinite(rows.closed).all()
    assert (rows.refused_books, rows.refused_numbers) == (0, 0)
    assert (rows.closed.std(axis=0) > 0).all()  # every column says something


@pytest.mark.parametrize("name", MARKETS)
def test_equal_to_the_reference(name: str) -> None:
    """1,500 records that begin in the midst of a tape, in steps so short that the ring of steps goes round."""
    records, _, _ = market(name)
    begin = 100_003
    part = records[begin : begin + 1500].copy()
    short = max(int(np.ptp(part["event_ns"])) // 150, 1)
    native = tick_rows(part, short, open_rows=True)
    closed, opened = reference_rows(part, short)
    assert len(closed) > 64
    np.testing.assert_array_equal(native.closed.view(np.uint64), closed.view(np.uint64))
    np.testing.assert_array_equal(native.open.view(np.uint64), opened.view(np.uint64))


@pytest.mark.parametrize("name", MARKETS)
def test_trades_of_each_step(name: str) -> None:
    """Counts and VWAP by np.bincount; from the first closed step on, the open one left out."""
    records, step_ns, rows = market(name)
    trades = records[records["kind"] == TRADE]
    number = np.maximum.accumulate(records["event_ns"])[records["kind"] == TRADE] // step_ns
    steps = rows.closed_start_ns // step_ns
    kept = np.isin(number, steps[1:])
    place = np.searchsorted(steps, number[kept])
    price, size = trades["values"][kept, 0], trades["values"][kept, 1]
    count, volume, money = (np.bincount(place, of, len(steps))[1:] for of in (np.ones(len(place)), size, price * size))
    assert count.sum() > 5_000
    np.testing.assert_allclose(np.expm1(column(rows.closed, "trade_intensity_1")[1:]), count, rtol=1e-12, atol=1e-12)
    traded = volume > 0
    mid = rows.closed_mid[1:][traded]
    vwap = mid * (1 + column(rows.closed, "vwap_distance_1")[1:][traded])
    np.testing.assert_allclose(vwap, money[traded] / volume[traded], rtol=1e-10)


@pytest.mark.parametrize("name", MARKETS)
def test_returns_of_all_steps_add_up(name: str) -> None:
    _, _, rows = market(name)
    total = np.log(rows.closed_mid[-1] / rows.closed_mid[0])
    assert column(rows.closed, "momentum_1")[1:].sum() == pytest.approx(total, rel=1e-6, abs=1e-12)
    longer = np.log(rows.closed_mid[64:] / rows.closed_mid[:-64])
    np.testing.assert_allclose(column(rows.closed, "momentum_64")[64:], longer, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["futures", "spot"])
def test_the_best_prices_are_the_quotes(name: str) -> None:
    """After a quote of both sides the row's spread and first imbalance are the quote's own."""
    records, step_ns, _ = market(name)
    part = records[:40_000].copy()
    rows = tick_rows(part, step_ns, open_rows=True)
    after = part["kind"][rows.open_record] == QUOTE
    bid, bid_size, ask, ask_size = part["values"][rows.open_record[after], :4].T
    mid = 0.5 * (bid + ask)
    np.testing.assert_array_equal(rows.open_mid[after], mid)
    np.testing.assert_array_equal(column(rows.open, "spread")[after], (ask - bid) / mid)
    np.testing.assert_array_equal(
        column(rows.open, "imbalance_1")[after], (bid_size - ask_size) / (bid_size + ask_size)
    )


@pytest.mark.parametrize("name", MARKETS)
def test_flow_moves_the_price(name: str) -> None:
    """Cont, Kukanov and Stoikov: prices go with the order flow of the same interval, more than with its trades."""
    _, _, rows = market(name)
    closed = rows.closed[64:]
    move = column(closed, "momentum_8")
    flow, trades = (np.corrcoef(column(closed, f"{what}_imbalance_8"), move)[0, 1] for what in ("order_flow", "trade"))
    assert flow > 0.3
    assert trades > 0.1
    assert flow > trades
