"""One table of a TOML file, read key by key; everything wrong with it is collected, not raised.

In: a table as tomllib gives it. Out: values of the type asked for, or that type's default after a problem was noted,
so that reading goes on and a person sees every problem at once. Invariants: a key nobody asked for is a problem, with
the nearest known one; no value is converted but whole numbers that a float holds exactly; nan and infinity are no
numbers; relative paths are relative to the file's folder.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REQUIRED: Any = object()  # as a default: the key must be there


class Table:
    """`name` is what messages call it ("[feed]", "" for the top); problems go to the list that all tables share."""

    def __init__(self, values: Any, name: str, problems: list[str], folder: Path) -> None:
        self._name, self._problems, self._folder = name, problems, folder
        self._asked: list[str] = []
        self._values: dict[str, Any] = values if isinstance(values, dict) else {}
        self._usable = isinstance(values, dict)
        if not self._usable and values is not None:  # None: that it lacks was told already
            self._problems.append(f"{name}: expected a table, found {_shown(values)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def problem(self, key: str, expected: str) -> None:
        """Note that a key's value isn't what was expected."""
        found = _shown(self._values[key]) if key in self._values else "nothing"
        self._problems.append(f"{self._path(key)}: found {found}, expected {expected}")

    def take(self, key: str, default: Any = REQUIRED, *, expected: str = "a value") -> Any:
        """The raw value, marked as asked for; None after a problem."""
        self._asked.append(key)
        if key in self._values:
            return self._values[key]
        if default is REQUIRED:
            if self._usable:
                self.problem(key, expected)
            return None
        return default

    def text(self, key: str, default: Any = REQUIRED, *, choices: Sequence[str] = (), expected: str = "") -> Any:
        """Text that isn't empty, or one of `choices`; None only where that is the default."""
        said = expected or (f"one of {', '.join(choices)}" if choices else "text")
        value = self.take(key, default, expected=said)
        if key not in self._values:
            return "" if value is None and default is REQUIRED else value
        if not isinstance(value, str) or not value or "\0" in value or (choices and value not in choices):
            self.problem(key, said)
            return ""
        return value

    def path(self, key: str, default: Any = REQUIRED) -> Any:
        """An absolute path; None only where that is the default."""
        value = self.text(key, default, expected="a path")
        return value if value is None else self._folder / value

    def paths(self, key: str) -> tuple[Path, ...]:
        """One or several absolute paths, in a list."""
        return tuple(self._folder / text for text in self.texts(key, "a list of paths, at least one"))

    def texts(self, key: str, expected: str) -> tuple[str, ...]:
        """A list of texts, at least one, none twice; empty after a problem."""
        value = self.take(key, expected=expected)
        if key not in self._values:
            return ()
        fine = isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)
        if not fine or any("\0" in one for one in value) or len(set(value)) < len(value):
            self.problem(key, f"{expected}, none twice")
            return ()
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.problem(key, "true or false")
            return default
        return value

    def whole(self, key: str, default: Any = REQUIRED, *, least: int, most: int) -> Any:
        """A whole number between two bounds, both included; None only where that is the default."""
        said = f"a whole number from {least} to {most}"
        value = self.take(key, default, expected=said)
        if key not in self._values:
            return least if value is None and default is REQUIRED else value
        if type(value) is not int or not least <= value <= most:
            self.problem(key, said)
            return least
        return value

    def number(self, key: str, default: Any = REQUIRED, *, above: float = -math.inf, least: float = -math.inf) -> Any:
        """A finite float above one bound and not below the other; None only where that is the default."""
        bound = f" above {above:g}" if above > -math.inf else f", {least:g} or more" if least > -math.inf else ""
        said = f"a number{bound}"
        value = self.take(key, default, expected=said)
        if key not in self._values:
            return 1.0 if value is None and default is REQUIRED else value
        usable = type(value) in (int, float) and abs(value) <= 1e300 and float(value) == value
        if not usable or not above < value or not least <= value:
            self.problem(key, said)
            return 1.0
        return float(value)

    def table(self, key: str, *, required: bool) -> Table:
        """A table of its own; an empty one where it isn't there and needn't be."""
        value = self.take(key, REQUIRED if required else {}, expected="this table")
        return Table(value, f"[{key}]", self._problems, self._folder)

    def refuse(self, keys: Sequence[str], why: str) -> None:
        """Note keys that mean something only elsewhere."""
        for key in keys:
            self._asked.append(key)
            if key in self._values:
                self._problems.append(f"{self._path(key)}: found {_shown(self._values[key])}, but {why}")

    def finish(self) -> None:
        """Note every key that nobody asked for."""
        for key, value in self._values.items():
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(set(self._asked)))}"
                self._problems.append(f"{self._path(key)}: unknown key (value {_shown(value)}); {hint}")

    def _path(self, key: str) -> str:
        shown = key if key.isprintable() and key else repr(key)
        return f"{self._name} {shown}" if self._name else shown


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
