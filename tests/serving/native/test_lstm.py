"""The native LSTM encoder is models/pricing_lstm.py: both semantics, odd sizes, every precision and instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pricing_lstm import PricingLSTM, PricingLSTMConfig
from serving.errors import EngineError
from tests.serving.native.built import PRECISIONS, built_core
from tests.serving.native.lstm_reference import context_after, noise_bound

CORE = built_core()
Array = np.ndarray[Any, np.dtype[Any]]


def net_of(features: int, hidden: int, layers: int, window: int, context: int = 5, seed: int = 0) -> PricingLSTM:
    torch.manual_seed(seed)
    return PricingLSTM(PricingLSTMConfig(features, 7, window, hidden, layers, context)).eval()


def weights_of(net: PricingLSTM) -> dict[str, Array]:
    return {name: value.numpy() for name, value in net.state_dict().items() if not name.startswith("head.")}


def sizes_of(net: PricingLSTM) -> dict[str, float]:
    return {name: float(value) for name, value in vars(net.config).items()}


def encoder_of(net: PricingLSTM, semantics: str, precision: str = "fp32", isa: str = "", **changed: Any) -> Any:
    weights = weights_of(net) | changed
    return CORE.Encoder("pricing_lstm", sizes_of(net), "w.safetensors", weights, precision, semantics, isa)


def steps_of(net: PricingLSTM, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, net.config.step_features)).astype(np.float32)


def context_of(encoder: Any, x: Array) -> Array:
    out = np.full(encoder.context_size, np.nan, np.float32)
    encoder.evaluate(x, out)
    return out


def fed(encoder: Any, steps: Array) -> Array:
    """The context of the last step, the others committed."""
    for x in steps[:-1]:
        encoder.advance(x)
    return context_of(encoder, steps[-1])


def window_at(net: PricingLSTM, steps: Array) -> Array:
    size = net.config
    return np.concatenate([np.zeros((size.window, size.step_features), np.float32), steps])[-size.window :]


def test_the_reference_is_the_torch_net() -> None:
    net = net_of(6, 10, 2, 9)
    steps = steps_of(net, 9)
    with torch.no_grad():
        expected = net.double().encode(torch.from_numpy(steps).double()[None])[0].numpy()
    assert np.abs(context_after(weights_of(net), steps, 9) - expected).max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 40), hidden=st.sampled_from([1, 3, 16, 31, 50, 64, 100]), layers=st.integers(1, 3),
    window=st.integers(1, 20), context=st.sampled_from([1, 5, 16, 33, 140]), count=st.integers(1, 25),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_window_semantics_are_torch_over_the_last_steps(
    features: int, hidden: int, layers: int, window: int, context: int, count: int, seed: int
) -> None:
    """Zero rows before the first go through the net too."""
    net = net_of(features, hidden, layers, window, context, seed)
    steps = steps_of(net, count, seed)
    with torch.no_grad():
        expected = net.double().encode(torch.from_numpy(window_at(net, steps)).double()[None])[0].numpy()
    weights = weights_of(net.float())
    bound = noise_bound(weights, window_at(net, steps), window, "fp32") + 1e-7
    assert np.abs(fed(encoder_of(net, "window"), steps) - expected).max() <= bound


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 40), hidden=st.sampled_from([1, 16, 50, 100]), layers=st.integers(1, 3),
    window=st.integers(1, 20), count=st.integers(1, 60), seed=st.integers(0, 9),
)  # fmt: skip
def test_stateful_semantics_carry_the_state(
    features: int, hidden: int, layers: int, window: int, count: int, seed: int
) -> None:
    """The memory begins as T-1 outputs of zeros, which the softmax sees."""
    net = net_of(features, hidden, layers, window, seed=seed)
    steps = steps_of(net, count, seed)
    expected = context_after(weights_of(net), steps, window)
    bound = noise_bound(weights_of(net), steps, window, "fp32") + 1e-7
    assert np.abs(fed(encoder_of(net, "stateful"), steps) - expected).max() <= bound


@pytest.mark.parametrize("isa", CORE.isas())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("semantics", ["window", "stateful"])
@pytest.mark.parametrize(("features", "hidden", "layers"), [(32, 64, 1), (15, 50, 2), (9, 100, 3)])
def test_every_precision_on_every_instruction_set(
    isa: str, precision: str, semantics: str, features: int, hidden: int, layers: int
) -> None:
    net = net_of(features, hidden, layers, 12)
    steps = steps_of(net, 17)
    seen = window_at(net, steps) if semantics == "window" else steps
    weights = weights_of(net)
    bound = noise_bound(weights, seen, 12, precision) + 1e-7
    found = fed(encoder_of(net, semantics, precision, isa), steps)
    assert np.abs(found - context_after(weights, seen, 12)).max() <= bound


def test_a_wrong_gate_order_would_show() -> None:
    """The bound that rounding gets is far below what a defect does."""
    net = net_of(15, 50, 2, 12)
    steps = steps_of(net, 17)
    bound = noise_bound(weights_of(net), window_at(net, steps), 12, "int8")
    weight = weights_of(net)["lstm.weight_ih_l0"].reshape(4, 50, 15)[[1, 0, 2, 3]].reshape(200, 15).copy()
    wrong = fed(encoder_of(net, "window", **{"lstm.weight_ih_l0": weight}), steps)
    assert np.abs(wrong - fed(encoder_of(net, "window"), steps)).max() > bound


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_evaluate_commits_nothing_and_reset_forgets(semantics: str, precision: str) -> None:
    net = net_of(8, 20, 2, 6)
    encoder, steps = encoder_of(net, semantics, precision), steps_of(net, 30)
    fresh = context_of(encoder, steps[0])
    for x in steps[:9]:
        encoder.advance(x)
    before = context_of(encoder, steps[9])
    for x in steps:
        context_of(encoder, 5 * x)
    assert np.array_equal(context_of(encoder, steps[9]), before)
    assert not np.array_equal(before, fresh)
    encoder.reset()
    assert np.array_equal(context_of(encoder, steps[0]), fresh)


def test_a_window_forgets_what_left_it_and_a_state_doesnt() -> None:
    net = net_of(4, 8, 1, 5)
    steps = steps_of(net, 12)
    other = np.concatenate([-steps[:7], steps[7:]])
    assert np.array_equal(fed(encoder_of(net, "window"), steps), fed(encoder_of(net, "window"), other))
    assert not np.array_equal(fed(encoder_of(net, "stateful"), steps), fed(encoder_of(net, "stateful"), other))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_isnt_finite_shows_and_passes(precision: str) -> None:
    """NaN in the open step is in the answer; the next step's answer is free of it."""
    net = net_of(8, 20, 2, 6)
    encoder, steps = encoder_of(net, "window", precision), steps_of(net, 3)
    before = context_of(encoder, steps[0])
    bad = steps[1].copy()
    bad[3] = np.nan
    assert np.isnan(context_of(encoder, bad)).all()
    assert np.array_equal(context_of(encoder, steps[0]), before)


def test_refusals_name_the_tensor() -> None:
    net = net_of(8, 20, 2, 6)
    good = weights_of(net)
    spoiled = good["query.weight"].copy()
    spoiled[3, 4] = np.inf
    for changed, told in (
        ({"lstm.weight_ih_l1": good["lstm.weight_ih_l1"][:, :-1].copy()},
         r"w.safetensors: tensor 'lstm.weight_ih_l1': expected shape \(80, 20\), found \(80, 19\)"),
        ({"lstm.weight_ih_l2": good["lstm.weight_ih_l1"]}, r"'lstm.weight_ih_l2' of shape \(80, 20\) belongs to no"),
        ({"query.weight": spoiled}, r"tensor 'query.weight': value 64 of 400 isn't a finite number"),
    ):  # fmt: skip
        with pytest.raises(EngineError, match=told):
            encoder_of(net, "window", **changed)
    lacking = {name: value for name, value in good.items() if name != "project.bias"}
    with pytest.raises(EngineError, match=r"lacks tensor 'project.bias' of shape \(5,\)"):
        CORE.Encoder("pricing_lstm", sizes_of(net), "w", lacking, "fp32", "window", "")
    for position, value, told in (
        (0, "pricing_mlp", "no pricing net 'pricing_mlp'; it has pricing_lstm"),
        (1, {}, "model_config lacks 'step_features'"),
        (1, sizes_of(net) | {"hidden": 2.5}, "model_config.hidden: expected a whole number"),
        (4, "fp8", "no precision 'fp8'; there are fp32, bf16, int8"),
        (5, "moving", "no semantics 'moving'"),
        (6, "mmx", "no instruction set 'mmx'; there are portable"),
    ):
        arguments: list[Any] = ["pricing_lstm", sizes_of(net), "w", good, "fp32", "window", ""]
        arguments[position] = value
        with pytest.raises(EngineError, match=told):
            CORE.Encoder(*arguments)


def test_timing_evaluates_and_advances_as_told() -> None:
    net = net_of(8, 20, 2, 6)
    steps = steps_of(net, 20)
    timed, stepped = encoder_of(net, "stateful"), encoder_of(net, "stateful")
    nanoseconds = timed.time_evaluate(steps, False)
    assert nanoseconds.shape == (20,)
    assert nanoseconds.dtype == np.int64
    assert (nanoseconds > 0).all()
    assert np.array_equal(context_of(timed, steps[0]), context_of(stepped, steps[0]))
    timed.time_evaluate(steps, True)
    for x in steps:
        stepped.advance(x)
    assert np.array_equal(context_of(timed, steps[0]), context_of(stepped, steps[0]))
