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
from collections.abc import Collection

import numpy as np

from serving import native
from serving.engines.native import NativeEngine
from serving.features import Scaler
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable
from serving.host.limits import Limits
from serving.host.records import RECORD, Records
from serving.host.reference import contracts as values
from serving.host.reference.book import Book
from serving.host.reference.contracts import Quoted
from serving.host.reference.fills import fill
from serving.host.reference.risk import BREAKERS, CHECKS, ReferenceGate
from serving.host.reference.states import (
    LAST_LEVEL,
    ContractState,
    ControlCode,
    Intent,
    Kind,
    Market,
    Outbox,
    Reason,
    SignalCode,
    State,
    later,
)
from serving.host.reference.strategy import fixed_width
from serving.host.reference.tick_features import TickFeatures
from serving.host.tick_features import TickSpec

STAGES = (
    "advance",  # closed steps aren't committed
    "book",  # the book takes nothing
    "fills",  # trades fill nothing
    "features",  # the open step takes nothing
    "evaluate",  # the context of the first event stands
    "valuation",  # contracts are valued under the spot of the event before
    "market",  # step 7 is left out
    "risk",  # nothing is checked before an order
    "strategy",  # nothing is asked
)
# Checks and breakers of the gate, by the names of their reasons.
GUARDS = tuple(reason.name.lower() for reason in (*(check for check, _ in CHECKS), *BREAKERS))


class ReferenceLoop:
    """Records in, orders out; state stays between calls of `process`, as in the product."""

    def __init__(
        self, engine: NativeEngine, spec: TickSpec, contracts: ContractTable, limits: Limits,
        strategy: FixedWidth | None = None, *, fair_values_every_ns: int = 0, without: Collection[str] = (),
    ) -> None:  # fmt: skip
        if unknown := set(without) - set(STAGES) - set(GUARDS):
            raise ValueError(f"there are no stages or checks {sorted(unknown)}; known are {STAGES + GUARDS}")
        self._without = frozenset(without)
        self._engine, self._limits, self._strategy = engine, limits, strategy
        self._options = native.core().Options(engine.isa)
        info = engine.info()
        self._step_columns, self._contract_columns = info.step_features, info.contract_features
        self._context = np.zeros(info.context_size, np.float32)
        self._step_scaling, self._contract_scaling = _scaling_of(spec.step_scaler), _scaling_of(spec.contract_scaler)
        self._quoted, self._reference_spot = _quoted_of(contracts), contracts.reference_spot
        self._fair_values_every_ns, self._fair_values_ns = fair_values_every_ns, 0
        engine.reset()
        self.book, self.features, self.market = Book(), TickFeatures(spec.step_ns), Market()
        self.contracts = [ContractState() for _ in self._quoted]
        self._outbox = Outbox()
        checks = {check.name.lower() for check, _ in CHECKS} if "risk" in without else set()
        self.gate = ReferenceGate(limits, len(self._quoted), self._outbox, checks | set(without) & set(GUARDS))
        self._told = (self.gate.state, self.gate.why)
        self._read = self.asked = 0  # records that aren't controls; intents given to the gate
        self._kill_before, self._replayed_kill = 0, 0.0
        self._refused_ns: dict[tuple[int, bool], int] = {}  # when, of a contract's buy or sell side
        self.events = self.advances = self.skipped = self.time_went_back = 0

    def process(self, records: Records) -> Records:
        """What left because of `records`."""
        begin = len(self._outbox.records)
        for record in records.view(RECORD):
            if int(record["kind"]) == Kind.CONTROL:
                self._control(int(record["flags"]), [float(value) for value in record["values"][:4]])
            else:
                self._read += 1
                self.book.follow(int(record["sequence"]))
                self._market_record(record)
                if self.gate.kill_asked:  # who was HALTED already hasn't noticed
                    self.gate.kill_asked = False
                    self._control(ControlCode.KILL, [1.0, 0.0, 0.0, 0.0])
        return np.frombuffer(b"".join(self._outbox.records[begin:]), RECORD).copy()

    def _market_record(self, record: np.void) -> None:
        kind = int(record["kind"])
        if kind not in (Kind.TRADE, Kind.QUOTE, Kind.LEVEL, Kind.HEARTBEAT) or int(record["instrument"]) != 0:
            self.skipped += 1
        elif kind == Kind.LEVEL and not int(record["flags"]) & LAST_LEVEL:
            if "book" not in self._without:
                self.book.apply(record, self.market.event_ns)
        else:
            self._event(record, Kind(kind))

    def _event(self, record: np.void, kind: Kind) -> None:
        """The eight steps of the page."""
        self.events += 1
        self._step_1_time(int(record["event_ns"]))
        self._step_2_close()
        if kind is not Kind.HEARTBEAT:
            self._step_3_book(record)
            if kind is Kind.TRADE:
                self._step_4_fills(float(record["values"][0]), float(record["values"][1]))
            self._step_5_features(record)
            self._step_6_values()
        self._step_7_market()
        self._step_8_orders()
        self._tell_fair_values()

    def _step_1_time(self, event_ns: int) -> None:
        self.time_went_back += event_ns < self.market.event_ns
        self.market.event_ns = max(self.market.event_ns, event_ns)

    def _step_2_close(self) -> None:
        closed = self.features.close_before(self.market.event_ns)
        if closed is not None and "advance" not in self._without:
            self.advances += 1
            self._engine.advance(values.net_input(closed.tolist(), self._step_scaling, self._step_columns)[0])

    def _step_3_book(self, record: np.void) -> None:
        if "book" not in self._without:
            self.book.apply(record, self.market.event_ns)
        self.market.book_changed_ns = self.book.changed_ns

    def _step_4_fills(self, price: float, size: float) -> None:
        if "fills" not in self._without:
            now_ns, spot, multiplier = self.market.event_ns, self.market.spot, self._limits.multiplier
            fill(price, size, now_ns, spot, self.contracts, multiplier, self._outbox)

    def _step_5_features(self, record: np.void) -> None:
        if "features" not in self._without:
            self.features.take(record, self.book)

    def _step_6_values(self) -> None:
        known = not math.isnan(self.market.spot)
        if not self.book.usable:
            self.market.spot = math.nan
            values.forget(self.contracts)
            return
        stale = self.market.spot
        self.market.spot = self.book.mid
        x, self.market.clipped_share = values.net_input(
            self.features.row().tolist(), self._step_scaling, self._step_columns
        )
        if not known or "evaluate" not in self._without:
            self._engine.evaluate(x, self._context)
        values.value(
            self._engine, self._options, self._context, self._quoted, self._contract_scaling, self._contract_columns,
            stale if known and "valuation" in self._without else self.market.spot, self._reference_spot, self.contracts,
        )  # fmt: skip

    def _step_7_market(self) -> None:
        if "market" not in self._without:
            self.gate.on_market(self.market, self.contracts)
            self._tell_state()

    def _step_8_orders(self) -> None:
        if self.gate.state is not State.HALTED and self._strategy is not None and "strategy" not in self._without:
            tick = self._limits.tick_money
            for intent in fixed_width(self._strategy, tick, self.market, self.contracts, self._refused_ns):
                self._submit(intent)
            self._tell_state()
        self._kill_before = 0

    def _submit(self, intent: Intent) -> None:
        self.asked += 1
        if self.asked == self._kill_before:
            self.gate.kill_asked = True
        before = self.gate.state
        if self.gate.submit(intent, self.market, self.contracts) is not Reason.NONE:
            self._refused_ns[intent.contract, intent.is_buy] = self.market.event_ns
        if before is not State.HALTED and self.gate.why is Reason.KILL_SWITCH:
            self.gate.kill_asked = False
            told = (float(ControlCode.KILL), self._replayed_kill, float(self._read - 1), float(self.asked))
            self._outbox.signal(self.market.event_ns, 0, SignalCode.CONTROL_ACTED, told)

    def _control(self, code: int, given: list[float]) -> None:
        if code == ControlCode.KILL and self.asked < given[3] < 2**53:
            self._kill_before, self._replayed_kill = int(given[3]), given[0]
            return
        if code == ControlCode.KILL:
            self.gate.halt(Reason.KILL_SWITCH, self.market, self.contracts)
        elif code == ControlCode.REDUCE:
            self.gate.reduce()
        elif code == ControlCode.RESUME:
            self.gate.resume()
        elif code == ControlCode.ANOMALY_SCORE:
            self.market.anomaly_score = given[0]
        elif code == ControlCode.MODEL_EXPIRED:
            self.market.model_expired = given[0] != 0
        elif code == ControlCode.CANCEL_ALL:
            self.gate.cancel_all(self.market, self.contracts)
        known = code in list(ControlCode)
        if known:
            self.gate.withdraw(self.market, self.contracts)
        answer = SignalCode.CONTROL_ACTED if known else SignalCode.CONTROL_REFUSED
        self._outbox.signal(self.market.event_ns, 0, answer, (float(code), given[0], float(self._read), 0.0))
        self._tell_state()

    def _tell_state(self) -> None:
        if (self.gate.state, self.gate.why) != self._told:
            self._told = (self.gate.state, self.gate.why)
            told = (float(self.gate.state), float(self.gate.why), self.gate.profit, 0.0)
            self._outbox.signal(self.market.event_ns, 0, SignalCode.STATE, told)

    def _tell_fair_values(self) -> None:
        now_ns, spot = self.market.event_ns, self.market.spot
        if not self._fair_values_every_ns or math.isnan(spot) or now_ns < self._fair_values_ns:
            return
        self._fair_values_ns = later(now_ns, self._fair_values_every_ns)
        for place, contract in enumerate(self.contracts):
            told = (contract.fair, contract.delta, contract.volatility, spot)
            self._outbox.signal(now_ns, place + 1, SignalCode.FAIR_VALUES, told)


def _scaling_of(scaler: Scaler) -> values.Scaling:
    unscaled = [place in scaler.unscaled for place in range(len(scaler.mean))]
    return values.Scaling(scaler.mean, scaler.deviation, scaler.clip, unscaled)


def _quoted_of(table: ContractTable) -> list[Quoted]:
    columns = (table.strike, table.tau_years, table.carry, table.discount, table.right, table.last_volatility)
    rows = zip(*(column[: table.quoted].tolist() for column in columns), strict=True)
    return [Quoted(*row) for row in rows]
