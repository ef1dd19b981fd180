"""What the chaos found: rows for the results, and every broken promise in words.

In: points and counts, from several threads. Out: rows in the format of benchmarks/results.py; failures, one line each.
Invariant: a failure is never only counted: it is kept in full.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos_kills import Point


@dataclass
class Report:
    """Rows for the results and lines for people."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tallies: list[tuple[str, str, str, int, int]] = field(default_factory=list)  # case, subject, story, points, wrong
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, case: str, subject: str, metric: str, value: int, **more: Any) -> None:
        """One row."""
        self.rows.append({"case": case, "subject": subject, "metric": metric, "unit": "count", "value": value, **more})

    def fail(self, case: str, subject: str, problems: Sequence[str]) -> None:
        """What was found, in full."""
        self.failures += [f"{case} {subject}: {problem}" for problem in problems]

    def points(self, case: str, subject: str, story: str, points: Iterable[Point]) -> None:
        """Count the points of one story as they come, and keep what was wrong."""
        number, wrong = 0, 0
        for point in points:
            number += 1
            wrong += bool(point.problems)
            where = f"{point.story}, {point.where}"
            self.fail(case, subject, [f"{where}: {problem}" for problem in point.problems])
        with self.lock:
            self.tallies.append((case, subject, story, number, wrong))

    def sum_points(self, case: str) -> None:
        """Rows of a case: for each subject in all, then for each story."""
        tallies = sorted(tally for tally in self.tallies if tally[0] == case)
        for subject in dict.fromkeys(tally[1] for tally in tallies):
            own = [tally for tally in tallies if tally[1] == subject]
            self.count(case, subject, "points", sum(tally[3] for tally in own))
            self.count(case, subject, "inconsistent", sum(tally[4] for tally in own))
            for _, _, story, number, wrong in own if len(own) > 1 else []:
                self.count(f"{case}/{story}", subject, "points", number)
                self.count(f"{case}/{story}", subject, "inconsistent", wrong)
