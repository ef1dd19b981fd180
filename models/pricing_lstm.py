"""pricing_lstm: an LSTM over the market sequence, attention pooling, and the contract head.

Shapes: B snapshots, T steps, F step features, H hidden, D context, N contracts, K contract features. The encoder runs
from zero state over exactly the last T steps (`window` semantics); `step` computes the same context from the carried
state, so a host may run the first T-1 steps before the tick arrives.

Sources: Hochreiter & Schmidhuber (1997); attention pooling after Luong et al. (2015), the last output as the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.contract_head import ContractHead, ContractHeadConfig


@dataclass(frozen=True)
class PricingLSTMConfig:
    """Sizes; `step_features`, `contract_features` and `window` come from the feature spec."""

    step_features: int
    contract_features: int
    window: int
    hidden: int = 64
    layers: int = 1
    context: int = 16
    head_width: int = 64
    dropout: float = 0.1


class PricingLSTM(nn.Module):
    """(window [B, T, F], contracts [N, K], snapshot of each contract [N]) -> implied volatility [N]."""

    def __init__(self, config: PricingLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(config.step_features, config.hidden, config.layers, batch_first=True)
        self.query = nn.Linear(config.hidden, config.hidden, bias=False)
        self.project = nn.Linear(2 * config.hidden, config.context)
        self.head = ContractHead(
            ContractHeadConfig(config.contract_features, config.context, config.head_width, config.dropout)
        )

    def attention(self, outputs_BTH: Tensor) -> Tensor:
        """Weights over the steps [B, T]."""
        query_BH = self.query(outputs_BTH[:, -1])
        scores_BT = (outputs_BTH * query_BH.unsqueeze(1)).sum(-1) / self.config.hidden**0.5
        return torch.softmax(scores_BT, dim=1)

    def pool(self, outputs_BTH: Tensor) -> Tensor:
        """Context [B, D] of the outputs of all steps of the window."""
        pooled_BH = (self.attention(outputs_BTH).unsqueeze(-1) * outputs_BTH).sum(1)
        return torch.tanh(self.project(torch.cat([outputs_BTH[:, -1], pooled_BH], dim=-1)))

    def encode(self, window_BTF: Tensor) -> Tensor:
        """Context [B, D] of a window, from zero state."""
        outputs_BTH, _ = self.lstm(window_BTF)
        return self.pool(outputs_BTH)

    def step(
        self, x_1F: Tensor, hidden_L1H: Tensor, cell_L1H: Tensor, memory_MH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step from carried state; `memory` holds the outputs of the M = T-1 steps before, oldest first.

        Returns context [1, D], hidden and cell [L, 1, H], and this step's output [1, H].
        """
        output_11H, (hidden, cell) = self.lstm(x_1F.unsqueeze(1), (hidden_L1H, cell_L1H))
        outputs_1TH = torch.cat([memory_MH.unsqueeze(0), output_11H], dim=1)
        return self.pool(outputs_1TH), hidden, cell, output_11H[:, 0]

    def forward(self, window_BTF: Tensor, contracts_NK: Tensor, snapshot_N: Tensor) -> Tensor:
        """Implied volatility [N] of contracts that belong to the windows named in `snapshot`."""
        volatility_N: Tensor = self.head(self.encode(window_BTF)[snapshot_N], contracts_NK)
        return volatility_N
