"""What a bundle says of its inputs: written, read back, refused with every problem named; and the scaler's rule."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.errors import DataError
from serving.features import Scaler
from serving.host.tick_features import CONTRACT_FEATURES, STEP_FEATURES, TickSpec, fit_scaler
from tests.serving.native.built import built_core

CORE = built_core()
F, K = len(STEP_FEATURES), len(CONTRACT_FEATURES)


def spec_of(**changes: Any) -> TickSpec:
    step = Scaler(tuple(0.1 * n for n in range(F)), tuple(1.0 + n for n in range(F)), clip=2.0)
    contract = Scaler((0.0,) * K, (2.0,) * K, unscaled=(0, 1, 2))
    spec = TickSpec(10**8, 50, 100, 19, step, contract)
    return replace(spec, **changes)


def test_json_and_back() -> None:
    spec = spec_of()
    data = json.loads(json.dumps(spec.to_json()))
    assert data["kind"] == "tick"
    assert TickSpec.from_json(data) == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "snapshot"}, "kind: expected 'tick', found 'snapshot'"),
        ({"version": 99}, "the spec has 99"),
        ({"step_ns": 0}, "step_ns: expected more than 0, found 0"),
        ({"window": -1}, "window: expected more than 0, found -1"),
        ({"padded_columns": F - 1}, f"at least the {F} known columns, found {F - 1}"),
        ({"padded_contract_columns": 2}, f"at least the {K} known columns, found 2"),
        ({"step_features": STEP_FEATURES[::-1]}, "step_features: differs from this code's in their order"),
        ({"contract_features": (*CONTRACT_FEATURES, "skew")}, "contract_features: differs from this code's in skew"),
        ({"step_scaler": Scaler((0.0,), (1.0,) * F)}, f"step_scaler.mean: expected {F} numbers, found 1"),
        ({"step_scaler": Scaler((0.0,) * F, (0.0,) * F)}, "deviation of imbalance_1: expected a number above 0"),
        ({"step_scaler": Scaler((np.nan,) * F, (1.0,) * F)}, "mean of imbalance_1: expected a number, found nan"),
        ({"step_scaler": Scaler((0.0,) * F, (1.0,) * F, clip=0.0)}, "step_scaler.clip"),
        ({"contract_scaler": Scaler((0.0,) * K, (1.0,) * K)}, "contract_scaler.unscaled: expected [0, 1, 2]"),
    ],
)
def test_problems_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        spec_of(**change)
    assert said in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(DataError) as caught:
        spec_of(step_ns=-1, window=0, padded_columns=1)
    assert all(name in str(caught.value) for name in ("step_ns", "window", "padded_columns"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data.pop("window"), "without window"),
        (lambda data: data.update(colour=1), "with unknown colour"),
        (lambda data: data.update(step_ns=1.5), "expected a whole number, found 1.5"),
        (lambda data: data.update(window=True), "expected a whole number, found True"),
        (lambda data: data["step_scaler"].pop("clip"), "clip"),
        (lambda data: data.update(step_features=3), "can't be read"),
    ],
)
def test_what_cannot_be_read_is_refused(edit: Any, said: str) -> None:
    data = spec_of().to_json()
    edit(data)
    with pytest.raises(DataError, match="tick feature spec") as caught:
        TickSpec.from_json(data)
    assert said in str(caught.value)
    with pytest.raises(DataError, match="tick feature spec"):
        TickSpec.from_json([data])  # type: ignore[arg-type]


@given(arrays(np.float64, (5, F), elements=st.floats(-1e6, 1e6)))
@settings(max_examples=60, deadline=None)
def test_scaling_is_the_rule(rows: np.ndarray) -> None:
    spec = spec_of()
    x, clipped = spec.scale(rows)
    scaled = (rows - np.array(spec.step_scaler.mean)) / np.array(spec.step_scaler.deviation)
    expected = np.minimum(np.maximum(scaled, -2.0), 2.0).astype(np.float32)
    np.testing.assert_array_equal(x[:, :F], expected)
    assert not x[:, F:].any()
    np.testing.assert_array_equal(clipped, (np.abs(scaled) >= 2.0).sum(axis=1) / F)
    np.testing.assert_array_equal(x[:, :F], spec.step_scaler(rows))  # as training's own scaler has it


def test_a_column_at_the_clip_counts_as_clipped() -> None:
    spec = spec_of(step_scaler=Scaler((0.0,) * F, (1.0,) * F, clip=2.0))
    rows = np.array([[2.0, -2.0, np.nextafter(2.0, 0.0), 0.0] * (F // 4)])
    assert spec.scale(rows)[1] == 0.5


def test_fitted_rows_have_mean_0_and_deviation_1() -> None:
    """Also columns as small as a spread over a price; one that doesn't move is only centred."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(500, F)) * 10.0 ** rng.integers(-9, 3, F) + rng.normal(size=F)
    rows[:, 7] = 1.7
    spec = spec_of(step_scaler=fit_scaler(rows, clip=100.0))
    x, clipped = spec.scale(rows)
    np.testing.assert_allclose(x[:, :F].mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.delete(x[:, :F].std(axis=0), 7), 1, atol=1e-3)
    np.testing.assert_allclose(x[:, 7], 0, atol=500 * 1.7 * np.finfo(float).eps)  # the rounding of a mean of 500
    assert not clipped.any()


def test_the_scaler_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 40\)"):
        fit_scaler(np.zeros((1, F)))
    rows = np.zeros((4, F))
    rows[2, 1] = np.inf
    with pytest.raises(DataError, match="imbalance_3"):
        fit_scaler(rows)


@pytest.mark.parametrize(
    ("mean", "deviation", "padded", "clip", "said"),
    [
        ([0.0, 0.0], [1.0], 2, 3.0, "deviation: expected 2 numbers, found 1"),
        ([0.0], [0.0], 2, 3.0, "deviation of column 0"),
        ([np.nan], [1.0], 2, 3.0, "mean of column 0"),
        ([0.0, 0.0], [1.0, 1.0], 1, 3.0, "padded"),
        ([0.0], [1.0], 1, -3.0, "clip"),
    ],
)
def test_the_core_checks_too(mean: list[float], deviation: list[float], padded: int, clip: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CORE.StepScaler(np.array(mean), np.array(deviation), padded, clip)
