"""Lineage: everything the version came from is on record, and agrees with what the bundle says of itself.

In: `lineage` of the `registered` event (pipelines/lineage.py writes it), the bundle's manifest. Every key of `required`
is there and known; hashes and commits look like such; the quotes and the configuration it was trained with are those
the manifest names. `value` is the number of problems.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome
from serving.canonical import is_sha256

NAME = "lineage"
UNKNOWN = ("", "unknown", "absent", "none")
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?", re.ASCII)
SAME_IN_MANIFEST = {"quotes_sha256": "data_sha256", "trained_config_sha256": "config_sha256"}


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """Keys that must be known."""

    required: tuple[str, ...] = Field(
        default=(
            "git_commit", "git_clean", "dvc_clean", "dvc_lock_sha256", "constraints_sha256", "quotes_sha256",
            "features_sha256", "config_sha256", "trained_config_sha256", "seed", "training_run",
        ),
        min_length=1,
    )  # fmt: skip


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    lineage = context.details.get("lineage")
    if not isinstance(lineage, Mapping):
        return GateOutcome(NAME, False, None, 0.0, "the version was registered without lineage")
    problems = []
    for key in settings.required:
        value = lineage.get(key)
        if not isinstance(value, str) or value.strip().lower() in UNKNOWN:
            problems.append(f"{key} isn't known (found {value!r})")
        elif key.endswith("_sha256") and not is_sha256(value):
            problems.append(f"{key} isn't a sha256: {value!r}")
        elif key == "git_commit" and COMMIT.fullmatch(value) is None:
            problems.append(f"{key} isn't a commit: {value!r}")
    manifest = context.bundle().manifest
    for key, name in SAME_IN_MANIFEST.items():
        if is_sha256(lineage.get(key)) and lineage[key] != getattr(manifest, name):
            problems.append(f"{key} is {lineage[key]}, but the bundle says {getattr(manifest, name)}")
    message = "; ".join(problems) or f"{len(settings.required)} keys are known and agree with the bundle"
    return GateOutcome(NAME, not problems, float(len(problems)), 0.0, message)
