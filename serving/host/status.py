"""A running host as it is seen from outside: what `top`, Prometheus, the control socket and the last summary tell.

In: the board (serving/host/board.py: numbers in shared memory that the loop alone writes), and facts.json, which `run`
writes once (serving/host/facts.py). Out: `HostStatus`, a frozen copy of one moment; times in nanoseconds.
Invariants: looking never touches the loop, only memory that it writes anyway; two numbers of one copy may be of
different events, each is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.host.board import Board, Histogram, highest_ns, layout

COUNTERS = (
    "records", "events", "trades", "orders", "cancels", "fills", "signals", "refused", "skipped", "unknown",
    "time_went_back", "refused_books", "refused_numbers", "unheard", "lost", "gaps", "writers",
    "advances", "sweeps", "controls", "controls_refused", "allocations",
)  # fmt: skip
GAUGES = ("spot", "profit", "best_profit", "delta", "gamma", "vega", "anomaly_score", "clipped_share")
STATES = ("active", "reducing", "halted")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
GONE_AFTER_NS = 2_000_000_000  # a loop publishes far more often, also while nothing comes


def since(now: Histogram, earlier: Histogram) -> Histogram:
    """What was timed between two copies; its largest is known to the slot."""
    counts = now.counts - np.minimum(earlier.counts, now.counts)
    used = np.flatnonzero(counts)
    largest = min(highest_ns(int(used[-1])), now.max_ns) if len(used) else 0
    return Histogram(int(counts.sum()), max(now.sum_ns - earlier.sum_ns, 0), largest, counts)


def slot_of(nanoseconds: int) -> int:
    """The slot in which a latency counts."""
    bits = int(layout()["histogram_sub_bits"])
    bucket = max(nanoseconds.bit_length() - bits, 0)
    return (bucket << (bits - 1)) + (nanoseconds >> bucket)


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
    hops: Mapping[str, Histogram]

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


def read_status(board: Board) -> HostStatus:
    """Look at the board now."""
    read_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    found = board.read()
    columns = [found[name].tolist() for name in ("position", "fair", "volatility", "bid", "ask")]
    return HostStatus(
        read_ns, {name: found[name] for name in COUNTERS}, {name: found[name] for name in GAUGES},
        found["refused_by"], found["state"], found["why"], found["event_ns"], found["started_ns"], found["alive_ns"],
        found["sweep_age_ns"], bool(found["running"]), bool(found["halt_file"]), bool(found["model_expired"]),
        found["process"], found["chain"], tuple(Quoted(*row) for row in zip(*columns, strict=True)), found["hops"],
    )  # fmt: skip


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


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
