"""Random streams of all that a risk gate can meet, run through the native gate and the reference alike.

A stream is a list of operations (tuples, the first word names it). Prices and quantities are drawn around fair values
and around the limits, often exactly on them, so that short streams meet every check from both sides. What `run_native`
and `run_reference` saw is a list of the same shape: after every operation the answer, all bytes that left, the state,
its reason, profit and best profit, every contract's position, cash and working orders, refusals by reason.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from typing import Any

import numpy as np

from serving import native
from serving.host.limits import Limits
from serving.host.reference.risk import ReferenceGate
from serving.host.reference.states import ContractState, Intent, Market, Outbox, Reason, Side, State, Working

CONTRACTS = 3
TICK = 0.25
Operation = tuple[Any, ...]
Seen = tuple[Any, ...]
START = 1_700_000_000_000_000_000
MILLISECOND = 1_000_000


def limits_of(**changed: Any) -> Limits:
    """Limits that random streams reach."""
    return Limits(**{
        "collar_money": 0.5, "collar_share": 0.1, "order_quantity": 4.0, "position_quantity": 6.0,
        "notional_money": 700.0, "delta": 40.0, "gamma": 3.0, "vega": 600.0, "loss_money": 150.0,
        "drawdown_money": 100.0, "order_rate_count": 6.0, "order_rate_window_ns": 40 * MILLISECOND,
        "stale_book_ns": 30 * MILLISECOND, "anomaly_score": 3.0, "clipped_share": 0.5, "market_move_share": 0.03,
        "market_move_window_ns": 60 * MILLISECOND, "market_move_pause_ns": 25 * MILLISECOND,
        "reject_burst_count": 9.0, "multiplier": 10.0, "tick_money": TICK,
    } | changed)  # fmt: skip


class ReferenceDriver:
    """A reference gate that operations act on, one by one."""

    def __init__(self, limits: Limits, without: Collection[str] = ()) -> None:
        self.limits, self.outbox, self.market = limits, Outbox(), Market(START)
        self.gate = ReferenceGate(limits, CONTRACTS, self.outbox, without)
        self.contracts = [ContractState(0.0, 0.0, 0.0, 0.0) for _ in range(CONTRACTS)]

    def act(self, operation: Operation) -> Seen:
        word, *given = operation
        gate, contracts, answer = self.gate, self.contracts, None
        if word == "market":
            self.market = Market(*given[:6])
            for contract, row in zip(contracts, given[6], strict=True):
                contract.fair, contract.delta, contract.gamma, contract.vega = row
            gate.on_market(self.market, contracts)
        elif word == "submit":
            answer = int(gate.submit(Intent(*given), self.market, contracts))
        elif word == "fill":
            _fill_reference(contracts[given[0]], given[1], self.limits.multiplier)
        elif word == "resume":
            gate.kill_asked = False
            gate.resume()
        elif word == "reduce":
            gate.reduce()
        elif word == "cancel_all":
            gate.cancel_all(self.market, contracts)
        elif word == "halt":
            gate.halt(Reason(given[0]), self.market, contracts)
        elif word == "kill":
            gate.kill_asked = True
        left = b"".join(self.outbox.records)
        self.outbox.records.clear()
        held = tuple((one.position, one.cash, _shown(one.buy), _shown(one.sell)) for one in contracts)
        refused = tuple(gate.refused[reason] for reason in Reason)
        return (answer, left, int(gate.state), int(gate.why), gate.profit, gate.best_profit, held, refused)


def run_reference(operations: list[Operation], limits: Limits, without: Collection[str] = ()) -> list[Seen]:
    driver = ReferenceDriver(limits, without)
    return [driver.act(operation) for operation in operations]


class _Stream:
    """Draws operations, knowing from a reference of its own how things stand."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self.rng = np.random.default_rng(seed)
        self.driver = ReferenceDriver(limits)
        self.now, self.spot, self.fair = START, 100.0, [5.0, 8.0, 2.5]

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def rarely(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def market(self) -> Operation:
        self.now += self.one_of(0, 1, 5, 25, 60) * MILLISECOND
        self.spot *= math.exp(self.rng.normal() * self.one_of(0.001, 0.001, 0.001, 0.02))
        age = self.one_of(0, 0, 0, 0, 0, 29, 30, 31) * MILLISECOND
        values = []
        for place in range(CONTRACTS):
            self.fair[place] = max(TICK, self.fair[place] + TICK * self.one_of(-2, -1, 0, 1, 2))
            row = [self.fair[place], self.one_of(-0.5, 0.25, 1.0), self.one_of(0.01, 0.1), self.one_of(2.0, 20.0)]
            if self.rarely(0.02):
                row[self.one_of(0, 1, 2, 3)] = math.nan
            values.append(tuple(row))
        seen = math.nan if self.rarely(0.02) else self.spot
        score = self.one_of(3.0, 3.5, math.nan) if self.rarely(0.05) else 0.0
        clipped = self.one_of(0.5, 0.75) if self.rarely(0.05) else 0.0
        return ("market", self.now, self.now - age, seen, score, clipped, self.rarely(0.01), tuple(values))

    def submit(self) -> Operation:
        contract, side = self.one_of(*range(CONTRACTS)), self.one_of(0, 1)
        known = self.driver.contracts[contract]
        other = known.working(side == 0)
        what = Side.NEW if known.working(side == 1) is None else Side.REPLACE
        if self.rarely(0.15):
            what = self.one_of(Side.NEW, Side.REPLACE, Side.CANCEL, Side.CANCEL, Side.CANCEL)
        flags = int(what) | side if not self.rarely(0.01) else int(self.rng.integers(256))
        near, kind = self.fair[contract], self.rng.random()
        price = near + TICK * self.one_of(-2, -1, 0, 1, 2)
        if kind < 0.1:  # on the collar, or a tick beyond
            limits = self.driver.limits
            edge = limits.collar_money + limits.collar_share * near
            price = near + self.one_of(-1, 1) * edge + self.one_of(0, -TICK, TICK)
        elif kind < 0.2 and other is not None:
            price = other.price + self.one_of(0, 0, -TICK, TICK)
        elif kind < 0.23:
            price = self.one_of(near + 0.1, math.nan, math.inf, 0.0, -TICK)
        quantity = self.one_of(1.0, 1.0, 2.0, 3.0, 4.0, abs(known.position))
        if self.rarely(0.04):
            quantity = self.one_of(4.5, 0.0, math.nan, math.inf, -1.0)
        contract = self.one_of(CONTRACTS, 65535) if self.rarely(0.01) else contract
        return ("submit", contract, flags, float(price), float(quantity))

    def draw(self) -> Operation:
        if self.driver.gate.state == State.HALTED and self.rarely(0.2):
            return ("resume",)
        kind = self.rng.random()
        if kind < 0.25:
            return self.market()
        if kind < 0.75:
            return self.submit()
        if kind < 0.985:
            return ("fill", self.one_of(*range(CONTRACTS)), self.one_of(True, False))
        return self.one_of(
            ("reduce",), ("cancel_all",), ("halt", int(Reason.OPERATOR_ASKED)), ("kill",), ("resume",), ("resume",)
        )


def stream(seed: int, length: int, limits: Limits) -> list[Operation]:
    drawn, operations = _Stream(seed, limits), []
    for _ in range(length):
        operations.append(drawn.draw())
        drawn.driver.act(operations[-1])
    return operations


def run_native(operations: list[Operation], limits: Limits) -> list[Seen]:
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
