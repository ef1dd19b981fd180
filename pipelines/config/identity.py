"""What a configuration is known by: its plain values, and the hash that names a run.

In: a `Config`. Out: JSON values, SHA-256. Invariant: the hash moves with whatever decides the result and with nothing
else, so the same run has the same hash wherever its files lie.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from pipelines.config.run import Config

# Where files lie, what is told, and what is asked of a version afterwards: they decide no result.
PLACES = ("out", "storage", "registry", "hardware", "logging", "gate")


def as_json(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def without_places(config: Config) -> dict[str, Any]:
    """The resolved configuration without the places where files lie and what decides no result."""
    content = as_json(config)
    for place in PLACES:
        content.pop(place)
    for section, file in (("data", "path"), ("data", "history"), ("features", "regimes")):
        content[section].pop(file)
    return content


def config_hash(config: Config) -> str:
    """SHA-256 (hex) of what decides the result."""
    content = without_places(config)
    content["data"].pop("provenance")
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
