"""Where and how the threads of a run are scheduled, and that its memory stays in memory: only what was asked for.

In: the configuration's [loop]. Out: effects on the calling thread or process. Invariant: what was asked for is done, or
the run ends with the system's reason and a remedy; nothing else is touched (`strikeforge-host doctor` says what could
be).
"""

from __future__ import annotations

import ctypes
import os

from serving.errors import HostError
from serving.host.config_types import LoopConfig

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # <bits/mman-linux.h>


def place_housekeeping(config: LoopConfig) -> None:
    """The calling thread, and those it starts from now on, keep off the loop's core."""
    there = os.sched_getaffinity(0)
    if config.housekeeping_cores:
        _pin(set(config.housekeeping_cores), "housekeeping_cores")
    elif config.core is not None and len(there) > 1:
        _pin(there - {config.core}, "core")


def place_loop(config: LoopConfig) -> None:
    """The calling thread is the loop's: its core, its priority."""
    if config.core is not None:
        _pin({config.core}, "core")
    if config.priority is not None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(config.priority))
        except OSError as error:
            raise HostError(
                f"[loop] priority {config.priority}: SCHED_FIFO is refused: {error.strerror}; grant it (CAP_SYS_NICE, "
                "or rtprio in limits.conf), or leave priority out"
            ) from error


def lock_memory() -> None:
    """Pages stay in memory from when they are first touched (not all at once: a host is small)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HostError(
            f"[loop] lock_memory: refused: {reason}; raise the limit (ulimit -l unlimited, or CAP_IPC_LOCK), or set it "
            "to false"
        )


def _pin(cores: set[int], key: str) -> None:
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        asked = ", ".join(map(str, sorted(cores)))
        raise HostError(f"[loop] {key} {asked}: {error.strerror}; this process may use the cores {there}") from error
