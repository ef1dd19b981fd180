"""Checks of what interrupts the loop's core: the tick, the kernel's deferred work, devices, watchdogs, late timers.

Data in: a `Host`. Data out: one `Finding` each, or `UnreadableError`.
"""

from __future__ import annotations

import gzip
import zlib

from serving.host.doctor_finding import Check, Finding, Host, good, warn
from serving.host.doctor_tree import UnreadableError, cores_of_mask, list_of, mask_of, shown

CPU = "sys/devices/system/cpu"
DEFAULT_SLACK_NS = 50_000


def tick(host: Host) -> Finding:
    """The scheduler's periodic interrupt."""
    rate = kernel_option(host, "CONFIG_HZ")
    at = f"{rate} times a second" if rate else "at a rate that the kernel doesn't tell"
    name = f"{CPU}/nohz_full"
    online = host.tree.cores(f"{CPU}/online")
    quiet = host.tree.cores(name) if host.tree.has(name) else host.tree.option_cores("nohz_full", online)
    if host.core in quiet:
        return good("tick", f"nohz_full: {list_of(quiet)}", "no tick while one task alone runs there")
    why = f"core {host.core} is interrupted {at}, microseconds each time"
    return warn("tick", f"nohz_full: {list_of(quiet)}", why, f"boot with nohz_full={host.core}")


def rcu_callbacks(host: Host) -> Finding:
    """The kernel's deferred work of other cores' making."""
    online = host.tree.cores(f"{CPU}/online")
    moved = host.tree.option_cores("rcu_nocbs", online) | host.tree.option_cores("nohz_full", online)
    if host.core in moved:
        return good("rcu_callbacks", f"moved away from {list_of(moved)}")
    why = f"RCU callbacks run on core {host.core} itself, after interrupts"
    return warn("rcu_callbacks", f"moved away from {list_of(moved)}", why, f"boot with rcu_nocbs={host.core}")


def workqueues(host: Host) -> Finding:
    """Kernel work that is bound to no core may land on any of this mask."""
    name = "sys/devices/virtual/workqueue/cpumask"
    mask = cores_of_mask(host.tree.word(name), f"/{name}")
    found = f"unbound work on {list_of(mask)}"
    if host.core not in mask:
        return good("workqueues", found)
    why = f"unbound kernel work (writeback, for one) may run on core {host.core}"
    return warn("workqueues", found, why, f"echo {mask_of(mask - {host.core})} > /{name}")


def interrupts(host: Host) -> Finding:
    """Devices' interrupts that may be delivered to the core."""
    may, now, unread = [], [], 0
    listed = host.tree.numbered("proc/irq")
    for number, name in listed:
        try:
            if host.core in host.tree.cores(f"proc/irq/{name}/smp_affinity_list"):
                may.append(number)
            effective = f"proc/irq/{name}/effective_affinity_list"
            if host.tree.has(effective) and host.core in host.tree.cores(effective):
                now.append(number)
        except UnreadableError:
            unread += 1
    if unread and unread == len(listed):
        raise UnreadableError(f"/proc/irq: none of {unread} affinities can be read")
    found = f"{len(may)} of {len(listed)} may land on core {host.core}, {len(now)} do now"
    found += f"; {unread} couldn't be read" if unread else ""
    if not may:
        return good("interrupts", found)
    why = "each one takes microseconds out of the loop and evicts its caches"
    remedy = "--apply irqs, or boot with irqaffinity= and the other cores"
    return warn("interrupts", f"{found}: {list_of(may)}", why, remedy)


def irq_balancer(host: Host) -> Finding:
    """A daemon that spreads interrupts over all cores, the loop's too."""
    if not irqbalance_runs(host):
        return good("irqbalance", "not running")
    why = f"it moves interrupts between cores every ten seconds, to core {host.core} too unless it is told not to"
    remedy = f"systemctl stop irqbalance, or IRQBALANCE_BANNED_CPULIST={host.core} in its configuration"
    return warn("irqbalance", "running", why, remedy)


def timer_slack(host: Host) -> Finding:
    """How late a sleep may end: for a loop that sleeps between ticks."""
    slack_ns = host.tree.whole(host.of_process("timerslack_ns"))
    found = f"{slack_ns} ns"
    if slack_ns < DEFAULT_SLACK_NS:
        return good("timer_slack", found)
    remedy = "prctl(PR_SET_TIMERSLACK, 1), or echo 1 > /proc/PID/timerslack_ns; a loop that spins isn't touched"
    return warn("timer_slack", found, f"a sleep ends up to {slack_ns / 1000:g} us late", remedy)


def watchdogs(host: Host) -> Finding:
    """Lock-up detectors: a timer on every core, and a hardware counter taken."""
    on = [name for name in ("watchdog", "nmi_watchdog") if host.tree.word(f"proc/sys/kernel/{name}") != "0"]
    if not on:
        return good("watchdogs", "off")
    remedy = f"sysctl -w {' '.join(f'kernel.{name}=0' for name in on)}, or boot with nowatchdog"
    return warn("watchdogs", f"{', '.join(on)} on", "a timer interrupts every core every few seconds", remedy)


def irqbalance_runs(host: Host) -> bool:
    """Whether a process of that name lives."""
    for _, name in host.tree.numbered("proc"):
        try:
            if host.tree.word(f"proc/{name}/comm") == "irqbalance":
                return True
        except UnreadableError:
            continue  # it ended while we looked
    return False


def kernel_option(host: Host, name: str) -> str | None:
    """A setting of the kernel's build, None where it isn't told."""
    text = ""
    try:
        packed = host.tree.path("proc/config.gz").read_bytes()
        text = gzip.decompress(packed).decode("utf-8", errors="replace")
    except (OSError, EOFError, zlib.error):
        try:
            text = host.tree.text(f"boot/config-{host.tree.word('proc/sys/kernel/osrelease')}")
        except UnreadableError:
            return None
    return next((shown(line.partition("=")[2]) for line in text.splitlines() if line.startswith(f"{name}=")), None)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("tick", tick),
    ("rcu_callbacks", rcu_callbacks),
    ("workqueues", workqueues),
    ("interrupts", interrupts),
    ("irqbalance", irq_balancer),
    ("timer_slack", timer_slack),
    ("watchdogs", watchdogs),
)
