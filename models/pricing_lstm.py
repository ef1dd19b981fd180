"""pricing_lstm: an LSTM over the market sequence, attention pooling, and the contract head.

Shapes: B snapshots, T steps, F step features, H hidden, L layers, D context. The encoder runs from zero state over
exactly the last T steps (`window` semantics); `step` computes the same context from the carried state.

Sources: Hochreiter & Schmidhuber (1997); attention pooling after Luong et al. (2015), the last output as the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.parts import Tensors
from models.pricing import PricingNet


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


class PricingLSTM(PricingNet):
    """LSTM encoder; see `PricingNet`."""

    def __init__(self, config: PricingLSTMConfig) -> None:
        super().__init__(config)
        self.config = config
        self.lstm = nn.LSTM(config.step_features, config.hidden, config.layers, batch_first=True)
        self.query = nn.Linear(config.hidden, config.hidden, bias=False)
        self.project = nn.Linear(2 * config.hidden, config.context)

    def _weights(self, outputs_BTH: Tensor) -> Tensor:
        query_BH = self.query(outputs_BTH[:, -1])
        scores_BT = (outputs_BTH * query_BH.unsqueeze(1)).sum(-1) / self.config.hidden**0.5
        return torch.softmax(scores_BT, dim=1)

    def _pool(self, outputs_BTH: Tensor) -> Tensor:
        pooled_BH = (self._weights(outputs_BTH).unsqueeze(-1) * outputs_BTH).sum(1)
        return torch.tanh(self.project(torch.cat([outputs_BTH[:, -1], pooled_BH], dim=-1)))

    def encode(self, window_BTF: Tensor) -> Tensor:
        return self._pool(self.lstm(window_BTF)[0])

    def attention(self, window_BTF: Tensor) -> Tensor:
        return self._weights(self.lstm(window_BTF)[0])

    def step(self, x_1F: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """States: hidden and cell [L, 1, H]; memory, the outputs of the T-1 steps before, oldest first [T-1, H].

        Out: context [1, D], hidden and cell, and this step's output [1, H], to be put at the memory's end.
        """
        hidden_L1H, cell_L1H, memory_MH = states
        output_11H, (hidden, cell) = self.lstm(x_1F.unsqueeze(1), (hidden_L1H, cell_L1H))
        outputs_1TH = torch.cat([memory_MH.unsqueeze(0), output_11H], dim=1)
        return self._pool(outputs_1TH), hidden, cell, output_11H[:, 0]

    def step_tensors(self) -> tuple[Tensors, Tensors]:
        size = self.config
        state = (size.layers, 1, size.hidden)
        return (
            (("hidden", state), ("cell", state), ("memory", (size.window - 1, size.hidden))),
            (("hidden_out", state), ("cell_out", state), ("output", (1, size.hidden))),
        )
