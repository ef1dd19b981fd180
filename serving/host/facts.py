"""What doesn't change while a loop runs, for those who look at its board: facts.json in the host's directory.

In: what `run` opened. Out: one small JSON file, mode 0600, there whole or not at all. Invariant: a file that can't be
used is told with its name; nothing in it decides anything.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from serving.errors import HostError

LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class HostFacts:
    """Of the run that wrote it."""

    process: int
    config: str
    model: str
    channel: str
    release: str  # its number and version, in words
    bundle: str
    precision: str
    runtime: str  # the engine in its own words
    expires_at: str  # "": doesn't expire
    step_ns: int
    feed: str
    strategy: str
    poll: str
    started_at: str  # UTC
    contracts: list[str]  # names of the quoted ones, in order
    chain_contracts: int


def write_facts(path: Path, facts: HostFacts) -> None:
    """Replace the file; HostError where that can't be."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(facts), file, indent=1)
        partial.replace(path)
    except OSError as error:
        raise HostError(f"{path}: can't be written: {error.strerror}; remove what is there, or make room") from error


def read_facts(path: Path) -> HostFacts:
    """The file's facts; HostError where there are none, or they aren't of this version."""
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(LARGEST_FILE))
    except FileNotFoundError as error:
        raise HostError(f"{path.parent}: no loop ever ran here; strikeforge-host run --config C") from error
    except (OSError, ValueError, RecursionError) as error:
        raise HostError(f"{path}: can't be read: {error}") from error
    kinds = get_type_hints(HostFacts)
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise HostError(f"{path}: isn't of this version of strikeforge-host; run and look with the same one")
    for name, kind in kinds.items():
        if not _is(values[name], kind):
            raise HostError(f"{path}: {name}: found {values[name]!r:.60}; run again")
    return HostFacts(**values)


def printable(facts: HostFacts) -> HostFacts:
    """The same, its texts without characters that would steer a terminal."""
    values = dataclasses.asdict(facts)
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = _plain(value)
    return HostFacts(**{**values, "contracts": [_plain(name) for name in facts.contracts]})


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


def _is(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return type(value) is kind
