"""The slow reference of the hot loop: docs/host-rules.md, "One event", in plain Python.

Data in: records as a feed or a replay gives them (serving/host/records.py), with the controls an operator gave where
they acted. Data out: orders, fills and signals in the order in which they left; all bytes but `arrival_ns` and
`sent_ns` (0 here) are those of serving/host/loop.py. Book and features: book.py, tick_features.py; the other parts
beside this file. The net and Black-76 are the product's own kernels.

`without` plants defects, to prove that a comparison would notice: a stage of `STAGES`, or a check or breaker of the
risk gate by the name of its reason ("price_collar"). It is for tests and benchmarks, and has no like in the product.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.engine import Engine
from serving.host.records import RECORD
from serving.host.reference import contracts as values
from serving.host.reference.book import Book
from serving.host.reference.fills import fill
from serving.host.reference.risk import ReferenceGate
from serving.host.reference.states import (
    LAST_LEVEL,
    ContractState,
    ControlCode,
    Kind,
    Market,
    Outbox,
    Reason,
    SignalCode,
    State,
)
from serving.host.reference.strategy import FixedWidthOptions, fixed_width
from serving.host.reference.tick_features import TickFeatures

STAGES = (
    "clock",  # now isn't moved
    "advance",  # closed steps aren't committed
    "book",  # the book doesn't take the record
    "fills",  # trades fill nothing
    "features",  # the open step doesn't take the record
    "evaluate",  # the context of the first event stands
    "valuation",  # fair values and Greeks of the event before are used
    "market",  # step 7 is left out
    "risk",  # no check before an order
    "strategy",  # nothing is asked
)
EVERY_CHECK = tuple(reason.name.lower() for reason in Reason if Reason.HALTED <= reason <= Reason.ORDER_RATE)


class ReferenceLoop:
    """Records in, orders out; state stays between calls of `process`, as in the product."""

    def __init__(
        self, engine: Engine, spec: TickSpec, table: ContractTable, limits: Limits,
        strategy: FixedWidthOptions | None, without: Collection[str] = (),
    ) -> None:  # fmt: skip
        unknown = set(without) - set(STAGES) - set(EVERY_CHECK) - {breaker.name.lower() for breaker in BREAKERS}
        if unknown:
            raise ValueError(f"there are no stages or checks {sorted(unknown)}")
        self._without = frozenset(without)
        self._engine, self._limits, self._strategy = engine, limits, strategy
        info = engine.info()
        self._step_columns, self._contract_columns = info.step_features, info.contract_features
        self._context = np.zeros(info.context_size, np.float32)
        self._step_scaling, self._contract_scaling = step_scaling_of(spec), contract_scaling_of(spec)
        self._quoted, self._reference_spot = quoted_of(table), table.reference_spot
        engine.reset()
        self.now_ns = self.time_went_back = self.skipped = self.events = self.advances = 0
        self.book, self.features = Book(), TickFeatures(spec.step_ns)
        self.market = Market()
        self.contracts = [ContractState() for _ in self._quoted]
        self._outbox = Outbox()
        left_out = set(without) - set(STAGES) | (set(EVERY_CHECK) if "risk" in without else set())
        self.gate = ReferenceGate(limits, len(self._quoted), self._outbox, left_out)
        self._told = (self.gate.state, self.gate.why)

    def process(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """What left because of `records`."""
        begin = len(self._outbox.records)
        for record in records:
            self._take(record)
        return np.frombuffer(b"".join(self._outbox.records[begin:]), RECORD).copy()

    def _take(self, record: np.void) -> None:
        kind, flags = int(record["kind"]), int(record["flags"])
        if kind == Kind.CONTROL:
            self._act(record)
        elif kind not in (Kind.TRADE, Kind.QUOTE, Kind.LEVEL, Kind.HEARTBEAT) or int(record["instrument"]) != 0:
            self.skipped += 1
        elif kind == Kind.LEVEL and not flags & LAST_LEVEL:
            if "book" not in self._without:
                self.book.apply(record, self.now_ns)
        else:
            self._event(record, Kind(kind))

    def _event(self, record: np.void, kind: Kind) -> None:
        """The eight steps of the page."""
        self.events += 1
        self._step_1_clock(int(record["event_ns"]))
        self._step_2_close()
        if kind is not Kind.HEARTBEAT:
            self._step_3_book(record)
            if kind is Kind.TRADE:
                self._step_4_fills(float(record["values"][0]))
            self._step_5_features(record)
            self._step_6_values()
        self._step_7_market()
        self._step_8_orders()

    def _step_1_clock(self, event_ns: int) -> None:
        self.time_went_back += event_ns < self.now_ns
        if "clock" not in self._without:
            self.now_ns = max(self.now_ns, event_ns)
        self.market.event_ns = self.now_ns

    def _step_2_close(self) -> None:
        closed = self.features.close_before(self.now_ns)
        if closed is not None and "advance" not in self._without:
            self.advances += 1
            self._engine.advance(values.net_input(closed, self._step_scaling, self._step_columns)[0])

    def _step_3_book(self, record: np.void) -> None:
        if "book" not in self._without:
            self.book.apply(record, self.now_ns)
        self.market.book_changed_ns = self.book.changed_ns

    def _step_4_fills(self, trade_price: float) -> None:
        if "fills" not in self._without:
            spot, multiplier = self.market.spot, self._limits.multiplier
            fill(trade_price, self.now_ns, spot, self.contracts, multiplier, self._outbox)

    def _step_5_features(self, record: np.void) -> None:
        if "features" not in self._without:
            self.features.take(record, self.book)

    def _step_6_values(self) -> None:
        if not self.book.usable:
            self.market.spot = math.nan
            values.forget(self.contracts)
            return
        first = math.isnan(self.market.spot)
        self.market.spot = self.book.mid
        x, self.market.clipped_share = values.net_input(self.features.row(), self._step_scaling, self._step_columns)
        if first or "evaluate" not in self._without:
            self._engine.evaluate(x, self._context)
        if first or "valuation" not in self._without:
            values.value(
                self._engine, self._context, self._quoted, self._contract_scaling, self._contract_columns,
                self.market.spot, self._reference_spot, self.contracts,
            )  # fmt: skip

    def _step_7_market(self) -> None:
        if "market" not in self._without:
            self.gate.on_market(self.market, self.contracts)
            self._tell_state()

    def _step_8_orders(self) -> None:
        if self.gate.state is State.HALTED or self._strategy is None or "strategy" in self._without:
            return
        for intent in fixed_width(self._strategy, self.market, self.contracts):
            self.gate.submit(intent, self.market, self.contracts)
        self._tell_state()

    def _act(self, record: np.void) -> None:
        """A control; what it isn't known to mean is told too, and does nothing."""
        code, value = int(record["flags"]), float(record["values"][0])
        if code == ControlCode.KILL:
            self.gate.halt(Reason.KILL_SWITCH, self.market, self.contracts)
        elif code == ControlCode.REDUCE:
            self.gate.reduce()
        elif code == ControlCode.RESUME:
            self.gate.resume()
        elif code == ControlCode.ANOMALY_SCORE:
            self.market.anomaly_score = value
        elif code == ControlCode.MODEL_EXPIRED:
            self.market.model_expired = value != 0
        self._outbox.signal(self.now_ns, SignalCode.CONTROL_ACTED, (float(code), value, 0.0, 0.0))
        self._tell_state()

    def _tell_state(self) -> None:
        known = (self.gate.state, self.gate.why)
        if known != self._told:
            self._told = known
            self._outbox.signal(self.now_ns, SignalCode.STATE, (float(known[0]), float(known[1]), self.gate.profit, 0.0))
