"""Feature spec: hosts can compute the version's inputs, and needn't change to do so.

In: the feature specs of the bundle and of the champion's. A spec that this code, which hosts run, doesn't compute is
refused. One that asks a host for something else than the champion's (other features or versions of them, anchors,
window, grid, regimes) is refused too unless `allow_change` is true: it is a change for everybody who feeds hosts.
Scalers may differ: they travel in the bundle. `value` is the number of keys that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import StrictBool
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome
from serving.pricing import feature_spec
from serving.surface_grid import check_grid_spec

NAME = "feature_spec"
FITTED = ("step_scaler", "contract_scaler")  # differ with the training data


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """`allow_change`: the champion's hosts are known to be ready for other inputs."""

    allow_change: StrictBool = False


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    bundle = context.bundle()
    spec = bundle.manifest.feature_spec
    if bundle.manifest.task == "surface":
        check_grid_spec(dict(spec))
    else:
        feature_spec(bundle)
    known = f"feature spec version {spec.get('version')}, as hosts compute it"
    if context.champion_version is None:
        return GateOutcome(NAME, True, 0.0, 0.0, f"{known}; there is no champion to differ from")
    theirs = context.champion_bundle().manifest.feature_spec
    differing = differences(theirs, spec)
    champion = f"champion {context.champion_version}'s"
    if not differing:
        return GateOutcome(NAME, True, 0.0, 0.0, f"{known}, the same as {champion}")
    told = "; ".join(f"{key}: {_short(theirs.get(key))} -> {_short(spec.get(key))}" for key in differing)
    count = float(len(differing))
    if settings.allow_change:
        message = f"{known}; differs from {champion} in {told}; allowed by gate.feature_spec.allow_change"
        return GateOutcome(NAME, True, count, count, message)
    message = f"differs from {champion} in {told}; if hosts are ready for it: gate.feature_spec.allow_change=true"
    return GateOutcome(NAME, False, count, 0.0, message)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, but for what is fitted on training data."""
    return [key for key in sorted(one.keys() | other.keys()) if key not in FITTED and one.get(key) != other.get(key)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
