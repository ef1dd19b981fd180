"""What every pricing family promises: stepping equals the window, snapshots don't mix, an untrained net is the prior.

And what the transformer promises besides: a band, so a bounded past; its rings stand for a sequence of any length.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import FAMILIES, build
from models.pricing import PricingNet, zero_states
from models.pricing_transformer import BandedLayer, PricingTransformer

F, K, T = 6, 7, 5
SIZES: dict[str, dict[str, Any]] = {
    "pricing_lstm": {"hidden": 8, "layers": 1, "context": 4, "head_width": 12},
    "pricing_transformer": {"width": 8, "heads": 2, "layers": 2, "band": 3, "context": 4, "head_width": 12},
}
VARIANTS = [
    ("pricing_lstm", {"layers": 1}), ("pricing_lstm", {"layers": 2}), ("pricing_lstm", {"layers": 3}),
    ("pricing_transformer", {"layers": 1, "band": 2}), ("pricing_transformer", {"layers": 2, "band": 3}),
    ("pricing_transformer", {"layers": 3, "band": 2}), ("pricing_transformer", {"layers": 2, "band": T}),
    ("pricing_transformer", {"layers": 2, "band": T + 4}), ("pricing_transformer", {"layers": 1, "heads": 8}),
]  # fmt: skip
IDS = [f"{family}-{'-'.join(f'{name}{value}' for name, value in changes.items())}" for family, changes in VARIANTS]
every_family = pytest.mark.parametrize("family", SIZES)
every_variant = pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=IDS)


def net(family: str, *, trained: bool = True, seed: int = 0, window: int = T, **changes: Any) -> PricingNet:
    """float64, evaluation mode; `trained` fills the head's zero layers and the biases too."""
    torch.manual_seed(seed)
    sizes = {"step_features": F, "contract_features": K, "window": window}
    made = build(family, SIZES[family] | sizes | changes).double().eval()
    assert isinstance(made, PricingNet)
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def random_steps(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(snapshots: int = 3, per_snapshot: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Windows, contracts with sensible priors, and which window each contract belongs to."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.randn(snapshots, T, F, generator=generator, dtype=torch.float64)
    contracts = torch.randn(snapshots * per_snapshot, K, generator=generator, dtype=torch.float64)
    contracts[:, 0] = 0.05 + 0.4 * torch.rand(len(contracts), generator=generator, dtype=torch.float64)
    return window, contracts, torch.repeat_interleave(torch.arange(snapshots), per_snapshot)


def stepped(model: PricingNet, steps: Tensor) -> Tensor:
    """Context after each step [steps, D], from zero state, carried as hosts do.

    A state that comes back with fewer rows than went in loses its oldest rows.
    """
    states = [state.double() for state in zero_states(model)]
    contexts = []
    for x in steps:
        context, *new = model.step(x.unsqueeze(0), *states)
        states = [torch.cat([old[len(now) :], now]) for old, now in zip(states, new, strict=True)]
        contexts.append(context[0])
    return torch.stack(contexts)


def test_the_contract_covers_every_pricing_family() -> None:
    assert set(SIZES) == {name for name, (_, kind) in FAMILIES.items() if kind.task == "pricing"}


# --- window and step


@every_variant
def test_encoding_a_window_equals_stepping_through_it(family: str, changes: dict[str, Any]) -> None:
    model, (window, _, _) = net(family, **changes), batch()
    for one, context in zip(window, model.encode(window), strict=True):
        assert torch.allclose(context, stepped(model, one)[-1], rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(layers=st.integers(1, 3), window=st.integers(2, 9), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_lstms_of_any_size_step_as_they_encode(layers: int, window: int, size: int, seed: int) -> None:
    model = net("pricing_lstm", layers=layers, window=window, hidden=size, context=size, seed=seed)
    steps = random_steps(window, seed)
    assert torch.allclose(model.encode(steps.unsqueeze(0))[0], stepped(model, steps)[-1], rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3), band=st.integers(2, 12), window=st.integers(2, 9), heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_transformers_of_any_size_step_as_they_encode(
    layers: int, band: int, window: int, heads: int, seed: int
) -> None:
    model = net("pricing_transformer", layers=layers, band=band, window=window, heads=heads, seed=seed)
    steps, contexts = random_steps(window, seed), []
    for end in range(1, window + 1):
        contexts.append(model.encode(steps[:end].unsqueeze(0))[0])
    assert torch.allclose(torch.stack(contexts), stepped(model, steps), rtol=0, atol=1e-11)


@every_family
def test_states_begin_at_zero_in_the_shapes_promised(family: str) -> None:
    model = net(family)
    into, out = model.step_tensors()
    states = zero_states(model)
    assert [tuple(state.shape) for state in states] == [shape for _, shape in into]
    assert not any(state.any() for state in states)
    context, *new = model.step(random_steps(1), *(state.double() for state in states))
    assert tuple(context.shape) == (1, model.sizes.context)
    assert [tuple(state.shape) for state in new] == [shape for _, shape in out]


@every_variant
def test_the_zeros_before_the_first_step_are_read_as_steps(family: str, changes: dict[str, Any]) -> None:
    """A host with a short history must step through the zeros too: they move the state."""
    model, steps = net(family, **changes), random_steps(1)
    padded = torch.cat([torch.zeros(T - 1, F, dtype=torch.float64), steps])
    encoded = model.encode(padded.unsqueeze(0))[0]
    assert torch.allclose(encoded, stepped(model, padded)[-1], rtol=0, atol=1e-12)
    assert not torch.allclose(encoded, stepped(model, steps)[-1], atol=1e-6)


@every_variant
def test_later_steps_change_no_earlier_context(family: str, changes: dict[str, Any]) -> None:
    model, steps = net(family, **changes), random_steps(9)
    other = steps.clone()
    other[5:] += 3.0
    assert torch.equal(stepped(model, steps)[:5], stepped(model, other)[:5])
    assert not torch.allclose(stepped(model, steps)[5:], stepped(model, other)[5:], atol=1e-6)


# --- snapshots, the prior, training


@every_family
def test_untrained_it_is_the_prior_to_the_last_bit(family: str) -> None:
    window, contracts, snapshot = batch()
    for model in (net(family, trained=False), net(family, trained=False).train()):
        assert torch.equal(model(window, contracts, snapshot), contracts[:, 0])


@every_family
def test_without_anchors_it_is_the_prior_however_trained(family: str) -> None:
    window, contracts, snapshot = batch()
    contracts[:, 2] = 0.0
    assert torch.equal(net(family)(window, contracts, snapshot), contracts[:, 0])


@every_family
def test_a_seed_gives_one_set_of_weights(family: str) -> None:
    first, again, other = (net(family, trained=False, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


@every_family
def test_a_batch_of_snapshots_equals_one_by_one_in_any_order(family: str) -> None:
    model, (window, contracts, snapshot) = net(family), batch()
    whole = model(window, contracts, snapshot)
    for place in range(len(window)):
        mine = snapshot == place
        alone = model(window[place : place + 1], contracts[mine], torch.zeros(int(mine.sum()), dtype=torch.int64))
        assert torch.allclose(whole[mine], alone, rtol=0, atol=1e-13)
    order = torch.randperm(len(snapshot), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(window, contracts[order], snapshot[order]), whole[order], rtol=0, atol=1e-13)
    swapped = model(window.flip(0), contracts, len(window) - 1 - snapshot)
    assert torch.allclose(swapped, whole, rtol=0, atol=1e-13)


@every_family
def test_attention_is_a_share_of_each_step(family: str) -> None:
    model, (window, _, _) = net(family), batch()
    weights = model.attention(window)
    assert weights.shape == (len(window), T)
    assert torch.allclose(weights.sum(1), torch.ones(len(window), dtype=torch.float64), atol=1e-12)
    assert (weights >= 0).all()


@every_family
def test_extreme_windows_give_finite_positive_volatilities(family: str) -> None:
    model, (window, contracts, snapshot) = net(family), batch()
    for scale in (0.0, 1e-30, 1e6, -1e30):
        ratio = model(window * scale, contracts, snapshot) / contracts[:, 0]
        assert torch.isfinite(ratio).all()
        assert (ratio >= np.exp(-1.0) * (1 - 1e-12)).all()
        assert (ratio <= np.e * (1 + 1e-12)).all()


@every_family
def test_after_one_step_of_training_gradients_reach_every_weight(family: str) -> None:
    """The head begins at zero, so the first step moves only its last layers; from the second on all learn."""
    model, (window, contracts, snapshot) = net(family, trained=False, layers=2), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    target = contracts[:, 0] * 1.05

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = ((model(window, contracts, snapshot) - target) ** 2).sum()
        value.backward()
        return value

    first = loss()
    moving = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moving == {"head.linear.weight", "head.linear.bias", "head.network.6.weight", "head.network.6.bias"}
    optimizer.step()
    assert loss() < first
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


@every_family
def test_build_makes_the_family_named(family: str) -> None:
    sizes = dataclasses.asdict(net(family).config)
    assert dataclasses.asdict(build(family, sizes).config) == sizes
    with pytest.raises(TypeError, match="widht"):
        build(family, sizes | {"widht": 3})


def test_build_refuses_families_there_are_not() -> None:
    with pytest.raises(KeyError):
        build("pricing_rnn", {})


# --- the transformer's band


@pytest.mark.parametrize(("layers", "band"), [(1, 2), (2, 3), (3, 2), (1, 6), (3, 4)])
def test_the_past_reaches_as_far_as_the_bands_and_no_further(layers: int, band: int) -> None:
    """layers * (band - 1) steps before the last one; values and gradients beyond are exactly without effect."""
    window, reach = 14, layers * (band - 1)
    model = net("pricing_transformer", layers=layers, band=band, window=window)
    steps = random_steps(window).unsqueeze(0).requires_grad_(True)
    context = model.encode(steps)
    context.sum().backward()
    assert steps.grad is not None
    moved = steps.grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [window - 1 - at <= reach for at in range(window)]
    other = steps.detach().clone()
    other[:, : window - 1 - reach] = 1e3
    assert torch.equal(model.encode(other), context.detach())


def test_the_lstm_has_no_such_end() -> None:
    steps = random_steps(14).unsqueeze(0).requires_grad_(True)
    net("pricing_lstm", window=14).encode(steps).sum().backward()
    assert steps.grad is not None
    assert (steps.grad[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("band", [2, 3, 9, 20])
def test_attention_rows_add_up_to_one_inside_the_band_and_hold_nothing_outside(band: int) -> None:
    torch.manual_seed(2)
    layer, steps = BandedLayer(8, 2, band, 0.0).double().eval(), 9
    torch.nn.init.normal_(layer.distance_bias)
    _, weights = layer(torch.randn(3, steps, 8, dtype=torch.float64))
    assert weights.shape == (3, 2, steps, steps)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, steps, dtype=torch.float64), atol=1e-12)
    distance = torch.arange(steps).unsqueeze(1) - torch.arange(steps)
    outside = (distance < 0) | (distance >= band)
    assert (weights[..., outside] == 0).all()
    assert (weights[..., ~outside] > 0).all()


def test_a_layer_is_attention_written_out() -> None:
    """One head at a time, one step at a time, in NumPy."""
    torch.manual_seed(2)
    width, heads, band, steps = 6, 2, 3, 7
    layer = BandedLayer(width, heads, band, 0.0).double().eval()
    torch.nn.init.normal_(layer.distance_bias)
    x = torch.randn(1, steps, width, dtype=torch.float64)
    found = layer(x)[0][0].detach().numpy()
    query, key, value = (part[0].detach().numpy() for part in layer.project(x))
    bias, size = layer.distance_bias.detach().numpy(), width // heads
    for t in range(steps):
        mixed = []
        for head in range(heads):
            mine, past = slice(head * size, (head + 1) * size), range(max(0, t - band + 1), t + 1)
            scores = np.array([query[t, mine] @ key[s, mine] / np.sqrt(size) + bias[head, t - s] for s in past])
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed.append(sum(weight * value[s, mine] for weight, s in zip(weights, past, strict=True)))
        after = x[0, t] + layer.mix(torch.from_numpy(np.concatenate(mixed)))
        wanted = after + layer.network(layer.forward_norm(after))
        assert np.allclose(found[t], wanted.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layers", "band"), [(1, 2), (2, 3), (3, 7), (2, 40)])
def test_rings_stand_for_a_sequence_of_any_length(layers: int, band: int) -> None:
    """A hundred steps carried in rings of band - 1 give, after each step, what the whole past at once gives."""
    model, steps = net("pricing_transformer", layers=layers, band=band), random_steps(100)
    found = stepped(model, steps)
    for end in range(1, 101):
        assert torch.allclose(found[end - 1], model.encode(steps[:end].unsqueeze(0))[0], rtol=0, atol=1e-11)


def test_a_ring_counts_the_steps_in_it_and_forgets_the_oldest() -> None:
    model = net("pricing_transformer", layers=1, band=4)
    assert isinstance(model, PricingTransformer)
    states = [state.double() for state in zero_states(model)]
    for count, x in enumerate(random_steps(6), start=1):
        _, *new = model.step(x.unsqueeze(0), *states)
        keys, seen = new[0], new[2]
        assert seen.tolist() == [min(count, 3)]
        assert torch.equal(keys[0, :-1], states[0][0, 1:])
        states = new
