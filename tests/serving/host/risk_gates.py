"""A risk gate to test, of the built core or of a compiler's: the same few calls, records and contracts as arrays.

`Desk` holds a gate, its market and its contracts, and speaks in names; `compiled_gate` makes a gate of a changed
risk.cpp (planted defects), with a C interface that has the attributes of the core's `Market` and `RiskGate`.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.host.limits import FIELDS, FOREVER_NS, TIMES, Limits

SOURCES = Path(__file__).parents[3] / "serving" / "native"
SHIM = Path(__file__).with_name("risk_shim.cpp")

# docs/host-rules.md, "Risk, before every order", then what else brings a state about.
REFUSALS = (
    "halted", "reducing", "malformed", "stale_book", "model_guard", "order_size", "price_collar", "self_match",
    "position", "notional", "delta", "gamma", "vega", "order_rate",
)  # fmt: skip
CAUSES = ("kill_switch", "loss", "drawdown", "market_move", "reject_burst", "operator_asked")
REASONS = ("none", *REFUSALS, *CAUSES)
STATES = ("ACTIVE", "REDUCING", "HALTED")
BUY, NEW, REPLACE, CANCEL = 1, 2, 4, 8
WORKING = np.dtype([("id", "u8"), ("price", "f8"), ("quantity", "f8")])
CONTRACT = np.dtype(
    [(name, "f8") for name in ("fair", "delta", "gamma", "vega", "position", "cash")]
    + [("buy", WORKING), ("sell", WORKING)]
)
ORDER = np.dtype(
    [
        ("event_ns", "i8"), ("sequence", "u4"), ("instrument", "u2"), ("kind", "u1"), ("flags", "u1"),
        ("order_id", "u8"), ("price", "f8"), ("quantity", "f8"), ("arrival_ns", "i8"), ("sent_ns", "i8"),
    ]
)  # fmt: skip
START_NS = 1_546_300_800_000_000_000
NAN, INF = float("nan"), float("inf")
UNLIMITED = Limits(
    **{name: FOREVER_NS if name in TIMES else INF for name in FIELDS}
    | {"collar_share": 0.0, "multiplier": 4.0, "tick_money": 0.25}  # type: ignore[arg-type]
)


def limits_with(**changes: Any) -> Limits:
    """No limit but those named; contracts of four units, ticks of a quarter."""
    return replace(UNLIMITED, **changes)


class Desk:
    """A gate of `core` with contracts at a fair value of 2, all priced; every call answers in names."""

    def __init__(self, core: Any, limits: Limits = UNLIMITED, contracts: int = 2) -> None:
        self.core, self.limits = core, limits
        self.gate = core.RiskGate(limits, contracts)
        self.contracts = self.gate.contracts.view(CONTRACT)[:, 0]
        for place in range(contracts):
            self.set(place, fair=2.0, delta=0.5, gamma=0.125, vega=2.0)
        self.market: dict[str, Any] = {"event_ns": START_NS, "book_changed_ns": START_NS, "arrival_ns": 0}
        self.market |= {"spot": 100.0, "anomaly_score": 0.0, "clipped_share": 0.0, "model_expired": False}

    def set(self, place: int, **fields: float) -> None:
        for name, value in fields.items():
            self.contracts[place][name] = value

    def tick(self, **changes: Any) -> str:
        """The market moves on; the state after it."""
        self.market |= changes
        self.gate.on_market(self.core.Market(**self.market))
        return self.state

    def order(
        self, side: int = BUY, price: float = 2.0, quantity: float = 1.0, *, contract: int = 0, action: int = NEW
    ) -> str:
        """One intent; the reason."""
        market = self.core.Market(**self.market)
        return REASONS[self.gate.submit(contract, action | side, price, quantity, market)]

    def cancel(self, side: int, contract: int = 0) -> str:
        return self.order(side, 0.0, 0.0, contract=contract, action=CANCEL)

    def fill(self, place: int, side: int) -> None:
        """What works fills whole, at its own price (page: "Simulated fills")."""
        contract = self.contracts[place]
        working = contract["buy" if side else "sell"]
        signed = working["quantity"] if side else -working["quantity"]
        contract["position"] += signed
        contract["cash"] -= working["price"] * signed * self.limits.multiplier
        working["id"], working["price"], working["quantity"] = 0, 0.0, 0.0

    def set_limits(self, **changes: Any) -> None:
        self.limits = replace(self.limits, **changes)
        self.gate.set_limits(self.limits)

    def halt(self, why: str = "kill_switch") -> None:
        self.gate.halt(REASONS.index(why), self.core.Market(**self.market))

    def reduce(self, why: str = "operator_asked") -> None:
        self.gate.reduce(REASONS.index(why))

    def refused(self, reason: str) -> int:
        return int(self.gate.refused(REASONS.index(reason)))

    def left(self) -> np.ndarray:
        """The records that left since the last call."""
        return np.frombuffer(self.gate.take_orders(), ORDER)

    @property
    def state(self) -> str:
        return STATES[self.gate.state]

    @property
    def why(self) -> str:
        return REASONS[self.gate.why]


def compiled_gate(change: Callable[[str], str], folder: Path) -> Any:
    """A gate of its two files as `change` rewrites them, with the attributes of the core that `Desk` uses."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here, so no defect can be planted")
    host = folder / "host"
    host.mkdir()
    texts = {name: (SOURCES / "host" / name).read_text() for name in ("risk.cpp", "risk_checks.hpp")}
    changed = {name: change(text) for name, text in texts.items()}
    assert changed != texts, "the defect found nothing to change"
    for name, text in changed.items():
        (host / name).write_text(text)
    library = folder / "risk.so"
    # Hidden: else the loader takes the table of checks from the first of several such libraries for all of them.
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    flags += [f"-I{folder}", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, str(SHIM), "-o", str(library)], check=True, capture_output=True, text=True)
    return _core_of(ctypes.CDLL(str(library)))


class _Market(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("event_ns", "arrival_ns", "book_changed_ns")),
        *((name, ctypes.c_double) for name in ("spot", "anomaly_score", "clipped_share")),
        ("model_expired", ctypes.c_bool),
    )


class _Limits(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64 if name in TIMES else ctypes.c_double) for name in FIELDS)


def _core_of(library: ctypes.CDLL) -> SimpleNamespace:
    library.gate_new.restype = ctypes.c_void_p
    library.gate_contracts.restype = ctypes.POINTER(ctypes.c_double)
    library.gate_records.restype = ctypes.c_void_p
    library.gate_refused.restype = ctypes.c_uint64
    library.gate_profit.restype = ctypes.c_double

    class RiskGate:
        def __init__(self, limits: Limits, contracts: int) -> None:
            self.held = ctypes.c_void_p(library.gate_new(ctypes.byref(_Limits(**asdict(limits))), contracts))
            words = CONTRACT.itemsize // 8
            self.contracts = np.ctypeslib.as_array(library.gate_contracts(self.held), (contracts, words))

        def __del__(self) -> None:
            library.gate_free(self.held)

        def on_market(self, market: _Market) -> None:
            library.gate_on_market(self.held, ctypes.byref(market))

        def submit(self, contract: int, flags: int, price: float, quantity: float, market: _Market) -> int:
            numbers = ctypes.c_double(price), ctypes.c_double(quantity)
            return int(library.gate_submit(self.held, contract, flags, *numbers, ctypes.byref(market)))

        def halt(self, why: int, market: _Market) -> None:
            library.gate_halt(self.held, why, ctypes.byref(market))

        def reduce(self, why: int) -> None:
            library.gate_reduce(self.held, why)

        def resume(self) -> None:
            library.gate_resume(self.held)

        def set_limits(self, limits: Limits) -> None:
            library.gate_set_limits(self.held, ctypes.byref(_Limits(**asdict(limits))))

        def set_kill(self, killed: bool) -> None:
            library.gate_set_kill(self.held, int(killed))

        def take_orders(self) -> bytes:
            count = ctypes.c_size_t()
            records = library.gate_records(self.held, ctypes.byref(count))
            taken = ctypes.string_at(records, count.value * ORDER.itemsize) if count.value else b""
            library.gate_forget(self.held)
            return taken

        def refused(self, reason: int) -> int:
            return int(library.gate_refused(self.held, reason))

        @property
        def state(self) -> int:
            return int(library.gate_state(self.held))

        @property
        def why(self) -> int:
            return int(library.gate_why(self.held))

        @property
        def profit(self) -> float:
            return float(library.gate_profit(self.held))

    return SimpleNamespace(RiskGate=RiskGate, Market=_Market)
