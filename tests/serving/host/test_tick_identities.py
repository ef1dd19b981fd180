"""What tick features must say whatever computes them: limits, symmetries, and markets worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.host.tick_features import STEP_FEATURES, tick_rows
from serving.normal import Array
from tests.serving.host.tick_records import (
    ASK,
    BID,
    BUYER,
    CENTRE,
    HEARTBEAT,
    SELLER,
    STEP_NS,
    TRADE,
    Records,
    Row,
    heartbeat,
    markets,
    picture,
    quote,
    records_of,
    trade,
)
from tests.serving.native.built import built_core

built_core()
COLUMN = {name: place for place, name in enumerate(STEP_FEATURES)}
BEGIN = picture(0, [(99.0, 2.0), (98.0, 2.0)], [(101.0, 2.0), (102.0, 2.0)])

FLIPPED = [name for name in STEP_FEATURES if name.startswith(("imbalance", "order_flow_imbalance", "trade_imbalance"))]
RETURNS = [name for name in STEP_FEATURES if name.startswith(("momentum", "vwap_distance", "micro_price"))]
UNMOVED = [
    name
    for name in STEP_FEATURES
    if name.startswith(("volume_", "trade_intensity", "quote_intensity", "elapsed", "trade_age", "skipped", "depth"))
]


def open_rows(rows: list[Row] | Records) -> Array:
    records = rows if isinstance(rows, np.ndarray) else records_of(rows)
    return tick_rows(records, STEP_NS, open_rows=True).open


def last(rows: list[Row]) -> dict[str, float]:
    """The open row after the last event, by name."""
    return dict(zip(STEP_FEATURES, open_rows(rows)[-1].tolist(), strict=True))


def changed(records: Records, price: float = 1.0, size: float = 1.0, shift: float = 0.0) -> Records:
    """Prices and sizes times factors; prices then moved by `shift`."""
    out = records.copy()
    values, trades = out["values"], out["kind"] == TRADE
    quotes = ~trades & (out["kind"] != HEARTBEAT)
    for rows, columns, factor, by in (
        (trades, [0], price, shift),
        (trades, [1], size, 0.0),
        (quotes, [0, 2], price, shift),
        (quotes, [1, 3], size, 0.0),
    ):
        values[np.ix_(rows, columns)] = values[np.ix_(rows, columns)] * factor + by
    return out


def mirrored(records: Records) -> Records:
    """Bids are asks, buyers sellers, and what was above the centre is as far below."""
    out = records.copy()
    trades = out["kind"] == TRADE
    quotes = ~trades & (out["kind"] != HEARTBEAT)
    out["values"][trades, 0] = 2 * CENTRE - out["values"][trades, 0]
    bid, ask = records["values"][quotes, 0:2], records["values"][quotes, 2:4]
    out["values"][quotes, 0:2], out["values"][quotes, 2:4] = ask, bid
    for column in (0, 2):
        out["values"][quotes, column] = 2 * CENTRE - out["values"][quotes, column]
    flags = records["flags"]
    swapped = (flags & ~np.uint8(3)) | ((flags & 1) << 1) | ((flags & 2) >> 1)
    out["flags"] = np.where(trades | quotes, swapped, flags)
    return out


@given(markets())
@settings(max_examples=60, deadline=None)
def test_limits(rows: list[Row]) -> None:
    found = open_rows(rows)

    def within(prefix: str, low: float, high: float) -> None:
        for name in STEP_FEATURES:
            if name.startswith(prefix):
                column = found[:, COLUMN[name]]
                assert (column >= low).all(), name
                assert (column <= high).all(), name

    for prefix in ("imbalance", "trade_imbalance", "profile_skew"):
        within(prefix, -1.0, 1.0)
    for prefix in ("point_of_control_share", "volume_share"):
        within(prefix, 0.0, 1.0)
    for prefix in ("spread", "realised", "trade_intensity", "quote_intensity", "trade_age", "skipped"):
        within(prefix, 0.0 if prefix != "spread" else -math.inf, math.inf)
    within("volume_spike", -math.log(2), math.inf)
    within("elapsed", 0.0, 1.0 - 1.0 / STEP_NS)
    assert (found[:, COLUMN["spread"]] > 0).all()
    half = 0.5 * found[:, COLUMN["spread"]]
    assert (np.abs(found[:, COLUMN["micro_price_distance"]]) <= half * (1 + 1e-12)).all()
    # Cauchy and Schwarz: a sum of n returns over the root of the sum of their squares is at most sqrt(n).
    assert (np.abs(found[:, COLUMN["trend_64"]]) <= math.sqrt(len(rows)) * (1 + 1e-9)).all()


@given(markets(), st.integers(-30, 30), st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_units_of_price_and_size_do_not_matter(rows: list[Row], price: int, size: int) -> None:
    records = records_of(rows)
    scaled = changed(records, 2.0**price, 2.0**size)
    np.testing.assert_array_equal(open_rows(scaled), open_rows(records))


@given(markets(), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_the_hour_does_not_matter(rows: list[Row], steps: int) -> None:
    records = records_of(rows)
    later = records.copy()
    later["event_ns"] += steps * STEP_NS
    np.testing.assert_array_equal(open_rows(later), open_rows(records))


@given(markets())
@settings(max_examples=60, deadline=None)
def test_a_mirrored_market_flips_signs(rows: list[Row]) -> None:
    """Shares flip exactly. Returns do up to their square: ln(1 + x) + ln(1 - x) = -x^2 - ..., |x| <= 60 ticks."""
    records = records_of(rows)
    far = 2.0**20
    ours = open_rows(changed(records, shift=far))
    theirs = open_rows(changed(mirrored(records), shift=far))
    for name in FLIPPED:
        np.testing.assert_array_equal(theirs[:, COLUMN[name]], -ours[:, COLUMN[name]], err_msg=name)
    for name in UNMOVED:
        np.testing.assert_array_equal(theirs[:, COLUMN[name]], ours[:, COLUMN[name]], err_msg=name)
    x = 120 * 0.125 / far
    for name in RETURNS:
        np.testing.assert_allclose(
            theirs[:, COLUMN[name]], -ours[:, COLUMN[name]], rtol=0, atol=4 * x * x, err_msg=name
        )
    for name in ("spread", "realised_volatility_1", "realised_volatility_8", "realised_volatility_64"):
        np.testing.assert_allclose(theirs[:, COLUMN[name]], ours[:, COLUMN[name]], rtol=8 * x, err_msg=name)


@given(markets(most=25), markets(most=25))
@settings(max_examples=40, deadline=None)
def test_nothing_is_left_of_the_65th_step_and_older(one: list[Row], other: list[Row]) -> None:
    """Two different pasts, then the same 65 steps: the same rows, bit for bit; nothing drifts."""
    begin = 100 * STEP_NS + max(row[0] for row in one + other)
    begin -= begin % STEP_NS
    common = [*picture(begin - STEP_NS, [(63.0, 1.0)], [(65.0, 2.0)])]
    for step in range(66):
        at = begin + step * STEP_NS
        common += [
            quote(at + 1, 63.0 + step % 3 * 0.25, 1.0 + step % 5, 65.0, 2.0),
            trade(at + 500, 64.0 + step % 7 * 0.1, 0.3 + step % 4, step % 3),
        ]
    # The picture of the step before the first of them ends both pasts with the same book.
    rows = [open_rows([*past, *common])[-6:] for past in (one, other)]
    np.testing.assert_array_equal(rows[0].view(np.uint64), rows[1].view(np.uint64))


def test_a_symmetric_book_leans_to_no_side() -> None:
    found = last([*BEGIN])
    for name in (*FLIPPED, *RETURNS, "trend_64", "profile_skew"):
        assert found[name] == 0, name
    assert found["spread"] == 0.02
    assert found["quote_intensity_1"] == math.log(2)


def test_before_the_book_is_usable_there_is_nothing() -> None:
    rows = [trade(1, 100.0, 5.0), quote(2, 99.0, 1.0, 0.0, 0.0, sides=BID), heartbeat(9 * STEP_NS)]
    found = tick_rows(records_of(rows), STEP_NS, open_rows=True)
    assert not found.open.any()
    assert not len(found.closed)
    begun = last([*rows, quote(9 * STEP_NS + 1, 0.0, 0.0, 101.0, 3.0, sides=ASK)])
    assert begun["vwap_distance_64"] == 0  # the trade before it wasn't of this market
    assert begun["imbalance_1"] == -0.5
    assert begun["skipped_steps"] == 0


def test_depth_imbalances_and_the_micro_price() -> None:
    bids = [(100.0 - n, 1.0 + n) for n in range(10)]
    asks = [(102.0 + n, 3.0) for n in range(4)]
    found = last(picture(0, bids, asks))
    for levels in (1, 3, 5, 10):
        bid, ask = sum(size for _, size in bids[:levels]), sum(size for _, size in asks[:levels])
        assert found[f"imbalance_{levels}"] == (bid - ask) / (bid + ask)
    # Stoikov's weighted mid: 3 offered at 102 against 1 bid at 100 lie nearer to the bid.
    assert found["micro_price_distance"] == pytest.approx((100.5 - 101.0) / 101.0, rel=1e-13)


@pytest.mark.parametrize(
    ("bid", "bid_size", "ask", "ask_size", "flow"),
    [
        (99.0, 5.0, 101.0, 2.0, 3.0),  # three more bid
        (99.0, 2.0, 101.0, 1.5, 0.5),  # half a lot less offered
        (99.5, 4.0, 101.0, 2.0, 4.0),  # a better bid counts whole
        (98.5, 4.0, 101.0, 2.0, -2.0),  # the bid is gone
        (99.0, 2.0, 100.5, 7.0, -7.0),  # a better offer
        (99.0, 2.0, 101.5, 7.0, 2.0),  # the offer is gone
    ],
)
def test_order_flow_of_cont_kukanov_stoikov(
    bid: float, bid_size: float, ask: float, ask_size: float, flow: float
) -> None:
    """Equation (1) of The Price Impact of Order Book Events (2014), in mean depths of the best level."""
    found = last([*BEGIN, quote(5, bid, bid_size, ask, ask_size)])
    depth = 0.5 * (2.0 + 0.5 * (bid_size + ask_size))
    for steps in (1, 8, 64):
        assert found[f"order_flow_imbalance_{steps}"] == flow / depth


def test_a_book_that_was_unusable_meanwhile_counts_as_one_change() -> None:
    away = [quote(1, 103.0, 9.0, 0.0, 0.0, sides=BID), quote(2, 0.0, 0.0, 0.0, 0.0, sides=ASK)]
    begin, back = quote(0, 99.0, 2.0, 101.0, 2.0), quote(3, 99.0, 5.0, 101.0, 2.0)
    assert last([begin, *away, back]) == last([begin, back])


def test_who_took_where_nobody_says() -> None:
    """Lee and Ready's quote rule; both flags at once say nothing."""
    for price, flags, share in (
        (100.5, 0, 1.0),
        (99.5, 0, -1.0),
        (100.0, 0, 0.0),
        (99.5, BUYER, 1.0),
        (100.5, SELLER, -1.0),
        (99.5, BUYER | SELLER, -1.0),
    ):
        assert last([*BEGIN, trade(1, price, 3.0, flags)])["trade_imbalance_1"] == share


def test_trades_against_the_mid() -> None:
    found = last([*BEGIN, trade(1, 100.0, 1.0, BUYER), trade(2, 102.0, 3.0, SELLER)])
    assert found["vwap_distance_1"] == 0.015
    assert found["trade_imbalance_1"] == -0.5
    assert found["trade_intensity_1"] == math.log(3)
    assert found["point_of_control_share"] == 0.75
    assert found["profile_skew"] == 0.75  # the trade at the mid is neither above nor below
    assert abs(found["point_of_control_distance"] - 0.02) <= 0.01  # half a bucket: the spread


def steady(steps: int, size: float = 1.0) -> list[Row]:
    """A trade of one size in each step, in a book that doesn't move."""
    rows = [*BEGIN]
    for step in range(steps):
        rows += [quote(step * STEP_NS + 10, 99.0, 2.0, 101.0, 2.0), trade(step * STEP_NS + 250, 100.0, size, BUYER)]
    return rows


def test_a_steady_market() -> None:
    found = last(steady(100))
    expected = {
        "volume_spike": 0.0,
        "volume_share_8": 0.5,
        **{f"trade_intensity_{n}": math.log(2) for n in (1, 8, 64)},
        **{f"quote_intensity_{n}": math.log(2) for n in (1, 8, 64)},
        **{f"trade_imbalance_{n}": 1.0 for n in (1, 8, 64)},
        "elapsed_share": 0.25,
        "trade_age": 0.0,
        "skipped_steps": 0.0,
        "spread": 0.02,
        "point_of_control_share": 1.0,
    }
    for name, value in found.items():
        if name != "point_of_control_distance":  # the middle of the bucket that holds the mid
            assert value == pytest.approx(expected.get(name, 0.0), abs=1e-15), name


def test_a_burst_of_volume_is_a_spike() -> None:
    found = last([*steady(20), trade(19 * STEP_NS + 300, 100.0, 9.0)])
    assert found["volume_spike"] == math.log(11 / 2)  # ten where one is usual, without deviation
    assert found["volume_share_8"] == pytest.approx((17 / 8) / (17 / 8 + 29 / 20))


def test_momentum_and_volatility_of_a_climb() -> None:
    """The mid doubles by 2^(1/16) each step."""
    rows: list[Row] = []
    mids = [100.0 * 2 ** (step / 16) for step in range(100)]
    for step, mid in enumerate(mids):
        rows.append(quote(step * STEP_NS, mid * 0.99, 1.0, mid * 1.01, 1.0))
    found, move = last(rows), math.log(2) / 16
    for steps in (1, 4, 8, 16, 64):
        assert found[f"momentum_{steps}"] == pytest.approx(steps * move, rel=1e-12)
    for steps in (1, 8, 64):
        assert found[f"realised_volatility_{steps}"] == pytest.approx(move, rel=1e-12)
    assert found["trend_64"] == pytest.approx(8.0, rel=1e-12)  # sqrt(64): all one way
    young = last(rows[:5])
    assert young["momentum_64"] == pytest.approx(4 * move, rel=1e-12)  # since the beginning
    assert young["realised_volatility_64"] == pytest.approx(move * math.sqrt(4 / 5), rel=1e-12)


def test_a_quiet_hour_is_seen() -> None:
    """Steps without an event don't exist, but rates know of them."""
    rows = [*steady(3), trade(12 * STEP_NS + 500, 100.0, 1.0, BUYER), quote(12 * STEP_NS + 750, 99.0, 2.0, 101.0, 2.0)]
    found = last(rows)
    assert found["skipped_steps"] == math.log(10)  # steps 3 to 11
    assert found["trade_intensity_8"] == math.log(1 + 4 / 13)
    assert found["elapsed_share"] == 0.75
    assert found["trade_age"] == math.log(1.25)
    assert len(tick_rows(records_of(rows), STEP_NS).closed) == 3


def test_heartbeats_make_steps() -> None:
    found = tick_rows(records_of([*BEGIN, *(heartbeat(step * STEP_NS) for step in range(1, 6))]), STEP_NS)
    assert found.closed_start_ns.tolist() == [step * STEP_NS for step in range(5)]
    assert not found.closed[1:, COLUMN["quote_intensity_1"]].any()
    assert not found.closed[1:, COLUMN["skipped_steps"]].any()
