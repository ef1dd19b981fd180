"""The engine that does no work: same shapes, same checks, all zeros. It measures the overhead of everything else.

Data in and out: as in serving/engine.py. Invariant: no model file is read, no inference library imported.
"""

from __future__ import annotations

from serving.bundle import Bundle
from serving.engine import CheckedEngine, Floats


def why_unavailable() -> str | None:
    """It is always there."""
    return None


def open_engine(bundle: Bundle) -> NullEngine:
    """An engine of the bundle's shapes."""
    return NullEngine(bundle, "null", "no work")


class NullEngine(CheckedEngine):
    """Answers zeros."""

    def reset(self) -> None:
        pass

    def _evaluate(self, x: Floats, out: Floats) -> None:
        out.fill(0.0)

    def _advance(self, x: Floats) -> None:
        pass

    def _head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        out.fill(0.0)
