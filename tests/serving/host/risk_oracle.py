"""docs/host-rules.md once more, for tests: what a gate must do with a stream of markets, intents, fills and controls.

Two witnesses, neither of which looks at the code under test. `Oracle` tells of each step which rules it breaks, all of
them at once, hence the reason, the records that must leave and the state after it. `audit` knows no rule of the page's
order: from the records that left and the fills alone it recomputes what must hold whatever happened between.
Every number in a stream is a multiple of a power of two, so that sums are exact and limits are met exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from serving.host.limits import FOREVER_NS, Limits
from tests.serving.host.risk_gates import (
    BUY,
    CANCEL,
    INF,
    NAN,
    NEW,
    REFUSALS,
    REPLACE,
    Desk,
    limits_with,
)

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]  # one of several: a test's draw, or a random generator's choice
CONTRACTS = 3
TIGHT: dict[str, tuple[float, ...]] = {
    "collar_money": (0.0, 0.25, 0.5, 1.0), "collar_share": (0.125, 0.25), "order_quantity": (1.0, 2.0, 3.0),
    "position_quantity": (1.0, 2.0, 4.0), "notional_money": (16.0, 32.0, 48.0), "delta": (2.0, 4.0, 8.0),
    "gamma": (0.5, 1.0, 2.0), "vega": (8.0, 16.0, 32.0), "loss_money": (4.0, 8.0, 16.0),
    "drawdown_money": (4.0, 8.0, 16.0), "order_rate_count": (0.0, 1.0, 2.0, 4.0), "stale_book_ns": (0, 2, 5),
    "anomaly_score": (0.0, 1.0), "clipped_share": (0.0, 0.5), "market_move_share": (0.125, 0.25),
    "reject_burst_count": (1.0, 2.0, 4.0),
}  # fmt: skip
TIMES = {"order_rate_window_ns": (2, 5, 10), "market_move_window_ns": (0, 3, 10), "market_move_pause_ns": (0, 3, 10)}


@dataclass
class Oracle:
    """What the page says, for the contracts of `desk` (their prices and positions are its memory; nothing else is)."""

    desk: Desk
    state: str = "ACTIVE"
    why: str = "none"
    killed: bool = False
    profit: float = 0.0
    best: float = 0.0
    in_a_row: int = 0
    pause_end: int = 0
    references: list[tuple[float, int]] = field(default_factory=list)  # newest first, two at most
    accepted_at: list[int] = field(default_factory=list)
    works: dict[tuple[int, int], tuple[int, float, float]] = field(default_factory=dict)  # (contract, side)
    last_fair: list[float] = field(default_factory=lambda: [0.0] * CONTRACTS)
    expected: list[tuple[int, int, int, float, float]] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        return self.desk.limits

    @property
    def now(self) -> int:
        return int(self.desk.market["event_ns"])

    # What the market brings about.

    def market(self) -> None:
        book, limits = self.desk.contracts, self.limits
        self.last_fair = [
            float(row["fair"]) if math.isfinite(row["fair"]) else last
            for row, last in zip(book, self.last_fair, strict=True)
        ]
        self.profit = sum(
            float(row["cash"]) + (float(row["position"]) * fair * limits.multiplier if row["position"] else 0.0)
            for row, fair in zip(book, self.last_fair, strict=True)
        )
        if self.state == "HALTED":
            return
        if self.profit <= -limits.loss_money:
            self.halt("loss")
            return
        self.best = max(self.best, self.profit)
        if self.best - self.profit >= limits.drawdown_money:
            self.reduce("drawdown")
        spot = float(self.desk.market["spot"])
        if not math.isnan(spot):
            if not self.references or self.now - self.references[0][1] >= limits.market_move_window_ns:
                self.references = [(spot, self.now), *self.references[:1]]
            if any(abs(spot / seen - 1) >= limits.market_move_share for seen, _ in self.references):
                self.reduce("market_move")
                self.pause_end = self.now + limits.market_move_pause_ns
                self.references = [(spot, self.now)]
        if self.why == "market_move" and self.now >= self.pause_end:
            self.state, self.why = "ACTIVE", "none"
        for (contract, side), (_, price, quantity) in sorted(
            self.works.items(), key=lambda one: (one[0][0], -one[0][1])
        ):
            if self.broken(contract, REPLACE | side, price, quantity) & {"reducing", "stale_book", "model_guard"}:
                self.cancel(contract, side)

    # What operators ask.

    def halt(self, why: str) -> None:
        if self.state != "HALTED":
            self.state, self.why = "HALTED", why
            for contract in range(CONTRACTS):
                self.cancel(contract, BUY)
                self.cancel(contract, 0)

    def reduce(self, why: str) -> None:
        lasting = ("none", "market_move", "operator_asked", "drawdown")
        if self.state != "HALTED":
            self.state = "REDUCING"
            self.why = max(self.why, why, key=lasting.index)

    def resume(self) -> None:
        self.state, self.why, self.best = "ACTIVE", "none", self.profit
        self.references, self.in_a_row = [], 0

    # What is asked.

    def cancel(self, contract: int, side: int) -> None:
        if (contract, side) in self.works:
            self.expected.append((contract + 1, CANCEL | side, *self.works.pop((contract, side))))

    def order(self, contract: int, flags: int, price: float, quantity: float) -> str:
        if self.killed:
            self.halt("kill_switch")
        side = flags & BUY
        if flags & CANCEL:
            self.cancel(contract, side)
            return "none"
        broken = self.broken(contract, flags, price, quantity)
        if not broken:
            self.accepted_at.append(self.now)
            self.in_a_row = 0
            self.works[contract, side] = (len(self.accepted_at), price, quantity)
            self.expected.append((contract + 1, flags, *self.works[contract, side]))
            return "none"
        if flags & REPLACE:
            self.cancel(contract, side)
        reason = min(broken, key=REFUSALS.index)
        self.in_a_row += reason not in ("halted", "reducing")
        if self.in_a_row >= self.limits.reject_burst_count:
            self.halt("reject_burst")
        return reason

    def broken(self, contract: int, flags: int, price: float, quantity: float) -> set[str]:
        """Every rule that the order breaks, as far as it is an order at all."""
        limits, market, book = self.limits, self.desk.market, self.desk.contracts
        side = flags & BUY
        signed = quantity if side else -quantity
        exists = 0 <= contract < CONTRACTS
        position = float(book[contract]["position"]) if exists else 0.0
        reduces = (position > 0 > signed or position < 0 < signed) and quantity <= abs(position)
        out = {"halted"} if self.state == "HALTED" else set()
        out |= {"reducing"} if self.state == "REDUCING" and not reduces else set()
        sound = exists and math.isfinite(price) and math.isfinite(quantity) and price > 0 and quantity > 0
        sound = sound and flags & ~BUY in (NEW, REPLACE) and price / limits.tick_money % 1 == 0
        if not sound or (flags & ~BUY == REPLACE) != ((contract, side) in self.works):
            return out | {"malformed"}
        fair, delta, gamma, vega = (float(book[contract][name]) for name in ("fair", "delta", "gamma", "vega"))
        other = self.works.get((contract, BUY - side))
        resting = [price * size for key, (_, price, size) in self.works.items() if key != (contract, side)]
        held = [abs(float(row["position"])) * fair for row, fair in zip(book, self.last_fair, strict=True)]
        recent = [time for time in self.accepted_at if time > self.now - limits.order_rate_window_ns]
        rules = {
            "stale_book": math.isnan(market["spot"]) or self.now - market["book_changed_ns"] > limits.stale_book_ns,
            "model_guard": math.isnan(fair + delta + gamma + vega)
            or market["model_expired"]
            or market["anomaly_score"] > limits.anomaly_score
            or market["clipped_share"] > limits.clipped_share,
            "order_size": quantity > limits.order_quantity,
            "price_collar": abs(price - fair) > limits.collar_money + limits.collar_share * fair,
            "self_match": other is not None and (price >= other[1] if side else price <= other[1]),
            "position": goes_beyond(position, position + signed, limits.position_quantity),
            "notional": not reduces
            and limits.multiplier * (sum(held) + sum(resting) + price * quantity) > limits.notional_money,
            "order_rate": len(recent) >= limits.order_rate_count,
        }
        counts = [
            bool(book[place]["position"]) or {(place, 0), (place, BUY)} & {*self.works} for place in range(CONTRACTS)
        ]
        for name in ("delta", "gamma", "vega"):
            if np.isnan(book[name][np.array(counts, bool)]).any():
                rules[name] = not reduces and math.isfinite(getattr(limits, name))
                continue
            known = np.nan_to_num(book[name], nan=0.0)
            total = float((book["position"] * known).sum()) * limits.multiplier
            moves = [
                (size if side_of else -size) * float(known[place]) * limits.multiplier
                for (place, side_of), (_, _, size) in self.works.items()
                if (place, side_of) != (contract, side)
            ]
            change = signed * float(known[contract]) * limits.multiplier
            after = total + change + sum(move for move in moves if (move > 0 < change) or (move < 0 and change <= 0))
            rules[name] = goes_beyond(total, after, getattr(limits, name))
        return out | {name for name, is_broken in rules.items() if is_broken}


def goes_beyond(before: float, after: float, limit: float) -> bool:
    """Outside of the limit, unless on the way back to it from the same side."""
    allowed = (0.0, max(before, limit)) if after > 0 else (min(before, -limit), 0.0)
    return not allowed[0] <= after <= allowed[1]


def drive(core: Any, pick: Pick[Any], steps: int) -> Counter[str]:
    """A stream of `steps` acts on a gate of `core`, held to both witnesses; how often which reason was met."""
    names = {pick(tuple(TIGHT)) for _ in range(pick((0, 1, 2, 3, 5)))}
    chosen = {name: pick(TIGHT[name]) for name in sorted(names)} | {name: pick(TIMES[name]) for name in TIMES}
    desk = Desk(core, limits_with(**chosen), CONTRACTS)
    oracle, log = Oracle(desk), Log(desk.limits)
    acts = {
        "market": move_market, "intent": ask, "fill": fill, "control": control, "resume": resume,
        "flag": throw_switch, "limits": change_limits,
    }  # fmt: skip
    usual = ("intent",) * 16 + ("market",) * 5 + ("fill",) * 5 + ("control", "resume", "flag", "limits")
    for _ in range(steps):
        acts[pick(usual if oracle.state == "ACTIVE" else usual + ("resume",) * 8)](desk, oracle, log, pick)
        left = desk.left()
        told = [tuple(row) for row in left[["instrument", "flags", "order_id", "price", "quantity"]].tolist()]
        assert told == oracle.expected
        assert (desk.state, desk.why) == (oracle.state, oracle.why)
        assert set(left["event_ns"].tolist()) <= {oracle.now}
        log.records += [(oracle.state, oracle.now, row) for row in left]
        log.reasons[desk.why] += 1
        oracle.expected = []
    assert desk.gate.profit == oracle.profit
    log.audit()
    return log.reasons


def fills_in_any_order(core: Any, pick: Pick[Any], steps: int) -> None:
    """Orders and fills at constant Greeks: positions and every Greek of the portfolio stay within their limits."""
    chosen = {name: pick(TIGHT[name]) for name in ("position_quantity", "delta", "gamma", "vega")}
    desk = Desk(core, limits_with(**chosen), CONTRACTS)
    for place, sign in enumerate((1.0, -1.0, 0.5)):  # a call, a put, one farther out
        desk.set(place, delta=0.5 * sign, gamma=0.125 * abs(sign), vega=2.0 * abs(sign))
    for _ in range(steps):
        place, side = pick(range(CONTRACTS)), pick((0, BUY))
        works = bool(desk.contracts[place]["buy" if side else "sell"]["id"])
        act = pick(("order", "order", "fill", "cancel"))
        if act == "fill" and works:
            desk.fill(place, side)
            desk.tick()
        elif act == "order":
            price = 1.75 if side else 2.25
            desk.order(side, price, pick((1.0, 2.0, 3.0)), contract=place, action=REPLACE if works else NEW)
        elif act == "cancel":
            desk.cancel(side, place)
        held = desk.contracts["position"]
        assert np.abs(held).max() <= desk.limits.position_quantity
        for name in ("delta", "gamma", "vega"):
            assert abs((held * desk.contracts[name]).sum()) * desk.limits.multiplier <= getattr(desk.limits, name)


def move_market(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    market = desk.market
    market["event_ns"] += pick((0, 0, 1, 1, 2, 5))
    market["book_changed_ns"] += pick((0, 1, 1, 1)) * (market["event_ns"] - market["book_changed_ns"])
    market["spot"] = pick((100.0, 100.0, 100.0, 106.25, 112.5, 125.0, 87.5, 75.0, NAN))
    market["anomaly_score"] = pick((0.0, 0.0, 0.0, 1.0, 2.0))
    market["clipped_share"] = pick((0.0, 0.0, 0.0, 0.5, 0.75))
    market["model_expired"] = pick((False,) * 9 + (True,))
    place = pick(range(CONTRACTS))
    desk.set(place, fair=pick((2.0, 2.0, 1.5, 1.75, 2.5, 3.0, NAN)), delta=pick((0.5, 0.25, -0.5, 1.0)))
    desk.set(place, gamma=pick((0.125, 0.25)), vega=pick((2.0, 1.0, 4.0)))
    if pick((False,) * 9 + (True,)):
        desk.set(place, **{pick(("delta", "gamma", "vega")): NAN})
    desk.tick()
    oracle.market()


def ask(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    contract, side = pick((0, 0, 1, 1, 2, 2, 2, CONTRACTS) if pick(range(8)) == 0 else range(CONTRACTS)), pick((0, BUY))
    fits = REPLACE if (contract, side) in oracle.works else NEW
    flags = side | pick((fits,) * 12 + (NEW, REPLACE, CANCEL, CANCEL, 0, NEW | REPLACE, NEW | 16))
    price = pick((1.5, 1.75, 2.0, 2.0, 2.25, 2.5, 3.0))
    quantity = pick((1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0))
    if pick(range(12)) == 0:
        price = pick((0.0, -1.0, NAN, INF, 2.125))
    if pick(range(12)) == 0:
        quantity = pick((0.0, -1.0, NAN, INF, 0.5))
    if flags & CANCEL:
        price = quantity = 0.0
    reason = desk.order(side, price, quantity, contract=contract, action=flags & ~BUY)
    assert reason == oracle.order(contract, flags, price, quantity)
    log.reasons["accepted" if reason == "none" else reason] += 1


def fill(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    if oracle.works:
        contract, side = pick(sorted(oracle.works))
        del oracle.works[contract, side]
        working = desk.contracts[contract]["buy" if side else "sell"].copy()
        desk.fill(contract, side)
        log.fills.append((len(log.records), contract, float(working["quantity"]) * (1 if side else -1)))
        desk.tick()
        oracle.market()


def control(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    act = pick(("halt", "reduce", "cancel_all"))
    if act == "halt":
        desk.halt("operator_asked")
        oracle.halt("operator_asked")
    elif act == "reduce":
        desk.reduce()
        oracle.reduce("operator_asked")
    else:
        for contract in range(CONTRACTS):
            for side in (BUY, 0):
                desk.cancel(side, contract)
                oracle.order(contract, CANCEL | side, 0.0, 0.0)


def resume(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    desk.gate.set_kill(False)
    desk.gate.resume()
    oracle.killed = False
    oracle.resume()


def throw_switch(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    if pick(range(4)) == 0:
        desk.gate.set_kill(True)
        oracle.killed = True


def change_limits(desk: Desk, oracle: Oracle, log: Log, pick: Pick[Any]) -> None:
    name = pick(tuple(TIGHT))
    never = FOREVER_NS if name.endswith("_ns") else 0.25 if name == "collar_share" else INF
    desk.set_limits(**{name: pick((*TIGHT[name], never))})
    log.loosest = loosest(log.loosest, desk.limits)


def loosest(one: Limits, other: Limits) -> Limits:
    """Of each limit the larger one."""
    names = ("position_quantity", "order_quantity", "order_rate_count")
    return replace(one, **{name: max(getattr(one, name), getattr(other, name)) for name in names})


@dataclass
class Log:
    """What left a gate and what filled, in order; `loosest` of the limits that ever held."""

    loosest: Limits
    records: list[tuple[str, int, Any]] = field(default_factory=list)  # state after, event time, record
    fills: list[tuple[int, int, float]] = field(default_factory=list)  # after how many records; contract; signed
    reasons: Counter[str] = field(default_factory=Counter)  # of refusals, and of the state after each act

    def audit(self) -> None:
        """What must hold of any stream: numbering, what works, crossing, halted, positions, rate."""
        position, works = np.zeros(CONTRACTS), dict[tuple[int, int], Any]()
        fills, accepted, most = list(self.fills), list[int](), self.loosest

        def take_fills(records: int) -> None:
            while fills and fills[0][0] <= records:
                _, contract, signed = fills.pop(0)
                working = works.pop((contract, BUY if signed > 0 else 0))
                assert working["quantity"] == abs(signed)
                position[contract] += signed
                assert abs(position[contract]) <= most.position_quantity

        for number, (state, now, record) in enumerate(self.records):
            take_fills(number)
            contract, flags = int(record["instrument"]) - 1, int(record["flags"])
            side, action = flags & BUY, flags & ~BUY
            assert record["sequence"] == number + 1
            if action == CANCEL:
                working = works.pop((contract, side))
                assert [working[name] for name in ("order_id", "price", "quantity")] == [
                    record[name] for name in ("order_id", "price", "quantity")
                ]
                continue
            assert state != "HALTED"
            assert ((contract, side) in works) == (action == REPLACE)
            accepted.append(now)
            assert record["order_id"] == len(accepted)
            assert sum(time > now - most.order_rate_window_ns for time in accepted) <= most.order_rate_count
            assert record["quantity"] <= most.order_quantity
            works[contract, side] = record
            bid, ask = works.get((contract, BUY)), works.get((contract, 0))
            assert bid is None or ask is None or bid["price"] < ask["price"]
        take_fills(len(self.records))
