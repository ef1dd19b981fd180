"""What `strikeforge-host doctor` says: one finding per check, and what a check looks at.

Invariant: a bad or doubtful finding says why it matters and what mends it, an unknown one why it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serving.host.doctor_tree import Tree


class Verdict(StrEnum):
    """For a loop that spins on one core and must answer in microseconds."""

    GOOD = "good"
    WARN = "warn"  # costs something, sometimes, or only in some set-ups
    BAD = "bad"  # the loop's tails, or its start, suffer
    UNKNOWN = "unknown"  # the host doesn't tell


@dataclass(frozen=True)
class Host:
    """What is examined: a host's files, the loop's core, the process that runs (or would run) the loop."""

    tree: Tree
    core: int
    process: str = "self"  # or the id of a process or thread

    def of_process(self, name: str) -> str:
        """A file of the process's folder."""
        return f"proc/{self.process}/{name}"

    def of_core(self, name: str) -> str:
        """A file of the core's folder."""
        return f"sys/devices/system/cpu/cpu{self.core}/{name}"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, in words."""

    topic: str
    verdict: Verdict
    found: str
    why: str = ""
    remedy: str = ""


Check = Callable[[Host], Finding]


def good(topic: str, found: str, why: str = "") -> Finding:
    return Finding(topic, Verdict.GOOD, found, why)


def warn(topic: str, found: str, why: str, remedy: str) -> Finding:
    return Finding(topic, Verdict.WARN, found, why, remedy)


def bad(topic: str, found: str, why: str, remedy: str) -> Finding:
    return Finding(topic, Verdict.BAD, found, why, remedy)


def unknown(topic: str, why: str) -> Finding:
    return Finding(topic, Verdict.UNKNOWN, why)
