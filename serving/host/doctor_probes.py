"""What is measured on the living host: the clock's cost, an idle loop's gaps, hardware counters.

Data in: the loop's core, how long. Data out: findings. Invariants: the measuring thread is on the core only while it
measures, then where it was before; where it can't be put there, or the native core isn't built, the finding says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from serving import native
from serving.host.doctor_finding import Finding, bad, good, unknown, warn

WINDOW_NS = 10_000  # about what passes from a tick to its order
CLOCK_BATCHES = 301
GOOD_CLOCK_NS, BAD_CLOCK_NS = 60.0, 300.0
GOOD_GAP_US, BAD_GAP_US = 1.0, 10.0  # of the 99th percentile of windows

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
HARDWARE = 0
COUNTERS = {"cycles": 0, "instructions": 1, "cache misses": 3, "branch misses": 5}
EXCLUDE_KERNEL_AND_HYPERVISOR = (1 << 5) | (1 << 6)
WHY_NOT = {
    errno.ENOENT: "the processor's counters aren't visible, as in most virtual machines",
    errno.EOPNOTSUPP: "the processor's counters aren't visible, as in most virtual machines",
    errno.EACCES: "not permitted: sysctl -w kernel.perf_event_paranoid=1, or CAP_PERFMON",
    errno.EPERM: "not permitted (a container's seccomp filter?): --cap-add PERFMON, perf_event_paranoid <= 2",
    errno.ENOSYS: "this kernel has no perf_event_open",
}


class PerfEvent(ctypes.Structure):
    """The first version of perf_event_attr (64 bytes), which every kernel takes."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("breakpoint_type", ctypes.c_uint32),
        ("breakpoint_address", ctypes.c_uint64),
    )


def probe(core: int, seconds: float, *, occupied: bool = False) -> list[Finding]:
    """All of them; `seconds` of spinning on the core, unless it is `occupied` by a running loop."""
    if occupied:
        reason = f"not measured on core {core}: a loop runs there, and a spin would take the core from it"
        return [unknown("clock_cost", reason), unknown("idle_gaps", reason), hardware_counters()]
    return [clock_cost(core), idle_gaps(core, seconds), hardware_counters()]


def clock_cost(core: int) -> Finding:
    """What one reading of the clock costs; the loop reads it at every hop."""
    try:
        with on_core(core):
            cost_ns = native.core().clock_cost_ns(CLOCK_BATCHES)
    except ProbeError as problem:
        return unknown("clock_cost", str(problem))
    found = f"{cost_ns:.0f} ns to read CLOCK_MONOTONIC (median)"
    if cost_ns <= GOOD_CLOCK_NS:
        return good("clock_cost", found)
    why, remedy = "the loop reads it at every hop", "clock source tsc, see clock_source"
    return (warn if cost_ns <= BAD_CLOCK_NS else bad)("clock_cost", found, why, remedy)


def idle_gaps(core: int, seconds: float) -> Finding:
    """Largest gap between two readings of the clock, in each window of a spin that does nothing else."""
    windows = max(1, round(seconds * 1e9 / WINDOW_NS))
    try:
        with on_core(core):
            gaps_us = native.core().largest_gaps(windows, WINDOW_NS) / 1000
    except ProbeError as problem:
        return unknown("idle_gaps", str(problem))
    p50, p99, p999, largest = np.percentile(gaps_us, [50, 99, 99.9, 100])
    found = f"p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.1f}, max {largest:.1f} us"
    found += f" (largest gap in each {WINDOW_NS // 1000} us of a spin on core {core}, {windows} of them)"
    if p99 <= GOOD_GAP_US:
        return good("idle_gaps", found)
    why = "a loop that does nothing already waits this long: no latency of this core can have better tails"
    remedy = (
        "the findings above, from the bad ones on; then look for what still runs there: perf sched, /proc/interrupts"
    )
    return (warn if p99 <= BAD_GAP_US else bad)("idle_gaps", found, why, remedy)


def hardware_counters(run: Callable[[], object] | None = None) -> Finding:
    """Cycles, instructions and misses of a piece of work, where the system lets us count them."""
    counted: dict[str, int] = {}
    refusals: dict[str, list[str]] = {}
    for name, config in COUNTERS.items():
        try:
            counted[name] = count(config, run or _some_work)
        except OSError as error:
            number = error.errno or 0
            reason = WHY_NOT.get(number, error.strerror or "refused")
            refusals.setdefault(f"{reason} ({errno.errorcode.get(number, number)})", []).append(name)
    told = "; ".join(f"{', '.join(names)}: not supported here: {reason}" for reason, names in refusals.items())
    if not counted:
        why = "cycles, instructions and misses of the loop can't be counted"
        return warn(
            "hardware_counters", told, why, "see the reason; a bare host, or an instance type that shows its counters"
        )
    values = ", ".join(f"{value:,} {name}" for name, value in counted.items())
    return good("hardware_counters", f"{values} of a test piece" + (f"; {told}" if told else ""))


def count(config: int, run: Callable[[], object]) -> int:
    """One hardware event while `run` runs, of this thread, user mode; OSError where it isn't to be had."""
    number = PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the system call's number on {platform.machine()} isn't known here")
    library = ctypes.CDLL(None, use_errno=True)
    event = PerfEvent(HARDWARE, ctypes.sizeof(PerfEvent), config, flags=EXCLUDE_KERNEL_AND_HYPERVISOR)
    own_thread, any_core, no_group, no_flags = 0, -1, -1, 0
    library.syscall.restype = ctypes.c_long
    handle = library.syscall(ctypes.c_long(number), ctypes.byref(event), own_thread, any_core, no_group, no_flags)
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        before = int.from_bytes(os.read(handle, 8), "little")
        run()
        return int.from_bytes(os.read(handle, 8), "little") - before
    finally:
        os.close(handle)


class ProbeError(Exception):
    """The probe can't run here."""


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread on one core, for a while."""
    reason = native.why_unavailable()
    if reason is not None:
        raise ProbeError(reason)
    if not hasattr(os, "sched_setaffinity"):
        raise ProbeError("this system has no sched_setaffinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except (OSError, OverflowError, ValueError) as error:
        raise ProbeError(f"the probe can't be put on core {core}: {error}") from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _some_work() -> object:
    return np.arange(100_000, dtype=np.float64).sum()
