"""`doctor` on made-up hosts: what it finds, and that no file, however broken, stops it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.host.doctor import CHECKS, examine, likely_core
from serving.host.doctor_finding import Finding, Host, Verdict
from serving.host.doctor_process import loops_thread
from serving.host.doctor_tree import Tree, UnreadableError, cores_of, cores_of_mask, list_of, mask_of
from tests.serving.host.doctor_trees import CPU, Files, container, tuned, untuned, virtual, write

GOOD, WARN, BAD, UNKNOWN = Verdict.GOOD, Verdict.WARN, Verdict.BAD, Verdict.UNKNOWN
NAMES = sorted({*untuned(), *tuned(), *virtual(), *container()})


def findings(tree: Tree, core: int = 3) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(Host(tree, core))}


def verdicts(folder: Path, files: Files, core: int = 3) -> dict[str, Verdict]:
    return {topic: finding.verdict for topic, finding in findings(write(folder, files), core).items()}


def test_a_tuned_host_is_good_in_everything(tmp_path: Path) -> None:
    found = verdicts(tmp_path, tuned())
    assert {topic for topic, verdict in found.items() if verdict is not GOOD} == set()
    assert list(found) == [topic for topic, _ in CHECKS]


def test_an_untuned_host_is_told_what_to_mend(tmp_path: Path) -> None:
    found = findings(write(tmp_path, untuned()))
    assert {topic for topic, finding in found.items() if finding.verdict is BAD} == {
        "governor", "clock_source", "isolated", "numa",
    }  # fmt: skip
    assert {topic for topic, finding in found.items() if finding.verdict is WARN} == {
        "siblings", "idle_states", "tick", "rcu_callbacks", "workqueues", "interrupts", "irqbalance", "priority",
        "timer_slack", "watchdogs", "huge_pages", "swap", "locked_memory", "packet_capture", "receive_buffers",
    }  # fmt: skip
    assert all(finding.why and finding.remedy for finding in found.values() if finding.verdict in (WARN, BAD))
    assert "1000 times a second" in found["tick"].why
    assert "2 of 3 may land on core 3, 2 do now: 24-25" in found["interrupts"].found
    assert "89% of the process's memory" in found["numa"].why


def test_a_guest_is_told_what_its_hypervisor_decides(tmp_path: Path) -> None:
    found = findings(write(tmp_path, virtual()), core=1)
    assert found["virtual_machine"].verdict is WARN
    assert "Made-up Cloud" in found["virtual_machine"].found
    assert "5.00% of core 1's time was stolen" in found["virtual_machine"].found
    assert (found["governor"].verdict, found["turbo"].verdict) == (UNKNOWN, UNKNOWN)
    assert "hypervisor" in found["governor"].found
    assert (found["cores"].verdict, found["clock_source"].verdict) == (WARN, WARN)


def test_a_container_without_sys_is_unknown_where_nothing_tells(tmp_path: Path) -> None:
    found = findings(write(tmp_path, container()))
    unknown = {topic for topic, finding in found.items() if finding.verdict is UNKNOWN}
    assert {"cores", "siblings", "governor", "clock_source", "isolated", "numa", "huge_pages"} <= unknown
    assert all("/" in found[topic].found for topic in unknown)  # the file that is missing
    assert found["cpu_quota"].verdict is BAD
    assert "150000 of each 100000 us" in found["cpu_quota"].found


def test_the_tightest_quota_above_the_process_counts(tmp_path: Path) -> None:
    assert verdicts(tmp_path, tuned() | {"sys/fs/cgroup/cpu.max": "50000 100000\n"})["cpu_quota"] is BAD


def test_a_quota_of_the_first_version_of_cgroups(tmp_path: Path) -> None:
    files = {name: content for name, content in tuned().items() if not name.startswith("sys/fs/cgroup")}
    files |= {"proc/self/cgroup": "4:cpu,cpuacct:/docker/7\n0::/\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert verdicts(tmp_path, files | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"})["cpu_quota"] is GOOD
    assert verdicts(tmp_path, files | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "20000\n"})["cpu_quota"] is BAD


@pytest.mark.parametrize(
    ("change", "topic"),
    [
        ({f"{CPU}/online": "0-2\n"}, "cores"),
        ({f"{CPU}/isolated": "2\n"}, "isolated"),
        ({f"{CPU}/nohz_full": "2\n"}, "tick"),
        ({f"{CPU}/cpu3/cpufreq/scaling_governor": "schedutil\n"}, "governor"),
        ({f"{CPU}/cpu3/cpuidle/state1/disable": "0\n"}, "idle_states"),
        ({f"{CPU}/cpu3/topology/thread_siblings_list": "3,7\n"}, "siblings"),
        ({"proc/cmdline": "isolcpus=3 rcu_nocbs=2\n"}, "rcu_callbacks"),
        ({"proc/cpuinfo": "flags : avx2 fma f16c\n"}, "cpu"),
        ({"proc/cpuinfo": "flags : sse2\n"}, "cpu"),
        ({"proc/irq/25/smp_affinity_list": "3\n"}, "interrupts"),
        ({"proc/self/status": "CapEff:\t1\nCpus_allowed_list:\t0-2\n"}, "affinity"),
        ({"proc/self/stat": "7 (loop) R " + "1 " * 36 + "50 1 0\n"}, "realtime_throttle"),
        ({"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"}, "huge_pages"),
        ({"proc/self/numa_maps": "7f00 default N0=5 N1=5\n"}, "numa"),
        ({"proc/sys/kernel/numa_balancing": "1\n"}, "numa"),
    ],
)
def test_one_thing_out_of_tune_is_found(tmp_path: Path, change: Files, topic: str) -> None:
    assert verdicts(tmp_path / "tuned", tuned())[topic] is GOOD
    assert verdicts(tmp_path / "changed", tuned() | change)[topic] in (WARN, BAD)


TICKS = {78: 900, 80: 3}  # how long threads have run


def running_loop(threads: dict[int, str]) -> Files:
    """A process 77 with these threads and the cores that each may use; thread 78 is looked at by its own number."""
    files = {name.replace("/self/", f"/{number}/"): content for name, content in tuned().items() for number in (77, 78)}
    for thread, cores in threads.items():
        status = f"Tgid:\t77\nCapEff:\t0\nCpus_allowed_list:\t{cores}\n"
        files |= {f"proc/{group}/task/{thread}/status": status for group in (77, 78)}
        files[f"proc/77/task/{thread}/stat"] = f"{thread} (python) R " + "0 " * 10 + f"{TICKS.get(thread, 0)} 1\n"
        files[f"proc/{thread}/status"] = status
    return tuned() | files


@pytest.mark.parametrize(
    ("threads", "looked_at", "verdict"),
    [
        ({77: "0-2", 78: "3"}, (3, "78"), GOOD),
        ({77: "0-3", 78: "3"}, (3, "78"), WARN),  # housekeeping may come in between
        ({77: "0-3", 78: "0-3"}, (3, "77"), WARN),  # nothing tells which thread is the loop's
        ({77: "0", 78: "3"}, (3, "78"), GOOD),  # two cores: the first thread isn't the loop's
        ({77: "0", 79: "0", 78: "3", 80: "3"}, (3, "78"), WARN),  # the busiest; another one may run there too
        ({77: "0-3", 79: "3", 81: "2"}, (3, "77"), WARN),  # two are pinned, and none has run: nothing tells which
        ({77: "3"}, (3, "77"), GOOD),
    ],
)
def test_a_running_loop_is_its_pinned_thread(
    tmp_path: Path, threads: dict[int, str], looked_at: tuple[int, str], verdict: Verdict
) -> None:
    tree = write(tmp_path, running_loop(threads))
    host = loops_thread(Host(tree, 3, "77"))
    assert loops_thread(Host(tree, 1, "77"), 1) == Host(tree, 1, "77")  # none is pinned to core 1
    assert (host.core, host.process) == looked_at
    affinity = {finding.topic: finding for finding in examine(host)}["affinity"]
    assert (affinity.verdict, f"thread {looked_at[1]} may use" in affinity.found) == (verdict, True)


def test_isolation_by_a_cgroup_counts(tmp_path: Path) -> None:
    assert verdicts(tmp_path, untuned() | {"sys/fs/cgroup/cpuset.cpus.isolated": "2-3\n"})["isolated"] is GOOD


def test_the_core_that_a_loop_would_get(tmp_path: Path) -> None:
    isolated = tuned() | {f"{CPU}/isolated": "1-2\n"}
    assert likely_core(write(tmp_path / "isolated", isolated), "self")[0] == 2
    assert likely_core(write(tmp_path / "untuned", untuned()), "self")[0] == 3
    assert likely_core(Tree(tmp_path / "nothing"), "self")[0] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.none() | st.binary(max_size=40) | st.text(max_size=40), min_size=1),
    st.sampled_from([untuned, tuned, virtual, container]),
)
def test_garbage_in_files_never_stops_it(garbage: dict[str, bytes | str | None], host: type) -> None:
    """Files replaced by bytes, by words, or by folders: every check still answers, in printable words."""
    with tempfile.TemporaryDirectory() as folder:
        tree = write(Path(folder), host())
        for name, content in garbage.items():
            path = Path(folder) / name
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        core, _ = likely_core(tree, "self")
        found = [*examine(Host(tree, core)), *examine(Host(tree, 3))]
    assert len(found) == 2 * len(CHECKS)
    assert all(finding.found.isprintable() and finding.why.isprintable() for finding in found)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60))
def test_every_file_of_the_same_garbage(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found = examine(Host(Tree(Path(folder)), likely_core(Tree(Path(folder)), "self")[0]))
    assert all(finding.found.isprintable() for finding in found)


@given(st.frozensets(st.integers(0, 300), max_size=40))
def test_lists_and_masks_of_cores_come_back(cores: frozenset[int]) -> None:
    assert cores_of_mask(mask_of(cores), "here") == cores
    assert cores_of("" if not cores else list_of(cores), "here") == cores


@pytest.mark.parametrize("text", ["0-99999999", "-1", "3-1", "1,,2", "x", "0x3", "1-2:0/0", "1-2:1", "²"])
def test_what_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(UnreadableError, match="isn't a list of cores"):
        cores_of(text, "here")


def test_lists_with_strides_and_no_cores() -> None:
    assert cores_of("0-7:2/4", "here") == {0, 1, 4, 5}
    assert cores_of("(null)\n", "here") == frozenset()
