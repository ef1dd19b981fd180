"""Every dense kernel on every instruction set this CPU has: against float64, and int8 sums to the last integer.

Bounds: a float32 sum of n products in any order is off by at most (n + 8) 2^-24 of the sum of magnitudes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.native.built import PRECISIONS, built_core

CORE = built_core()
K = CORE.kernels
UNIT = 2.0**-24
ISAS = CORE.isas()
Floats = np.ndarray[Any, np.dtype[Any]]


def rounded(x: Floats) -> Floats:
    """Nearest bf16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def quantised(x: Floats) -> tuple[Floats, Floats]:
    """Whole numbers and the scale, of the last axis."""
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0.0).astype(np.float32)
    scale = np.where(largest > 1e-30, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(x.astype(np.float64) / scale), scale


def gemv(isa: str, precision: str, weights: Floats, x: Floats, start: Floats) -> Floats:
    out = np.full(len(weights), np.nan, np.float32)
    K.gemv(isa, precision, weights, x, start, out, weights.shape[1])
    return out


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng([seed, rows, columns])
    sizes = ((rows, columns), columns, rows)
    weights, x, start = (rng.normal(size=size).astype(np.float32) for size in sizes)
    return weights, x, start


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 270), seed=st.integers(0, 9))
def test_matrix_times_vector(isa: str, precision: str, rows: int, columns: int, seed: int) -> None:
    weights, x, start = problem(rows, columns, seed)
    found = gemv(isa, precision, weights, x, start)
    if precision == "int8":
        (q, row_scale), (v, scale) = quantised(weights), quantised(x)
        exact = (q @ v) * row_scale[:, 0].astype(np.float64) * scale + start
        # a quotient that ends in a half may round either way: one step of x, or of a weight
        steps = np.abs(q).max(axis=1) * row_scale[:, 0] * scale + 127.0 * row_scale[:, 0] * scale
        assert np.all(np.abs(found - exact) <= steps + 8 * UNIT * (np.abs(exact) + np.abs(start)))
        return
    w64, x64 = (rounded(weights), rounded(x)) if precision == "bf16" else (weights, x)
    w64, x64 = w64.astype(np.float64), x64.astype(np.float64)
    bound = (columns + 8) * UNIT * (np.abs(w64) @ np.abs(x64) + np.abs(start))
    assert np.all(np.abs(found - (w64 @ x64 + start)) <= bound)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 290), columns=st.integers(1, 260), seed=st.integers(0, 9))
def test_whole_numbers_are_multiplied_exactly(isa: str, rows: int, columns: int, seed: int) -> None:
    """Scales of 1 (a 127 in each row and in x): answers are the integers, also where 16 bits would saturate."""
    rng = np.random.default_rng([seed, rows, columns])
    weights = rng.choice([-127, 127, 126, -1, 3], (rows, columns)).astype(np.float32)
    x = rng.choice([-127, 127, -126, 2, 0], columns).astype(np.float32)
    weights[:, 0], x[0] = 127, -127
    exact = weights.astype(np.int64) @ x.astype(np.int64)
    assert np.array_equal(gemv(isa, "int8", weights, x, np.zeros(rows, np.float32)), exact.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 3), (129, 31), (448, 100), (832, 250), (1024, 256)])
def test_int8_agrees_with_portable(isa: str, rows: int, columns: int) -> None:
    """The same integers and scales; only the last sum's rounding (fused or not) may differ."""
    weights, x, start = problem(rows, columns)
    one, other = gemv(isa, "int8", weights, x, start), gemv("portable", "int8", weights, x, start)
    assert np.all(np.abs(one - other) <= 2 * UNIT * (np.abs(one - start) + np.abs(start)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 36])
def test_what_isnt_finite_shows(isa: str, precision: str, bad: float, place: int) -> None:
    weights, x, start = problem(33, 37)
    x[place] = bad
    assert not np.isfinite(gemv(isa, precision, weights, x, start)).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-45])
def test_int8_of_nearly_nothing_is_nothing(isa: str, size: float) -> None:
    weights, x, start = problem(20, 40)
    tiny = np.full(40, size, np.float32)
    assert np.array_equal(gemv(isa, "int8", weights, tiny, start), start)
    assert np.array_equal(gemv(isa, "int8", weights * np.float32(size), x, start), start)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [16, 48, 64, 208])
def test_lstm_cell(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    gates, cell = (rng.normal(0, 3, size).astype(np.float32) for size in (4 * n, n))
    out = np.full(2 * n, np.nan, np.float32)
    K.lstm_cell(isa, gates, cell, out, n)
    i, f, g, o = gates.astype(np.float64).reshape(n // 16, 4, 16).transpose(1, 0, 2).reshape(4, n)
    next_cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    hidden = np.tanh(next_cell) / (1 + np.exp(-o))
    # two products of two activations of 4 units each, and a sum
    assert np.all(np.abs(out[:n] - next_cell) <= 12 * UNIT * 2 * (np.abs(cell) + 1))
    assert np.all(np.abs(out[n:] - hidden) <= 12 * UNIT * 2 * (np.abs(cell) + 2))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 130), seed=st.integers(0, 9), spread=st.sampled_from([1e-3, 1.0, 30.0]))
def test_softmax(isa: str, n: int, seed: int, spread: float) -> None:
    x = np.random.default_rng([n, seed]).normal(0, spread, n).astype(np.float32)
    found = x.copy()
    K.activate(isa, "softmax", found, n)
    exact = np.exp(x.astype(np.float64) - x.max())
    assert np.abs(found - exact / exact.sum()).max() <= (n + 16) * UNIT
    assert abs(found.astype(np.float64).sum() - 1.0) <= (n + 16) * UNIT


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 20])
def test_softmax_of_what_isnt_finite(isa: str, bad: float, place: int) -> None:
    x = np.zeros(21, np.float32)
    x[place] = bad
    K.activate(isa, "softmax", x, 21)
    assert np.isnan(x).any()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 140), seed=st.integers(0, 9), middle=st.sampled_from([0.0, 5.0]))
def test_layer_norm(isa: str, n: int, seed: int, middle: float) -> None:
    rng = np.random.default_rng([n, seed])
    x = (middle + rng.normal(size=n)).astype(np.float32)
    gain, shift = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    out = np.full(n, np.nan, np.float32)
    K.layer_norm(isa, x, gain, shift, out, n)
    x64 = x.astype(np.float64)
    unit = 1 / np.sqrt(x64.var() + 1e-5)
    exact = (x64 - x64.mean()) * unit * gain + shift
    bound = (n + 16) * UNIT * ((np.abs(x64).max() * unit + np.abs(exact - shift)) * (1 + np.abs(gain)) + np.abs(shift))
    assert np.all(np.abs(out - exact) <= bound)
