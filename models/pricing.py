"""What every pricing net is: an encoder of the market sequence and the one contract head.

Shapes: B snapshots, T steps, F step features, D context, N contracts, K contract features. A family is a subclass that
gives `encode` (a whole window at once, which training uses), `step` (the same from carried state, so that a host runs
the first T-1 steps before the tick arrives), `step_tensors` (names and sizes of that state) and `attention`.

Invariant: `step` run over a window from zero state ends with the context `encode` gives
(tests/models/test_pricing_nets.py).
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from models.contract_head import ContractHead, ContractHeadConfig
from models.parts import Part, Tensors


class PricingSizes(Protocol):
    """Sizes that all pricing families have."""

    @property
    def step_features(self) -> int: ...
    @property
    def contract_features(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class PricingNet(nn.Module):
    """(window [B, T, F], contracts [N, K], snapshot of each contract [N]) -> implied volatility [N]."""

    task: ClassVar[str] = "pricing"

    def __init__(self, sizes: PricingSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.head = ContractHead(
            ContractHeadConfig(sizes.contract_features, sizes.context, sizes.head_width, sizes.dropout)
        )

    def encode(self, window_BTF: Tensor) -> Tensor:
        """Context [B, D] of a window, from zero state."""
        raise NotImplementedError

    def step(self, x_1F: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One step from carried state: context [1, D], then the new states."""
        raise NotImplementedError

    def step_tensors(self) -> tuple[Tensors, Tensors]:
        """Names and sizes of the states that go into `step`, and of those that come out."""
        raise NotImplementedError

    def attention(self, window_BTF: Tensor) -> Tensor:
        """How much the context looks at each step, [B, T], rows that add up to 1; for the report."""
        raise NotImplementedError

    def forward(self, window_BTF: Tensor, contracts_NK: Tensor, snapshot_N: Tensor) -> Tensor:
        """Implied volatility [N] of contracts that belong to the windows named in `snapshot`."""
        volatility_N: Tensor = self.head(self.encode(window_BTF)[snapshot_N], contracts_NK)
        return volatility_N

    def parts(self) -> list[Part]:
        """Window, step and head, with the tensor names of the bundle's contract."""
        size = self.sizes
        context = (("context", (1, size.context)),)
        states_in, states_out = self.step_tensors()
        return [
            Part("window", _Window(self), (("window", (1, size.window, size.step_features)),), context),
            Part("step", _Step(self), (("x", (1, size.step_features)), *states_in), (*context, *states_out)),
            Part(
                "head", _Head(self.head), (*context, ("contracts", (None, size.contract_features))), (("iv", (None,)),)
            ),
        ]


class _Window(nn.Module):
    def __init__(self, net: PricingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, window: Tensor) -> Tensor:
        return self.net.encode(window)


class _Step(nn.Module):
    def __init__(self, net: PricingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return self.net.step(x, *states)


class _Head(nn.Module):
    def __init__(self, head: ContractHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, context: Tensor, contracts: Tensor) -> Tensor:
        volatility: Tensor = self.head(context.expand(contracts.shape[0], -1), contracts)
        return volatility


def zero_states(net: PricingNet) -> list[Tensor]:
    """The states before the first step."""
    return [torch.zeros([size or 0 for size in shape]) for _, shape in net.step_tensors()[0]]
