"""After warm-up a native engine allocates nothing: neither the extension (it counts its operator new) nor Python.

ONNX Runtime isn't held to this: its run call allocates inside the library and makes Python objects; what
serving/engines/ort.py promises is that its own buffers are bound once.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.engine import open_engine
from tests.serving.native.built import PRECISIONS, built_core
from tests.serving.native.test_lstm import encoder_of, net_of, steps_of
from tests.tiny_family import family_bundle

CORE = built_core()
CALLS = 10_000


def allocated(work: Callable[[], None]) -> tuple[int, int]:
    """Allocations of the extension, and bytes that Python still holds more of, over the work done once more."""
    work()
    gc.collect()
    tracemalloc.start()
    try:
        before, held = CORE.allocation_count(), tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        peak = tracemalloc.get_traced_memory()[1] - held
        return CORE.allocation_count() - before, peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_encoder(precision: str, semantics: str) -> None:
    net = net_of(8, 20, 2, 4)
    encoder, x, out = encoder_of(net, semantics, precision), steps_of(net, 1)[0], np.zeros(5, np.float32)

    def work() -> None:
        evaluate, advance = encoder.evaluate, encoder.advance
        for _ in range(CALLS // 2):
            evaluate(x, out)
            advance(x)
        encoder.reset()

    native, python = allocated(work)
    assert native == 0
    assert python < 1024  # the loop's own counter and bound methods; one object a call would be 16 bytes x 10,000


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["pricing_lstm", "pricing_transformer"])
@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_engine_with_its_head(tmp_path: Path, family: str, semantics: str, precision: str) -> None:
    engine = open_engine(family_bundle(tmp_path / "b", family, semantics=semantics), "native", precision=precision)
    info = engine.info()
    x, context = np.ones(info.step_features, np.float32), np.zeros(info.context_size, np.float32)
    contracts, iv = np.full((40, info.contract_features), 0.2, np.float32), np.zeros(40, np.float32)

    def work() -> None:
        evaluate, advance, head = engine.evaluate, engine.advance, engine.head
        for _ in range(CALLS // 3 + 1):
            evaluate(x, context)
            advance(x)
            head(context, contracts, iv)

    native, python = allocated(work)
    assert native == 0
    assert python < 1024


def test_the_count_counts() -> None:
    """Making an encoder allocates; the counter sees it."""
    before = CORE.allocation_count()
    encoder_of(net_of(8, 20, 1, 4), "window")
    assert CORE.allocation_count() > before
