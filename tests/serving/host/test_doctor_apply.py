"""`doctor --apply`: exactly what was asked for changes, and the commands it gives put it back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.host.doctor import examine
from serving.host.doctor_apply import ITEMS, Change, Outcome, apply
from serving.host.doctor_finding import Host, Verdict
from serving.host.doctor_tree import Tree
from tests.serving.host.doctor_trees import CPU, tuned, untuned, write

GOVERNOR, DISABLE = f"{CPU}/cpu3/cpufreq/scaling_governor", f"{CPU}/cpu3/cpuidle/state1/disable"
PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def applied(tree: Tree, *items: str, process: str = "self") -> list[Change]:
    return apply(Host(tree, 3, process), list(items), lambda _: None)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Untuned, without the balancer that would undo what is done to interrupts."""
    files = untuned()
    del files["proc/321/comm"]
    return write(tmp_path, files)


def test_the_files_asked_for_are_written_and_no_others(tree: Tree) -> None:
    before = contents(tree.root)
    changes = applied(tree, "governor", "idle", "irqs")
    after = contents(tree.root)
    assert {name: after[name] for name in after if after[name] != before[name]} == {
        GOVERNOR: "performance\n",
        DISABLE: "1\n",
        "proc/irq/24/smp_affinity_list": "0-2\n",
        "proc/irq/25/smp_affinity_list": "0-2\n",  # it had core 3 alone: now all the others
        "proc/irq/default_smp_affinity": "00000007\n",
    }
    assert set(after) == set(before)
    assert all(change.outcome is Outcome.CHANGED for change in changes)
    assert [(change.before, change.after) for change in changes][:2] == [("powersave", "performance"), ("0", "1")]
    found = {finding.topic: finding.verdict for finding in examine(Host(tree, 3))}
    assert {found["governor"], found["idle_states"]} == {Verdict.GOOD}
    assert "0 of 3 may land on core 3" in {f.topic: f for f in examine(Host(tree, 3))}["interrupts"].found


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["governor", "idle", "irqs"]), unique=True, min_size=1), st.integers(0, 3))
def test_the_undo_commands_restore_every_value(
    tmp_path_factory: pytest.TempPathFactory, items: list[str], core: int
) -> None:
    files = untuned()
    del files["proc/321/comm"]
    tree = write(tmp_path_factory.mktemp("a host's files"), files)  # a name that a shell must see quoted
    before = contents(tree.root)
    kept: list[str] = []
    changes = apply(Host(tree, core), items, kept.append)
    assert contents(tree.root) != before
    assert kept == [change.undo for change in changes if change.outcome is Outcome.CHANGED]
    subprocess.run(["sh", "-e", "-c", "\n".join(kept)], check=True)
    mask = "proc/irq/default_smp_affinity"
    assert contents(tree.root) == before | ({mask: "0000000f\n"} if "irqs" in items else {})  # the same mask in full


def test_the_undo_is_kept_before_the_change_is_made(tree: Tree) -> None:
    seen = []
    apply(Host(tree, 3), ["governor"], lambda _: seen.append(tree.word(GOVERNOR)))
    assert seen == ["powersave"]


def test_the_kernels_own_choice_of_words(tree: Tree) -> None:
    """A plain file doesn't put brackets around what was chosen, as the kernel does: told, with the undo."""
    (change,) = applied(tree, "hugepages")
    assert change.outcome is Outcome.REFUSED
    assert (change.before, change.after) == ("always", "madvise")
    assert change.undo == f"echo always > {tree.path(PAGES)}"


def test_what_is_so_already_isn_t_written(tmp_path: Path) -> None:
    tree = write(tmp_path, tuned())
    before = contents(tmp_path)
    outcomes = {change.item: change.outcome for change in applied(tree, "governor", "idle", "irqs", "hugepages")}
    assert outcomes == dict.fromkeys(("governor", "idle", "hugepages"), Outcome.ALREADY)
    assert contents(tmp_path) == before


def test_a_running_balancer_refuses_the_interrupts(tmp_path: Path) -> None:
    tree = write(tmp_path, untuned())
    before = contents(tmp_path)
    (change,) = applied(tree, "irqs")
    assert (change.outcome, "irqbalance runs" in change.reason, change.undo) == (Outcome.REFUSED, True, "")
    assert contents(tmp_path) == before


def test_a_missing_setting_is_refused_and_not_made(tmp_path: Path) -> None:
    changes = applied(Tree(tmp_path), *ITEMS)
    assert {change.outcome for change in changes} == {Outcome.REFUSED}
    assert {change.item for change in changes} == set(ITEMS)
    assert all(change.reason for change in changes)
    assert contents(tmp_path) == {}


def test_a_refusing_kernel_s_reason_is_told(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an interrupt that the kernel manages (EIO) and a user without rights (EACCES) are answered."""

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied") if "cpufreq" in str(path) else OSError(5, "Input/output error")

    monkeypatch.setattr("serving.host.doctor_apply.os.open", refuse)
    before = contents(tree.root)
    governor, *irqs = applied(tree, "governor", "irqs")
    assert "only root may" in governor.reason
    assert all("manages this interrupt itself" in change.reason for change in irqs)
    assert {change.undo for change in (governor, *irqs)} == {""}
    assert contents(tree.root) == before


def test_a_kernel_that_keeps_its_own_value_is_told(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.host.doctor_apply.os.write", lambda handle, data: len(data))
    (change,) = applied(tree, "governor")
    assert (change.outcome, "the kernel has ''" in change.reason) == (Outcome.REFUSED, True)


@contextmanager
def sleeper() -> Iterator[int]:
    """A process of our own to change."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def test_the_affinity_of_a_running_process() -> None:
    core = max(os.sched_getaffinity(0))
    with sleeper() as process:
        before = os.sched_getaffinity(process)
        host = Host(Tree(), core, str(process))
        (change,) = apply(host, ["affinity"], lambda _: None)
        assert os.sched_getaffinity(process) == {core}
        (again,) = apply(host, ["affinity"], lambda _: None)
        assert again.outcome is Outcome.ALREADY
        if change.outcome is Outcome.CHANGED:  # a machine of one core has nothing to change
            subprocess.run(change.undo.split(), check=True, stdout=subprocess.DEVNULL)
        assert os.sched_getaffinity(process) == before


def test_a_priority_is_refused_to_a_process_that_roams() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a machine of one core: nothing can roam")
    with sleeper() as process:
        (change,) = apply(Host(Tree(), 0, str(process)), ["priority"], lambda _: None)
        assert (change.outcome, "pin it first" in change.reason) == (Outcome.REFUSED, True)
        assert os.sched_getscheduler(process) == os.SCHED_OTHER


def test_a_priority_is_given_and_taken_back_or_refused_with_what_it_needs() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a machine of one core: a real-time priority is refused there")
    core = max(os.sched_getaffinity(0))
    with sleeper() as process:
        _, change = apply(Host(Tree(), core, str(process)), ["affinity", "priority"], lambda _: None)
        if change.outcome is Outcome.REFUSED:
            assert "CAP_SYS_NICE" in change.reason
            assert os.sched_getscheduler(process) == os.SCHED_OTHER
            return
        assert os.sched_getscheduler(process) == os.SCHED_FIFO
        subprocess.run(change.undo.split(), check=True)
        assert os.sched_getscheduler(process) == os.SCHED_OTHER


@pytest.mark.parametrize("item", ["affinity", "priority"])
def test_of_several_threads_none_is_guessed(item: str) -> None:
    program = (
        "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start(); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        before = os.sched_getaffinity(child.pid)
        (change,) = apply(Host(Tree(), 0, str(child.pid)), [item], lambda _: None)
        assert (change.outcome, "has 2 threads: name the loop's" in change.reason) == (Outcome.REFUSED, True)
        assert os.sched_getaffinity(child.pid) == before
        child.kill()


@pytest.mark.parametrize("item", ["affinity", "priority"])
def test_a_thread_must_be_named_and_be_of_this_host(item: str, tree: Tree) -> None:
    (change,) = apply(Host(Tree(), 0), [item], lambda _: None)
    assert (change.outcome, "--process" in change.reason) == (Outcome.REFUSED, True)
    (change,) = applied(tree, item, process="1")
    assert (change.outcome, "a copy of a host's files" in change.reason) == (Outcome.REFUSED, True)
