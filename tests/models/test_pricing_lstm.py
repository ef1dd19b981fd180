"""pricing_lstm: the window and the step by step reading agree, snapshots don't mix, every weight learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from models import build
from models.pricing_lstm import PricingLSTM, PricingLSTMConfig
from pipelines.dataset import FeatureStore
from serving.features import FeatureSpec, Scaler

F, K, T = 6, 7, 5
CONFIG = PricingLSTMConfig(F, K, T, hidden=8, layers=1, context=4, head_width=12)


def net(*, layers: int = 1, trained: bool = True, seed: int = 0) -> PricingLSTM:
    """float64, evaluation mode; `trained` fills the head's zero layers too."""
    torch.manual_seed(seed)
    made = PricingLSTM(dataclasses.replace(CONFIG, layers=layers)).double().eval()
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def batch(snapshots: int = 3, per_snapshot: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    window = torch.randn(snapshots, T, F, generator=generator, dtype=torch.float64)
    contracts = torch.randn(snapshots * per_snapshot, K, generator=generator, dtype=torch.float64)
    contracts[:, 0] = 0.05 + 0.4 * torch.rand(len(contracts), generator=generator, dtype=torch.float64)
    contracts[:, 1] = 0.1 + 0.8 * torch.rand(len(contracts), generator=generator, dtype=torch.float64)
    return window, contracts, torch.repeat_interleave(torch.arange(snapshots), per_snapshot)


def stepped(model: PricingLSTM, steps: Tensor) -> list[Tensor]:
    """Context after each step, from zero state and zero memory, as a host carries them."""
    size = model.config
    hidden = torch.zeros(size.layers, 1, size.hidden, dtype=steps.dtype)
    cell, memory = torch.zeros_like(hidden), torch.zeros(size.window - 1, size.hidden, dtype=steps.dtype)
    contexts = []
    for x in steps:
        context, hidden, cell, output = model.step(x.unsqueeze(0), hidden, cell, memory)
        memory = torch.cat([memory[1:], output])
        contexts.append(context)
    return contexts


@pytest.mark.parametrize("layers", [1, 2])
def test_encoding_a_window_equals_stepping_through_it(layers: int) -> None:
    model, (window, _, _) = net(layers=layers), batch()
    for one in window:
        assert torch.allclose(model.encode(one.unsqueeze(0)), stepped(model, one)[-1], rtol=0, atol=1e-12)


def test_stepping_on_equals_the_whole_history_pooled_over_the_last_steps() -> None:
    """Past T steps the carried state remembers more than the window; the attention still looks at the last T."""
    model = net()
    history = torch.randn(3 * T, F, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    outputs, _ = model.lstm(history.unsqueeze(0))
    for end in range(T, 3 * T + 1):
        wanted = model.pool(outputs[:, end - T : end])
        assert torch.allclose(stepped(model, history[:end])[-1], wanted, rtol=0, atol=1e-12)
    window_only = model.encode(history[-T:].unsqueeze(0))
    assert not torch.allclose(stepped(model, history)[-1], window_only, atol=1e-6)


def test_pooling_is_a_weighted_mean_written_out() -> None:
    model, (window, _, _) = net(), batch()
    outputs = model.lstm(window)[0].detach().numpy()
    query, project = model.query.weight.detach().numpy(), model.project
    for place, h in enumerate(outputs):
        scores = np.array([float(step @ (query @ h[-1])) / np.sqrt(CONFIG.hidden) for step in h])
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        joined = np.concatenate([h[-1], sum(w * step for w, step in zip(weights, h, strict=True))])
        wanted = np.tanh(project.weight.detach().numpy() @ joined + project.bias.detach().numpy())
        assert np.allclose(model.encode(window)[place].detach().numpy(), wanted, rtol=0, atol=1e-12)
        found = model.attention(torch.from_numpy(outputs))[place].detach().numpy()
        assert np.allclose(found, weights, rtol=1e-12)


def test_untrained_it_is_the_prior_to_the_last_bit() -> None:
    window, contracts, snapshot = batch()
    for model in (net(trained=False), net(trained=False).train()):
        assert torch.equal(model(window, contracts, snapshot), contracts[:, 0])


def test_a_batch_of_snapshots_equals_one_by_one_in_any_order() -> None:
    model, (window, contracts, snapshot) = net(), batch()
    whole = model(window, contracts, snapshot)
    for place in range(len(window)):
        mine = snapshot == place
        alone = model(window[place : place + 1], contracts[mine], torch.zeros(int(mine.sum()), dtype=torch.int64))
        assert torch.allclose(whole[mine], alone, rtol=0, atol=1e-13)
    order = torch.randperm(len(snapshot), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(window, contracts[order], snapshot[order]), whole[order], rtol=0, atol=1e-13)
    swapped = model(window.flip(0), contracts, len(window) - 1 - snapshot)
    assert torch.allclose(swapped, whole, rtol=0, atol=1e-13)


def test_every_step_of_a_window_matters_and_the_future_does_not_exist() -> None:
    model, (window, _, _) = net(), batch()
    window.requires_grad_(True)
    model.encode(window)[0].sum().backward()
    assert window.grad is not None
    assert (window.grad[0].abs().sum(dim=-1) > 0).all()
    assert not window.grad[1:].any()


def test_extreme_windows_give_finite_positive_volatilities() -> None:
    model, (window, contracts, snapshot) = net(), batch()
    for scale in (0.0, 1e-30, 1e6, -1e30):
        volatility = model(window * scale, contracts, snapshot)
        ratio = volatility / contracts[:, 0]
        assert torch.isfinite(volatility).all()
        assert (ratio >= np.exp(-1.0) * (1 - 1e-12)).all()
        assert (ratio <= np.e * (1 + 1e-12)).all()


def test_after_one_step_of_training_gradients_reach_every_weight() -> None:
    """The head begins at zero, so the first step moves only its last layers; from the second on all learn."""
    model, (window, contracts, snapshot) = net(trained=False, layers=2), batch()
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


def test_build_makes_the_family_named() -> None:
    made = build("pricing_lstm", dataclasses.asdict(CONFIG))
    assert made.config == CONFIG
    with pytest.raises(KeyError):
        build("pricing_rnn", dataclasses.asdict(CONFIG))
    with pytest.raises(TypeError, match="widht"):
        build("pricing_lstm", dataclasses.asdict(CONFIG) | {"widht": 3})


# --- what the net is fed: windows of the feature store


def store(counts: dict[str, int]) -> FeatureStore:
    """Steps that name themselves: column 0 the underlying, column 1 its step number from 1."""
    rows = [(name, number + 1) for name, count in counts.items() for number in range(count)]
    steps = np.array([[list(counts).index(name) + 1, number] for name, number in rows], dtype=np.float32)
    snapshots = pl.DataFrame({"underlying": [name for name, _ in rows]})
    scaler = Scaler((0.0, 0.0), (1.0, 1.0))
    spec = FeatureSpec(T, (), scaler, scaler)
    return FeatureStore(spec, steps, np.zeros((0, K), np.float32), pl.DataFrame(), snapshots)


def test_a_window_holds_the_last_steps_of_its_own_underlying_after_zeros() -> None:
    counts = {"NDX": 3, "SPX": 9, "XSP": 1}
    made = store(counts)
    place = 0
    for code, count in enumerate(counts.values(), start=1):
        for number in range(1, count + 1):
            window = made.window(place)
            numbers = np.maximum(np.arange(number - T + 1, number + 1), 0)
            assert window.shape == (T, 2)
            assert window[:, 1].tolist() == numbers.tolist()
            assert window[:, 0].tolist() == np.where(numbers > 0, code, 0).tolist()
            place += 1


def test_the_zeros_before_the_first_step_are_read_as_steps() -> None:
    """A host with a short history must step through the zeros too: they move the state."""
    model = net()
    steps = torch.randn(2, F, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    padded = torch.cat([torch.zeros(T - 2, F, dtype=torch.float64), steps])
    assert torch.allclose(model.encode(padded.unsqueeze(0)), stepped(model, padded)[-1], rtol=0, atol=1e-12)
    assert not torch.allclose(model.encode(padded.unsqueeze(0)), stepped(model, steps)[-1], atol=1e-6)
