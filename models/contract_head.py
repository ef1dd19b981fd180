"""The contract head: market context and contract features -> implied volatility, as a correction to the last surface.

Shapes: N contracts, K contract features, D context. Three features are unscaled: column 0 the prior volatility
(yesterday's at the strike, moved by the anchors), column 2 whether anchors quote (0 or 1). The correction is a linear
term in the features plus a two-layer network that also sees the context; both begin at zero, so an untrained head *is*
the anchored sticky-strike prior. Without anchors there is no correction: the day's common shock is unknowable then.
`trust`, between 0 and 1, is the share of the correction that is believed: fitted on dates held out of a training
(pipelines/trust.py), 1 before. Invariant: the volatility is positive and within a factor e of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ContractHeadConfig:
    """Sizes of the head; `unit` is the volatility that one unit of output stands for."""

    contract_features: int
    context: int
    width: int = 64
    dropout: float = 0.1
    unit: float = 0.01


class ContractHead(nn.Module):
    """(context [N, D], contracts [N, K]) -> implied volatility [N]."""

    trust: Tensor

    def __init__(self, config: ContractHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("trust", torch.ones(()))
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
        relative = self.trust * correction[:, 0] * contracts_NK[:, 2] * self.config.unit / prior_N
        return prior_N * torch.exp(torch.clamp(relative, -1.0, 1.0))
