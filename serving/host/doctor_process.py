"""What /proc tells of the process that runs, or would run, the loop.

Data in: a `Host`. Data out: its threads, their cores, capabilities and scheduling policy, or `UnreadableError`.
"""

from __future__ import annotations

from serving.host.doctor_finding import Host
from serving.host.doctor_tree import UnreadableError, cores_of, field, shown, whole


def allowed_cores(host: Host) -> frozenset[int]:
    """The cores that the process may use."""
    status = host.of_process("status")
    return cores_of(field(host.tree.text(status), "Cpus_allowed_list", f"/{status}"), f"/{status}")


def threads_of(host: Host) -> dict[int, frozenset[int]]:
    """The cores that each thread of the process may use."""
    found = {}
    for thread, name in host.tree.numbered(host.of_process("task")):
        status = host.of_process(f"task/{name}/status")
        try:
            found[thread] = cores_of(field(host.tree.text(status), "Cpus_allowed_list", f"/{status}"), f"/{status}")
        except UnreadableError:
            if host.tree.has(status):
                raise
            continue  # it ended while we looked
    return found


def loops_thread(host: Host, core: int | None = None) -> Host:
    """The same, looking at the thread of a running loop and its core: the one pinned to a single core (to `core`).

    `run` gives the loop a thread of its own, so the first one counts only where it is alone. Where not exactly one
    thread is pinned so, the process is looked at as it was named.
    """
    try:
        status = host.of_process("status")
        if field(host.tree.text(status), "Tgid", f"/{status}") != host.process:
            return host  # a thread was named
        threads = threads_of(host)
    except UnreadableError:
        return host
    pinned = [
        (thread, only)
        for thread, cores in threads.items()
        for only in cores
        if len(cores) == 1 and core in (None, only) and (len(threads) == 1 or str(thread) != host.process)
    ]
    if len(pinned) != 1:
        return host
    ((thread, only),) = pinned
    return Host(host.tree, only, str(thread))


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
