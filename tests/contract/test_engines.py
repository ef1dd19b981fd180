"""Every back end keeps the engine's promises, under both semantics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engine import PRECISIONS, Engine, open_engine
from serving.engines.trt import TrtEngine
from serving.errors import EngineError
from tests.serving.trt_memory import MemoryDevice, programs_of
from tests.small_nets import NATIVE, D, F, K, T, context_of, semantics, small_bundle, steps_of
from tests.tiny_family import FAMILIES, family_bundle

__all__ = ["semantics"]  # fixtures

SUBJECTS = [
    ("small", "ort", "fp32"),
    ("small", "null", "fp32"),
    ("small", "trt", "fp32"),  # on a device of plain memory
    ("pricing_lstm", "ort", "fp32"),
    *(
        pytest.param((family, "native", precision), marks=NATIVE)
        for family in FAMILIES
        for precision in PRECISIONS["native"]
    ),
]


@pytest.fixture(params=SUBJECTS, ids=lambda subject: "-".join(subject))
def engine(request: pytest.FixtureRequest, semantics: str, tmp_path: Path) -> Engine:
    model, backend, precision = request.param
    make = small_bundle if model == "small" else partial(family_bundle, family=model)
    if backend == "trt":
        bundle, device = small_bundle(tmp_path / "bundle", semantics=semantics, members=2), MemoryDevice()
        return TrtEngine(bundle, programs_of(bundle, device, 64), device, "memory")
    return open_engine(make(tmp_path / "bundle", semantics=semantics, members=2), backend, precision=precision)


def test_info_states_the_sizes(engine: Engine, semantics: str) -> None:
    info = engine.info()
    assert (info.semantics, info.members) == (semantics, 2)
    assert info.model in ("small", *FAMILIES)
    assert info.precision in PRECISIONS[info.backend]
    assert info.backend != "native" or info.precision in info.runtime
    assert (info.window_steps, info.step_features, info.contract_features, info.context_size) == (T, F, K, 2 * D)
    assert len(info.bundle_sha256) == 64


def test_evaluate_commits_nothing(engine: Engine) -> None:
    steps = steps_of(7)
    for x in steps[:4]:
        engine.advance(x)
    before = context_of(engine, steps[4])
    for x in steps:
        context_of(engine, 3 * x)
    assert np.array_equal(context_of(engine, steps[4]), before)
    assert np.isfinite(before).all()


def test_reset_forgets_everything(engine: Engine) -> None:
    steps = steps_of(9)
    fresh = context_of(engine, steps[0])
    for x in steps:
        engine.advance(x)
    engine.reset()
    assert np.array_equal(context_of(engine, steps[0]), fresh)


def test_nan_is_answered_with_nan_until_it_is_forgotten(engine: Engine, semantics: str) -> None:
    """A back end whose activations clamp NaN away would price a chain on nothing."""
    if engine.info().backend not in ("native", "ort"):
        pytest.skip("it answers zeros, or runs on a GPU")
    steps, bad = steps_of(3 * T), np.full(F, np.nan, np.float32)
    fresh, iv = context_of(engine, steps[0]), np.zeros(3, np.float32)
    bad[1:] = 0.0
    spoiled = context_of(engine, bad)
    assert np.isnan(spoiled).all()
    engine.head(spoiled, np.full((3, K), 0.2, np.float32), iv)
    assert np.isnan(iv).all()
    assert np.array_equal(context_of(engine, steps[0]), fresh)  # nothing was committed
    engine.advance(bad)
    for x in steps[: T - 1]:
        assert np.isnan(context_of(engine, x)).all()
        engine.advance(x)
    carried = semantics == "stateful" and engine.info().model != "pricing_transformer"
    if semantics == "window" or carried:
        assert np.isnan(context_of(engine, steps[T])).all() == carried
    engine.reset()
    assert np.array_equal(context_of(engine, steps[0]), fresh)


def test_inputs_are_left_alone(engine: Engine) -> None:
    x, contracts = steps_of(1)[0], np.full((3, K), 0.2, np.float32)
    context = context_of(engine, x)
    kept = x.copy(), context.copy(), contracts.copy()
    for array in (x, context, contracts):
        array.flags.writeable = False
    engine.advance(x)
    engine.head(context, contracts, np.zeros(3, np.float32))
    assert all(np.array_equal(array, copy) for array, copy in zip((x, context, contracts), kept, strict=True))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda e: e.evaluate(np.zeros(F + 1, np.float32), np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate(np.zeros(F), np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate([0.0] * F, np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate(np.zeros(F, np.float32), np.zeros(D, np.float32)), "'context'"),
        (lambda e: e.evaluate(np.zeros(F, np.float32), np.broadcast_to(np.float32(0), 2 * D)), "'context'"),
        (lambda e: e.advance(np.zeros((1, F), np.float32)), "'x'"),
        (lambda e: e.head(np.zeros(D, np.float32), np.zeros((2, K), np.float32), np.zeros(2, np.float32)), "'context'"),
        (lambda e: e.head(np.zeros(2 * D, np.float32), np.zeros((2, K - 1), np.float32), np.zeros(2, np.float32)),
         "'contracts'"),
        (lambda e: e.head(np.zeros(2 * D, np.float32), np.zeros((2, K), np.float32), np.zeros(3, np.float32)), "'iv'"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused_by_name(engine: Engine, call: Callable[[Any], None], name: str) -> None:
    with pytest.raises(EngineError, match=rf"tensor {name}: expected .*, found "):
        call(engine)


@pytest.mark.parametrize("count", [0, 1, 4, 2, 700])
def test_head_takes_any_number_of_contracts(engine: Engine, count: int) -> None:
    out = np.full(count, np.nan, np.float32)
    engine.head(np.zeros(2 * D, np.float32), np.full((count, K), 0.2, np.float32), out)
    assert np.isfinite(out).all()
