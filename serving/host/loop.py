"""The hot loop: ticks in, risk-checked orders out, in native code. Rules: docs/host-rules.md.

Data in: records (serving/host/records.py) from a ring, or offline from an array. Data out: orders, fills and signals
into rings of their own, or offline as one array in the order of leaving. What it tells while it runs: board.py.

Invariants: the same records, asked controls included, give the same bytes out, live or offline, but for `arrival_ns`
and `sent_ns`, which are only measured with. Every order passes the risk gate. Nothing allocates while it runs. A kill
(`ask`, SIGUSR1, a file HALT) acts before the next record and before the next order, and what works is cancelled.
The loop takes the engine over: it resets it, and nobody else may use it while the loop lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from serving import native
from serving.bundle import Bundle
from serving.engines.native import NativeEngine
from serving.errors import DataError, HostError
from serving.host.board import Board, ChainPage
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable
from serving.host.limits import Limits
from serving.host.records import RECORD, SIGNAL, Kind, Records, new_records
from serving.host.tick_features import KIND, TickSpec

NS_PER_S = 1_000_000_000


class ControlCode(IntEnum):
    """What an operator may ask, and `LIMITS`, which is told when new ones are in force."""

    KILL = 1
    REDUCE = 2
    RESUME = 3
    ANOMALY_SCORE = 4
    MODEL_EXPIRED = 5
    CANCEL_ALL = 6
    LIMITS = 7


class SignalCode(IntEnum):
    """What a signal tells; its four values: serving/native/host/loop.hpp."""

    STATE = 1
    CONTROL_ACTED = 2
    FAIR_VALUES = 3
    CONTROL_REFUSED = 4


class KillSource(IntEnum):
    """Value 0 of a kill that acted."""

    ASKED = 1
    SIGNAL = 2
    FILE = 3


@dataclass(frozen=True)
class Rings:
    """Where records come from and go to; the tick ring must be there, the others are made or taken over.

    `reader`: the name under which the place in the tick ring is kept; "" begins with the next record. `lossless_in`: a
    lossless feed waits for the loop; `lossless_out`: the loop waits for lossless readers (tests, replay at full pace).
    """

    ticks: Path
    orders: Path
    fills: Path
    signals: Path
    records: int = 65536
    reader: str = ""
    lossless_in: bool = False
    lossless_out: bool = False


@dataclass(frozen=True)
class Sweep:
    """The whole chain is valued `contracts` at a time while no record waits, beginning anew `every_ns` at most."""

    contracts: int = 32
    every_ns: int = 5_000_000


class HotLoop:
    """One loop over one engine; `process` offline, or `run` with rings.

    `strategy` None asks for nothing. `board`, `chain`: files for others to look at (mode 0600), made anew.
    `fair_values_every_ns`: event time between signals of the quoted contracts' fair values; 0: none.
    """

    def __init__(
        self, engine: NativeEngine, spec: TickSpec, contracts: ContractTable, limits: Limits,
        strategy: FixedWidth | None = None, *, rings: Rings | None = None, board: Path | None = None,
        chain: Path | None = None, fair_values_every_ns: int = 0, sweep: Sweep | None = None,
    ) -> None:  # fmt: skip
        _refuse_misfit(engine, spec)
        sweep = sweep or Sweep()
        step, contract = spec.step_scaler, spec.contract_scaler
        unscaled = np.zeros(len(contract.mean))
        unscaled[list(contract.unscaled)] = 1
        settings = SimpleNamespace(
            step_ns=spec.step_ns, step_mean=np.array(step.mean), step_deviation=np.array(step.deviation),
            step_clip=step.clip, contract_mean=np.array(contract.mean), contract_deviation=np.array(contract.deviation),
            contract_unscaled=unscaled, contract_clip=contract.clip, strike=contracts.strike,
            tau_years=contracts.tau_years, carry=contracts.carry, discount=contracts.discount, right=contracts.right,
            last_volatility=contracts.last_volatility, quoted=contracts.quoted, reference_spot=contracts.reference_spot,
            limits=limits, board=_text(board), chain=_text(chain), fair_values_every_ns=fair_values_every_ns,
            sweep_contracts=sweep.contracts, sweep_every_ns=sweep.every_ns, **_ring_settings(rings),
        )  # fmt: skip
        options = None
        if strategy is not None:
            options = SimpleNamespace(**vars(strategy), tick_money=limits.tick_money)
        self.contracts, self.limits, self.spec = contracts, limits, spec
        self._engine = engine
        self._loop: Any = native.core().Loop(engine.core, engine.isa, options, settings)
        self.board = Board(self._loop.board())
        self.chain = ChainPage(self._loop.chain())

    def process(self, records: Records, *, sweep: bool = False) -> Records:
        """What left because of `records` [N], in the order of leaving, as RECORD; goes on where the last call ended.

        `sweep`: also values a slice of the chain after every event.
        """
        return np.frombuffer(self._loop.process(records, sweep), RECORD)

    def run(
        self, *, sleep: bool = False, idle_exit_s: float | None = None, events: int | None = None,
        signals: bool = True, halt_folder: Path | None = None,
    ) -> str:  # fmt: skip
        """Read the tick ring until `stop` ("stopped"), so long without a record ("idle"), or so many events ("events").

        `sleep`: wait in the kernel while nothing comes (a kill then acts within 1 ms) instead of polling. `signals`:
        meanwhile SIGUSR1 kills, SIGTERM, SIGINT and SIGHUP stop. `halt_folder`: a file HALT there kills, also if it is
        there already, and nobody resumes before it is gone. When stopped, all that works is cancelled.
        """
        idle_ns = 0 if idle_exit_s is None else max(int(idle_exit_s * NS_PER_S), 1)
        end: str = self._loop.run(sleep, idle_ns, events or 0, signals, _text(halt_folder))
        return end

    def stop(self) -> None:
        """End `run` before its next record; from any thread."""
        self._loop.stop()

    def ask(self, code: ControlCode, value: float = 0.0) -> None:
        """Ask for a control; it acts before the next record. From any thread; HostError where too many wait."""
        if value != value:
            raise HostError(f"control {code.name.lower()}: expected a number, found NaN")
        if not self._loop.ask(int(code), value):
            raise HostError(f"control {code.name.lower()}: too many controls wait; the loop hasn't looked for long")

    def set_limits(self, limits: Limits, serial: int = 0) -> None:
        """Other limits from the next record on; told as a signal with `serial`. HostError where they can't change."""
        if not self._loop.ask_limits(limits, float(serial)):
            raise HostError("limits: the ones asked for before aren't in force yet; the loop hasn't looked since")
        self.limits = limits

    @property
    def counts_ticks(self) -> bool:
        """Whether hops are timed with the CPU's time stamp counter, or with the kernel's clock alone."""
        return bool(self._loop.counts_ticks)


def loop_isa() -> str:
    """Of the engine of a loop: the best there is, but for AMX.

    Its unit falls asleep between ticks and takes 4 us to wake, in up to a tenth of them; for so few contracts as are
    quoted it is no faster awake. bf16 and int8 answers differ by the rounding of the precision.
    """
    return "bf16" if native.core().choose_isa() == "amx" else ""


def tick_spec_of(bundle: Bundle) -> TickSpec:
    """What a bundle says of its inputs; HostError where it doesn't read ticks."""
    spec = bundle.manifest.feature_spec
    kind = spec.get("kind", "snapshot")
    if kind != KIND:
        raise HostError(
            f"bundle {bundle.sha256}: its feature_spec is of kind {kind!r}, the loop needs {KIND!r}: give a model "
            "trained on market steps of ticks, or price with `strikeforge-host price`"
        )
    return TickSpec.from_json(dict(spec))


def with_controls(ticks: Records, signals: Records) -> Records:
    """The market records of a session with the controls that acted in it, each where it acted: `process` repeats it.

    `signals`: what the session's loop told. Controls that were in `ticks` already are told in `signals` too.
    """
    market = ticks.view(RECORD)[ticks["kind"] != Kind.CONTROL]
    told = signals.view(SIGNAL)
    acted = told[(told["kind"] == Kind.SIGNAL) & (told["flags"] == SignalCode.CONTROL_ACTED)]
    if len(late := acted[acted["value"][:, 0] == ControlCode.LIMITS]):
        serials = ", ".join(f"{serial:.0f}" for serial in late["value"][:, 1])
        raise DataError(
            f"limits changed in this session (serials {serials}): process its parts, set_limits between them"
        )
    controls = new_records(len(acted), Kind.CONTROL)
    controls["event_ns"], controls["flags"] = acted["event_ns"], acted["value"][:, 0].astype(np.uint8)
    controls["value"][:, 0], controls["value"][:, 3] = acted["value"][:, 1], acted["value"][:, 3]
    places = acted["value"][:, 2].astype(np.int64)
    if len(places) and places.max() > len(market):
        raise DataError(f"a control acted after {places.max()} records; there are {len(market)}: records are missing")
    merged: Records = np.insert(market, places, controls.view(RECORD))
    return merged


def _refuse_misfit(engine: NativeEngine, spec: TickSpec) -> None:
    info = engine.info()
    pairs = (
        ("step features (F)", info.step_features, spec.padded_columns),
        ("contract features (K)", info.contract_features, spec.padded_contract_columns),
        ("steps of the window (T)", info.window_steps, spec.window),
    )
    if wrong := [
        f"{name}: the engine has {ours}, the spec says {theirs}" for name, ours, theirs in pairs if ours != theirs
    ]:
        raise HostError(f"bundle {info.bundle_sha256}: its feature spec doesn't fit its net: {'; '.join(wrong)}")


def _ring_settings(rings: Rings | None) -> dict[str, Any]:
    if rings is None:
        names = {"ticks": "", "orders": "", "fills": "", "signals": "", "reader": ""}
        return {**names, "ring_records": 2, "lossless_in": False, "lossless_out": False}
    return {
        "ticks": str(rings.ticks), "orders": str(rings.orders), "fills": str(rings.fills),
        "signals": str(rings.signals), "ring_records": rings.records, "reader": rings.reader,
        "lossless_in": rings.lossless_in, "lossless_out": rings.lossless_out,
    }  # fmt: skip


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)
