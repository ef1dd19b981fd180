"""The search space of a sweep: keys of conf/, each with a distribution.

In: the tree `sweep.space` (`model: {hidden: {low: 16, high: 64}}`; a dotted key is a path) and the overrides of every
trial. Out: a `Space`: Optuna's distributions, and the overrides of a trial's parameters.

A distribution is `{low, high}` with optional `log` and `step` (whole numbers if both bounds are), or
`{choices: [...]}`. A word whose value is null isn't there. Invariants: what a `Space` draws composes: its bounds and
choices were composed, each alone with the others at their first value; every problem of all keys comes in one
ConfigError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipelines.config import Config, load_config
from serving.errors import ConfigError

WORDS = ("low", "high", "log", "step", "choices")
SAME_FOR_ALL = ("out", "storage", "registry", "logging", "experiment", "trainer.resume")
REMEDY = "write {low: 1, high: 8}, with log: true or step: 2 if wanted, or {choices: [1, 2, 4]}"


@dataclass(frozen=True)
class Space:
    """Distributions by key. A choice that is a list or mapping is known to Optuna by its JSON text."""

    distributions: Mapping[str, BaseDistribution]
    decoded: Mapping[str, Mapping[str, Any]]  # key: text: value

    @property
    def keys(self) -> tuple[str, ...]:
        """The swept keys."""
        return tuple(self.distributions)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters as the configuration knows them."""
        return {key: self.decoded[key].get(value, value) if key in self.decoded else value
                for key, value in params.items()}  # fmt: skip

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Parameters as overrides of a command line."""
        return [as_override(key, value) for key, value in self.values(params).items()]

    def lies_in(self, *sections: str) -> bool:
        """Whether a key of one of these sections (or the section's own choice) is swept."""
        return any(key.split(".")[0] in sections for key in self.keys)

    def ends(self, key: str) -> list[Any]:
        """Both bounds, or every choice."""
        distribution = self.distributions[key]
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        return [distribution.low, distribution.high]

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every key at its first value; then each of them alone at its others."""
        first = {key: self.ends(key)[0] for key in self.keys}
        yield first
        for key in self.keys:
            for value in self.ends(key)[1:]:
                yield {**first, key: value}

    def plain(self) -> dict[str, Any]:
        """The space as JSON values."""
        written: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            content = json.loads(json.dumps(vars(distribution)))
            written[key] = {name.lstrip("_"): content[name] for name in sorted(content) if name.lstrip("_") in WORDS}
        return written


def read_space(tree: Mapping[str, Any], problems: list[str]) -> Space:
    """The tree's distributions; what is wrong goes to `problems`, and its key isn't in the space."""
    distributions: dict[str, BaseDistribution] = {}
    decoded: dict[str, dict[str, Any]] = {}
    for key, words in _leaves(tree, "", problems):
        if key in distributions:
            problems.append(f"sweep.space.{key}: there twice, as a tree and as a dotted key; leave one")
            continue
        if key in SAME_FOR_ALL or key.split(".")[0] in SAME_FOR_ALL:
            problems.append(f"sweep.space.{key}: can't be swept, it is the same for all trials; take it out")
            continue
        wrong = [f"sweep.space.{key}: {text}" for text in _faults(words)]
        if wrong:
            problems += wrong
        elif "choices" in words:
            labels = [choice if _scalar(choice) else json.dumps(choice) for choice in words["choices"]]
            distributions[key] = CategoricalDistribution(labels)
            decoded[key] = {label: choice for label, choice in zip(labels, words["choices"], strict=True)
                            if not _scalar(choice)}  # fmt: skip
        else:
            distributions[key] = _between(words)
    if not distributions and not problems:
        problems.append(f"sweep.space: holds no key to sweep; give some, such as sweep.space.model.hidden: {REMEDY}")
    return Space(distributions, decoded)


def check_composed(space: Space, overrides: Sequence[str], problems: list[str]) -> Config | None:
    """Compose the corners; the first one's configuration if there is nothing to complain about."""
    first: Config | None = None
    for params in space.corners():
        try:
            cfg = load_config([*overrides, *space.overrides(params)])
        except ConfigError as error:
            for problem in error.problems:
                head = problem.partition(" (value")[0] if ": unknown key" in problem else problem
                if not any(known.startswith(head) for known in problems):
                    problems.append(problem)
            continue
        first = first or cfg
        if not cfg.split.validation_dates:
            told = "split.validation_dates: a sweep compares trials on validation dates; set it to 1 or more (value 0)"
            problems += [told] if told not in problems else []
        if not cfg.trainer.resume:
            told = "trainer.resume: a sweep's trials go on from their checkpoints; set it to true (value False)"
            problems += [told] if told not in problems else []
    return first if not problems else None


def as_override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar; raises ConfigError where it has no words for the value."""
    text = f"{key}={_written(value)}"
    try:
        back = OverridesParser.create().parse_override(text).value()
    except HydraException:
        back = None if value is not None else text
    if back != value or type(back) is not type(value):
        raise ConfigError([f"{key}: the value {value!r} can't be written as an override; choose another one"])
    return text


def _written(value: Any) -> str:
    if isinstance(value, str):  # backslashes count only before a quote
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item) for item in value) + "]"
    return repr(value)


def _leaves(tree: Mapping[str, Any], path: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and the words given for them."""
    words: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}.{name}" if path else str(name)
        if value is None:
            continue
        if name in WORDS and not isinstance(value, Mapping):
            words[str(name)] = value
        elif isinstance(value, Mapping):
            yield from _leaves(value, key, problems)
        else:
            problems.append(f"sweep.space.{key}: no distribution; {REMEDY} (value {value!r})")
    if words and path:
        yield path, words
    elif words:
        problems.append(f"sweep.space.{next(iter(words))}: no distribution; {REMEDY} (value {words!r})")


def _faults(words: Mapping[str, Any]) -> list[str]:
    """What is wrong with one distribution."""
    if "choices" in words:
        choices = words["choices"]
        if others := sorted(set(words) - {"choices"}):
            nulled = ", ".join(f"{name}: null" for name in others)
            return [f"has choices as well as {', '.join(others)}; leave one kind ({nulled} takes them away)"]
        if not isinstance(choices, list) or not choices:
            return [f"choices: a list of at least one value is needed (value {choices!r})"]
        twice = [choice for place, choice in enumerate(choices) if choice in choices[:place]]
        return [f"choices: {choice!r} is there twice; leave one" for choice in twice]
    faults = [f"{name}: must be given ({REMEDY})" for name in ("low", "high") if name not in words]
    log = words.get("log", False)
    if not isinstance(log, bool):
        faults.append(f"log: true or false is needed (value {log!r})")
    for name in ("low", "high", "step"):
        if name in words and not _number(words[name]):
            faults.append(f"{name}: a finite number is needed (value {words[name]!r})")
    if faults:
        return faults
    low, high, step = words["low"], words["high"], words.get("step")
    if low >= high:
        return [f"low lies not below high (values {low!r} and {high!r})"]
    if log and low <= 0:
        faults.append(f"low: must be above 0 where log is true (value {low!r})")
    if step is not None:
        whole = isinstance(low, int) and isinstance(high, int)
        if log:
            faults.append(f"step: goes not with log: true; leave one (value {step!r})")
        elif step <= 0 or (whole and not isinstance(step, int)):
            faults.append(f"step: {'a whole number' if whole else 'a number'} above 0 is needed (value {step!r})")
        elif (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) != 0:
            faults.append(f"step: {high!r} isn't whole steps away from {low!r}; change high or step (value {step!r})")
    return faults


def _between(words: Mapping[str, Any]) -> BaseDistribution:
    low, high, log, step = words["low"], words["high"], words.get("log", False), words.get("step")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
