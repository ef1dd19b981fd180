"""surface_vae: untrained it is the last surface, hidden cells say nothing, and its loss is the one written down."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from models import build
from models.surface_vae import SHAPE_REACH, SHARPNESS, Answer, Known, Shape, SurfaceVAE, SurfaceVAEConfig, Units

G, M, R, Z, S = 12, 3, 3, 4, 2
CONFIG = SurfaceVAEConfig(cells=G, moves=M, regimes=R, latent=Z, width=16, dropout=0.0, shapes=S)
KL_WEIGHT, REGIME_WEIGHT, LABELLED_SHARE = 0.7, 0.4, 0.25


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(*, trained: bool = True, seed: int = 0) -> SurfaceVAE:
    """float64, evaluation mode, with units like a market's; `trained` fills the zero layer too."""
    torch.manual_seed(seed)
    made = SurfaceVAE(CONFIG).double().eval()
    made.set_units(Units(
        0.15 + 0.2 * random(G, seed=1), 0.04 + 0.02 * random(G, seed=2), 0.01 + 0.01 * random(G, seed=3),
        torch.tensor([0.0, 0.01, 1.4], dtype=torch.float64), torch.tensor([0.01, 0.01, 0.8], dtype=torch.float64),
    ))  # fmt: skip
    made.set_shape(Shape(
        random(S, G, seed=4) - 0.5, 0.01 * random(S, seed=5), 0.02 + 0.02 * random(S, seed=6),
    ))  # fmt: skip
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def known(count: int = 5, seed: int = 0, *, share: float = 0.6) -> Known:
    """Surfaces of which about `share` of the cells is known; the first was never seen before."""
    mask = (random(count, G, seed=seed) < share).double()
    last = 0.1 + 0.3 * random(count, G, seed=seed + 1)
    last_mask = (random(count, G, seed=seed + 2) < 0.8).double()
    last[0], last_mask[0] = 0.0, 0.0
    surface = mask * (0.1 + 0.3 * random(count, G, seed=seed + 3))
    return Known(surface, mask, last, last_mask, 0.02 * random(count, M, seed=seed + 4))


def loss(model: SurfaceVAE, given_: Known, target: Tensor, mask: Tensor, label: Tensor, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)  # of the latent's draw
    return model.loss(given_, target, mask, label, KL_WEIGHT, REGIME_WEIGHT, LABELLED_SHARE)


def scene(count: int = 5, seed: int = 0) -> tuple[Known, Tensor, Tensor]:
    """What is known, and the surface and cells to be found: the known ones and more."""
    given_ = known(count, seed)
    mask = torch.maximum(given_.mask, (random(count, G, seed=seed + 9) < 0.5).double())
    hidden = 0.1 + 0.3 * random(count, G, seed=seed + 10)
    return given_, mask * torch.where(given_.mask > 0, given_.surface, hidden), mask


# --- the answer


def test_untrained_it_is_the_last_surface_and_the_usual_one_where_nothing_was_seen() -> None:
    model, given_ = net(trained=False), known()
    completed = model(given_).completed
    assert torch.equal(completed[1:], given_.last[1:])
    assert torch.equal(completed[0], model.unit_level)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 30.0]), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_volatilities_lie_within_a_factor_e_of_the_last_and_everything_is_finite(
    seed: int, scale: float, share: float
) -> None:
    model, given_ = net(seed=seed % 7), known(seed=seed, share=share)
    with torch.no_grad():
        model.decoder[-1].weight *= scale
    answer = model(given_)
    base = torch.where(given_.last_mask.sum(1, keepdim=True) > 0, given_.last, model.unit_level)
    ratio = answer.completed / base
    assert (ratio >= math.exp(-1) * (1 - 1e-12)).all()
    assert (ratio <= math.e * (1 + 1e-12)).all()
    assert (answer.deviation > 0).all()
    assert all(torch.isfinite(part).all() for part in answer)
    assert torch.allclose(answer.regime.sum(1), torch.ones(5, dtype=torch.float64), atol=1e-12)
    assert (answer.regime >= 0).all()
    assert (answer.surprise >= 0).all()


def test_cells_that_are_not_known_change_nothing() -> None:
    model, given_ = net(), known()
    other = torch.where(given_.mask > 0, given_.surface, 0.9)
    for first, second in zip(model(given_), model(given_._replace(surface=other)), strict=True):
        assert torch.equal(first, second)
    moved = torch.where(given_.mask > 0, given_.surface + 0.01, 0.0)
    assert not torch.allclose(model(given_).completed, model(given_._replace(surface=moved)).completed, atol=1e-6)


def test_where_nothing_was_seen_the_last_surface_changes_nothing() -> None:
    model, given_ = net(), known()
    last = given_.last.clone()
    last[0] = 0.7
    for first, second in zip(model(given_), model(given_._replace(last=last)), strict=True):
        assert torch.equal(first, second)


def test_surfaces_of_a_batch_dont_mix() -> None:
    model, given_ = net(), known()
    whole = model(given_)
    for place in range(5):
        alone: Answer = model(Known(*(part[place : place + 1] for part in given_)))
        for part, one in zip(whole, alone, strict=True):
            assert torch.allclose(part[place], one[0], rtol=1e-13, atol=1e-13)


def test_what_the_underlying_did_matters() -> None:
    model, given_ = net(), known()
    other = model(given_._replace(move=given_.move + 0.01))
    for first, second in zip(model(given_), other, strict=True):
        assert not torch.allclose(first, second, atol=1e-9)


def test_untrained_every_regime_is_as_likely() -> None:
    assert torch.allclose(net(trained=False)(known()).regime, torch.full((5, R), 1.0 / R, dtype=torch.float64))


def test_regimes_are_read_from_the_shape_of_known_cells_and_completed_ones() -> None:
    """Written out cell by cell; the head sees known volatilities as they are."""
    model, given_ = net(), known()
    answer = model(given_)
    for place in range(5):
        cells = zip(given_.mask[place], given_.surface[place], answer.completed[place], strict=True)
        variance = torch.stack([(surface if known_ > 0 else completed) ** 2 for known_, surface, completed in cells])
        numbers = torch.stack([
            ((model.shape_weight[number] * variance).sum() - model.shape_mean[number]) / model.shape_deviation[number]
            for number in range(S)
        ])  # fmt: skip
        wanted = torch.softmax(SHARPNESS * model.regime(numbers.clamp(-SHAPE_REACH, SHAPE_REACH)), dim=0)
        assert torch.allclose(answer.regime[place], wanted, rtol=1e-9)


def test_shape_numbers_count_within_their_reach() -> None:
    """A volatility beyond everything changes no regime further."""
    model, given_ = net(), known(share=1.0)
    model.shape_weight.fill_(1.0 / G)
    far, further = (model(given_._replace(surface=given_.mask * level)).regime for level in (3.0, 9.0))
    assert torch.equal(far, further)


def test_labels_leave_completion_alone() -> None:
    """No gradient of the head's logits reaches encoder or decoder."""
    model, given_ = net(), known()
    base, condition = model.condition(given_)
    volatility, _ = model.decode(model.encode(given_, base, condition)[0], base, condition)
    assert volatility.requires_grad
    model.regime_logits(given_, volatility)[:, 0].sum().backward()
    touched = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert touched == {"regime.weight", "regime.bias"}


# --- the loss


def test_divergence_from_each_regimes_prior_is_that_of_gaussians() -> None:
    model, given_ = net(), known()
    base, condition = model.condition(given_)
    mean, log_variance = model.encode(given_, base, condition)
    found = model.surprise(mean, log_variance, condition)
    move = torch.clamp((given_.move - model.unit_move) / model.unit_move_deviation, -5, 5)
    for regime in range(R):
        prior = Normal(model.center[regime] + model.pull(move), 1.0)
        wanted = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), prior).sum(-1)
        assert torch.allclose(found[:, regime], wanted, rtol=1e-12)


def test_surprise_is_its_mean_over_the_regimes() -> None:
    model, given_ = net(), known()
    base, condition = model.condition(given_)
    answer = model(given_)
    each = model.surprise(*model.encode(given_, base, condition), condition)
    assert torch.allclose(answer.surprise, (answer.regime * each).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("labels", [[-1] * 5, [0, 1, 2, 0, 1], [-1, 2, -1, 0, -1]])
def test_the_loss_is_the_bound_written_out(labels: list[int]) -> None:
    """Date by date with torch.distributions: likelihood, divergences, and the regime's cross entropy."""
    model, (given_, target, mask) = net(), scene()
    found = loss(model, given_, target, mask, torch.tensor(labels))
    base, condition = model.condition(given_)
    mean, log_variance = model.encode(given_, base, condition)
    torch.manual_seed(3)
    latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    volatility, deviation = model.decode(latent, base, condition)
    logits, each = model.regime_logits(given_, volatility), model.surprise(mean, log_variance, condition)
    terms = []
    for date, label in enumerate(labels):
        cells = mask[date] > 0
        unit = model.unit_change_deviation[cells]
        log_density = Normal(volatility[date, cells], deviation[date, cells]).log_prob(target[date, cells])
        misfit = -(log_density + torch.log(unit) + 0.5 * math.log(2 * math.pi)).mean()
        said = Categorical(logits=logits[date])
        if label >= 0:
            divergence = each[date, label]
            taught = -said.log_prob(torch.tensor(label)) / LABELLED_SHARE
        else:
            uniform = Categorical(probs=torch.ones(R, dtype=torch.float64) / R)
            divergence = (said.probs * each[date]).sum() + kl_divergence(said, uniform)
            taught = torch.zeros(())
        terms.append(misfit + KL_WEIGHT * divergence / cells.sum() + REGIME_WEIGHT * taught)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-12)


def test_labels_teach_the_head_and_their_absence_asks_for_none() -> None:
    given_, target, mask = scene()
    labels, none = torch.tensor([0, 1, 2, 0, 1]), torch.full((5,), -1)
    model = net()
    before = [loss(model, given_, target, mask, label).item() for label in (labels, none)]
    with torch.no_grad():
        model.regime.bias[0] += 20.0  # sure of regime 0, which three of the dates aren't
    after = [loss(model, given_, target, mask, label).item() for label in (labels, none)]
    assert after[0] > before[0] + 1.0
    assert abs(after[1] - before[1]) < 1.0
    for weight in (0.0, 5.0):
        torch.manual_seed(3)
        assert model.loss(given_, target, mask, none, KL_WEIGHT, weight, LABELLED_SHARE).item() == after[1]


def test_a_labelled_date_is_held_against_its_own_prior_alone() -> None:
    model, (given_, target, mask) = net(), scene()
    for label, touched in ((torch.full((5,), 1), {1}), (torch.full((5,), -1), {0, 1, 2})):
        model.zero_grad()
        loss(model, given_, target, mask, label).backward()
        assert model.center.grad is not None
        assert {regime for regime in range(R) if model.center.grad[regime].any()} == touched


def test_the_loss_is_finite_with_no_cell_known_and_none_to_be_found() -> None:
    model, (given_, target, mask) = net(), scene()
    nothing = given_._replace(surface=torch.zeros_like(mask), mask=torch.zeros_like(mask))
    for wanted in (mask, torch.zeros_like(mask)):
        value = loss(model, nothing, target * wanted, wanted, torch.tensor([0, -1, 2, -1, 1]))
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_cells_outside_the_mask_of_the_target_change_nothing() -> None:
    model, (given_, target, mask) = net(), scene()
    label = torch.tensor([0, -1, 2, -1, 1])
    other = torch.where(mask > 0, target, 0.9)
    assert torch.equal(loss(model, given_, target, mask, label), loss(model, given_, other, mask, label))


def test_gradients_reach_every_weight() -> None:
    """After one step: the last layer begins at zero, and what lies before it learns from the second on."""
    model, (given_, target, mask) = net(trained=False), scene()
    label = torch.tensor([0, -1, 2, -1, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss(model, given_, target, mask, label).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss(model, given_, target, mask, label).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


def test_units_are_kept_with_the_weights_and_never_learnt() -> None:
    model = net()
    state = model.state_dict()
    names = {f"unit_{name}" for name in Units._fields} | {f"shape_{name}" for name in Shape._fields}
    assert names <= set(state)
    assert not names & {name for name, _ in model.named_parameters()}
    again = build("surface_vae", dataclasses.asdict(CONFIG)).double().eval()
    again.load_state_dict(state)
    for first, second in zip(model(known()), again(known()), strict=True):
        assert torch.equal(first, second)


def test_a_seed_gives_one_set_of_weights() -> None:
    first, again, other = (net(trained=False, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
