"""What the reference's parts hand each other: contracts, the market of one event, intents, and the records that leave.

Records leave through an `Outbox` as 56 bytes each (serving/native/transport/records.hpp). The reference has no clock:
`arrival_ns` and `sent_ns` are 0 in what it writes; all other bytes are decided by the records that came.
Numbers of enums are those of serving/native/host/*.hpp; tests/serving/host/test_reference_rules.py holds them to it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Kind(IntEnum):
    NONE = 0
    TRADE = 1
    QUOTE = 2
    LEVEL = 3
    HEARTBEAT = 4
    ORDER = 5
    FILL = 6
    SIGNAL = 7
    CONTROL = 8


class Side(IntFlag):
    """Flags of orders and fills."""

    BUY = 1
    NEW = 2
    REPLACE = 4
    CANCEL = 8


LAST_LEVEL = 8  # flag of a level: the picture ends
LATEST_NS = 2**63 - 1


def later(now_ns: int, by_ns: int) -> int:
    """A time after now, or the latest there is."""
    return min(now_ns + by_ns, LATEST_NS)


class State(IntEnum):
    ACTIVE = 0
    REDUCING = 1
    HALTED = 2


class Reason(IntEnum):
    """Why an order was refused (the first fifteen), or a state entered."""

    NONE = 0
    HALTED = 1
    REDUCING = 2
    MALFORMED = 3
    STALE_BOOK = 4
    MODEL_GUARD = 5
    ORDER_SIZE = 6
    PRICE_COLLAR = 7
    SELF_MATCH = 8
    POSITION = 9
    NOTIONAL = 10
    DELTA = 11
    GAMMA = 12
    VEGA = 13
    ORDER_RATE = 14
    KILL_SWITCH = 15
    LOSS = 16
    DRAWDOWN = 17
    MARKET_MOVE = 18
    REJECT_BURST = 19
    OPERATOR_ASKED = 20


class SignalCode(IntEnum):
    STATE = 1
    CONTROL_ACTED = 2
    FAIR_VALUES = 3
    CONTROL_REFUSED = 4


class ControlCode(IntEnum):
    KILL = 1
    REDUCE = 2
    RESUME = 3
    ANOMALY_SCORE = 4
    MODEL_EXPIRED = 5
    CANCEL_ALL = 6


@dataclass(frozen=True)
class Working:
    """An order that left and neither filled nor was cancelled."""

    order_id: int
    price: float
    quantity: float


@dataclass
class ContractState:
    """One quoted contract; Greeks per unit of the spot, NaN where it isn't priced."""

    fair: float = float("nan")
    delta: float = float("nan")
    gamma: float = float("nan")
    vega: float = float("nan")
    position: float = 0.0
    cash: float = 0.0
    buy: Working | None = None
    sell: Working | None = None
    volatility: float = float("nan")

    def working(self, is_buy: bool) -> Working | None:
        return self.buy if is_buy else self.sell

    def set_working(self, is_buy: bool, order: Working | None) -> None:
        if is_buy:
            self.buy = order
        else:
            self.sell = order


@dataclass(frozen=True)
class Intent:
    """What a strategy asks; `contract` counts from 0."""

    contract: int
    flags: int
    price: float = 0.0
    quantity: float = 0.0

    @property
    def is_buy(self) -> bool:
        return bool(self.flags & Side.BUY)


@dataclass
class Market:
    """What is true at an event besides the contracts; `spot` is NaN without a usable book."""

    event_ns: int = 0
    book_changed_ns: int = 0
    spot: float = float("nan")
    anomaly_score: float = 0.0
    clipped_share: float = 0.0
    model_expired: bool = False


class Outbox:
    """Records in the order in which they left; orders, fills and signals are numbered from 1, each kind by itself."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self._sequences = {Kind.ORDER: 0, Kind.FILL: 0, Kind.SIGNAL: 0}

    def order(self, event_ns: int, contract: int, flags: int, order: Working) -> None:
        body = struct.pack("<Qddqq", order.order_id, order.price, order.quantity, 0, 0)
        self._write(event_ns, contract + 1, Kind.ORDER, flags, body)

    def fill(self, event_ns: int, contract: int, is_buy: bool, order: Working, underlying: float) -> None:
        body = struct.pack("<Qdddq", order.order_id, order.price, order.quantity, underlying, 0)
        self._write(event_ns, contract + 1, Kind.FILL, Side.BUY if is_buy else 0, body)

    def signal(self, event_ns: int, instrument: int, code: SignalCode, values: tuple[float, ...]) -> None:
        self._write(event_ns, instrument, Kind.SIGNAL, code, struct.pack("<ddddq", *values, 0))

    def _write(self, event_ns: int, instrument: int, kind: Kind, flags: int, body: bytes) -> None:
        self._sequences[kind] += 1
        self.records.append(struct.pack("<qIHBB", event_ns, self._sequences[kind], instrument, kind, flags) + body)
