"""Made-up hosts: the files of /proc and /sys that `strikeforge-host doctor` reads, as kernels write them.

`tuned()` is bare metal set up for a hot loop on core 3, `untuned()` the same machine as it comes, `virtual()` a guest
of two cores, `container()` one without /sys and with a CPU limit. Each is a dictionary of names and contents; `write`
makes a tree of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.host.doctor_tree import Tree

Files = dict[str, str]
CORES = 4
CPU = "sys/devices/system/cpu"
FLAGS = "fpu sse2 constant_tsc nonstop_tsc avx2 fma f16c avx512f avx512bw avx512_vnni"
LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max locked memory         {memlock:<20} unlimited            bytes     \n"
    "Max realtime priority     {rtprio:<20} 99                   \n"
)
STATUS = "Name:\tpython\nCapEff:\t{capabilities}\nCpus_allowed:\tf\nCpus_allowed_list:\t{cores}\n"
STAT = "7 (a name) with) R " + " ".join(["1"] * 36) + " {level} {policy} 0 0\n"  # fields 40 and 41 of proc(5)
ALL_CAPABILITIES = "000001ffffffffff"
NO_CAPABILITIES = "0000000000000000"


def write(folder: Path, files: Mapping[str, str]) -> Tree:
    """The tree of these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "dev/shm").mkdir(parents=True, exist_ok=True)
    return Tree(folder)


def untuned() -> Files:
    """Four cores with hyper-threads' siblings 0-2, 1-3; as a distribution boots it."""
    files = _process(cores="0-3", capabilities=NO_CAPABILITIES, rtprio="0", memlock="8388608")
    files |= {
        "proc/cpuinfo": f"processor\t: 0\nmodel name\t: Made-up CPU\nflags\t\t: {FLAGS}\n",
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz ro quiet splash\n",
        "proc/version": "Linux version 6.8.0 (builder@made-up) #1 SMP PREEMPT_DYNAMIC\n",
        "proc/stat": "".join(f"cpu{core} 100 0 100 9800 0 0 0 0 0 0\n" for core in range(CORES)),
        "proc/meminfo": "MemTotal: 64000000 kB\nSwapTotal: 8388604 kB\nHugePages_Total: 0\n",
        "proc/irq/default_smp_affinity": "f\n",
        "proc/irq/24/smp_affinity_list": "0-3\n",
        "proc/irq/24/effective_affinity_list": "3\n",
        "proc/irq/25/smp_affinity_list": "3\n",
        "proc/irq/25/effective_affinity_list": "3\n",
        "proc/irq/26/smp_affinity_list": "0\n",
        "proc/irq/26/effective_affinity_list": "0\n",
        "proc/321/comm": "irqbalance\n",
        "boot/config-6.8.0": "CONFIG_SMP=y\nCONFIG_HZ=1000\n",
        f"{CPU}/online": "0-3\n",
        f"{CPU}/isolated": "\n",
        f"{CPU}/nohz_full": "(null)\n",
        f"{CPU}/intel_pstate/no_turbo": "0\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
        "sys/devices/system/node/node0/cpulist": "0-1\n",
        "sys/devices/system/node/node1/cpulist": "2-3\n",
        "sys/devices/virtual/workqueue/cpumask": "f\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
        "sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] never\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory\n",
        "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    }
    settings = {"osrelease": "6.8.0", "sched_rt_runtime_us": "950000", "sched_rt_period_us": "1000000"}
    settings |= {"watchdog": "1", "nmi_watchdog": "1", "numa_balancing": "1"}
    files |= {f"proc/sys/kernel/{name}": f"{value}\n" for name, value in settings.items()}
    files |= {"proc/sys/vm/swappiness": "60\n"}
    files |= {"proc/sys/net/core/rmem_max": "212992\n", "proc/sys/net/core/rmem_default": "212992\n"}
    for core in range(CORES):
        files |= _core(core, governor="powersave", siblings=f"{core % 2},{core % 2 + 2}", deep_off="0")
    return files


def tuned() -> Files:
    """The same machine set up for a loop on core 3."""
    files = untuned() | _process(cores="0-3", capabilities=ALL_CAPABILITIES, rtprio="99", memlock="unlimited")
    del files["proc/321/comm"]
    files |= {
        "proc/cmdline": "ro isolcpus=domain,managed_irq,3 nohz_full=3 rcu_nocbs=3\n",
        "proc/meminfo": "SwapTotal: 0 kB\nHugePages_Total: 0\n",
        "proc/irq/default_smp_affinity": "7\n",
        "proc/irq/24/smp_affinity_list": "0-2\n",
        "proc/irq/24/effective_affinity_list": "1\n",
        "proc/irq/25/smp_affinity_list": "0\n",
        "proc/irq/25/effective_affinity_list": "0\n",
        "proc/self/timerslack_ns": "1\n",
        "proc/self/numa_maps": "7f00 default anon=5 N1=5 kernelpagesize_kB=4\n",
        "proc/sys/kernel/watchdog": "0\n",
        "proc/sys/kernel/nmi_watchdog": "0\n",
        "proc/sys/kernel/numa_balancing": "0\n",
        "proc/sys/net/core/rmem_max": "67108864\n",
        f"{CPU}/isolated": "3\n",
        f"{CPU}/nohz_full": "3\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
        "sys/devices/virtual/workqueue/cpumask": "7\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    }
    for core in range(CORES):
        files |= _core(core, governor="performance", siblings=f"{core}", deep_off="1")
    return files


def virtual() -> Files:
    """A guest of two cores: no frequency to see, one node, time stolen by its hypervisor."""
    files = {name: content for name, content in untuned().items() if "/cpufreq/" not in name and "pstate" not in name}
    files |= {
        "proc/cpuinfo": f"processor\t: 0\nmodel name\t: Made-up guest\nflags\t\t: {FLAGS} hypervisor\n",
        "proc/stat": "cpu0 100 0 100 9800 0 0 0 0 0 0\ncpu1 100 0 100 9300 0 0 0 500 0 0\n",
        "proc/self/status": STATUS.format(capabilities=NO_CAPABILITIES, cores="0-1"),
        f"{CPU}/online": "0-1\n",
        "sys/class/dmi/id/sys_vendor": "Made-up Cloud\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
    }
    return files


def container() -> Files:
    """Only /proc, a mount of cgroups, and a limit of one and a half cores."""
    files = {name: content for name, content in untuned().items() if not name.startswith(("sys/", "boot/"))}
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu\n"
    files["sys/fs/cgroup/cpu.max"] = "150000 100000\n"
    files["proc/self/cgroup"] = "0::/\n"
    return files


def _process(cores: str, capabilities: str, rtprio: str, memlock: str) -> Files:
    return {
        "proc/self/status": STATUS.format(capabilities=capabilities, cores=cores),
        "proc/self/stat": STAT.format(level=0, policy=0),
        "proc/self/limits": LIMITS.format(rtprio=rtprio, memlock=memlock),
        "proc/self/cgroup": "0::/user.slice\n",
        "proc/self/timerslack_ns": "50000\n",
        "proc/self/numa_maps": "7f00 default anon=9 N0=8 N1=1 kernelpagesize_kB=4\n",
    }


def _core(core: int, governor: str, siblings: str, deep_off: str) -> Files:
    folder = f"{CPU}/cpu{core}"
    return {
        f"{folder}/topology/thread_siblings_list": f"{siblings}\n",
        f"{folder}/cpufreq/scaling_governor": f"{governor}\n",
        f"{folder}/cpufreq/scaling_driver": "acpi-cpufreq\n",
        f"{folder}/cpuidle/state0/name": "POLL\n",
        f"{folder}/cpuidle/state0/latency": "0\n",
        f"{folder}/cpuidle/state0/disable": "0\n",
        f"{folder}/cpuidle/state1/name": "C6\n",
        f"{folder}/cpuidle/state1/latency": "133\n",
        f"{folder}/cpuidle/state1/disable": f"{deep_off}\n",
    }
