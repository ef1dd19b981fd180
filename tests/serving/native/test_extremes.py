"""What a market or a caller may do to an engine: numbers near nothing and beyond all, NaN, threads, forks.

Each net is tiny; both families, since their states differ.
"""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import numpy as np
import pytest
import torch

from serving.engines.native import numbers_of
from serving.errors import EngineError
from tests.serving.native import test_transformer as transformer
from tests.serving.native.built import PRECISIONS, built_core
from tests.serving.native.test_lstm import encoder_of, net_of, sizes_of, steps_of, weights_of

CORE = built_core()
ISAS = CORE.isas()
F, T = 5, 4
CASE = transformer.Case(step_features=F, window=T, band=3, layers=1)
FAMILIES = ("pricing_lstm", "pricing_transformer")
SUBNORMAL = np.float32(1e-41)


def encoder(family: str, semantics: str, precision: str = "fp32", isa: str = "") -> Any:
    if family == "pricing_lstm":
        return encoder_of(net_of(F, 18, 2, T), semantics, precision, isa)
    return transformer.encoder(CASE, precision, semantics, isa)


def rows(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, F)).astype(np.float32)


def context(engine: Any, x: np.ndarray) -> np.ndarray:
    out = np.full(engine.context_size, 7.0, np.float32)
    engine.evaluate(x, out)
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_subnormal_numbers_are_zero_to_a_net_and_to_nobody_else(isa: str, precision: str) -> None:
    """They would run in microcode: a tick's latency must not depend on its data.

    Without biases nothing gives nothing.
    """
    net = net_of(F, 18, 1, T)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter.zero_()
    engine = encoder_of(net, "stateful", precision, isa)
    assert context(engine, rows(1)[0]).any()
    assert not context(engine, rows(1)[0] * SUBNORMAL).any()
    for x in rows(3):
        engine.advance(x)
    for _ in range(300):  # cells halve with each step: long below 1e-38
        engine.advance(np.zeros(F, np.float32))
    assert not context(engine, np.zeros(F, np.float32)).any()
    assert np.float32(1e-38) * np.float32(0.1) > 0  # the thread's own arithmetic is as it was


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_window_forgets_what_is_no_number(family: str, bad: float, isa: str, precision: str) -> None:
    """A bad row shows for as long as it is in the window, and then nothing is left of it."""
    engine, clean, steps = (
        encoder(family, "window", precision, isa),
        encoder(family, "window", precision, isa),
        rows(3 * T),
    )
    for place, x in enumerate(steps):
        row = x.copy()
        if place == T:
            row[1] = bad
        inside = T <= place < 2 * T
        found = context(engine, row)
        if place == T and np.isnan(bad):  # an infinite gate is an open or a shut one
            assert np.isnan(found).all()
        if not inside:
            assert np.array_equal(found, context(clean, x))
        engine.advance(row)
        clean.advance(x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_with_nan_in_it_is_cured_by_reset(family: str, isa: str, precision: str) -> None:
    """An LSTM that carries its state carries NaN for ever; what its host must do is reset and feed it again."""
    engine, clean, steps = (encoder(family, "stateful", precision, isa), encoder(family, "stateful", precision, isa),
                            rows(3 * T))  # fmt: skip
    engine.advance(np.full(F, np.nan, np.float32))
    assert np.isnan(context(engine, steps[0])).all()
    for x in steps:
        engine.advance(x)
    if family == "pricing_lstm":
        assert np.isnan(context(engine, steps[0])).all()
    engine.reset()
    for x in steps:
        assert np.array_equal(context(engine, x), context(clean, x))
        engine.advance(x)
        clean.advance(x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_huge_inputs_give_contexts_or_nan(family: str, isa: str, precision: str) -> None:
    engine = encoder(family, "window", precision, isa)
    for scale in (1e10, 1e30, 3e38):
        found = context(engine, np.clip(rows(1)[0], -1, 1) * np.float32(scale))
        assert (np.isnan(found) | (np.abs(found) <= 1.0 + 1e-6)).all()
    assert np.isfinite(context(engine, rows(1)[0])).all()


@pytest.mark.parametrize("isa", ISAS)
def test_one_large_feature_doesnt_take_the_others_bits(isa: str) -> None:
    """Exact scaling by 128 of a feature, taken back in its weights: int8 answers what it answers without."""
    net = net_of(F, 18, 2, T)
    weights, steps = weights_of(net), rows(T)
    column = np.array([1.0, 128.0, 1.0, 1.0, 1.0], np.float32)
    scaled = {"lstm.weight_ih_l0": weights["lstm.weight_ih_l0"] / column}
    usual, large = encoder_of(net, "stateful", "int8", isa), encoder_of(net, "stateful", "int8", isa, **scaled)
    assert np.array_equal(contexts_of(usual, steps), contexts_of(large, steps * column))


def contexts_of(engine: Any, steps: np.ndarray) -> np.ndarray:
    out = np.zeros((len(steps), engine.context_size), np.float32)
    for x, row in zip(steps, out, strict=True):
        engine.evaluate(x, row)
        engine.advance(x)
    return out


def test_engines_in_two_threads_dont_meet() -> None:
    """One engine per thread: made and run at once, each answers as it does alone."""
    net = net_of(F, 18, 2, T)  # once: torch draws weights from a generator that threads share
    steps = [rows(200, seed) for seed in range(2)]
    alone = [contexts_of(encoder_of(net, "stateful"), one) for one in steps]
    found: list[Any] = [None, None]
    start = threading.Barrier(2)

    def work(place: int) -> None:
        start.wait()
        found[place] = contexts_of(encoder_of(net, "stateful"), steps[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))


def test_options_in_two_threads_dont_meet() -> None:
    """So many that the interpreter's lock is let go."""
    count = 1 << 18
    strike = np.linspace(50.0, 200.0, count)
    one = [np.array([value]) for value in (100.0, 0.5, 0.2, 0.98, 1.0)]
    options = CORE.Options()
    outputs = [np.zeros(count) for _ in range(3)]

    def work(out: np.ndarray) -> None:
        options.value(count, one[0], strike, *one[1:], out, *[None] * 7)

    work(outputs[0])
    threads = [threading.Thread(target=work, args=(out,)) for out in outputs[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])
    assert (np.diff(outputs[0]) <= 0).all()


def _answer(engine: Any, x: np.ndarray, channel: Any) -> None:
    channel.put(context(engine, x))


def test_a_forked_process_carries_its_engine_on() -> None:
    fork = multiprocessing.get_context("fork")
    engine, x = encoder("pricing_lstm", "stateful", "int8"), rows(2)
    engine.advance(x[0])
    channel = fork.SimpleQueue()
    child = fork.Process(target=_answer, args=(engine, x[1], channel))
    child.start()
    found = channel.get()
    child.join()
    assert child.exitcode == 0
    assert np.array_equal(found, context(engine, x[1]))


@pytest.mark.parametrize(
    ("hidden", "layers", "window", "context_size"), [(1, 1, 1, 1), (1, 32, 2, 1), (17, 32, 3, 2), (1100, 1, 2, 3)]
)
def test_extreme_sizes_run(hidden: int, layers: int, window: int, context_size: int) -> None:
    net = net_of(1, hidden, layers, window, context_size)
    steps = steps_of(net, window)
    with torch.no_grad():
        expected = net.encode(torch.from_numpy(steps)[None])[0].numpy()
    engine = encoder_of(net, "window")
    for x in steps[:-1]:
        engine.advance(x)
    found = context(engine, steps[-1])
    assert np.abs(found - expected).max() <= (hidden + 64) * 2.0**-23 * layers  # sums of `hidden` products of order 1


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e300, 2.0**15 + 1])
@pytest.mark.parametrize("name", ["hidden", "window", "step_features", "context", "layers"])
def test_impossible_sizes_are_refused_by_name(name: str, value: float) -> None:
    """Before memory is asked for; sums of more int8 products than 32768 could overflow."""
    net = net_of(F, 8, 1, T)
    with pytest.raises(EngineError, match=f"model_config.{name}: expected a whole number from 1 to"):
        CORE.Encoder("pricing_lstm", sizes_of(net) | {name: value}, "w", weights_of(net), "fp32", "window", "")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(EngineError, match="model_config: int too large"):
        numbers_of({"hidden": 10**400})


@pytest.mark.parametrize("isa", ISAS)
def test_the_longest_sums_of_bytes_dont_overflow(isa: str) -> None:
    """Twice the largest size, as a transformer's second layer has: every product at its largest, exact."""
    columns = 1 << 16
    weights, x = np.ones((1, columns), np.float32), np.ones(columns, np.float32)
    for sign in (1.0, -1.0):
        out = np.zeros(1, np.float32)
        CORE.kernels.gemv(isa, "int8", weights, sign * x, np.zeros(1, np.float32), out, columns)
        assert out[0] == pytest.approx(sign * columns, rel=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [16, 32, 112, 208])
def test_dot(isa: str, n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n)).astype(np.float32)
    allowed = n * 2.0**-24 * np.abs(a.astype(np.float64)) @ np.abs(b)
    assert abs(CORE.kernels.dot(isa, a, b, n) - a.astype(np.float64) @ b) <= allowed
