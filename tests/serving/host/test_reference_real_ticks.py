"""The native loop is the slow reference on recorded ticks: futures and spot of one morning, both nets, both semantics.

Scalers are fitted on the same ticks and contracts listed around their price, so all columns move as a host's do. The
quoter is narrow and the limits are such that orders fill, are refused and halt within the first seconds.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable, listed_chain
from serving.host.limits import Limits
from serving.host.loop import HotLoop
from serving.host.records import Records
from serving.host.reference.compare import first_difference
from serving.host.reference.loop import STAGES, ReferenceLoop
from serving.host.reference.states import Kind
from serving.host.tick_features import TickSpec, fit_scaler, tick_rows
from tests.serving.host.worlds import (
    COLUMNS,
    CONTRACT_COLUMNS,
    UNLIMITED,
    WINDOW,
    engine_of,
    limits_of,
    spec_of,
)

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "data" / "binance_l2_20240808"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER.name} isn't in ../shared/data"),
]
STEP_NS = 250_000_000
FITTED, COMPARED, PLANTED = 40_000, 2_500, 1_500  # records
TICK = 0.1
MARKETS = ("usdm", "spot")
QUOTER = FixedWidth(half_width_money=0.3, quantity=1.0, requote_money=0.2, skew_money_per_unit=0.1)


@cache
def ticks_of(market: str) -> Records:
    files = sorted(FOLDER.glob(f"{market}_*.parquet"))
    assert len(files) == 3
    return read_tape("binance_l2", files, Heartbeats(STEP_NS)).records[:FITTED]


@cache
def world_of(market: str) -> tuple[TickSpec, ContractTable]:
    rows = tick_rows(ticks_of(market), STEP_NS)
    spec = TickSpec(
        STEP_NS, WINDOW, COLUMNS, CONTRACT_COLUMNS, fit_scaler(rows.closed, clip=3.0), spec_of().contract_scaler
    )
    return spec, listed_chain(float(rows.closed_mid[0]), quoted=8)


def limits_around(price: float, **changed: Any) -> Limits:
    return limits_of(**UNLIMITED | {
        "tick_money": TICK, "multiplier": 0.1, "collar_money": 0.2, "collar_share": 0.0001, "position_quantity": 3.0,
        "delta": 0.4, "drawdown_money": 1.5, "order_rate_count": 100.0, "order_rate_window_ns": 10**9,
        "market_move_share": 6.0 / price, "market_move_window_ns": 10**10, "market_move_pause_ns": 3 * 10**8,
    } | changed)  # fmt: skip


def both(
    family: str, semantics: str, market: str, strategy: FixedWidth | None, limits: Limits, records: Records,
    without: tuple[str, ...] = (),
) -> tuple[Records, Records]:  # fmt: skip
    """What left the product and the reference."""
    (spec, contracts), every_ns = world_of(market), 10**9
    product = HotLoop(
        engine_of(family, semantics), spec, contracts, limits, strategy, fair_values_every_ns=every_ns
    ).process(records)
    reference = ReferenceLoop(
        engine_of(family, semantics), spec, contracts, limits, strategy, fair_values_every_ns=every_ns, without=without
    )
    return product, reference.process(records)


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(("family", "semantics"), [("pricing_lstm", "window"), ("pricing_transformer", "stateful")])
def test_every_byte_is_the_same(family: str, semantics: str, market: str, limited: bool) -> None:
    price = world_of(market)[1].reference_spot
    limits = limits_around(price) if limited else limits_of(**UNLIMITED, tick_money=TICK)
    product, reference = both(family, semantics, market, QUOTER, limits, ticks_of(market)[:COMPARED])
    assert first_difference(product, reference) == ""
    kinds = Counter(product["kind"].tolist())
    assert kinds[Kind.ORDER] > (20 if limited else 100)
    assert limited or kinds[Kind.FILL] > 20


@pytest.mark.parametrize("market", MARKETS)
def test_the_null_strategy_sends_nothing(market: str) -> None:
    limits = limits_of(**UNLIMITED, tick_money=TICK)
    product, reference = both("pricing_lstm", "stateful", market, None, limits, ticks_of(market)[:COMPARED])
    assert first_difference(product, reference) == ""
    assert set(product["kind"].tolist()) == {Kind.SIGNAL}


@pytest.mark.parametrize("stage", STAGES)
def test_a_reference_without_one_stage_differs(stage: str) -> None:
    records, limits = ticks_of("usdm")[:PLANTED], limits_around(world_of("usdm")[1].reference_spot)
    product, reference = both("pricing_lstm", "window", "usdm", QUOTER, limits, records, (stage,))
    assert first_difference(product, reference) != ""
