"""Checks of what the scheduler does with the loop and its core: affinity, cgroup, isolation, preemption, priorities.

Data in: a `Host`. Data out: one `Finding` each, or `UnreadableError`.
"""

from __future__ import annotations

from serving.host.doctor_finding import Check, Finding, Host, bad, good, warn
from serving.host.doctor_process import allowed_cores, has_capability, policy_of, threads_of
from serving.host.doctor_tree import UnreadableError, list_of, shown, whole

CPU = "sys/devices/system/cpu"
CAP_SYS_NICE = 23
POLICIES = {0: "normal", 1: "SCHED_FIFO", 2: "SCHED_RR", 3: "batch", 5: "idle", 6: "deadline", 7: "extensible"}


def affinity(host: Host) -> Finding:
    """The cores that the process may use (its affinity and its cgroup's set, as the kernel sums them up)."""
    allowed = allowed_cores(host)
    found = f"{'this process' if host.process == 'self' else f'thread {host.process}'} may use {list_of(allowed)}"
    if host.core not in allowed:
        why = f"the loop can't be pinned to core {host.core}"
        return bad("affinity", found, why, "give its cgroup that core (cpuset.cpus), or start it with taskset")
    if host.process == "self":
        return good("affinity", found, f"the loop can pin itself to core {host.core}")
    if allowed != {host.core}:
        why = "the scheduler moves it between cores, and each move costs warm caches"
        return warn("affinity", found, why, f"[loop] core = {host.core}, or --apply affinity")
    others = [
        thread for thread, cores in threads_of(host).items() if host.core in cores and str(thread) != host.process
    ]
    if others:
        found += f"; so may {len(others)} more of its process: {list_of(others)}"
        why = f"other threads of the process may take core {host.core} from the loop's"
        return warn("affinity", found, why, "[loop] core and housekeeping_cores in the configuration keep them apart")
    return good("affinity", found, "no other thread of its process may")


def cpu_quota(host: Host) -> Finding:
    """A container's quota stops every thread of it when it is used up, and a loop that spins uses it up."""
    unified, own = cgroup_folders(host)
    limit = _unified_quota(host, unified) if host.tree.has("sys/fs/cgroup/cgroup.controllers") else _quota(host, own)
    if limit is None:
        return good("cpu_quota", "none")
    why = "once it is used up the whole container stands still until the period ends, for tens of milliseconds"
    return bad(
        "cpu_quota", limit, why, "run the loop in a container without a CPU limit (docker: --cpuset-cpus, no --cpus)"
    )


def isolated(host: Host) -> Finding:
    """Whether the scheduler leaves the core to whoever is pinned there."""
    sources = {f"{CPU}/isolated": "isolcpus", "sys/fs/cgroup/cpuset.cpus.isolated": "cpuset partition"}
    said = {how: host.tree.cores(name) for name, how in sources.items() if host.tree.has(name)}
    if not said:
        said = {"isolcpus": host.tree.option_cores("isolcpus", host.tree.cores(f"{CPU}/online"))}
    every = frozenset().union(*said.values())
    found = ", ".join(f"{how}: {list_of(cores)}" for how, cores in said.items())
    if host.core in every:
        return good("isolated", found)
    why = f"any task of this host may be put on core {host.core}, and takes milliseconds from the loop"
    remedy = f"boot with isolcpus=domain,managed_irq,{host.core} nohz_full={host.core} rcu_nocbs={host.core}"
    return bad("isolated", found, why, remedy)


def preemption(host: Host) -> Finding:
    """How eagerly the kernel switches: it matters where the loop shares its core with anything."""
    version = host.tree.text("proc/version")
    if host.tree.has("sys/kernel/realtime") or "PREEMPT_RT" in version:
        return good("preemption", "PREEMPT_RT")
    now = "sys/kernel/debug/sched/preempt"
    try:
        mode = f"dynamic: {shown(host.tree.word(now))}"
    except UnreadableError:
        chosen = host.tree.option("preempt")
        kinds = ("PREEMPT_DYNAMIC", "PREEMPT_LAZY", "PREEMPT_VOLUNTARY", "PREEMPT")
        built = next((kind for kind in kinds if kind in version.split()), "no preemption, or voluntary")
        mode = f"{built}{f', preempt={shown(chosen)}' if chosen else ''}"
    return good("preemption", mode, "nothing to gain where the loop's core is isolated")


def priority(host: Host) -> Finding:
    """Whether the loop may run before every normal task."""
    limits = host.tree.text(host.of_process("limits"))
    limit = next((line.split() for line in limits.splitlines() if line.startswith("Max realtime priority")), [])
    if len(limit) < 4:
        raise UnreadableError(f"/{host.of_process('limits')}: has no line 'Max realtime priority'")
    capable = has_capability(host, CAP_SYS_NICE)
    policy, level = policy_of(host)
    found = f"{POLICIES.get(policy, f'policy {policy}')}{f' {level}' if level else ''}; RLIMIT_RTPRIO {shown(limit[3])}"
    found += f", {'with' if capable else 'without'} CAP_SYS_NICE"
    if policy in (1, 2) or capable or limit[3] not in ("0",):
        return good("priority", found)
    why = "the loop can't be given a real-time priority: it takes turns with whatever shares its core"
    remedy = (
        "an isolated core needs none; else 'rtprio 99' in /etc/security/limits.conf, LimitRTPRIO=99, --cap-add SYS_NICE"
    )
    return warn("priority", found, why, remedy)


def realtime_throttle(host: Host) -> Finding:
    """The kernel's guard against real-time tasks that never sleep: exactly what a loop that spins is."""
    run_us, period_us = (host.tree.whole(f"proc/sys/kernel/sched_rt_{name}_us") for name in ("runtime", "period"))
    if run_us < 0 or run_us >= period_us:
        return good("realtime_throttle", "off")
    found = f"{run_us} of each {period_us} us"
    if policy_of(host)[0] not in (1, 2):
        return good("realtime_throttle", found, "touches only a loop with a real-time priority")
    why = f"a loop that spins with a real-time priority is stopped for {period_us - run_us} us of each {period_us} us"
    remedy = "sysctl -w kernel.sched_rt_runtime_us=-1 where the core is isolated; else a normal priority"
    return bad("realtime_throttle", found, why, remedy)


def cgroup_folders(host: Host) -> tuple[str, str]:
    """The process's folders: of the unified tree (version 2), and of the controller `cpu` (version 1)."""
    unified, own = "", ""
    for line in host.tree.text(host.of_process("cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, folder = rest.partition(":")
        if ".." in folder:  # of another namespace: not visible from here
            folder = ""
        if number == "0":
            unified = folder.strip("/")
        elif "cpu" in controllers.split(","):
            own = folder.strip("/")
    return unified, own


def _unified_quota(host: Host, folder: str) -> str | None:
    """The tightest quota from the process's cgroup up to the root."""
    parts = [part for part in folder.split("/") if part]
    for depth in range(len(parts), -1, -1):
        name = "/".join(["sys/fs/cgroup", *parts[:depth], "cpu.max"])
        if not host.tree.has(name):
            continue
        words = host.tree.text(name).split()
        if len(words) != 2:
            raise UnreadableError(f"/{name}: {shown(' '.join(words))!r} isn't a quota and a period")
        if words[0] != "max":
            return f"{whole(words[0], f'/{name}')} of each {whole(words[1], f'/{name}')} us (/{shown(name)})"
    return None


def _quota(host: Host, folder: str) -> str | None:
    for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
        at = next((path for path in (f"{mount}/{folder}", mount) if host.tree.has(f"{path}/cpu.cfs_quota_us")), None)
        if at is None:
            continue
        quota_us = host.tree.whole(f"{at}/cpu.cfs_quota_us")
        return None if quota_us < 0 else f"{quota_us} of each {host.tree.whole(f'{at}/cpu.cfs_period_us')} us"
    if not host.tree.has("sys/fs/cgroup"):
        raise UnreadableError("/sys/fs/cgroup: not there")
    return None


CHECKS: tuple[tuple[str, Check], ...] = (
    ("affinity", affinity),
    ("cpu_quota", cpu_quota),
    ("isolated", isolated),
    ("preemption", preemption),
    ("priority", priority),
    ("realtime_throttle", realtime_throttle),
)
