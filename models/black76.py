"""Black-76 as a differentiable torch layer: implied volatility -> price; Greeks by automatic differentiation.

In: tensors of one shape; forward, strike, price in money, tau in years, volatility a fraction, discount a factor, right
+1 call / -1 put. Out: tensors of that shape. Invariant: the price lies within the no-arbitrage bounds for any positive
volatility. Source: F. Black (1976).
"""

from __future__ import annotations

import torch
from torch import Tensor


def black76_price(
    forward: Tensor, strike: Tensor, tau: Tensor, volatility: Tensor, discount: Tensor, right: Tensor
) -> Tensor:
    """Discounted price, money."""
    deviation = volatility * tau.sqrt()
    d1 = torch.log(forward / strike) / deviation + 0.5 * deviation
    d2 = d1 - deviation
    normal_cdf = torch.special.ndtr
    price: Tensor = discount * right * (forward * normal_cdf(right * d1) - strike * normal_cdf(right * d2))
    return price


def black76_greeks(
    forward: Tensor, strike: Tensor, tau: Tensor, volatility: Tensor, discount: Tensor, right: Tensor
) -> dict[str, Tensor]:
    """Price, delta and gamma (in the forward), vega (per 1.00) and theta (per year, at constant forward and rate)."""
    forward, tau, volatility = (x.detach().clone().requires_grad_(True) for x in (forward, tau, volatility))
    rate = -torch.log(discount) / tau.detach()
    price = black76_price(forward, strike, tau, volatility, torch.exp(-rate * tau), right)
    delta, d_tau, vega = torch.autograd.grad(price.sum(), (forward, tau, volatility), create_graph=True)
    (gamma,) = torch.autograd.grad(delta.sum(), forward)
    values = {"price": price, "delta": delta, "gamma": gamma, "vega": vega, "theta": -d_tau}
    return {name: tensor.detach() for name, tensor in values.items()}
