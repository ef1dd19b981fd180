"""Small worlds for the loop: engines with random weights, specs, contracts, and random streams of records.

A stream holds everything that can come in: quotes of one and both sides, pictures of the book whole and broken, trades
near and far, heartbeats, records of other instruments and kinds, impossible numbers, times that go back, and controls.
Prices walk, rest and jump, so that orders fill, breakers trip and losses halt.
"""

from __future__ import annotations

import math
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

import models
from serving.bundle import Bundle, write_bundle
from serving.engines.native import NativeEngine
from serving.features import Scaler
from serving.host.config_types import FixedWidth
from serving.host.contracts import ContractTable
from serving.host.limits import Limits
from serving.host.records import RECORD, Records
from serving.host.reference.states import ControlCode, Kind
from serving.host.tick_features import CONTRACT_FEATURES, STEP_FEATURES, TickSpec
from serving.manifest import Member, MemberFile, TensorSpec

STEP_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000
COLUMNS, CONTRACT_COLUMNS, WINDOW, CONTEXT = 48, 11, 6, 8
SIZES: dict[str, dict[str, Any]] = {
    "pricing_lstm": {"hidden": 20, "layers": 2},
    "pricing_transformer": {"width": 16, "heads": 2, "layers": 2, "band": 3},
}


QUOTER = FixedWidth(  # which asks again at once what was refused: every breaker is to be met
    half_width_money=0.05, quantity=1.0, requote_money=0.03, skew_money_per_unit=0.01, retry_ns=0
)


def limits_of(**changed: Any) -> Limits:
    """Limits that a few hundred events now and then reach."""
    return Limits(**{
        "collar_money": 0.12, "collar_share": 0.02, "order_quantity": 2.0, "position_quantity": 3.0,
        "notional_money": 500.0, "delta": 40.0, "gamma": 3.0, "vega": 400.0, "loss_money": 60.0,
        "drawdown_money": 25.0, "order_rate_count": 12.0, "order_rate_window_ns": 150_000_000,
        "stale_book_ns": 100_000_000, "anomaly_score": 3.0, "clipped_share": 0.5, "market_move_share": 0.01,
        "market_move_window_ns": 500_000_000, "market_move_pause_ns": 200_000_000, "reject_burst_count": 12.0,
        "multiplier": 10.0, "tick_money": 0.01,
    } | changed)  # fmt: skip


UNLIMITED = dict.fromkeys(
    ("collar_money", "order_quantity", "position_quantity", "notional_money", "delta", "gamma", "vega", "loss_money",
     "drawdown_money", "order_rate_count", "anomaly_score", "clipped_share", "market_move_share", "reject_burst_count"),
    math.inf,
) | {"stale_book_ns": 2**63 - 1}  # fmt: skip


@cache
def spec_of() -> TickSpec:
    """Scalers of about the size of the columns, some of which clip."""
    rng = np.random.default_rng(7)
    deviation = np.exp(rng.uniform(-3, 0, len(STEP_FEATURES)))
    mean = rng.normal(size=len(STEP_FEATURES)) * 0.1
    step = Scaler(tuple(mean.tolist()), tuple(deviation.tolist()), clip=3.0)
    contract = Scaler(
        (0.0, 0.0, 0.0, 0.01, 0.02, 0.001, 0.0, 0.1), (1.0, 1.0, 1.0, 0.3, 0.2, 0.05, 0.02, 0.9), 3.0, (0, 1, 2)
    )
    assert len(contract.mean) == len(CONTRACT_FEATURES)
    return TickSpec(STEP_NS, WINDOW, COLUMNS, CONTRACT_COLUMNS, step, contract)


@cache
def contracts_of() -> ContractTable:
    """Calls and puts around 100, a week to a quarter; the last two of them aren't quoted."""
    rows = (
        (100.0, 0.02, 1.0, 0.999, 1.0, 0.5), (102.5, 0.08, 1.002, 0.995, 1.0, 0.45),
        (97.5, 0.08, 1.002, 0.995, -1.0, 0.55), (100.0, 0.25, 1.01, 0.98, -1.0, 0.4),
        (105.0, 0.25, 1.01, 0.98, 1.0, 0.4), (90.0, 0.25, 1.01, 0.98, 1.0, 0.6), (90.0, 0.25, 1.01, 0.98, -1.0, 0.6),
    )  # fmt: skip
    return ContractTable(*np.array(rows).T, quoted=5, reference_spot=100.5)


@cache
def _bundle(family: str, semantics: str) -> Bundle:
    """A net whose context and corrections move prices; the native engine reads weights alone: nothing is exported."""
    torch.manual_seed(3)
    sizes = SIZES[family] | {
        "step_features": COLUMNS, "contract_features": CONTRACT_COLUMNS, "window": WINDOW, "context": CONTEXT,
        "head_width": 12,
    }  # fmt: skip
    net: Any = models.build(family, sizes).eval()
    for layer in (net.head.linear, net.head.network[-1]):
        nn.init.normal_(layer.weight, 0, 1.0)
        nn.init.normal_(layer.bias, 0, 0.4)

    def tensor(name: str, *shape: int | None) -> TensorSpec:
        return TensorSpec(name, shape, "float32")

    nothing, weights, context = "member-0/not-run.onnx", "member-0/weights.safetensors", tensor("context", 1, CONTEXT)
    member = Member({
        "window": MemberFile(nothing, (tensor("window", 1, WINDOW, COLUMNS),), (context,)),
        "step": MemberFile(nothing, (tensor("x", 1, COLUMNS),), (context,)),
        "head": MemberFile(nothing, (context, tensor("contracts", None, CONTRACT_COLUMNS)), (tensor("iv", None),)),
        "weights": MemberFile(weights),
    })  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="strikeforge-worlds-"))
    return write_bundle(
        folder / "bundle", model=family, model_config=sizes, members=[member],
        files={nothing: b"the native engine reads weights alone", weights: save(net.state_dict())},
        feature_spec=spec_of().to_json(), semantics=semantics, tolerances={}, data_sha256="ab" * 32,
        config_sha256="cd" * 32,
    )  # fmt: skip


def engine_of(
    family: str = "pricing_lstm", semantics: str = "window", precision: str = "fp32", isa: str = ""
) -> NativeEngine:
    """A new engine, in its state at the beginning."""
    return NativeEngine(_bundle(family, semantics), precision, isa)


def record(
    event_ns: int, kind: int, flags: int = 0, values: tuple[float, ...] = (), *, instrument: int = 0, sequence: int = 0
) -> bytes:
    """One record's bytes; `arrival_ns` is 0."""
    body = struct.pack("<4dq", *(*values, 0.0, 0.0, 0.0, 0.0)[:4], 0)
    return struct.pack("<qIHBB", event_ns, sequence, instrument, kind, flags) + body


def records_of(parts: list[bytes]) -> Records:
    return np.frombuffer(b"".join(parts), RECORD).copy()


HAS_BID, HAS_ASK, FIRST, LAST = 1, 2, 4, 8


class _Stream:
    """Draws records about one underlying."""

    def __init__(self, seed: int, garbage: float, controls: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.garbage, self.controls = garbage, controls
        self.now_ns, self.mid, self.halted = START_NS, 100.0, False
        self.parts: list[bytes] = []

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def rarely(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def put(self, kind: int, flags: int = 0, values: tuple[float, ...] = (), instrument: int = 0) -> None:
        back_ns = self.one_of(1, 10**6, 10**10) if self.rarely(0.2 * self.garbage) else 0
        event_ns = self.now_ns - back_ns
        self.parts.append(record(event_ns, kind, flags, values, instrument=instrument, sequence=len(self.parts) + 1))

    def spread(self) -> tuple[float, float]:
        half = 0.01 * self.one_of(1, 1, 2, 3)
        return round(self.mid - half, 2), round(self.mid + half, 2)

    def size(self) -> float:
        return float(self.one_of(0.5, 1.0, 2.0, 7.25, 40.0))

    def quote(self) -> None:
        bid, ask = self.spread()
        flags = self.one_of(HAS_BID, HAS_ASK, *[HAS_BID | HAS_ASK] * 4)
        values = [bid, self.size(), ask, self.size()]
        if self.rarely(self.garbage):
            values[self.one_of(0, 1, 2, 3)] = self.one_of(0.0, -1.0, math.nan, math.inf, 1e-300, 1e300)
        if self.rarely(self.garbage):
            values[0], values[2] = values[2], values[0]  # crossed
        self.put(Kind.QUOTE, flags, tuple(values))

    def picture(self) -> None:
        bid, ask = self.spread()
        count = int(self.rng.integers(1, 11))
        levels = []
        for place in range(count):
            flags = HAS_BID | HAS_ASK | (FIRST if place == 0 else 0) | (LAST if place == count - 1 else 0) | place << 4
            levels.append(
                (flags, (round(bid - 0.01 * place, 2), self.size(), round(ask + 0.01 * place, 2), self.size()))
            )
        if self.rarely(4 * self.garbage):
            broken = self.one_of("hole", "no_end", "order", "number")
            if broken == "hole":
                levels.pop(int(self.rng.integers(len(levels))))
            elif broken == "no_end":
                levels = levels[:-1]
            elif broken == "order":
                levels = levels[::-1]
            else:
                flags, values = levels[-1]
                levels[-1] = (flags, (self.one_of(math.nan, 0.0, 1e9), *values[1:]))
        for flags, values in levels:
            self.put(Kind.LEVEL, flags, values)

    def trade(self) -> None:
        bid, ask = self.spread()
        price = self.one_of(bid, ask, bid, ask, round(self.mid, 2), self.mid * self.one_of(0.97, 0.995, 1.005, 1.03))
        size = self.size()
        if self.rarely(self.garbage):
            price = self.one_of(0.0, -5.0, math.nan, math.inf, -math.inf, 1e200)
        if self.rarely(self.garbage):
            size = self.one_of(0.0, math.nan, -1.0, math.inf)
        self.put(Kind.TRADE, self.one_of(0, 1, 2, 3), (price, size))

    def control(self) -> None:
        code = self.one_of(*ControlCode, ControlCode.CANCEL_ALL, ControlCode.ANOMALY_SCORE, 0, 7, 99)
        value, before = 0.0, 0.0
        if code == ControlCode.ANOMALY_SCORE:
            value = self.one_of(0.0, 0.0, 3.0, 4.0, math.nan)
        elif code == ControlCode.MODEL_EXPIRED:
            value = self.one_of(0.0, 0.0, 1.0)
        elif code == ControlCode.KILL:
            value = self.one_of(0.0, 1.0, 2.0, math.nan, -1.0)
            before = self.one_of(0.0, float(self.rng.integers(1, 2000)), 0.5, math.nan, math.inf, -1.0)
        self.put(Kind.CONTROL, int(code), (value, 0.0, 0.0, before), self.one_of(0, 0, 3))

    def strange(self) -> None:
        values = tuple(float(value) for value in self.rng.normal(size=4))
        instrument, kind = self.one_of(
            (1, Kind.TRADE), (2, Kind.QUOTE), (0, 0), (0, Kind.ORDER), (0, 200), (7, Kind.LEVEL)
        )
        self.put(int(kind), int(self.rng.integers(256)), values, instrument)

    def draw(self) -> None:
        self.now_ns += int(self.rng.exponential(15e6)) * self.one_of(0, 1, 1, 1)
        if self.rarely(0.01):
            self.now_ns += int(self.rng.integers(1, 8)) * STEP_NS
        if self.rarely(0.6):
            self.mid *= math.exp(0.0003 * self.rng.normal())
        if self.rarely(0.015):
            self.mid *= 1 + self.one_of(-0.012, -0.006, 0.006, 0.012)
        if self.rarely(self.controls):
            self.control()
        if self.rarely(self.garbage):
            self.strange()
        if self.rarely(2 * self.controls):  # what a desk would do, else little happens after the first halt
            self.put(Kind.CONTROL, ControlCode.RESUME)
            self.put(Kind.CONTROL, ControlCode.ANOMALY_SCORE)
            self.put(Kind.CONTROL, ControlCode.MODEL_EXPIRED)
        kind = self.rng.random()
        if kind < 0.4:
            self.quote()
        elif kind < 0.55:
            self.picture()
        elif kind < 0.95:
            self.trade()
        else:
            self.put(Kind.HEARTBEAT)


def stream(seed: int, events: int, garbage: float = 0.02, controls: float = 0.01) -> Records:
    """About so many events; the last one leaves a usable book."""
    drawn = _Stream(seed, garbage, controls)
    for _ in range(events):
        drawn.draw()
    bid, ask = drawn.spread()
    drawn.put(Kind.QUOTE, HAS_BID | HAS_ASK, (bid, 1.0, ask, 1.0))
    return records_of(drawn.parts)
