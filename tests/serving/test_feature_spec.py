"""The scaler, the spec that a bundle carries and the path it is applied to: exact, and closed to what doesn't fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from serving.errors import DataError
from serving.features import CONTRACT_FEATURES, STEP_FEATURES, UNSCALED, FeatureSpec, Path, Scaler
from serving.last_seen import AnchorTarget
from tests.serving.test_last_seen import DAY
from tests.serving.test_surface import TS
from tests.serving.uneven_market import STEPS, uneven_path


def test_scaler_standardises_and_clips() -> None:
    values = np.random.default_rng(0).normal([3.0, -100.0], [2.0, 0.01], (5000, 2))
    scaler = Scaler.fit(values, ("a", "b"))
    scaled = scaler(values)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled.mean(axis=0), 0.0, atol=1e-3)
    assert np.allclose(scaled.std(axis=0), 1.0, atol=5e-3)  # three deviations are the most it lets through
    assert np.array_equal(scaler(np.array([[1e9, -1e9]])), [[3.0, -3.0]])
    assert np.array_equal(scaler(values[7]), scaled[7])  # a row alone


def test_unscaled_columns_pass_untouched_and_unclipped() -> None:
    values = np.random.default_rng(0).normal(50.0, 30.0, (100, 3))
    scaled = Scaler.fit(values, ("a", "keep", "b"), ("keep",))(values)
    assert np.array_equal(scaled[:, 1], values[:, 1].astype(np.float32))
    assert np.abs(scaled[:, [0, 2]]).max() < 6.0 < np.abs(scaled[:, 1]).max()


def test_a_constant_column_becomes_zero_not_infinite() -> None:
    values = np.full((50, 2), 0.1)
    values[:, 1] = -7.0
    scaled = Scaler.fit(values, ("a", "b"))(values)
    assert np.abs(scaled).max() < 1e-12
    assert Scaler.fit(values, ("a", "b")).deviation == (1.0, 1.0)


def spec() -> FeatureSpec:
    rng = np.random.default_rng(4)
    steps, contracts = rng.normal(size=(20, len(STEP_FEATURES))), rng.normal(size=(20, len(CONTRACT_FEATURES)))
    return FeatureSpec(20, (AnchorTarget(14), AnchorTarget(45.5, -0.1)), Scaler.fit(steps, STEP_FEATURES),
                       Scaler.fit(contracts, CONTRACT_FEATURES, UNSCALED))  # fmt: skip


def test_spec_survives_json_to_the_last_bit() -> None:
    again = FeatureSpec.from_json(json.loads(json.dumps(spec().to_json())))
    assert again == spec()
    assert again.step_scaler.mean == spec().step_scaler.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_features": list(STEP_FEATURES[:-1])}, "forward_deviation"),
        ({"contract_features": [*CONTRACT_FEATURES, "vibes"]}, "vibes"),
        ({"contract_features": list(CONTRACT_FEATURES[::-1])}, "their order"),
        ({"version": 1}, "version 1"),
        ({"version": 3}, "version 3"),
        ({"window": "many"}, "can't be read"),
        ({"anchors": [{"tenor": 3}]}, "can't be read"),
        ({"anchors": [{"tenor_days": "soon", "moneyness": 0.0}]}, "can't be read"),
        ({"step_scaler": {"mean": [0.0]}}, "can't be read"),
        ({"step_scaler": None}, "can't be read"),
    ],
)
def test_foreign_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureSpec.from_json(spec().to_json() | change)


@pytest.mark.parametrize("missing", ["window", "anchors", "contract_scaler", "version"])
def test_a_spec_that_lacks_a_field_is_refused_by_its_name(missing: str) -> None:
    data = spec().to_json()
    del data[missing]
    with pytest.raises(DataError, match=missing):
        FeatureSpec.from_json(data)


@pytest.mark.parametrize(
    ("ts", "price", "message"),
    [
        ([0, 1], [1.0], "2 times and 1 prices"),
        ([], [], "0 times and 0 prices"),
        ([0, 2, 1], [1.0, 1.0, 1.0], "ascending in time at 2018-03-02"),
        ([0, 1, 1], [1.0, 1.0, 1.0], "ascending in time at 2018-03-02"),
        ([0, 1], [1.0, 0.0], "price 0.0 at 2018-03-02"),
        ([0, 1], [np.nan, 1.0], "price nan at 2018-03-01"),
        ([0, 1], [1.0, np.inf], "price inf at 2018-03-02"),
        ([0, 1], [-2.0, 1.0], r"price -2\.0 at 2018-03-01"),
    ],
)
def test_bad_paths_are_refused(ts: list[int], price: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Path(TS + np.array(ts, dtype=np.int64) * DAY, np.array(price))


def test_a_path_without_a_time_is_refused() -> None:
    with pytest.raises(DataError, match="no time at place 0"):
        Path(np.array(["NaT", TS], dtype="datetime64[ns]"), np.array([1.0, 1.0]))


def test_until_keeps_the_present_and_drops_the_future() -> None:
    path = uneven_path()
    for place in (0, 10, STEPS - 1):
        cut = path.until(path.ts[place])
        assert np.array_equal(cut.ts, path.ts[: place + 1])
        assert np.array_equal(cut.price, path.price[: place + 1])
    assert len(path.until(path.ts[3] + np.timedelta64(1, "ns")).ts) == 4
    with pytest.raises(DataError, match="0 times"):
        path.until(path.ts[0] - DAY)
