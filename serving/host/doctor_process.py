"""What /proc tells of the process that runs, or would run, the loop.

Data in: a `Host`. Data out: its cores, capabilities and scheduling policy, or `UnreadableError`.
"""

from __future__ import annotations

from serving.host.doctor_finding import Host
from serving.host.doctor_tree import UnreadableError, cores_of, field, shown, whole


def allowed_cores(host: Host) -> frozenset[int]:
    """The cores that the process may use."""
    status = host.of_process("status")
    return cores_of(field(host.tree.text(status), "Cpus_allowed_list", f"/{status}"), f"/{status}")


def has_capability(host: Host, bit: int) -> bool:
    """Whether the process has one of Linux's capabilities."""
    status = host.of_process("status")
    text = field(host.tree.text(status), "CapEff", f"/{status}")
    try:
        return bool(int(text, 16) >> bit & 1)
    except ValueError as error:
        raise UnreadableError(f"/{status}: CapEff {shown(text)!r} isn't a mask") from error


def policy_of(host: Host) -> tuple[int, int]:
    """Scheduling policy and real-time priority of the process."""
    name = host.of_process("stat")
    words = host.tree.text(name).rpartition(")")[2].split()  # the name before it may hold anything
    if len(words) < 39:
        raise UnreadableError(f"/{name}: too short")
    return whole(words[38], f"/{name}"), whole(words[37], f"/{name}")
