"""`strikeforge-host doctor`: its words, its exit codes, this very machine."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from serving.cli_doctor import add_doctor, run_doctor
from serving.errors import run_command
from serving.host import doctor_probes
from serving.host.doctor import CHECKS
from tests.serving.host.doctor_trees import CPU, container, tuned, untuned, write
from tests.serving.native.built import built_core

core = built_core()
EXAMPLE = Path(run_doctor.__code__.co_filename).parent / "host" / "host.example.toml"
LOOP = """
import os, sys, threading
core = int(sys.argv[1])
def loop():
    os.sched_setaffinity(0, {core})
    print("pinned", flush=True)
    threading.Event().wait()
os.sched_setaffinity(0, os.sched_getaffinity(0) - {core})
threading.Thread(target=loop, daemon=True).start()
input()
"""
LAST = max(os.sched_getaffinity(0))


def doctor(*options: str) -> int:
    parser = argparse.ArgumentParser()
    add_doctor(parser)
    return run_command(lambda argv: run_doctor(parser.parse_args(argv)), options)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--json", "--seconds", "0.02") == 0
    told = json.loads(capsys.readouterr().out)
    topics = [finding["topic"] for finding in told["findings"]]
    assert topics == [topic for topic, _ in CHECKS] + ["clock_cost", "idle_gaps", "hardware_counters"]
    assert sum(told["counts"].values()) == len(topics)
    assert told["changes"] == []
    assert {f["verdict"] for f in told["findings"] if f["topic"] in ("clock_cost", "idle_gaps")} <= {
        "good",
        "warn",
        "bad",
    }


def test_the_probe_leaves_the_thread_where_it_was() -> None:
    before = os.sched_getaffinity(0)
    doctor_probes.probe(LAST, 0.001)
    assert os.sched_getaffinity(0) == before


def test_the_same_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, untuned())
    assert doctor("--root", str(tmp_path), "--core", "3") == 0
    out = capsys.readouterr().out
    assert out.startswith("core 3 (as asked), no running loop\n")
    assert "bad      governor" in out
    assert "-> echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor" in out
    assert out.endswith("10 good, 15 warn, 4 bad, 0 unknown\n")


def test_strict_is_for_scripts(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good", tuned()).root, write(tmp_path / "bad", untuned()).root
    assert doctor("--root", str(good), "--strict") == 0
    assert doctor("--root", str(bad)) == 0
    assert doctor("--root", str(bad), "--strict") == 14


def test_nothing_is_there_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--root", str(tmp_path), "--strict") == 0
    assert f"{len(CHECKS)} unknown" in capsys.readouterr().out
    assert doctor("--root", str(tmp_path / "nothing")) == 14
    assert f"--root {tmp_path / 'nothing'}: there is no such folder" in capsys.readouterr().err


def test_a_container_doesn_t_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, container())
    assert doctor("--root", str(tmp_path)) == 0
    assert "unknown  numa" in capsys.readouterr().out


def test_the_core_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "host.toml"
    config.write_text(EXAMPLE.read_text().replace("# core = 3 ", "core = 2 "))
    root = write(tmp_path / "host", tuned()).root
    assert doctor("--root", str(root), "--config", str(config)) == 0
    assert capsys.readouterr().out.startswith("core 2 ([loop] core of host.toml), ")
    assert doctor("--root", str(root), "--config", str(EXAMPLE)) == 0  # it names none
    assert capsys.readouterr().out.startswith("core 3 (the last isolated one), ")
    assert doctor("--root", str(root), "--config", str(tmp_path / "none.toml")) == 2


@contextmanager
def pinned_loop() -> Iterator[int]:
    """A process whose second thread is pinned to the last core, as `run` does it."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, str(LAST)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a machine of one core: no core for the loop alone")
def test_a_running_loop_is_found_by_its_pinned_thread_and_not_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    with pinned_loop() as process:
        assert doctor("--process", str(process), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = {finding["topic"]: finding for finding in told["findings"]}
    assert told["core"] == LAST
    assert told["process"] not in ("self", str(process))
    assert (found["affinity"]["verdict"], found["affinity"]["why"]) == ("good", "no other thread of its process may")
    for topic in ("clock_cost", "idle_gaps"):  # a spin on that core would take it from the loop
        assert found[topic]["verdict"] == "unknown"
        assert "a loop runs there" in found[topic]["found"]


def test_what_is_applied_is_shown_and_its_undo_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree, script = write(tmp_path / "host", untuned()), tmp_path / "undo.sh"
    options = ("--root", str(tree.root), "--core", "3", "--undo-script", str(script))
    assert doctor(*options, "--apply", "governor,idle") == 0
    out = capsys.readouterr().out
    assert "changed  governor: /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor: powersave -> performance" in out
    assert "good     governor" in out  # looked at after the change
    assert script.read_text().splitlines()[2:] == [
        f"echo powersave > {tree.path(f'{CPU}/cpu3/cpufreq/scaling_governor')}",
        f"echo 0 > {tree.path(f'{CPU}/cpu3/cpuidle/state1/disable')}",
    ]
    assert doctor(*options, "--apply", "governor") == 14  # an older undo isn't overwritten
    assert "nothing was changed: name a new file" in capsys.readouterr().err


def test_a_refused_change_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, untuned())
    assert doctor("--root", str(tmp_path), "--apply", "irqs") == 14
    assert "refused  irqs: /proc/irq: irqbalance runs" in capsys.readouterr().out


def test_a_process_that_isn_t_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--process", "999999999") == 14
    assert "--process 999999999: there is no such process" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--apply", "everything"), ("--core", "-1"), ("--core", "x"), ("--process", "0"), ("--process", "../1"),
        ("--seconds", "nan"), ("--seconds", "1e9"), ("--seconds", "-1"),
    ],
)  # fmt: skip
def test_wrong_usage(options: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        doctor(*options)
    assert stopped.value.code == 2


def test_a_core_that_isn_t_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--core", "4095", "--seconds", "0.01") == 0
    assert "the probe can't be put on core 4095" in capsys.readouterr().out


def test_gaps_fill_the_windows() -> None:
    """Every window has a largest gap, no longer than all of them took, and none is negative."""
    gaps = core.largest_gaps(200, 10_000)
    assert gaps.shape == (200,)
    assert (gaps > 0).all()
    assert core.largest_gaps(0, 10_000).size == 0
    assert 0 < core.clock_cost_ns(11) < 1e6
    assert core.clock_cost_ns(0) > 0


def test_arithmetic_takes_what_it_should_at_least() -> None:
    """Calibrated on the fastest try: half of 200 us could only be missed by a clock that doubled its rate."""
    taken = core.idle_arrivals(50, 0, 200_000)
    assert taken.shape == (50,)
    assert taken.min() > 100_000
    on_schedule = core.idle_arrivals(20, 300_000, 0)
    assert (on_schedule >= 0).all()


def test_counters_are_told_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(config: int, run: object) -> int:
        raise OSError(errno.ENOENT if config else errno.EACCES, "no")

    monkeypatch.setattr(doctor_probes, "count", refused)
    found = doctor_probes.hardware_counters().found
    assert "not supported here: the processor's counters aren't visible, as in most virtual machines (ENOENT)" in found
    assert "perf_event_paranoid=1, or CAP_PERFMON (EACCES)" in found
    monkeypatch.setattr(doctor_probes, "count", lambda config, run: 1234)
    assert "1,234 cycles, 1,234 instructions" in doctor_probes.hardware_counters().found


def test_what_the_system_counts_grows_with_the_work() -> None:
    few, many = np.arange(10), np.arange(2_000_000)
    try:
        counted = [doctor_probes.count(1, array.sum) for array in (few, many)]
    except OSError as error:
        pytest.skip(f"no hardware counters here: {error}")
    assert counted[0] < counted[1]
