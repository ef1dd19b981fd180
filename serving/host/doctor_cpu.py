"""Checks of the processor: instruction sets, virtual or not, cores, siblings, frequency, idle states, clock source.

Data in: a `Host` (serving/host/doctor_finding.py). Data out: one `Finding` each; `UnreadableError` where a file is
missing or makes no sense, which serving/host/doctor.py turns into a finding too.
"""

from __future__ import annotations

from serving.host.doctor_finding import Check, Finding, Host, bad, good, warn
from serving.host.doctor_tree import UnreadableError, field, fields, list_of, shown

CPU = "sys/devices/system/cpu"
TELLING_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "avx512_fp16")
LONGEST_WAKE_US = 10  # an idle state that takes longer to leave shows in a latency
SCALES_ITSELF = ("intel_pstate", "amd-pstate-epp")  # drivers whose "powersave" still goes up to full speed
COSTLY_STOLEN_SHARE = 0.001


def instruction_sets(host: Host) -> Finding:
    """What the kernels of the native core may use; the wider, the fewer cycles an evaluation takes."""
    listing = fields(host.tree.text("proc/cpuinfo"))
    flags = listing.get("flags", listing.get("Features", "")).split()
    name = shown(listing.get("model name", "a processor without a name"))
    has = [flag for flag in TELLING_FLAGS if flag in flags]
    found = f"{name}: {', '.join(has) or 'none of the instruction sets that the kernels use'}"
    if {"avx2", "fma", "f16c"} <= set(flags) and {"avx512f", "avx512bw", "avx512_vnni"} <= set(flags):
        return good("cpu", found)
    if {"avx2", "fma", "f16c"} <= set(flags):
        why = "without AVX-512 and VNNI int8 and wide kernels run at a fraction of their speed"
        return warn("cpu", found, why, "take a host with AVX512-VNNI; docs/engines.md has the figures of each set")
    why = "the native engine computes with its portable kernels: several times slower"
    return bad("cpu", found, why, "take an x86-64 host with at least AVX2 and FMA")


def virtual_machine(host: Host) -> Finding:
    """A hypervisor takes the core away whenever it likes, and no setting in here prevents it."""
    flags = fields(host.tree.text("proc/cpuinfo")).get("flags", "").split()
    names = []
    for source in ("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name", "sys/hypervisor/type"):
        try:
            names.append(shown(host.tree.word(source)))
        except UnreadableError:
            continue  # few hosts have all three; the processor's flag decides
    who = f" ({', '.join(names)})" if names else ""
    if "hypervisor" not in flags and not host.tree.has("sys/hypervisor/type"):
        return good("virtual_machine", f"no hypervisor{who}")
    why = (
        "the hypervisor schedules this core: latencies' tails are its doing, and frequency and interrupts in its hands"
    )
    remedy = "bare metal, or an instance whose virtual cores are pinned to dedicated ones"
    return warn("virtual_machine", f"under a hypervisor{who}; {_stolen(host)}", why, remedy)


def _stolen(host: Host) -> str:
    """How much of its time the hypervisor took from the core since the start."""
    try:
        times = field_of_stat(host)
    except UnreadableError as problem:
        return f"stolen time unknown ({problem})"
    total = sum(times[:8])  # guest times (8, 9) are already in user time
    share = times[7] / total if total else 0.0
    much = "" if share <= COSTLY_STOLEN_SHARE else ", more than a loop bears"
    return f"{share:.2%} of core {host.core}'s time was stolen since the start{much}"


def field_of_stat(host: Host) -> list[int]:
    """The core's line of /proc/stat: clock ticks of user, nice, system, idle, iowait, irq, softirq, steal, ..."""
    for line in host.tree.text("proc/stat").splitlines():
        words = line.split()
        if words and words[0] == f"cpu{host.core}":
            if len(words) < 9 or not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words[1:]):
                break
            return [int(word) for word in words[1:]]
    raise UnreadableError(f"/proc/stat: no usable line cpu{host.core}")


def cores_online(host: Host) -> Finding:
    """The loop's core must be there, and others for everything else."""
    online = host.tree.cores(f"{CPU}/online")
    found = f"cores {list_of(online)} online"
    if host.core not in online:
        return bad("cores", found, f"core {host.core} isn't among them", f"echo 1 > /{host.of_core('online')}")
    if len(online) == 1:
        why = "feeds, kernel and loop share one core: each of them stops the loop"
        return bad("cores", found, why, "a host of at least four cores")
    if len(online) < 4:
        why = "the loop, its feed, the control thread and the kernel want one core each"
        return warn("cores", found, why, "a host of at least four cores")
    return good("cores", found)


def siblings(host: Host) -> Finding:
    """Hyper-threads of one core share its units and its first two caches."""
    others = host.tree.cores(host.of_core("topology/thread_siblings_list")) - {host.core}
    if not others:
        return good("siblings", f"core {host.core} has its execution units for itself")
    found = f"core {host.core} shares execution units and caches with {list_of(others)}"
    remedy = " && ".join(f"echo 0 > /{CPU}/cpu{core}/online" for core in sorted(others))
    return warn("siblings", found, "whatever runs there takes half of the core and evicts the weights", remedy)


def governor(host: Host) -> Finding:
    """A governor that lowers the frequency makes the first ticks after a lull slow."""
    folder = "cpufreq/scaling_"
    if not host.tree.has(host.of_core("cpufreq")):
        raise UnreadableError(
            f"/{host.of_core('cpufreq')}: not there; a hypervisor or the firmware decides the frequency"
        )
    name = shown(host.tree.word(host.of_core(f"{folder}governor")))
    try:
        driver = shown(host.tree.word(host.of_core(f"{folder}driver")))
    except UnreadableError:
        driver = "unknown driver"
    found = f"{name} ({driver})"
    if name == "performance":
        return good("governor", found)
    remedy = f"echo performance > /{host.of_core(f'{folder}governor')} (--apply governor)"
    if name == "powersave" and driver not in SCALES_ITSELF:
        return bad("governor", found, "the core stays at its lowest frequency", remedy)
    return warn("governor", found, "the core slows down when it waits, and needs time to speed up again", remedy)


def turbo(host: Host) -> Finding:
    """Faster on average, and as fast as the other cores and the temperature allow: no verdict beyond that."""
    sources = ((f"{CPU}/intel_pstate/no_turbo", "0"), (f"{CPU}/cpufreq/boost", "1"))
    for name, on in sources:
        if not host.tree.has(name):
            continue
        value = host.tree.word(name)
        if value not in ("0", "1"):
            raise UnreadableError(f"/{name}: {shown(value)!r} is neither 0 nor 1")
        state = "on" if value == on else "off"
        trade = {
            "on": "fastest; the frequency moves with the other cores' load. For steady figures turn it off: "
            f"echo {'1' if on == '0' else '0'} > /{name}",
            "off": "steady; faster on average would be: " + f"echo {on} > /{name}",
        }
        return good("turbo", state, trade[state])
    raise UnreadableError(
        f"neither /{sources[0][0]} nor /{sources[1][0]} is there; a hypervisor or the firmware decides"
    )


def idle_states(host: Host) -> Finding:
    """A core that slept deeply wakes late; a loop that spins never sleeps, one that waits does."""
    if host.tree.option("idle") == "poll":
        return good("idle_states", "none: idle=poll")
    states = host.tree.numbered(host.of_core("cpuidle"), "state")
    if not states:
        return good("idle_states", "none")
    deep, listed = [], []
    for number, folder in states:
        state = host.of_core(f"cpuidle/{folder}")
        latency = host.tree.whole(f"{state}/latency")
        off = host.tree.word(f"{state}/disable") != "0"
        listed.append(f"{shown(host.tree.word(f'{state}/name'))} {latency} us{' off' if off else ''}")
        if latency > LONGEST_WAKE_US and not off:
            deep.append(number)
    found = ", ".join(listed)
    if not deep:
        return good("idle_states", found)
    why = "leaving such a state adds its latency to the first tick after a sleep (a loop that spins never enters one)"
    remedy = f"echo 1 > /{host.of_core('cpuidle')}/stateN/disable for N = {list_of(deep)} (--apply idle)"
    return warn("idle_states", found, why, remedy)


def clock_source(host: Host) -> Finding:
    """Only some sources are read without a system call."""
    name = shown(host.tree.word("sys/devices/system/clocksource/clocksource0/current_clocksource"))
    if name in ("tsc", "arch_sys_counter"):
        return good("clock_source", name)
    remedy = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource; boot with tsc=reliable"
    if name in ("kvm-clock", "hyperv_clocksource_tsc_page"):
        return warn("clock_source", name, "read without a system call, but corrected by the hypervisor", remedy)
    return bad("clock_source", name, "each reading of the clock is a system call or a slow device's", remedy)


def invariant_tsc(host: Host) -> Finding:
    """A time stamp counter that runs at one rate, whatever the core does, in step on all cores."""
    flags = fields(host.tree.text("proc/cpuinfo")).get("flags", "").split()
    if not flags:
        field(host.tree.text("proc/cpuinfo"), "flags", "/proc/cpuinfo (an x86 listing)")
    missing = [flag for flag in ("constant_tsc", "nonstop_tsc") if flag not in flags]
    if not missing:
        return good("tsc", "invariant (constant_tsc, nonstop_tsc)")
    why = "the counter's rate follows frequency or sleep, so the kernel may leave it for a slow clock"
    return warn(
        "tsc", f"not invariant: without {', '.join(missing)}", why, "another processor, or the hypervisor's setting"
    )


CHECKS: tuple[tuple[str, Check], ...] = (
    ("cpu", instruction_sets),
    ("virtual_machine", virtual_machine),
    ("cores", cores_online),
    ("siblings", siblings),
    ("governor", governor),
    ("turbo", turbo),
    ("idle_states", idle_states),
    ("clock_source", clock_source),
    ("tsc", invariant_tsc),
)
