"""Everything wrong with some input, collected to be told at once.

In: problems as they are found, each with file, row, column, value and remedy. Out: one DataError, or SchemaError where
columns are missing. Invariant: of one kind of problem the first few rows are shown and the others counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from serving.errors import DataError, SchemaError
from serving.surface import Times

LISTED = 10  # rows shown of one kind of problem


class Problems:
    """Everything found wrong so far."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._counts: dict[tuple[str, str, str], int] = defaultdict(int)
        self._missing_columns = False

    def file(self, file: str, text: str, *, schema: bool = False) -> None:
        """Something about a whole file."""
        self._lines[file, "", text].append(f"{file}: {text}")
        self._missing_columns |= schema

    def rows(self, file: str, column: str, rows: Iterable[int], values: Iterable[Any], remedy: str) -> None:
        """Values of a column that can't be used."""
        key = (file, column, remedy)
        for row, value in zip(rows, values, strict=True):
            self._counts[key] += 1
            if self._counts[key] <= LISTED:
                self._lines[key].append(f"{file}: row {row}, column {column}: found {shown(value)}, expected {remedy}")

    def raise_if_any(self) -> None:
        """One error with all of them."""
        lines = []
        for key, shown in self._lines.items():
            lines += shown
            more = self._counts[key] - LISTED
            if more > 0:
                lines.append(f"{key[0]}: column {key[1]}: {more} more rows like these")
        if lines:
            kind = SchemaError if self._missing_columns else DataError
            raise kind("\n".join(["the input can't be used; correct or remove:", *(f"  - {line}" for line in lines)]))


def shown(value: Any) -> str:
    """A value as a message shows it, shortened."""
    if isinstance(value, np.datetime64):
        return iso(np.array([value]))[0] or "nothing"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return "nothing" if text in ("''", "nan", "None") else text if len(text) <= 60 else f"{text[:57]}..."


def iso(times: Times) -> list[str]:
    """ISO 8601 in UTC, to the second where that is exact; no time is empty text."""
    whole = bool((np.isnat(times) | (times == times.astype("datetime64[s]"))).all())
    texts = np.datetime_as_string(times, unit="s" if whole else "ns").tolist()
    return ["" if text == "NaT" else f"{text}Z" for text in texts]
