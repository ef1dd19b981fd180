"""pricing_lstm's encoder in NumPy float64, exact or with every operand rounded at random as a precision may round it.

In: the net's state dict as arrays, the steps since the zero state. Out: the context. `Rounding` moves each weight and
each element of each vector that meets a matrix by up to half a step of its precision, independently: what a right
engine's rounding does, with other draws. `noise_bound` is four times the largest move seen over eight such draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
DRAWS, MARGIN = 8, 4.0


class Exact:
    """No rounding."""

    def weight(self, values: Array, precision: str) -> Array:
        return values.astype(np.float64)

    def vector(self, values: Array, precision: str) -> Array:
        return values


class Rounding(Exact):
    """Up to half a step off: bf16 2^-9 of a value, int8 1/254 of its row's largest, fp32 64 units of 2^-24 (sums)."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._weights: dict[int, Array] = {}

    def weight(self, values: Array, precision: str) -> Array:
        if id(values) not in self._weights:  # the same weights at every step
            self._weights[id(values)] = self.vector(values.astype(np.float64), precision)
        return self._weights[id(values)]

    def vector(self, values: Array, precision: str) -> Array:
        largest = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
        half = {"fp32": 64 * 2.0**-24 * np.abs(values), "bf16": 2.0**-9 * np.abs(values), "int8": largest / 254}
        return values + self._rng.uniform(-1, 1, values.shape) * half[precision]


def context_after(
    weights: Mapping[str, Array], steps: Array, remembered: int, precision: str = "fp32", rounding: Exact | None = None
) -> Array:
    """Context after `steps` from zero state, pooling over the last `remembered` outputs, zeros before the first."""
    by = rounding or Exact()
    layers = sum(name.startswith("lstm.weight_ih") for name in weights)
    hidden = weights["query.weight"].shape[0]
    outputs = steps.astype(np.float64)
    for layer in range(layers):
        w, u, b, c = (weights[f"lstm.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        w, u = by.weight(w, precision), by.weight(u, precision)
        state, cell, rows = np.zeros(hidden), np.zeros(hidden), []
        for x in outputs:
            gates = w @ by.vector(x, precision) + u @ by.vector(state, precision) + b + c
            i, f, g, o = gates.reshape(4, hidden)
            cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            state = np.tanh(cell) / (1 + np.exp(-o))
            rows.append(state)
        outputs = np.array(rows)
    seen = np.concatenate([np.zeros((remembered, hidden)), outputs])[-remembered:]
    newest = seen[-1]
    query = by.weight(weights["query.weight"], precision) @ by.vector(newest, precision) / hidden**0.5
    kept = by.vector(seen[:-1], precision) if remembered > 1 else seen[:0]
    score = np.concatenate([kept @ by.vector(query, precision), [newest @ query]])
    share = np.exp(score - score.max())
    of_last, of_pooled = np.split(weights["project.weight"], 2, axis=1)
    projected = "bf16" if precision == "int8" else precision
    pooled = share / share.sum() @ seen
    context: Array = np.tanh(
        by.vector(of_last.astype(np.float64), projected) @ by.vector(newest, projected)
        + by.vector(of_pooled.astype(np.float64), projected) @ by.vector(pooled, projected)
        + weights["project.bias"]
    )
    return context


def noise_bound(weights: Mapping[str, Array], steps: Array, remembered: int, precision: str) -> float:
    """How far rounding at random takes the context, times `MARGIN`."""
    exact = context_after(weights, steps, remembered)
    moved = [context_after(weights, steps, remembered, precision, Rounding(seed)) for seed in range(DRAWS)]
    return MARGIN * float(max(np.abs(one - exact).max() for one in moved))
