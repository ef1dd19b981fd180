"""What the rest of a host says of a bundle that reads ticks: it is shown as such, and not taken for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.cli_inspect import _feature_lines
from serving.errors import BundleError
from serving.features import Scaler
from serving.host.tick_features import CONTRACT_FEATURES, STEP_FEATURES, UNSCALED, TickSpec
from serving.pricing import feature_spec, is_of_ticks
from tests.tiny_bundle import tiny_bundle


def spec() -> dict[str, Any]:
    width, kept = len(STEP_FEATURES), tuple(CONTRACT_FEATURES.index(name) for name in UNSCALED)
    contracts = Scaler((0.0,) * 8, (1.0,) * 8, 5.0, kept)
    return TickSpec(250_000_000, 50, 48, 16, Scaler((0.0,) * width, (1.0,) * width, 5.0), contracts).to_json()


def test_it_is_shown_as_what_it_is(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", feature_spec=spec())
    assert is_of_ticks(bundle.manifest)
    first, steps, contracts = _feature_lines(bundle)
    assert "window of 50 steps of 250 ms, 1 member(s); reads ticks" in first
    assert steps.startswith("40 step features in 48 columns: imbalance_1, ")
    assert contracts.startswith("8 contract features in 16 columns: prior_volatility, ")


def test_it_isn_t_taken_for_one_of_snapshots(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", feature_spec=spec())
    with pytest.raises(BundleError, match=r"of tiny reads ticks .*strikeforge-host run"):
        feature_spec(bundle)


def test_a_damaged_one_is_refused_by_name(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", feature_spec=spec() | {"step_ns": "a second"})
    with pytest.raises(BundleError, match=r"manifest.json: tick feature spec can't be read"):
        _feature_lines(bundle)
    assert not is_of_ticks(tiny_bundle(tmp_path / "other").manifest)
