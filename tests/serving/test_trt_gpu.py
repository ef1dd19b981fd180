"""On a machine with an NVIDIA GPU: engines are deserialised, agree with ONNX Runtime, and are timed.

Everywhere else these skip, saying why, and nothing of them counts as run; with REQUIRE_GPU=1 the skips are failures.
Run: REQUIRE_GPU=1 python -m pytest -m gpu tests/serving/test_trt_gpu.py -s
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.engine import golden_parity, open_engine
from serving.engines import ort, trt
from serving.engines.trt_builder import FULL, MODULES, RTX
from serving.engines.trt_driver import probe_driver
from tests.small_nets import F, K, T, small_bundle

pytestmark = pytest.mark.gpu

TOLERANCE = 2e-5  # of float32 with TensorRT's own order of summation; TF32 is not asked for
CALLS = 2_000


def need(reason: str | None) -> None:
    """Skip for that reason; fail where the GPU is required."""
    if reason is None:
        return
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, and {reason}")
    pytest.skip(f"not run: {reason}")


@pytest.fixture(autouse=True)
def gpu() -> None:
    need(probe_driver().reason)


@pytest.fixture(params=[FULL, RTX])
def library(request: pytest.FixtureRequest) -> str:
    need(trt.why_unavailable())
    if find_spec(MODULES[request.param]) is None:  # one of the two is enough, also where a GPU is required
        pytest.skip(f"{MODULES[request.param]} isn't installed")
    return str(request.param)


@pytest.fixture(params=["window", "stateful"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "bundle", semantics=request.param, members=2)


def test_engines_deserialise_and_answer_the_golden_vectors(bundle: Bundle, library: str) -> None:
    engine = trt.open_engine(bundle, build=library)
    assert library in engine.info().runtime
    for one in golden_parity(bundle, engine):
        assert one.max_abs_difference < TOLERANCE, one


def test_any_sequence_of_calls_gives_what_onnx_runtime_gives(bundle: Bundle, library: str) -> None:
    ours, theirs = trt.open_engine(bundle, build=library), open_engine(bundle, "ort")
    random = np.random.default_rng(0)
    contexts = [np.zeros(ours.info().context_size, np.float32) for _ in range(2)]
    for step in range(4 * T):
        x = random.normal(size=F).astype(np.float32)
        contracts = random.normal(0.3, 0.05, (1 + 700 * step, K)).astype(np.float32)
        answers = [np.zeros(len(contracts), np.float32) for _ in range(2)]
        for engine, context, iv in zip((ours, theirs), contexts, answers, strict=True):
            if step == 2 * T:
                engine.reset()
            engine.evaluate(-x, context)
            engine.evaluate(x, context)
            engine.head(context, contracts, iv)
            engine.advance(x)
        np.testing.assert_allclose(contexts[0], contexts[1], atol=TOLERANCE)
        np.testing.assert_allclose(answers[0], answers[1], atol=TOLERANCE)


def test_a_tick_is_timed(bundle: Bundle, library: str) -> None:
    """Prints p50 and p99 in us beside ONNX Runtime's on the CPU; a figure, not a bar."""
    x = np.ones(F, np.float32)
    for engine in (trt.open_engine(bundle, build=library), open_engine(bundle, "ort")):
        out = np.zeros(engine.info().context_size, np.float32)
        taken = []
        for call in range(CALLS + 100):
            start = time.perf_counter_ns()
            engine.evaluate(x, out)
            if call >= 100:
                taken.append(time.perf_counter_ns() - start)
        p50, p99 = np.percentile(taken, [50, 99]) / 1e3
        print(f"{engine.info().runtime}: evaluate p50 {p50:.1f} us, p99 {p99:.1f} us")  # noqa: T201
        assert np.isfinite(out).all()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnx_runtime_on_the_gpu_answers_as_on_the_cpu(bundle: Bundle, provider: str) -> None:
    need(None if find_spec("onnxruntime") else "onnxruntime isn't installed")
    import onnxruntime

    there = onnxruntime.get_available_providers()
    need(None if ort.PROVIDERS[provider] in there else f"this onnxruntime has only {', '.join(there)}")
    engine = ort.open_engine(bundle, provider)
    assert ort.PROVIDERS[provider] in engine.info().runtime
    for one in golden_parity(bundle, engine):
        assert one.max_abs_difference < TOLERANCE, one
