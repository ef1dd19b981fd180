"""The slow reference of the risk gate: docs/host-rules.md, "Profit" and "Risk", sentence by sentence.

Data in: the market of an event, the contracts, intents. Data out: records through an `Outbox`, the state, its reason.
`without` names checks and breakers left out, to prove that a comparison with the native gate would notice: any name
of `Reason` that a check or a breaker has, in small letters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection

from serving.host.limits import Limits
from serving.host.reference.states import ContractState, Intent, Market, Outbox, Reason, Side, State, Working, later

BREAKERS = (Reason.LOSS, Reason.DRAWDOWN, Reason.MARKET_MOVE, Reason.REJECT_BURST)
WITHDRAWING = (Reason.REDUCING, Reason.STALE_BOOK, Reason.MODEL_GUARD)  # also of what works already
LASTING = (Reason.MARKET_MOVE, Reason.OPERATOR_ASKED, Reason.DRAWDOWN)  # of REDUCING, the longest last


class ReferenceGate:
    """States that the market brings about, checks before every order; see the module."""

    def __init__(self, limits: Limits, contracts: int, outbox: Outbox, without: Collection[str] = ()) -> None:
        self._limits, self._outbox = limits, outbox
        self._without = {Reason[name.upper()] for name in without}
        self.kill_asked = False  # from outside, between any two intents
        self.state, self.why = State.ACTIVE, Reason.NONE
        self.profit = self.best_profit = 0.0
        self.refused: Counter[Reason] = Counter()
        self._last_fair = [0.0] * contracts
        self._reference: tuple[float, int] | None = None  # spot, event time
        self._previous: tuple[float, int] | None = None
        self._move_ends_ns = 0
        self._refusals_in_a_row = 0
        self._accepted_ns: list[int] = []

    @property
    def accepted(self) -> int:
        return len(self._accepted_ns)

    # Step 7: what the market brings about.

    def on_market(self, market: Market, contracts: list[ContractState]) -> None:
        for place, contract in enumerate(contracts):
            if math.isfinite(contract.fair):
                self._last_fair[place] = contract.fair
        self.profit = self._profit_of(contracts)
        if self.state is State.HALTED:
            return
        if self.profit <= -self._limits.loss_money and Reason.LOSS not in self._without:
            self.halt(Reason.LOSS, market, contracts)
            return
        self.best_profit = max(self.best_profit, self.profit)
        fallen = self.best_profit - self.profit
        if fallen >= self._limits.drawdown_money and Reason.DRAWDOWN not in self._without:
            self._reduce(Reason.DRAWDOWN)
        if math.isfinite(market.spot) and Reason.MARKET_MOVE not in self._without:
            self._watch_moves(market)
        if self._reduces_for_a_move() and market.event_ns >= self._move_ends_ns:
            self.state, self.why = State.ACTIVE, Reason.NONE
        self.withdraw(market, contracts)

    def _profit_of(self, contracts: list[ContractState]) -> float:
        profit = 0.0
        for contract, fair in zip(contracts, self._last_fair, strict=True):
            if contract.position == 0:
                profit += contract.cash
            else:
                profit += contract.cash + contract.position * fair * self._limits.multiplier
        return profit

    def _watch_moves(self, market: Market) -> None:
        limits, now = self._limits, market.event_ns
        if self._reference is None or now - self._reference[1] >= limits.market_move_window_ns:
            self._previous, self._reference = self._reference, (market.spot, now)
        moved = [
            abs(market.spot / known[0] - 1.0) >= limits.market_move_share
            for known in (self._reference, self._previous)
            if known is not None
        ]
        if any(moved):
            self._reduce(Reason.MARKET_MOVE)
            self._move_ends_ns = later(now, limits.market_move_pause_ns)
            self._reference, self._previous = (market.spot, now), None

    def _reduces_for_a_move(self) -> bool:
        return self.state is State.REDUCING and self.why is Reason.MARKET_MOVE

    # What operators ask.

    def halt(self, why: Reason, market: Market, contracts: list[ContractState]) -> None:
        """Nothing new leaves from here on; what works is cancelled. The first reason stays."""
        if self.state is State.HALTED:
            return
        self.state, self.why = State.HALTED, why
        self.cancel_all(market, contracts)

    def reduce(self) -> None:
        self._reduce(Reason.OPERATOR_ASKED)

    def resume(self) -> None:
        self.state, self.why = State.ACTIVE, Reason.NONE
        self.best_profit = self.profit
        self._reference = self._previous = None
        self._refusals_in_a_row = 0

    def cancel_all(self, market: Market, contracts: list[ContractState]) -> None:
        for place, contract in enumerate(contracts):
            for is_buy in (True, False):
                self._cancel(place, contract, is_buy, market)

    def withdraw(self, market: Market, contracts: list[ContractState]) -> None:
        """What works is cancelled where it would be refused now for the state, the book or the model."""
        asked = [(reason, fails) for reason, fails in CHECKS if reason in WITHDRAWING and reason not in self._without]
        for place, contract in enumerate(contracts):
            for is_buy in (True, False):
                order = contract.working(is_buy)
                if order is None:
                    continue
                again = Intent(place, Side.REPLACE | (Side.BUY if is_buy else 0), order.price, order.quantity)
                if any(fails(self, again, market, contracts) for _, fails in asked):
                    self._cancel(place, contract, is_buy, market)

    def _reduce(self, why: Reason) -> None:
        """A reason that lasts longer stays."""
        stays = self.state is State.REDUCING and LASTING.index(self.why) > LASTING.index(why)
        if self.state is not State.HALTED and not stays:
            self.state, self.why = State.REDUCING, why

    def _cancel(self, place: int, contract: ContractState, is_buy: bool, market: Market) -> None:
        order = contract.working(is_buy)
        if order is not None:
            contract.set_working(is_buy, None)
            flags = Side.CANCEL | (Side.BUY if is_buy else 0)
            self._outbox.order(market.event_ns, place, flags, order)

    # Step 8: before every order.

    def submit(self, intent: Intent, market: Market, contracts: list[ContractState]) -> Reason:
        """Send it, or say why not."""
        if self.kill_asked:
            self.halt(Reason.KILL_SWITCH, market, contracts)
        known = 0 <= intent.contract < len(contracts)
        if intent.flags & Side.CANCEL:
            if known:
                self._cancel(intent.contract, contracts[intent.contract], intent.is_buy, market)
            return Reason.NONE
        for reason, fails in CHECKS:
            planted = reason in self._without and known  # what has no contract can't be asked more
            if not planted and fails(self, intent, market, contracts):
                self._refuse(reason, intent, market, contracts)
                return reason
        self._send(intent, market, contracts[intent.contract])
        return Reason.NONE

    def _send(self, intent: Intent, market: Market, contract: ContractState) -> None:
        self._accepted_ns.append(market.event_ns)
        self._refusals_in_a_row = 0
        order = Working(len(self._accepted_ns), intent.price, intent.quantity)
        contract.set_working(intent.is_buy, order)
        self._outbox.order(market.event_ns, intent.contract, intent.flags, order)

    def _refuse(self, reason: Reason, intent: Intent, market: Market, contracts: list[ContractState]) -> None:
        self.refused[reason] += 1
        self._refusals_in_a_row += reason not in (Reason.HALTED, Reason.REDUCING)
        if intent.flags & Side.REPLACE and 0 <= intent.contract < len(contracts):
            self._cancel(intent.contract, contracts[intent.contract], intent.is_buy, market)
        if self._refusals_in_a_row >= self._limits.reject_burst_count and Reason.REJECT_BURST not in self._without:
            self.halt(Reason.REJECT_BURST, market, contracts)

    # The checks: True where the order fails.

    def _halted(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return self.state is State.HALTED

    def _reducing(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return self.state is State.REDUCING and not _reduces(intent, contracts)

    def _malformed(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        if not 0 <= intent.contract < len(contracts):
            return True
        numbers_fit = all(math.isfinite(number) and number > 0 for number in (intent.price, intent.quantity))
        if not numbers_fit or int(intent.flags) & 0xFE not in (Side.NEW, Side.REPLACE):  # all bits but the side's
            return True
        tick = self._limits.tick_money
        ticks = _round_half_away(intent.price / tick)
        if abs(intent.price - ticks * tick) > 1e-9 * intent.price:
            return True
        works = contracts[intent.contract].working(intent.is_buy) is not None
        return works if intent.flags & Side.NEW else not works

    def _stale_book(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return not math.isfinite(market.spot) or market.event_ns - market.book_changed_ns > self._limits.stale_book_ns

    def _model_guard(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        contract = contracts[intent.contract]
        values = (contract.fair, contract.delta, contract.gamma, contract.vega)
        return (
            not all(math.isfinite(value) for value in values)
            or market.model_expired
            or not market.anomaly_score <= self._limits.anomaly_score
            or not market.clipped_share <= self._limits.clipped_share
        )

    def _order_size(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return intent.quantity > self._limits.order_quantity

    def _price_collar(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        fair = contracts[intent.contract].fair
        return abs(intent.price - fair) > self._limits.collar_money + self._limits.collar_share * fair

    def _self_match(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        other = contracts[intent.contract].working(not intent.is_buy)
        if other is None:
            return False
        return intent.price >= other.price if intent.is_buy else intent.price <= other.price

    def _position(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        position = contracts[intent.contract].position
        return _goes_beyond(position, position + _signed(intent), self._limits.position_quantity)

    def _notional(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        held = working = 0.0
        for place, contract in enumerate(contracts):
            fair = contract.fair if math.isfinite(contract.fair) else self._last_fair[place]
            held += abs(contract.position) * fair
            for is_buy in (True, False):
                order = contract.working(is_buy)
                replaced = place == intent.contract and is_buy == intent.is_buy
                if order is not None and not replaced:
                    working += order.price * order.quantity
        gross = self._limits.multiplier * (held + working + intent.price * intent.quantity)
        return gross > self._limits.notional_money and not _reduces(intent, contracts)

    def _delta(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return self._beyond([contract.delta for contract in contracts], self._limits.delta, intent, contracts)

    def _gamma(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return self._beyond([contract.gamma for contract in contracts], self._limits.gamma, intent, contracts)

    def _vega(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        return self._beyond([contract.vega for contract in contracts], self._limits.vega, intent, contracts)

    def _beyond(self, greeks: list[float], limit: float, intent: Intent, contracts: list[ContractState]) -> bool:
        if math.isinf(limit):
            return False
        multiplier = self._limits.multiplier
        change = _signed(intent) * greeks[intent.contract] * multiplier
        total = pending = 0.0
        for place, (contract, greek) in enumerate(zip(contracts, greeks, strict=True)):
            if contract.position == 0 and contract.working(True) is None and contract.working(False) is None:
                continue
            if not math.isfinite(greek):  # nor is the total known
                return not _reduces(intent, contracts)
            total += contract.position * greek * multiplier
            for is_buy in (True, False):
                order = contract.working(is_buy)
                if order is None or (place == intent.contract and is_buy == intent.is_buy):
                    continue
                moved = (order.quantity if is_buy else -order.quantity) * greek * multiplier
                if moved > 0 if change > 0 else moved < 0:
                    pending += moved
        return _goes_beyond(total, total + pending + change, limit)

    def _order_rate(self, intent: Intent, market: Market, contracts: list[ContractState]) -> bool:
        since_ns = market.event_ns - self._limits.order_rate_window_ns
        recent = sum(accepted_ns > since_ns for accepted_ns in self._accepted_ns)
        return recent >= self._limits.order_rate_count


Check = Callable[[ReferenceGate, Intent, Market, list[ContractState]], bool]
CHECKS: tuple[tuple[Reason, Check], ...] = (
    (Reason.HALTED, ReferenceGate._halted),
    (Reason.REDUCING, ReferenceGate._reducing),
    (Reason.MALFORMED, ReferenceGate._malformed),
    (Reason.STALE_BOOK, ReferenceGate._stale_book),
    (Reason.MODEL_GUARD, ReferenceGate._model_guard),
    (Reason.ORDER_SIZE, ReferenceGate._order_size),
    (Reason.PRICE_COLLAR, ReferenceGate._price_collar),
    (Reason.SELF_MATCH, ReferenceGate._self_match),
    (Reason.POSITION, ReferenceGate._position),
    (Reason.NOTIONAL, ReferenceGate._notional),
    (Reason.DELTA, ReferenceGate._delta),
    (Reason.GAMMA, ReferenceGate._gamma),
    (Reason.VEGA, ReferenceGate._vega),
    (Reason.ORDER_RATE, ReferenceGate._order_rate),
)


def _signed(intent: Intent) -> float:
    return intent.quantity if intent.is_buy else -intent.quantity


def _goes_beyond(before: float, after: float, limit: float) -> bool:
    farther, crosses = abs(after) > abs(before), (after > 0) != (before > 0)
    return abs(after) > limit and (farther or crosses)


def _reduces(intent: Intent, contracts: list[ContractState]) -> bool:
    """Whether it can only bring the position nearer to zero."""
    if not 0 <= intent.contract < len(contracts):
        return False
    position = contracts[intent.contract].position
    return position * _signed(intent) < 0 and intent.quantity <= abs(position)


def _round_half_away(value: float) -> float:
    """C's `round`; Python's goes to the even neighbour."""
    if not math.isfinite(value):
        return value
    whole = float(math.trunc(value))
    return whole + math.copysign(1.0, value) if abs(value - whole) >= 0.5 else whole
