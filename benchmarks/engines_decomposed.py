"""The LSTM step with its gates as plain matrix products: another export of the same net, for peers to try.

Libraries treat an LSTM node and a matrix product differently (int8 above all: OpenVINO's int8 LSTM answers wrongly for
several layers, its int8 matrix products don't), so both graphs are offered and the faster right one counts.
In: a `pricing_lstm` net. Out: the bytes of a step.onnx with the tensor names and shapes of the bundle's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

import models
from models.parts import Part
from models.pricing_lstm import PricingLSTM
from pipelines.onnx_export import export_member


class DecomposedStep(nn.Module):
    """`PricingLSTM.step` by one matrix product a layer, [x, h] times [W, U] and the summed biases."""

    def __init__(self, net: PricingLSTM) -> None:
        super().__init__()
        self.net = net
        self.gates = nn.ModuleList()
        for layer in range(net.config.layers):
            w, u = getattr(net.lstm, f"weight_ih_l{layer}"), getattr(net.lstm, f"weight_hh_l{layer}")
            linear = nn.Linear(w.shape[1] + u.shape[1], w.shape[0])
            with torch.no_grad():
                linear.weight.copy_(torch.cat([w, u], dim=1))
                linear.bias.copy_(getattr(net.lstm, f"bias_ih_l{layer}") + getattr(net.lstm, f"bias_hh_l{layer}"))
            self.gates.append(linear)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        hiddens, cells = [], []
        for layer, gates in enumerate(self.gates):
            i, f, g, o = gates(torch.cat([x, hidden[layer]], dim=1)).chunk(4, dim=1)
            following = torch.sigmoid(f) * cell[layer] + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(following)
            hiddens.append(x)
            cells.append(following)
        context = self.net._pool(torch.cat([memory, x]).unsqueeze(0))
        return context, torch.stack(hiddens), torch.stack(cells), x


class _OnePart:
    """What `export_member` needs of a net: its parts."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def parts(self) -> list[Part]:
        return [self._part]


def export_decomposed(net: PricingLSTM) -> bytes:
    """The bytes of the decomposed step."""
    (step,) = (part for part in net.parts() if part.role == "step")
    decomposed = _OnePart(Part("step", DecomposedStep(net), step.inputs, step.outputs))
    ((_, raw),) = export_member(cast(models.Net, decomposed), "decomposed")[0].items()
    return raw
