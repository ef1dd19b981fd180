"""Which of a peer's set-ups is timed: the fastest of those that run and answer rightly, by a short trial.

In: ways of making a runner, a judge (its largest error), one call to time. Out: a `Subject`, or a note with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TRIAL_CALLS, TRIAL_SECONDS = 300, 0.5  # a trial ends with whichever comes first, but not before ten calls
OPTIONAL_PEERS = ("openvino",)  # the others are installed with what trains and exports


@dataclass(frozen=True)
class Subject:
    """Something to time: what is called, how it was set up, its largest error."""

    runner: Any
    setup: str
    error: float


def absent_peers(case: str) -> list[str]:
    """A note for each peer that isn't installed."""
    return [f"{case}: no rows of {name}: it isn't installed (`make bench-engines` installs it)"
            for name in OPTIONAL_PEERS if importlib.util.find_spec(name) is None]  # fmt: skip


def openvino_setups(raw: bytes, seen: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`engines_openvino.setups`, or none where OpenVINO isn't installed (`absent_peers` says so)."""
    if importlib.util.find_spec("openvino") is None:
        return {}
    found: dict[str, dict[str, Any]] = importlib.import_module("benchmarks.engines_openvino").setups(raw, seen)
    return found


def choose(
    case: str, name: str, setups: Mapping[str, Callable[[], Any]], judge: Callable[[Any], float],
    call: Callable[[Any], object], limit: float, notes: list[str], calls: int = TRIAL_CALLS,
) -> Subject | None:  # fmt: skip
    """The fastest set-up with an error of at most `limit`; None, and a note, where there is none."""
    found: list[tuple[float, Subject]] = []
    for setup, make in setups.items():
        try:
            runner = make()
            error = judge(runner)
        except Exception as problem:  # noqa: BLE001 - a library may fail in any way; its words go into the note
            notes.append(f"{case}: {name} ({setup}) doesn't run: {_first_line(problem)}")
            continue
        if not error <= limit:
            notes.append(f"{case}: {name} ({setup}) answers wrongly: error {error:.2g}, allowed {limit:.2g}")
            continue
        found.append((_median(call, runner, calls), Subject(runner, setup, error)))
    if not found:
        notes.append(f"{case}: no row of {name}: no set-up of it runs and answers rightly")
        return None
    return min(found, key=lambda one: one[0])[1]


def _median(call: Callable[[Any], object], runner: Any, calls: int) -> float:
    taken: list[int] = []
    while len(taken) < 10 or (len(taken) < calls and sum(taken) < TRIAL_SECONDS * 1e9):
        begin = time.perf_counter_ns()
        call(runner)
        taken.append(time.perf_counter_ns() - begin)
    return float(np.median(taken[len(taken) // 3 :]))


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"[:300]
