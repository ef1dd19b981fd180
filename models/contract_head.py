"""The contract head: market context and contract features -> implied volatility, as a correction to the last surface.

Shapes: N contracts, K contract features, D context. Column 0 of the features is the prior volatility (yesterday's at
the strike, moved by the anchors) and column 1 sqrt(tau), both unscaled; the others are scaled. The correction, divided
by sqrt(tau) so that it weighs alike in prices of all tenors, is a linear term in the features plus a two-layer network
that also sees the context; both begin at zero, so an untrained head *is* the anchored sticky-strike prior. Invariant:
the volatility is positive and within a factor e of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ContractHeadConfig:
    """Sizes of the head; `unit` is what one unit of output stands for, volatility times sqrt(tau)."""

    contract_features: int
    context: int
    width: int = 64
    dropout: float = 0.1
    unit: float = 0.0035


class ContractHead(nn.Module):
    """(context [N, D], contracts [N, K]) -> implied volatility [N]."""

    def __init__(self, config: ContractHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.contract_features, 1)
        self.network = nn.Sequential(
            nn.Linear(config.contract_features + config.context, config.width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, 1),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        for layer in (self.linear, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, context_ND: Tensor, contracts_NK: Tensor) -> Tensor:
        """Implied volatility [N], a fraction."""
        correction = self.linear(contracts_NK) + self.network(torch.cat([contracts_NK, context_ND], dim=-1))
        prior_N = contracts_NK[:, 0]
        relative = correction[:, 0] * self.config.unit / (contracts_NK[:, 1] * prior_N)
        return prior_N * torch.exp(torch.clamp(relative, -1.0, 1.0))
