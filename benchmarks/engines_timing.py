"""Timing of calls: one core, interleaved blocks, medians and tails.

All subjects of a case run in one process, in blocks of calls: block by block through the subjects, turned by one each
repeat, so that slow stretches of a shared machine meet all of them. Within a block a subject has the caches to itself,
as an engine on a host's own core has; calls of different subjects one by one would time how they evict each other.
Every call is timed by itself, the clock's own time (some 50 ns) included; `null` shows what clock and caller cost.

Data out: nanoseconds of every call, per repeat. Invariant: the garbage collector is off while a block runs.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Nanoseconds = npt.NDArray[np.int64]
Block = Callable[[int], Mapping[str, Nanoseconds]]  # number of calls -> nanoseconds of each, by what was timed

MICROSECOND = 1000.0
FAST_MICROSECONDS, FAST_CALLS = 100.0, 20_000  # what takes less is called that often
FEWEST_CALLS = 200  # of a block, however slow the subject
LONGEST_SECONDS = 12.0  # of a block, however fast its calls, if what lies between them takes long


@dataclass(frozen=True)
class Effort:
    """How long to time: `calls` and `seconds` bound one block, `repeats` blocks per subject."""

    calls: int = FAST_CALLS
    seconds: float = 0.4
    repeats: int = 5

    def calls_of(self, microseconds_per_call: float, microseconds_of_a_round: float) -> int:
        """Calls of a block whose calls take so long, and so long with what comes between them."""
        rounds_per_second = 1e6 / max(microseconds_of_a_round, 1e-3)
        enough = -(-FAST_CALLS // self.repeats) if microseconds_per_call < FAST_MICROSECONDS else FEWEST_CALLS
        enough = min(enough, max(int(LONGEST_SECONDS * rounds_per_second), FEWEST_CALLS))
        return min(self.calls, max(int(self.seconds * rounds_per_second), enough))


@dataclass
class Timings:
    """Nanoseconds of each repeat's calls, by what was timed (`evaluate`, `advance`)."""

    repeats: dict[str, list[Nanoseconds]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Nanoseconds]) -> None:
        for name, values in found.items():
            self.repeats.setdefault(name, []).append(values)

    def percentiles(self, name: str, percent: float) -> list[float]:
        """Microseconds, one per repeat."""
        return [float(np.percentile(values, percent)) / MICROSECOND for values in self.repeats[name]]

    def calls(self, name: str) -> int:
        return sum(len(values) for values in self.repeats[name])


def pin() -> int:
    """Keep this process, and the threads it will start, on the last core it may use; returns its number."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def timed_calls(call: Callable[[int], object], count: int) -> Nanoseconds:
    """Nanoseconds of `call(0)` ... `call(count - 1)`."""
    clock, found = time.perf_counter_ns, np.zeros(count, np.int64)
    for number in range(count):
        begin = clock()
        call(number)
        found[number] = clock() - begin
    return found


def interleaved(blocks: Mapping[str, Block], effort: Effort, warm_up: int = FEWEST_CALLS) -> dict[str, Timings]:
    """Warm every subject up, then time `effort.repeats` blocks of each in turns."""
    counts, found = {}, {name: Timings() for name in blocks}
    for name, block in blocks.items():
        warm_up_calls = min(warm_up, effort.calls)
        block(warm_up_calls)
        begin = time.perf_counter_ns()
        timed = block(warm_up_calls)
        of_a_round = (time.perf_counter_ns() - begin) / warm_up_calls / MICROSECOND
        counts[name] = effort.calls_of(float(np.median(timed["evaluate"])) / MICROSECOND, of_a_round)
    names = list(blocks)
    for repeat in range(effort.repeats):
        turned = names[repeat % len(names) :] + names[: repeat % len(names)]
        for name in turned:
            gc.collect()
            gc.disable()
            try:
                found[name].add(blocks[name](counts[name]))
            finally:
                gc.enable()
    return found
