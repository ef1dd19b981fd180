"""How far rounding may take a net's output, derived from the net itself.

In: a float64 torch net, a function that runs it, the precision of each of its linear layers. Out: one bound per output.

Every linear layer y = W x + b is given two kinds of error, each pushed through the net by its derivative:
- float32 arithmetic, worst case: y off by (n + 32) units of 2^-24 of |W| |x| + |b|, for sums of n products and for what
  norms, softmax and activations add on the way to the next layer;
- quantisation: every weight and every input rounded on its own, by at most half a step of bf16 (2^-9 of it) or of int8
  (1/254 of the row's, or the vector's, largest). Errors below c_i in magnitude and independent exceed 7 sqrt(sum c_i^2)
  with a probability below 1e-10 (Hoeffding), so that is their bound.
Derivatives are first order: the whole is doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

UNIT = 2.0**-24
ULPS_ON_THE_WAY = 32
DEVIATIONS = 7.0


def error_bound(net: nn.Module, run: Callable[[], Tensor], precisions: Mapping[str, str]) -> NDArray[np.float64]:
    """Bound of each element of what `run` returns, flattened; layers not in `precisions` are fp32."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    shifts: list[tuple[str, Tensor, Tensor, Tensor, Tensor]] = []  # layer, input, its shift, output, its shift
    hooks = []
    for name, layer in layers.items():
        def run_shifted(module: nn.Module, given: tuple[Tensor], output: Tensor, name: str = name) -> Tensor:
            assert isinstance(module, nn.Linear)
            shift_in = torch.zeros_like(given[0], requires_grad=True)
            shift_out = torch.zeros_like(output, requires_grad=True)
            shifts.append((name, given[0].detach(), shift_in, output.detach(), shift_out))
            return output + nn.functional.linear(shift_in, module.weight) + shift_out

        hooks.append(layer.register_forward_hook(run_shifted))  # type: ignore[arg-type]
    try:
        found = run().flatten()
    finally:
        for hook in hooks:
            hook.remove()
    used = [name for name in layers if any(shift[0] == name for shift in shifts)]
    wanted = [*(layers[name].weight for name in used), *(one for shift in shifts for one in (shift[2], shift[4]))]
    bounds = []
    for element in found:
        slopes = torch.autograd.grad(element, wanted, retain_graph=True, allow_unused=True)
        by_tensor = {id(tensor): slope for tensor, slope in zip(wanted, slopes, strict=True) if slope is not None}
        worst, squares = UNIT * 8.0, 0.0
        for name in used:
            weight = layers[name].weight
            if id(weight) in by_tensor:
                step = _half_step(weight.detach(), precisions.get(name, "fp32"))
                squares += float(((by_tensor[id(weight)] * step) ** 2).sum())
        for name, given, shift_in, _, shift_out in shifts:
            layer = layers[name]
            if id(shift_in) in by_tensor:
                step = _half_step(given, precisions.get(name, "fp32"))
                squares += float(((by_tensor[id(shift_in)] * step) ** 2).sum())
            if id(shift_out) in by_tensor:
                bias = 0.0 if layer.bias is None else layer.bias.detach().abs()
                size = given.abs() @ layer.weight.detach().abs().T + bias
                units = (layer.in_features + ULPS_ON_THE_WAY) * UNIT
                worst += float((by_tensor[id(shift_out)].abs() * size).sum()) * units
        bounds.append(2.0 * (worst + DEVIATIONS * squares**0.5))
    return np.array(bounds)


def _half_step(values: Tensor, precision: str) -> Tensor:
    if precision == "bf16":
        return values.abs() * 2.0**-9
    if precision == "int8":
        return values.abs().amax(-1, keepdim=True).expand_as(values) / 254.0
    return torch.zeros_like(values)
