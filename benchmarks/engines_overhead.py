"""What a call costs that does nothing: the clock, a Python call, a call into the native core.

Out: p50, p99 and max in us; case `overhead`, subjects `clock`, `python_call`, `native_call` (a native function of no
arguments that reads a counter).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.engines_rows import timing_rows
from benchmarks.engines_timing import Block, Effort, Nanoseconds, interleaved, pin
from serving import native


def _nothing() -> None:
    pass


def clock_block(calls: int) -> Mapping[str, Nanoseconds]:
    """Two readings of the clock, one after the other."""
    clock, found = time.perf_counter_ns, np.zeros(calls, np.int64)
    for number in range(calls):
        begin = clock()
        found[number] = clock() - begin
    return {"evaluate": found}


def call_block(call: Callable[[], Any]) -> Block:
    """A call between two readings of the clock."""

    def block(calls: int) -> Mapping[str, Nanoseconds]:
        clock, found = time.perf_counter_ns, np.zeros(calls, np.int64)
        for number in range(calls):
            begin = clock()
            call()
            found[number] = clock() - begin
        return {"evaluate": found}

    return block


def run_overhead(effort: Effort) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and notes."""
    pin()
    blocks: dict[str, Block] = {"clock": clock_block, "python_call": call_block(_nothing)}
    notes = []
    reason = native.why_unavailable()
    if reason is None:
        blocks["native_call"] = call_block(native.core().allocation_count)
    else:
        notes.append(f"overhead: no native rows: {reason}")
    timings = interleaved(blocks, effort)
    rows = timing_rows("overhead", timings, dict.fromkeys(blocks, ("", 0.0)))
    return [row for row in rows if row["metric"] != "error"], notes
