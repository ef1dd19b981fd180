"""Progress bars on stderr, the same for every stage; silent where stderr isn't a terminal and none was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` through under a bar; STRIKEFORGE_PROGRESS=1 or 0 overrules the look at the terminal."""
    wanted = os.environ.get("STRIKEFORGE_PROGRESS")
    show = wanted == "1" if wanted in ("0", "1") else sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        yield from bar.track(items, total=total, description=description)
