"""What `strikeforge-host doctor --apply` changes, item by item, and how each change is undone.

Data in: a `Host`, the items asked for. Data out: one `Change` per setting, with the value before and after and the
shell command that puts the old one back; settings of the running system, none of which outlives a restart. Invariants:
only items asked for are touched; files are written, never made; a setting counts as changed only if it reads back as
asked; what isn't permitted or wouldn't last is refused with its reason and stays as it was. `keep_undo` is told the
command that undoes a change before the change is made.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from serving.host.doctor_cpu import LONGEST_WAKE_US
from serving.host.doctor_finding import Host, Verdict
from serving.host.doctor_interrupts import irqbalance_runs
from serving.host.doctor_memory import PAGES, chosen
from serving.host.doctor_scheduling import CPU, isolated
from serving.host.doctor_tree import UnreadableError, cores_of_mask, field, list_of, mask_of, shown

FIFO_PRIORITY = 1  # before every normal task, behind the kernel's own threads (interrupt threads have 50)


class Outcome(StrEnum):
    CHANGED = "changed"
    ALREADY = "already so"
    REFUSED = "refused"


@dataclass(frozen=True)
class Change:
    """One setting: what it was, what it is now."""

    item: str
    target: str  # a file, or a thread
    before: str
    after: str  # as asked; it wasn't reached where the outcome is refused
    outcome: Outcome
    reason: str = ""  # of a refusal
    undo: str = ""  # a shell command, wherever something isn't as it was before


KeepUndo = Callable[[str], None]


def apply(host: Host, items: list[str], keep_undo: KeepUndo) -> list[Change]:
    """Change what was asked for."""
    found: list[Change] = []
    for item in items:
        try:
            found += ITEMS[item](host, keep_undo)
        except UnreadableError as problem:
            found.append(Change(item, "", "unknown", "", Outcome.REFUSED, str(problem)))
    return found


def governor(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """The loop's core at full speed."""
    name = host.of_core("cpufreq/scaling_governor")
    yield _set(host, "governor", name, host.tree.word(name), "performance", keep_undo)


def idle(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """No idle state of the loop's core that takes long to leave."""
    for _, folder in host.tree.numbered(host.of_core("cpuidle"), "state"):
        state = host.of_core(f"cpuidle/{folder}")
        if host.tree.whole(f"{state}/latency") > LONGEST_WAKE_US:
            yield _set(host, "idle", f"{state}/disable", host.tree.word(f"{state}/disable"), "1", keep_undo)


def hugepages(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """Huge pages only where a program asks for them."""
    before = chosen(host, f"{PAGES}/enabled")
    if before == "never":  # good too
        yield Change("hugepages", f"/{PAGES}/enabled", before, before, Outcome.ALREADY)
        return
    yield _set(
        host, "hugepages", f"{PAGES}/enabled", before, "madvise", keep_undo, lambda: chosen(host, f"{PAGES}/enabled")
    )


def irqs(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """No device's interrupt on the loop's core, nor one of a device to come."""
    others = host.tree.cores(f"{CPU}/online") - {host.core}
    folder = "/proc/irq"
    if not others:
        yield Change("irqs", folder, "", "", Outcome.REFUSED, f"core {host.core} is the only one online")
        return
    if irqbalance_runs(host):
        reason = f"irqbalance runs and would undo it: stop it, or ban core {host.core} (IRQBALANCE_BANNED_CPULIST)"
        yield Change("irqs", folder, "", "", Outcome.REFUSED, reason)
        return
    for _, number in host.tree.numbered("proc/irq"):
        yield from _one_irq(host, f"proc/irq/{number}/smp_affinity_list", others, keep_undo)
    yield from _later_irqs(host, others, keep_undo)


def _one_irq(host: Host, name: str, others: frozenset[int], keep_undo: KeepUndo) -> Iterator[Change]:
    try:
        before = host.tree.cores(name)
    except UnreadableError as problem:
        yield Change("irqs", f"/{name}", "unknown", "", Outcome.REFUSED, str(problem))
        return
    if host.core in before:
        after = list_of(before - {host.core} or others)
        yield _set(host, "irqs", name, list_of(before), after, keep_undo, lambda: list_of(host.tree.cores(name)))


def _later_irqs(host: Host, others: frozenset[int], keep_undo: KeepUndo) -> Iterator[Change]:
    name = "proc/irq/default_smp_affinity"

    def now() -> str:
        return mask_of(cores_of_mask(host.tree.word(name), f"/{name}"))

    mask = cores_of_mask(host.tree.word(name), f"/{name}")
    if host.core in mask:
        yield _set(host, "irqs", name, now(), mask_of(mask - {host.core} or others), keep_undo, now)


def affinity(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """The running loop's thread on its core and no other."""
    thread, target = _thread(host), f"affinity of {host.process}"
    reason = _not_one_thread(host)
    if thread is None or reason:
        yield Change("affinity", target, "", str(host.core), Outcome.REFUSED, reason)
        return
    try:
        before = list_of(os.sched_getaffinity(thread))
        if before == str(host.core):
            yield Change("affinity", target, before, before, Outcome.ALREADY)
            return
        undo = f"taskset -pc {before} {thread}"
        keep_undo(undo)
        os.sched_setaffinity(thread, {host.core})
    except OSError as error:
        yield Change("affinity", target, "", str(host.core), Outcome.REFUSED, error.strerror or str(error))
        return
    yield Change("affinity", target, before, str(host.core), Outcome.CHANGED, undo=undo)


def priority(host: Host, keep_undo: KeepUndo) -> Iterator[Change]:
    """The running loop's thread before every normal task (SCHED_FIFO)."""
    thread, target = _thread(host), f"priority of {host.process}"
    after = f"SCHED_FIFO {FIFO_PRIORITY}"
    reason = _not_one_thread(host)
    if thread is not None and not reason:
        reason = _unsafe_priority(host, thread)
    if thread is None or reason:
        yield Change("priority", target, "", after, Outcome.REFUSED, reason)
        return
    try:
        policy, level = os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
        if policy in (os.SCHED_FIFO, os.SCHED_RR):
            yield Change("priority", target, f"real-time {level}", f"real-time {level}", Outcome.ALREADY)
            return
        flag = {os.SCHED_OTHER: "-o", os.SCHED_BATCH: "-b", os.SCHED_IDLE: "-i"}.get(policy, "-o")
        undo = f"chrt {flag} -p 0 {thread}"
        keep_undo(undo)
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        why = f"{error.strerror}: needs CAP_SYS_NICE, or RLIMIT_RTPRIO of at least {FIFO_PRIORITY}"
        yield Change("priority", target, "", after, Outcome.REFUSED, why)
        return
    yield Change("priority", target, f"policy {policy}", after, Outcome.CHANGED, undo=undo)


def _unsafe_priority(host: Host, thread: int) -> str:
    """Why a thread that spins before all others could stop this host, or ""."""
    try:
        allowed = os.sched_getaffinity(thread)
    except OSError as error:
        return error.strerror or str(error)
    if allowed != {host.core}:
        return f"thread {thread} may run on {list_of(allowed)}: pin it first (--apply affinity,priority)"
    if host.tree.cores(f"{CPU}/online") == {host.core}:
        return f"core {host.core} is the only one online: a loop that spins there would stop everything else"
    if host.tree.whole("proc/sys/kernel/sched_rt_runtime_us") < 0 and isolated(host).verdict is not Verdict.GOOD:
        return (
            f"sched_rt_runtime_us is -1 and core {host.core} isn't isolated: what is bound to it would never run again"
        )
    return ""


def _thread(host: Host) -> int | None:
    """The thread to change; None where none was named, or the files aren't this host's own."""
    return int(host.process) if host.process != "self" and str(host.tree.root) == "/" else None


def _not_one_thread(host: Host) -> str:
    """Why it isn't known which thread to change, or ""."""
    if str(host.tree.root) != "/":
        return f"{host.tree.root} is a copy of a host's files: a thread can be changed on the host itself only"
    if host.process == "self":
        return "it belongs to a running loop: name its thread with --process, or set [loop] core and priority"
    status = host.of_process("status")
    threads = len(host.tree.numbered(host.of_process("task")))
    if threads > 1 and field(host.tree.text(status), "Tgid", f"/{status}") == host.process:
        return (
            f"process {host.process} has {threads} threads: name the loop's (top -H), or set [loop] core and priority"
        )
    return ""


def _set(
    host: Host, item: str, name: str, before: str, after: str, keep_undo: KeepUndo, now: Callable[[], str] | None = None
) -> Change:
    """Write one file of settings; `now` reads its value where that isn't simply the file's words."""
    target = f"/{name}"
    if before == after:
        return Change(item, target, before, after, Outcome.ALREADY)
    undo = f"echo {shlex.quote(before)} > {shlex.quote(str(host.tree.path(name)))}"
    try:
        keep_undo(undo)
        handle = os.open(host.tree.path(name), os.O_WRONLY | os.O_TRUNC)  # not made where it is missing
        try:
            os.write(handle, f"{after}\n".encode())
        finally:
            os.close(handle)
    except OSError as error:
        return Change(item, target, before, after, Outcome.REFUSED, _refusal(item, error))
    try:
        reads = now() if now is not None else host.tree.word(name)
    except UnreadableError as problem:
        return Change(
            item, target, before, after, Outcome.REFUSED, f"written, but it can't be read back: {problem}", undo
        )
    if reads != after:
        reason = f"written, but the kernel has {shown(reads)!r}"
        return Change(item, target, before, after, Outcome.REFUSED, reason, "" if reads == before else undo)
    return Change(item, target, before, after, Outcome.CHANGED, undo=undo)


def _refusal(item: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return f"{reason}: only root may"
    return f"{reason} (the kernel manages this interrupt itself)" if item == "irqs" else reason


ITEMS: dict[str, Callable[[Host, KeepUndo], Iterator[Change]]] = {
    "affinity": affinity,
    "governor": governor,
    "idle": idle,
    "irqs": irqs,
    "hugepages": hugepages,
    "priority": priority,
}
