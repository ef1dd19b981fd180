"""A native engine for tests: ONNX Runtime under another name, with answers moved as a test wants them.

The compiled core isn't everywhere, and refuses the nets of tests; what the gates, packs and hosts make of an engine's
answers doesn't depend on how they were computed. `shift` is added to every volatility, `noise` (a standard deviation,
the same draws every time) likewise, `context_shift` to the first value of every context, by precision.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.engine import Engine, EngineInfo, Floats
from serving.engines import ort
from serving.errors import EngineError

NAME = "serving.engines.native"


@dataclass
class Moves:
    """What becomes of the answers of each precision; `takes_us` of every market step."""

    shift: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    context_shift: Mapping[str, float] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None
    instruction_set: str = "stand-in"
    takes_us: float = 0.0


class StandIn:
    """The engine."""

    def __init__(self, bundle: Bundle, precision: str, moves: Moves) -> None:
        self.inner: Engine = ort.open_engine(bundle)
        self.precision, self.moves = precision, moves
        self.reset, self.advance = self.inner.reset, self.inner.advance

    def info(self) -> EngineInfo:
        runtime = f"native {self.moves.instruction_set} {self.precision}"
        return replace(self.inner.info(), backend="native", runtime=runtime)

    def evaluate(self, x: Floats, out: Floats) -> None:
        self.inner.evaluate(x, out)
        out[0] += np.float32(self.moves.context_shift.get(self.precision, 0.0))
        until = time.perf_counter_ns() + 1000 * self.moves.takes_us
        while self.moves.takes_us and time.perf_counter_ns() < until:
            pass

    def head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        self.inner.head(context, contracts, out)
        draws = np.random.default_rng(len(out)).normal(size=len(out)).astype(np.float32)
        moved = np.float32(self.moves.noise.get(self.precision, 0.0)) * draws
        out += moved + np.float32(self.moves.shift.get(self.precision, 0.0))


def install(monkeypatch: pytest.MonkeyPatch, moves: Moves) -> None:
    """Put the stand-in where the native engine is looked for, until the test ends."""
    module: Any = types.ModuleType(NAME)

    def open_engine(bundle: Bundle, precision: str = "fp32", *_: object) -> StandIn:
        if moves.absent or precision in moves.refuses:
            raise EngineError(f"engine 'native': {moves.absent or moves.refuses[precision]}")
        return StandIn(bundle, precision, moves)

    why: Callable[[], str | None] = lambda: moves.absent  # noqa: E731
    module.open_engine, module.why_unavailable = open_engine, why
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr("serving.engines.native", module, raising=False)
