"""The contract head is the prior until it has learned, and stays positive and near the prior whatever it is fed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.contract_head import ContractHead, ContractHeadConfig

FEATURES, CONTEXT = 7, 5


def head(*, trained: bool, seed: int = 0) -> ContractHead:
    torch.manual_seed(seed)
    net = ContractHead(ContractHeadConfig(FEATURES, CONTEXT, width=16))
    if trained:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


def inputs(count: int = 40, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Context and contracts, anchored; prior volatility 1 to 90 %, tau two days to a year."""
    generator = torch.Generator().manual_seed(seed)
    context, contracts = (
        torch.randn(count, CONTEXT, generator=generator),
        torch.randn(count, FEATURES, generator=generator),
    )
    contracts[:, 0] = 0.01 + 0.89 * torch.rand(count, generator=generator)
    contracts[:, 1] = 0.07 + 0.93 * torch.rand(count, generator=generator)
    contracts[:, 2] = 1.0
    return context, contracts


@pytest.mark.parametrize("training", [False, True])
def test_untrained_it_is_the_prior_to_the_last_bit(training: bool) -> None:
    context, contracts = inputs()
    net = head(trained=False).train(training)
    assert torch.equal(net(context, contracts), contracts[:, 0])


def test_correction_is_in_units_of_volatility() -> None:
    """A linear term of one unit moves volatility by `unit`, to first order; it is the same for all priors."""
    net = head(trained=False)
    with torch.no_grad():
        net.linear.bias.fill_(0.01)
    context, contracts = (x.double() for x in inputs())
    moved = net.double()(context, contracts) - contracts[:, 0]
    wanted = torch.full_like(moved, 0.01 * net.config.unit)
    relative = wanted / contracts[:, 0]
    assert torch.allclose(moved, contracts[:, 0] * torch.expm1(relative), rtol=1e-9)
    assert ((moved / wanted - 1.0).abs() <= relative).all()  # exp(x) - 1 is x to within x^2


def test_without_anchors_it_is_the_prior_whatever_it_has_learned() -> None:
    context, contracts = inputs()
    contracts[:, 2] = 0.0
    assert torch.equal(head(trained=True)(context, contracts), contracts[:, 0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.floats(-30, 30), st.floats(-30, 30))
def test_extreme_inputs_give_positive_volatilities_within_a_factor_e(seed: int, far: float, further: float) -> None:
    context, contracts = inputs(seed=seed)
    contracts[:, 3:] *= 10.0**far if far < 6 else 1e6
    context *= 10.0**further if further < 6 else 1e6
    volatility = head(trained=True, seed=seed)(context, contracts)
    ratio = volatility / contracts[:, 0]
    assert torch.isfinite(volatility).all()
    assert (ratio >= math.exp(-1.0) * (1 - 1e-6)).all()
    assert (ratio <= math.e * (1 + 1e-6)).all()


def test_both_ends_of_the_clamp_are_reached() -> None:
    context, contracts = inputs()
    for sign in (1.0, -1.0):
        net = head(trained=False)
        with torch.no_grad():
            net.linear.bias.fill_(sign * 1e6)
        assert torch.allclose(net(context, contracts), contracts[:, 0] * math.exp(sign), rtol=1e-6)


def test_contracts_are_priced_one_by_one_as_in_a_batch() -> None:
    context, contracts = (x.double() for x in inputs())
    net = head(trained=True).double()
    whole = net(context, contracts)
    alone = torch.cat([net(context[k : k + 1], contracts[k : k + 1]) for k in range(len(contracts))])
    assert torch.allclose(whole, alone, rtol=1e-12)
    order = torch.randperm(len(contracts), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(context[order], contracts[order]), whole[order], rtol=1e-12)
    assert net(context[:0], contracts[:0]).shape == (0,)


def test_context_and_every_feature_matter_once_trained() -> None:
    context, contracts = (x.double().requires_grad_(True) for x in inputs())
    net = head(trained=True).double()
    net.config = ContractHeadConfig(FEATURES, CONTEXT, width=16, unit=1e-5)  # inside the clamp
    net(context, contracts).sum().backward()
    for gradient in (context.grad, contracts.grad):
        assert gradient is not None
        assert (gradient.abs().sum(dim=0) > 0).all()
