"""Checks of memory and network: where memory lies, pages, swap, locks, shared memory, sockets.

Data in: a `Host`. Data out: one `Finding` each, or `UnreadableError`.
"""

from __future__ import annotations

import os
import re

from serving.host.doctor_finding import Check, Finding, Host, bad, good, warn
from serving.host.doctor_process import has_capability
from serving.host.doctor_tree import UnreadableError, field, shown, whole

CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK = 12, 13, 14
RESIDENT_BYTES = 100 << 20  # what a loop may hold (shared/design/numbers.md), so what it may want to lock
SHARED_BYTES = 64 << 20  # rings and board, generously
RECEIVE_BYTES = 8 << 20  # 20,000 packets of 400 bytes: a second of a busy feed
NODES = "sys/devices/system/node"
PAGES = "sys/kernel/mm/transparent_hugepage"


def numa(host: Host) -> Finding:
    """Memory of another node is half as fast again to reach."""
    nodes = host.tree.numbered(NODES, "node")
    own = [number for number, name in nodes if host.core in host.tree.cores(f"{NODES}/{name}/cpulist")]
    if not own:
        raise UnreadableError(f"/{NODES}: no node has core {host.core}")
    pages = pages_by_node(host)
    total = sum(pages.values())
    where = (
        ", ".join(f"{count / total:.0%} on node {node}" for node, count in sorted(pages.items()))
        if total
        else "unknown"
    )
    found = f"{len(nodes)} node(s), core {host.core} in node {own[0]}; memory: {where}"
    if len(nodes) == 1:
        return good("numa", found)
    away = total - pages.get(own[0], 0)
    remedy = f"numactl --cpunodebind={own[0]} --membind={own[0]} strikeforge-host run ..."
    if away * 10 > total:
        return bad("numa", found, f"{away / total:.0%} of the process's memory is on another node", remedy)
    balancing = "proc/sys/kernel/numa_balancing"
    if host.tree.has(balancing) and host.tree.word(balancing) != "0":
        why = "the kernel unmaps pages now and then to see who uses them (numa_balancing)"
        return warn("numa", found, why, "sysctl -w kernel.numa_balancing=0")
    return good("numa", found)


def pages_by_node(host: Host) -> dict[int, int]:
    """Mapped pages of the process by node."""
    try:
        text = host.tree.text(host.of_process("numa_maps"))
    except UnreadableError:
        return {}  # a kernel without NUMA has no such file
    found: dict[int, int] = {}
    for node, count in re.findall(r" N([0-9]{1,4})=([0-9]{1,15})\b", text):
        found[int(node)] = found.get(int(node), 0) + int(count)
    return found


def huge_pages(host: Host) -> Finding:
    """Transparent huge pages: the kernel may stop the loop to gather them. Reserved ones are only told."""
    mode, defrag = (chosen(host, f"{PAGES}/{name}") for name in ("enabled", "defrag"))
    meminfo = host.tree.text("proc/meminfo")
    reserved = field(meminfo, "HugePages_Total", "/proc/meminfo")
    found = f"transparent: {mode}, defrag: {defrag}; reserved: {shown(reserved)} (the loop uses none)"
    if mode != "always":
        return good("huge_pages", found)
    why = "khugepaged gathers pages of any process and holds it up while it does"
    return warn("huge_pages", found, why, f"echo madvise > /{PAGES}/enabled (--apply hugepages)")


def chosen(host: Host, name: str) -> str:
    """The word in brackets of a setting such as "always [madvise] never"."""
    text = host.tree.word(name)
    match = re.search(r"\[([a-z+-]+)\]", text)
    if match is None:
        raise UnreadableError(f"/{name}: {shown(text)!r} has no choice in brackets")
    return match[1]


def swap(host: Host) -> Finding:
    """A page that was swapped out costs milliseconds when it is touched."""
    total = field(host.tree.text("proc/meminfo"), "SwapTotal", "/proc/meminfo")
    kilobytes = whole(total.removesuffix("kB").strip(), "/proc/meminfo: SwapTotal")
    if kilobytes == 0:
        return good("swap", "none")
    swappiness = host.tree.whole("proc/sys/vm/swappiness")
    why = "pages of the loop that rest (a rare branch) may be swapped out unless they are locked"
    found = f"{kilobytes >> 10} MB, swappiness {swappiness}"
    return warn("swap", found, why, "swapoff -a, or lock the process's memory (RLIMIT_MEMLOCK)")


def locked_memory(host: Host) -> Finding:
    """Whether the loop's memory may be kept from being taken back."""
    name = host.of_process("limits")
    limit = next(
        (line.split() for line in host.tree.text(name).splitlines() if line.startswith("Max locked memory")), []
    )
    if len(limit) < 4:
        raise UnreadableError(f"/{name}: has no line 'Max locked memory'")
    capable = has_capability(host, CAP_IPC_LOCK)
    found = f"RLIMIT_MEMLOCK {shown(limit[3])}, {'with' if capable else 'without'} CAP_IPC_LOCK"
    if capable or limit[3] == "unlimited" or whole(limit[3], f"/{name}") >= RESIDENT_BYTES:
        return good("locked_memory", found)
    why = f"less than the {RESIDENT_BYTES >> 20} MB that a loop may hold: its pages can be taken back under pressure"
    return warn("locked_memory", found, why, "'memlock unlimited' in /etc/security/limits.conf, LimitMEMLOCK=infinity")


def shared_memory(host: Host) -> Finding:
    """The rings and the board lie in files of /dev/shm."""
    try:
        told = os.statvfs(host.tree.path("dev/shm"))
    except OSError as error:
        raise UnreadableError(f"/dev/shm: {error.strerror}") from error
    free, total = told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize
    found = f"{free >> 20} of {total >> 20} MB free in /dev/shm"
    if free >= SHARED_BYTES:
        return good("shared_memory", found)
    why = f"rings and board may take {SHARED_BYTES >> 20} MB; where it is full, writing ends a process (SIGBUS)"
    return bad("shared_memory", found, why, "mount -o remount,size=256m /dev/shm (docker: --shm-size=256m)")


def packet_capture(host: Host) -> Finding:
    """Packet rings need a capability; UDP sockets don't."""
    if has_capability(host, CAP_NET_RAW):
        return good("packet_capture", "with CAP_NET_RAW")
    why = "AF_PACKET rings can't be opened; feeds over UDP sockets work"
    return warn(
        "packet_capture", "without CAP_NET_RAW", why, "setcap cap_net_raw+ep on the interpreter, or --cap-add NET_RAW"
    )


def receive_buffers(host: Host) -> Finding:
    """How much of a burst the kernel keeps while the loop is away."""
    most = host.tree.whole("proc/sys/net/core/rmem_max")
    usual = host.tree.whole("proc/sys/net/core/rmem_default")
    found = f"rmem_max {most}, rmem_default {usual} bytes"
    if most >= RECEIVE_BYTES or has_capability(host, CAP_NET_ADMIN):
        return good("receive_buffers", found, "" if most >= RECEIVE_BYTES else "CAP_NET_ADMIN may go beyond rmem_max")
    why = f"a feed can't ask for {RECEIVE_BYTES} bytes: a burst while the loop is away is dropped"
    return warn("receive_buffers", found, why, f"sysctl -w net.core.rmem_max={RECEIVE_BYTES}")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("numa", numa),
    ("huge_pages", huge_pages),
    ("swap", swap),
    ("locked_memory", locked_memory),
    ("shared_memory", shared_memory),
    ("packet_capture", packet_capture),
    ("receive_buffers", receive_buffers),
)
