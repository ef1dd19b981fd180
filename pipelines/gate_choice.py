"""Which gates there are, which are asked, and how strictly: the package pipelines/gates/ and the choice in conf/gate/.

Data in: `gate` of the configuration: a section per gate with `enabled` and the gate's settings. Data out: a list of
gates ready to be asked. A gate is a module of pipelines/gates/ with a pydantic dataclass `Settings` (closed, every
field with a default), `check(context, settings) -> GateOutcome` and, where it isn't for every model, `TASKS`.
Invariants: every gate of the package is asked unless the configuration switches it off, and one that isn't asked is in
the report all the same; so is every setting that isn't the gate's default, in words, beside what was found; an unknown
gate or key, or an unusable value, is a problem named with its key.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipelines.gate_context import Gate, GateContext, GateOutcome
from serving.errors import BundleError, ConfigError, DataError, EngineError

PACKAGE = "pipelines.gates"
ENABLED = "enabled"


@dataclass(frozen=True)
class ChosenGate:
    """A gate with its settings. What it can't look at makes it fail with the reason."""

    name: str
    check: Callable[[GateContext, Any], GateOutcome]
    settings: Any
    not_asked: str = ""  # why not; empty: it is asked

    def __call__(self, context: GateContext) -> GateOutcome:
        if self.not_asked:
            return GateOutcome(self.name, True, None, None, self.not_asked, asked=False)
        plain = _plain(self.settings)
        try:
            outcome = self.check(context, self.settings)
        except (BundleError, EngineError, DataError) as error:
            outcome = GateOutcome(self.name, False, None, None, str(error))
        assert outcome.name == self.name, f"gate {self.name} answers as {outcome.name}"
        return replace(outcome, settings=plain, message="; ".join([outcome.message, *self._not_default(plain)]))

    def _not_default(self, plain: Mapping[str, Any]) -> list[str]:
        """Settings that aren't the gate's own, in words: a loosened gate mustn't look like any other."""
        usual = _plain(type(self.settings)())
        return [
            f"asked with gate.{self.name}.{key}{_difference(value, usual[key])}"
            for key, value in plain.items()
            if value != usual[key]
        ]


def _difference(value: Any, usual: Any) -> str:
    """How a setting differs from its default; of a list what is more or less."""
    if not (isinstance(value, list) and isinstance(usual, list)):
        return f"={json.dumps(value)}, the default is {json.dumps(usual)}"
    parts = {
        "without": [one for one in usual if one not in value],
        "and also": [one for one in value if one not in usual],
    }
    told = [f"{word} {', '.join(map(str, ones))}" for word, ones in parts.items() if ones]
    return f" in another order: {json.dumps(value)}" if not told else f": the default {', '.join(told)}"


def _plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON values."""
    plain: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return plain


@cache
def gate_modules() -> Mapping[str, Any]:
    """The gates there are, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))
    return {name: importlib.import_module(f"{PACKAGE}.{name}") for name in names}


def load_gates(choice: Mapping[str, Mapping[str, Any]], *, task: str) -> list[Gate]:
    """The gates for a model of this task, in the order of `choice`, then by name; ConfigError with every problem."""
    found = gate_problems(choice)
    if found:
        raise ConfigError(found)
    modules = gate_modules()
    gates: list[Gate] = []
    for name in dict.fromkeys([*choice, *modules]):
        section = dict(choice.get(name) or {})
        not_asked = ""
        if section.pop(ENABLED, True) is False:
            not_asked = f"SWITCHED OFF: gate.{name}.{ENABLED} is false in the configuration of this promotion"
        elif task not in getattr(modules[name], "TASKS", (task,)):
            not_asked = f"asked of {' and '.join(modules[name].TASKS)} models only; this is a {task} model"
        settings = TypeAdapter(modules[name].Settings).validate_python(section)
        gates.append(ChosenGate(name, modules[name].check, settings, not_asked))
    return gates


def gate_problems(choice: Mapping[str, Any]) -> list[str]:
    """What is wrong with a choice of gates, one line each, with key and value."""
    modules = gate_modules()
    problems = []
    for name, section in choice.items():
        if name not in modules:
            problems.append(f"gate.{name}: there is no such gate (value {section!r}){_known(name, modules)}")
        elif not isinstance(section, Mapping):
            problems.append(f"gate.{name}: must be a section of keys (value {section!r})")
        else:
            rest = dict(section)
            enabled = rest.pop(ENABLED, True)
            if not isinstance(enabled, bool):
                problems.append(f"gate.{name}.{ENABLED}: must be true or false (value {enabled!r})")
            problems += _problems_of(name, modules[name].Settings, rest)
    return problems


def _problems_of(name: str, settings: Any, section: Mapping[str, Any]) -> list[str]:
    try:
        TypeAdapter(settings).validate_python(dict(section))
    except ValidationError as error:
        return [_describe(name, settings, item) for item in error.errors()]
    return []


def _describe(name: str, settings: Any, item: Any) -> str:
    key = ".".join(["gate", name, *(str(part) for part in item["loc"])])
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [ENABLED, *settings.__dataclass_fields__]
        return f"{key}: unknown key (value {item['input']!r}){_known(str(item['loc'][-1]), known)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]} (value {item['input']!r})"


def _known(word: str, known: Iterable[str]) -> str:
    names: Sequence[str] = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"
