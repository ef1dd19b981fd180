"""A running host as it is seen from outside: what `top`, Prometheus, the control socket and the last summary tell.

In: the board (serving/host/board.py: numbers in shared memory that the loop alone writes), and facts.json, which `run`
writes once (serving/host/facts.py). Out: `HostStatus`, a frozen copy of one moment; times in nanoseconds.
Invariants: looking never touches the loop, only memory that it writes anyway; two numbers of one copy may be of
different events, each is whole. Percentiles are those of HdrHistogram (serving/native/host/histogram.hpp): the largest
value of the slot in which the percentile lies, 0.1 % above it at most.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

COUNTERS = (
    "records", "events", "trades", "orders", "cancels", "fills", "signals", "refused", "skipped", "unknown",
    "time_went_back", "refused_books", "lost", "gaps", "writers", "advances", "sweeps", "controls", "controls_refused",
    "allocations",
)  # fmt: skip
GAUGES = ("spot", "profit", "best_profit", "delta", "gamma", "vega", "anomaly_score", "clipped_share")
STATES = ("active", "reducing", "halted")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
GONE_AFTER_NS = 2_000_000_000  # a loop publishes far more often, also while nothing comes
SUB_BITS = 11  # of histogram.hpp

Counts = NDArray[np.uint64]


@dataclass(frozen=True)
class Hop:
    """One hop's latencies since the start, in nanoseconds; `counts` by slot."""

    total: int
    sum_ns: int
    max_ns: int
    counts: Counts

    def percentile_ns(self, percent: float) -> float:
        """NaN where nothing was timed."""
        summed = np.cumsum(self.counts, dtype=np.uint64)
        total = int(summed[-1]) if len(summed) else 0  # not `total`: it is written after the counts
        if total == 0:
            return math.nan
        rank = max(1, math.ceil(percent / 100.0 * total))
        slot = int(np.searchsorted(summed, rank))
        return float(min(highest_ns(slot), max(self.max_ns, lowest_ns(slot))))

    def since(self, earlier: Hop) -> Hop:
        """What was timed between two copies; the largest is that of the highest slot that was used."""
        counts = self.counts - np.minimum(earlier.counts, self.counts)
        used = np.flatnonzero(counts)
        largest = min(highest_ns(int(used[-1])), self.max_ns) if len(used) else 0
        return Hop(int(counts.sum()), max(self.sum_ns - earlier.sum_ns, 0), largest, counts)


def slot_of(nanoseconds: int) -> int:
    """The slot in which a latency counts."""
    bucket = max(nanoseconds.bit_length() - SUB_BITS, 0)
    return (bucket << (SUB_BITS - 1)) + (nanoseconds >> bucket)


def lowest_ns(slot: int) -> int:
    """The smallest latency that counts in a slot."""
    bucket = max((slot >> (SUB_BITS - 1)) - 1, 0)
    return (slot - (bucket << (SUB_BITS - 1))) << bucket


def highest_ns(slot: int) -> int:
    """The largest one."""
    return lowest_ns(slot + 1) - 1


@dataclass(frozen=True)
class Quoted:
    """A quoted contract; NaN: not priced. `bid`, `ask`: of our working orders; 0: none."""

    position: float
    fair: float
    volatility: float
    bid: float
    ask: float


@dataclass(frozen=True)
class HostStatus:
    """The board at one moment (`read_ns`, CLOCK_MONOTONIC, as are `started_ns` and `alive_ns`)."""

    read_ns: int
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    refused_by: Mapping[str, int]
    state: str
    why: str
    event_ns: int
    started_ns: int
    alive_ns: int
    sweep_age_ns: int
    running: bool
    halt_file: bool
    model_expired: bool
    process: int
    chain: int
    quoted: tuple[Quoted, ...]
    hops: Mapping[str, Hop]

    @property
    def gone(self) -> str | None:
        """Why nobody writes this board any more, or None."""
        if not self.running:
            return "the loop has ended"
        if not _lives(self.process):
            return f"the loop's process {self.process} is gone; it was killed or it crashed"
        silent_ns = self.read_ns - self.alive_ns
        if silent_ns > GONE_AFTER_NS:
            return f"the loop has said nothing for {silent_ns / 1e9:.1f} s; it is stopped, starved or stuck"
        return None


class Board(Protocol):
    """What of serving/host/board.py is looked at."""

    def read(self) -> Mapping[str, Any]: ...


def resident_bytes(process: int) -> tuple[int, int] | None:
    """Resident memory of a process now and at most (VmRSS, VmHWM), or None where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in found:  # a zombie has none
        return None
    return int(found["VmRSS"].split()[0]) * 1024, int(found["VmHWM"].split()[0]) * 1024


def monotonic_ns() -> int:
    """The clock of the board's `started_ns` and `alive_ns`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
