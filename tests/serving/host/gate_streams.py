"""Random streams of all that a risk gate can meet, run through the native gate and the reference alike.

A stream is a list of operations (tuples, the first word names it). Prices and quantities are drawn around fair values and
around the limits, often exactly on them, so that short streams meet every check from both sides.
What `run_native` and `run_reference` saw is a list of the same shape: after every operation the answer, all bytes that left, the
state, its reason, profit and best profit, every contract's position, cash and working orders, refusals by reason.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np

from serving import native
from serving.host.reference.risk import ReferenceGate
from serving.host.reference.states import ContractState, Intent, Market, Outbox, Reason, Side, Working

CONTRACTS = 3
TICK = 0.25
Operation = tuple[Any, ...]
START = 1_700_000_000_000_000_000
MILLISECOND = 1_000_000


def limits_of(**changed: float) -> Any:
    """Limits that random streams reach."""
    return SimpleNamespace(**{
        "collar_money": 0.5, "collar_share": 0.1, "order_quantity": 4.0, "position_quantity": 6.0,
        "notional_money": 700.0, "delta": 40.0, "gamma": 3.0, "vega": 600.0, "loss_money": 150.0,
        "drawdown_money": 100.0, "order_rate_count": 6.0, "order_rate_window_ns": 40 * MILLISECOND,
        "stale_book_ns": 30 * MILLISECOND, "anomaly_score": 3.0, "clipped_share": 0.5, "market_move_share": 0.03,
        "market_move_window_ns": 60 * MILLISECOND, "market_move_pause_ns": 25 * MILLISECOND,
        "reject_burst_count": 9.0, "multiplier": 10.0, "tick_money": TICK,
    } | changed)  # fmt: skip


def stream(seed: int, length: int) -> list[Operation]:
    rng = np.random.default_rng(seed)
    now, spot, fair = START, 100.0, [5.0, 8.0, 2.5]
    operations: list[Operation] = []

    def market() -> Operation:
        nonlocal now, spot
        now += int(rng.choice([0, 1, 5, 25, 60])) * MILLISECOND
        spot *= math.exp(rng.normal() * rng.choice([0.001, 0.02]))
        age = int(rng.choice([0, 0, 0, 29, 30, 31])) * MILLISECOND
        values = []
        for place in range(CONTRACTS):
            fair[place] = max(TICK, fair[place] + TICK * float(rng.integers(-2, 3)))
            row = [fair[place], rng.choice([-0.5, 0.25, 1.0]), rng.choice([0.01, 0.1]), rng.choice([2.0, 20.0])]
            if rng.random() < 0.03:
                row[int(rng.integers(4))] = math.nan
            values.append(tuple(float(one) for one in row))
        seen = math.nan if rng.random() < 0.03 else spot
        score = float(rng.choice([0.0, 3.0, 3.5, math.nan], p=[0.9, 0.06, 0.03, 0.01]))
        clipped = float(rng.choice([0.0, 0.5, 0.75], p=[0.9, 0.07, 0.03]))
        return ("market", now, now - age, seen, score, clipped, bool(rng.random() < 0.02), tuple(values))

    def submit() -> Operation:
        contract = int(rng.integers(CONTRACTS)) if rng.random() < 0.98 else int(rng.choice([3, 65535]))
        side = int(rng.integers(2))
        what = int(rng.choice([Side.NEW, Side.REPLACE, Side.CANCEL], p=[0.55, 0.3, 0.15]))
        flags = what | side if rng.random() < 0.98 else int(rng.integers(256))
        near = fair[contract % CONTRACTS]
        price = float(near + TICK * rng.integers(-3, 4)) if rng.random() < 0.9 else near + float(rng.normal())
        if rng.random() < 0.3:  # on or about the collar
            price = float(near + rng.choice([-1, 1]) * (0.5 + 0.1 * near) + rng.choice([0, TICK]))
        price = float(rng.choice([price, math.nan, math.inf, 0.0, -TICK], p=[0.98, 0.005, 0.005, 0.005, 0.005]))
        quantity = float(rng.choice([1, 2, 3, 4, 4.5, 0, math.nan, -1], p=[0.4, 0.3, 0.1, 0.1, 0.07, 0.01, 0.01, 0.01]))
        return ("submit", contract, flags, price, quantity)

    for _ in range(length):
        what = rng.random()
        if what < 0.3:
            operations.append(market())
        elif what < 0.85:
            operations.append(submit())
        elif what < 0.97:
            operations.append(("fill", int(rng.integers(CONTRACTS)), bool(rng.integers(2))))
        elif what < 0.985:
            operations.append(("resume",))
        else:
            rest = [("reduce",), ("cancel_all",), ("halt", int(Reason.OPERATOR_ASKED)), ("kill",)]
            operations.append(rest[int(rng.integers(len(rest)))])
    return operations


def run_reference(operations: list[Operation], limits: Any, without: Collection[str] = ()) -> list[Any]:
    outbox = Outbox()
    gate = ReferenceGate(limits, CONTRACTS, outbox, without)
    contracts = [ContractState(0.0, 0.0, 0.0, 0.0) for _ in range(CONTRACTS)]
    market, seen = Market(START), []
    for operation in operations:
        word, *given = operation
        answer: Any = None
        if word == "market":
            market = Market(given[0], given[1], given[2], given[3], given[4], given[5])
            for contract, row in zip(contracts, given[6], strict=True):
                contract.fair, contract.delta, contract.gamma, contract.vega = row
            gate.on_market(market, contracts)
        elif word == "submit":
            answer = int(gate.submit(Intent(*given), market, contracts))
        elif word == "fill":
            _fill_reference(contracts[given[0]], given[1], limits.multiplier)
        elif word == "resume":
            gate.kill_asked = False
            gate.resume()
        elif word == "reduce":
            gate.reduce()
        elif word == "cancel_all":
            gate.cancel_all(market, contracts)
        elif word == "halt":
            gate.halt(Reason(given[0]), market, contracts)
        elif word == "kill":
            gate.kill_asked = True
        left = b"".join(outbox.records)
        outbox.records.clear()
        held = tuple((one.position, one.cash, _shown(one.buy), _shown(one.sell)) for one in contracts)
        refused = tuple(gate.refused[reason] for reason in Reason)
        seen.append((answer, left, int(gate.state), int(gate.why), gate.profit, gate.best_profit, held, refused))
    return seen


def run_native(operations: list[Operation], limits: Any) -> list[Any]:
    core = native.core()
    gate = core.RiskGate(limits, CONTRACTS)
    contracts = gate.contracts
    ids = contracts.view(np.uint64)
    market, seen = core.Market(START, 0, math.nan), []
    for operation in operations:
        word, *given = operation
        answer = None
        if word == "market":
            market = core.Market(*given[:6])
            contracts[:, :4] = given[6]
            gate.on_market(market)
        elif word == "submit":
            answer = gate.submit(*given, market)
        elif word == "fill":
            _fill_native(contracts[given[0]], ids[given[0]], given[1], limits.multiplier)
        elif word == "resume":
            gate.set_kill(False)
            gate.resume()
        elif word == "reduce":
            gate.reduce(int(Reason.OPERATOR_ASKED))
        elif word == "cancel_all":
            gate.cancel_all(market)
        elif word == "halt":
            gate.halt(given[0], market)
        elif word == "kill":
            gate.set_kill(True)
        held = tuple(
            (float(row[4]), float(row[5]), _found(row, words, 6), _found(row, words, 9))
            for row, words in zip(contracts, ids, strict=True)
        )
        refused = tuple(gate.refused(int(reason)) for reason in Reason)
        left = bytes(gate.take_orders())
        seen.append((answer, left, gate.state, gate.why, gate.profit, gate.best_profit, held, refused))
    return seen


def _fill_reference(contract: ContractState, is_buy: bool, multiplier: float) -> None:
    order = contract.working(is_buy)
    if order is not None:
        contract.set_working(is_buy, None)
        sign = 1.0 if is_buy else -1.0
        contract.position += sign * order.quantity
        contract.cash -= sign * (order.price * order.quantity * multiplier)


def _fill_native(row: Any, words: Any, is_buy: bool, multiplier: float) -> None:
    at = 6 if is_buy else 9
    if words[at]:
        sign = 1.0 if is_buy else -1.0
        row[4] += sign * row[at + 2]
        row[5] -= sign * (row[at + 1] * row[at + 2] * multiplier)
        row[at : at + 3] = 0.0


def _shown(order: Working | None) -> tuple[int, float, float] | None:
    return None if order is None else (order.order_id, order.price, order.quantity)


def _found(row: Any, words: Any, at: int) -> tuple[int, float, float] | None:
    return (int(words[at]), float(row[at + 1]), float(row[at + 2])) if words[at] else None


def sent_orders(left: bytes) -> list[tuple[int, int, int, float, float]]:
    """(instrument, flags, order_id, price, quantity) of each order record."""
    rows = [struct.unpack("<qIHBBQddqq", left[at : at + 56]) for at in range(0, len(left), 56)]
    return [(row[2], row[4], row[5], row[6], row[7]) for row in rows]
