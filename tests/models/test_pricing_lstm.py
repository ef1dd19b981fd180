"""pricing_lstm: the carried state pools over the last T steps, as written out; every step of a window matters.

What it shares with the other pricing nets: tests/models/test_pricing_nets.py. Last, what they are fed: windows.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from models.pricing_lstm import PricingLSTM
from pipelines.dataset import FeatureStore
from serving.features import FeatureSpec, Scaler
from tests.models.test_pricing_nets import SIZES, K, T, batch, random_steps, stepped
from tests.models.test_pricing_nets import net as any_net

HIDDEN = SIZES["pricing_lstm"]["hidden"]


def net() -> PricingLSTM:
    made = any_net("pricing_lstm")
    assert isinstance(made, PricingLSTM)
    return made


def test_stepping_on_equals_the_whole_history_pooled_over_the_last_steps() -> None:
    """Past T steps the carried state remembers more than the window; the attention still looks at the last T."""
    model = net()
    history = random_steps(3 * T)
    outputs, _ = model.lstm(history.unsqueeze(0))
    found = stepped(model, history)
    for end in range(T, 3 * T + 1):
        wanted = model._pool(outputs[:, end - T : end])
        assert torch.allclose(found[end - 1], wanted[0], rtol=0, atol=1e-12)
    window_only = model.encode(history[-T:].unsqueeze(0))[0]
    assert not torch.allclose(found[-1], window_only, atol=1e-6)


def test_pooling_is_a_weighted_mean_written_out() -> None:
    model, (window, _, _) = net(), batch()
    outputs = model.lstm(window)[0].detach().numpy()
    query, project = model.query.weight.detach().numpy(), model.project
    for place, h in enumerate(outputs):
        scores = np.array([float(step @ (query @ h[-1])) / np.sqrt(HIDDEN) for step in h])
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        joined = np.concatenate([h[-1], sum(w * step for w, step in zip(weights, h, strict=True))])
        wanted = np.tanh(project.weight.detach().numpy() @ joined + project.bias.detach().numpy())
        assert np.allclose(model.encode(window)[place].detach().numpy(), wanted, rtol=0, atol=1e-12)
        found = model.attention(window)[place].detach().numpy()
        assert np.allclose(found, weights, rtol=1e-12)


def test_every_step_of_a_window_matters_and_the_future_does_not_exist() -> None:
    model, (window, _, _) = net(), batch()
    window.requires_grad_(True)
    model.encode(window)[0].sum().backward()
    assert window.grad is not None
    assert (window.grad[0].abs().sum(dim=-1) > 0).all()
    assert not window.grad[1:].any()


# --- what the net is fed: windows of the feature store


def store(counts: dict[str, int]) -> FeatureStore:
    """Steps that name themselves: column 0 the underlying, column 1 its step number from 1."""
    rows = [(name, number + 1) for name, count in counts.items() for number in range(count)]
    steps = np.array([[list(counts).index(name) + 1, number] for name, number in rows], dtype=np.float32)
    snapshots = pl.DataFrame({"underlying": [name for name, _ in rows], "segment": 0})
    scaler = Scaler((0.0, 0.0), (1.0, 1.0))
    spec = FeatureSpec(T, (), scaler, scaler)
    nothing = np.zeros((0, K), np.float32)
    return FeatureStore(spec, steps, nothing, nothing, nothing, pl.DataFrame(), snapshots)


def test_a_window_ends_at_a_split_of_the_shares() -> None:
    made = store({"AAPL": 8})
    cut = made.snapshots.with_columns(segment=pl.Series([0] * 5 + [1] * 3))
    window = FeatureStore(made.spec, made.steps, made.contracts, made.grids, made.moves, made.rows, cut).window(6)
    assert window[:, 1].tolist() == [*np.zeros(T - 2), 6, 7]


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
