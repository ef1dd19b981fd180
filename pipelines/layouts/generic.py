"""Any one-quote-per-row table, described in the configuration: no code for a vendor whose columns only need renaming.

Purpose: a column map as configuration. Data in: the options below, each a field of `Layout` of the same name.
Invariants: an unknown option is a `ConfigError`; nothing is guessed from the file, so what it doesn't hold
(style, settlement, currency, ...) must be given in `constants`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.layouts.base import Layout, refuse_unknown_options
from serving import schema
from serving.errors import ConfigError

MAPPINGS = ("columns", "constants", "settlement_by_root")
TEXTS = (
    "time_zone",
    "snapshot_time",
    "timestamp_format",
    "expiry_format",
    "am_expiry_time",
    "pm_expiry_time",
)


def layout(options: Mapping[str, Any]) -> Layout:
    """Options: `columns` (canonical -> vendor name) and `time_zone` are required; the rest is optional."""
    refuse_unknown_options("generic", options, (*MAPPINGS, *TEXTS))
    problems = [
        f"layout 'generic': {key} must be a mapping, found {options[key]!r}"
        for key in MAPPINGS
        if key in options and not isinstance(options[key], Mapping)
    ]
    if "columns" not in options:
        problems.append("layout 'generic' needs the option 'columns': canonical column -> the file's column")
    if "time_zone" not in options:
        problems.append("layout 'generic' needs the option 'time_zone', e.g. America/New_York or UTC")
    if problems:
        raise ConfigError(problems)
    fields: dict[str, Any] = {key: dict(options[key]) for key in MAPPINGS if key in options}
    if "constants" in fields:
        fields["constants"] = {name: _constant(name, value) for name, value in fields["constants"].items()}
    fields |= {key: options[key] for key in TEXTS if key in options}
    return Layout(name="generic", **fields)


def _constant(name: str, value: Any) -> Any:
    """Numbers may be written as text, as a configuration of texts has to."""
    column = schema.BY_NAME.get(name)
    if column is not None and column.kind == "number" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value  # Layout refuses it, with everything else that is wrong
    return value
