"""`strikeforge-host doctor`: is this host fit for the hot loop, and what would make it fitter.

Data in: a host's /proc and /sys (below any root), the loop's core, the process that runs it; on the living host also
short measurements. Data out: `Finding`s in a fixed order. Invariants: looking changes nothing; a missing file, or
one full of nonsense, makes a finding `unknown` that says why, never an error.
"""

from __future__ import annotations

from serving.host import doctor_cpu, doctor_interrupts, doctor_memory, doctor_scheduling
from serving.host.doctor_finding import Check, Finding, Host, unknown
from serving.host.doctor_process import allowed_cores
from serving.host.doctor_scheduling import CPU
from serving.host.doctor_tree import Tree, UnreadableError

CHECKS: tuple[tuple[str, Check], ...] = (
    *doctor_cpu.CHECKS,
    *doctor_scheduling.CHECKS,
    *doctor_interrupts.CHECKS,
    *doctor_memory.CHECKS,
)


def examine(host: Host) -> list[Finding]:
    """Every check of the files."""
    return [_outcome(topic, check, host) for topic, check in CHECKS]


def likely_core(tree: Tree, process: str) -> tuple[int, str]:
    """The core that a loop would be given, where nobody says which, and why that one."""
    try:
        allowed = allowed_cores(Host(tree, 0, process))
    except UnreadableError:
        allowed = frozenset()
    try:
        alone = tree.cores(f"{CPU}/isolated") & (allowed or tree.cores(f"{CPU}/online"))
    except UnreadableError:
        alone = frozenset()
    if alone:
        return max(alone), "the last isolated one"
    return (max(allowed), "the last one it may use") if allowed else (0, "nothing tells which it may use")


def _outcome(topic: str, check: Check, host: Host) -> Finding:
    try:
        return check(host)
    except UnreadableError as problem:
        return unknown(topic, str(problem))
