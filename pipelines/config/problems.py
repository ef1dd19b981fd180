"""What is wrong with a composed configuration, as lines a person can act on: key, what is wrong, value received.

In: errors of pydantic for one of the schemas. Out: texts. Invariants: the key is written as on the command line; a
misspelt word gets the nearest known one; a value that may be a key of a signer isn't repeated.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from pipelines.channel.settings import SigningConfig
from pipelines.config.commands import PrunerConfig, SamplerConfig, SweepConfig
from pipelines.config.families import FAMILIES
from pipelines.config.run import (
    AnchorSpec,
    DataConfig,
    FeaturesConfig,
    HardwareConfig,
    LoggingConfig,
    RegistryConfig,
    SplitConfig,
    StorageConfig,
    TrainerConfig,
)
from pipelines.tensorrt.target import Profile, Target

# The dataclass behind each name of a section or a list, wherever it stands: what is known there is listed.
TYPES: dict[str, type[Any]] = {
    "data": DataConfig, "features": FeaturesConfig, "split": SplitConfig,
    "trainer": TrainerConfig, "hardware": HardwareConfig, "storage": StorageConfig, "registry": RegistryConfig,
    "logging": LoggingConfig, "signing": SigningConfig, "anchors": AnchorSpec, "sweep": SweepConfig,
    "sampler": SamplerConfig, "pruner": PrunerConfig, "target": Target, "rows": Profile,
}  # fmt: skip


def describe(kind: type[Any], item: Any) -> str:
    """One problem of the schema as a line: key, what is wrong, value received."""
    key = key_of(item)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = kind
        for part in item["loc"][:-1]:
            if isinstance(part, int):  # a place in a list: its items are of the list's type
                continue
            if part in FAMILIES:
                owner = FAMILIES[part]
                continue
            fields = (
                {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
            )
            owner = TYPES.get(fields[part].name) if part in fields else None
        known = [field.name for field in dataclasses.fields(owner)] if owner and dataclasses.is_dataclass(owner) else []
        listed = f"; known here: {', '.join(known)}" if known else ""
        return f"{key}: unknown key{_shown(key, item)}{closest(str(item['loc'][-1]), known) or listed}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}{_shown(key, item)}"


def key_of(item: Any) -> str:
    """The dotted key of a problem."""
    return ".".join(str(part) for part in _place(item))


def closest(word: str, known: Sequence[str]) -> str:
    """The end of a message: what was probably meant, if anything comes near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _place(item: Any) -> list[Any]:
    """Where in the configuration a problem is; pydantic puts the family's name after `model`, which is no key."""
    return [part for place, part in enumerate(item["loc"]) if not (place == 1 and part in FAMILIES)]


def _shown(key: str, item: Any) -> str:
    """The value received; not where somebody may have put a key in the place of its URI."""
    return "" if key.split(".")[0] in ("signing", "uri") else f" (value {item['input']!r})"
