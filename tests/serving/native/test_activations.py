"""sigmoid and tanh keep the errors that dense/activations.hpp states, over a dense sample of all floats.

Each is seen through the LSTM cell: with a cell of 1 and tanh(g) of 0, c' = sigmoid(f).
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving.native.built import built_core

CORE = built_core()
K = CORE.kernels
STATED_ULP = 4.0
ISAS = [isa for isa in CORE.isas() if isa in ("portable", "avx2", "avx512")]  # those with activations of their own


def all_over(low: float, high: float) -> np.ndarray:
    """Every 4,099th float between two positive floats and its negative; the count a multiple of 16."""
    bits = np.arange(np.float32(low).view(np.uint32), np.float32(high).view(np.uint32), 4099, dtype=np.uint32)
    positive = bits.view(np.float32)
    both = np.concatenate([positive, -positive])
    return np.concatenate([both, np.zeros(-len(both) % 16, np.float32)])


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(found - exact) / np.maximum(np.spacing(np.abs(exact).astype(np.float32)), 2.0**-149)


def sigmoid(isa: str, x: np.ndarray) -> np.ndarray:
    gates = np.zeros((len(x) // 16, 4, 16), np.float32)
    gates[:, 1] = x.reshape(-1, 16)
    out = np.zeros(2 * len(x), np.float32)
    K.lstm_cell(isa, gates.ravel(), np.ones(len(x), np.float32), out, len(x))
    return out[: len(x)]


@pytest.mark.parametrize("isa", ISAS)
def test_sigmoid(isa: str) -> None:
    x = all_over(1e-6, 80.0)
    assert ulps(sigmoid(isa, x), 1 / (1 + np.exp(-x.astype(np.float64)))).max() <= STATED_ULP


@pytest.mark.parametrize("isa", ISAS)
def test_tanh(isa: str) -> None:
    x = all_over(1e-30, 40.0)
    found = x.copy()
    K.activate(isa, "tanh", found, len(found))
    assert ulps(found, np.tanh(x.astype(np.float64))).max() <= STATED_ULP


@pytest.mark.parametrize("isa", ISAS)
def test_silu(isa: str) -> None:
    """One more product, one more half unit."""
    x = all_over(1e-6, 80.0)
    found = x.copy()
    K.activate(isa, "silu", found, len(found))
    x64 = x.astype(np.float64)
    assert ulps(found, x64 / (1 + np.exp(-x64))).max() <= STATED_ULP + 0.5


@pytest.mark.parametrize("isa", ISAS)
def test_they_saturate_and_let_nan_through(isa: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 100.0, -100.0, 0.0] * 2, np.float32)
    flat = x.copy()
    K.activate(isa, "tanh", flat, len(flat))
    assert np.array_equal(flat[:8], np.array([np.nan, 1, -1, 1, -1, 1, -1, 0], np.float32), equal_nan=True)
    bent = sigmoid(isa, x)[:8]
    assert np.isnan(bent[0])
    assert np.array_equal(bent[[1, 3, 5, 7]], np.array([1, 1, 1, 0.5], np.float32))
    assert np.all((bent[[2, 4, 6]] >= 0) & (bent[[2, 4, 6]] < 1e-37))
