"""The loop on an hour of a real market (Bitcoin perpetual, 2024-08-08): as the slow reference says, every time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable, listed_chain
from serving.host.loop import HotLoop
from serving.host.records import Kind, Records
from serving.host.reference.compare import first_difference, without_times
from serving.host.reference.loop import ReferenceLoop
from serving.host.tick_features import TickSpec, fit_scaler, tick_rows
from tests.serving.host.live import Live
from tests.serving.host.worlds import UNLIMITED, engine_of, limits_of, spec_of

DATA = Path(__file__).parents[4] / "shared" / "data" / "binance_l2_20240808"
FILES = [DATA / f"usdm_btcusdt_20240808_{part}.parquet" for part in ("bbo", "book10", "trades")]
STEP_NS = 1_000_000_000
LIMITS = limits_of(**UNLIMITED | {"position_quantity": 10.0, "multiplier": 1.0, "tick_money": 0.5})
QUOTER = FixedWidth(half_width_money=1.0, quantity=1.0, requote_money=0.5, skew_money_per_unit=0.2)

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not all(file.exists() for file in FILES), reason=f"the order book of {DATA} isn't here"),
]


@cache
def ticks() -> Records:
    return read_tape("binance_l2", FILES, Heartbeats(STEP_NS)).records


@cache
def spec() -> TickSpec:
    """Fitted on these ticks, for the worlds' nets."""
    rows = tick_rows(ticks(), STEP_NS)
    return replace(spec_of(), step_ns=STEP_NS, step_scaler=fit_scaler(rows.closed))


@cache
def contracts() -> ContractTable:
    mids = tick_rows(ticks(), STEP_NS).closed_mid
    return listed_chain(float(mids[mids > 0][0]), expiry_days=(1, 7, 30), quoted_days=7)


def loop_of(strategy: FixedWidth | None = QUOTER) -> HotLoop:
    return HotLoop(engine_of(), spec(), contracts(), LIMITS, strategy)


def test_in_pieces_as_in_one_and_again() -> None:
    records, loop = ticks(), loop_of()
    whole = loop.process(records)
    again = loop_of()
    cuts = np.random.default_rng(1).integers(0, len(records), 20)
    pieces = [again.process(piece) for piece in np.split(records, np.sort(cuts))]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    board = loop.board.read()
    assert board["state"] == "active"
    assert min(board[name] for name in ("orders", "fills", "advances", "trades")) > 100
    assert board["gaps"] == board["unknown"] == board["skipped"] == board["time_went_back"] == 0
    assert np.isfinite(board["fair"]).all()


def test_as_the_slow_reference() -> None:
    records = ticks()[:4000]
    reference = ReferenceLoop(engine_of(), spec(), contracts(), LIMITS, QUOTER)
    product = loop_of().process(records)
    assert (product["kind"] == Kind.ORDER).any()
    assert first_difference(product, reference.process(records)) == ""


def test_rings_give_what_memory_gives(tmp_path: Path) -> None:
    records = ticks()[:20_000]
    expected = without_times(loop_of().process(records))
    live = Live(tmp_path, engine=engine_of(), limits=LIMITS, strategy=QUOTER, spec=spec(), contracts=contracts())
    with live.running(idle_exit_s=0.3):
        live.write(records)
    names: dict[str, Any] = {"orders": Kind.ORDER, "fills": Kind.FILL, "signals": Kind.SIGNAL}
    for name, kind in names.items():
        assert live.left(name).tobytes() == expected[expected["kind"] == kind].tobytes(), name
    assert live.loop.board.number("allocations") == 0


def test_the_null_strategy_sends_nothing() -> None:
    assert len(loop_of(None).process(ticks())) == 0
