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

    `run` gives the loop a thread of its own, so the first one counts only where it is alone, and those that share the
    first one's core don't. Of several the one that has used the processor most is it; where none has, or none is
    pinned so, the process is looked at as it was named.
    """
    try:
        status = host.of_process("status")
        if field(host.tree.text(status), "Tgid", f"/{status}") != host.process:
            return host  # a thread was named
        threads = threads_of(host)
        first = threads.get(int(host.process), frozenset()) if len(threads) > 1 else frozenset()
        pinned = [
            (_processor_ticks(host, thread) if len(threads) > 1 else 0, thread, only)
            for thread, cores in threads.items()
            for only in cores
            if len(cores) == 1 and core in (None, only) and cores != first
        ]
    except UnreadableError:
        return host
    pinned.sort(reverse=True)
    if not pinned or (len(pinned) > 1 and pinned[0][0] == pinned[1][0]):
        return host
    return Host(host.tree, pinned[0][2], str(pinned[0][1]))


def _processor_ticks(host: Host, thread: int) -> int:
    """How long a thread has run, in ticks of the kernel's clock."""
    name = host.of_process(f"task/{thread}/stat")
    words = host.tree.text(name).rpartition(")")[2].split()
    if len(words) < 13:
        raise UnreadableError(f"/{name}: too short")
    return whole(words[11], f"/{name}") + whole(words[12], f"/{name}")


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
