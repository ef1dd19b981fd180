"""Records between two processes on two cores: our ring, natively and from Python, against what else Python has.

Out: rows of case `ring` (benchmarks/results.py). `throughput`: messages of 56 bytes a second, in million, from the
first received to the last, nothing lost. `p50`, `p99`: from the sender's stamp (CLOCK_MONOTONIC) until the receiver has
the message, one sent every 50 us; both clocks' readings are in it. Sender and receiver keep to one core each; each
subject's processes are new in each repeat, subjects in turns; figures are medians over the repeats.

`strikeforge`: both loops in C++. `strikeforge_python`: from Python, record by record, as its peers are called; `ratio`
compares this one with the best peer of each metric.

Run: python -m benchmarks.host_ring [--repeats 5]
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines_timing import MICROSECOND, Nanoseconds
from benchmarks.host_ring_ends import Ends, all_ends
from benchmarks.results import FOLDER, write_results
from serving import native
from serving.errors import HostError, run_command

INTERVAL_NS = 50_000  # 20,000 messages a second
PACED_COUNT = 20_000
WARM_UP = PACED_COUNT // 10  # first messages that aren't counted
PATIENCE_SECONDS = 60.0
MEASURED = {"throughput": "million/s", "p50": "us", "p99": "us"}
OURS, SAME_CALLER = "strikeforge", "strikeforge_python"


def two_cores() -> tuple[int, int]:
    """The last two that this process may use: the first ones take the machine's interrupts."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise HostError(f"bench-host: the ring is timed between two cores; this process may use {cores} only")
    return cores[-2], cores[-1]


def _sender(ends: Ends, core: int, address: Any, count: int, interval_ns: int, go: Connection) -> None:
    os.sched_setaffinity(0, {core})
    gc.disable()
    go.send("ready")
    go.recv()
    ends.send(address, count, interval_ns)


def _receiver(ends: Ends, core: int, address: Any, count: int, latencies: bool, report: Connection) -> None:
    os.sched_setaffinity(0, {core})
    gc.disable()
    report.send(ends.receive(address, count, latencies, lambda: report.send("ready")))


def carried(ends: Ends, count: int, interval_ns: int) -> tuple[int, Nanoseconds | None]:
    """Send `count` messages from one new process to another; what the receiver measured."""
    context = get_context("spawn")
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="bench-ring-", dir=shared if shared.is_dir() else None))
    children = []
    try:
        address = ends.open(context, folder)
        report, reporting = context.Pipe()
        go, going = context.Pipe()
        first, second = two_cores()
        for target, core, given in (
            (_receiver, second, (count, interval_ns > 0, reporting)),
            (_sender, first, (count, interval_ns, going)),
        ):
            children.append(context.Process(target=target, args=(ends, core, address, *given), daemon=True))
            children[-1].start()
        for told in (report, go):
            _heard(told, ends)
        go.send("go")
        elapsed, latencies = _heard(report, ends)
        for child in children:
            child.join(PATIENCE_SECONDS)
        return elapsed, latencies
    finally:
        for child in children:
            child.kill()
        shutil.rmtree(folder)


def _heard(pipe: Connection, ends: Ends) -> Any:
    if not pipe.poll(PATIENCE_SECONDS):
        raise HostError(f"ring: {ends.name}: a process said nothing for {PATIENCE_SECONDS:.0f} s; its error is above")
    return pipe.recv()


def measure(ends: Ends) -> dict[str, float]:
    """One repeat."""
    elapsed, _ = carried(ends, ends.fastest_count, 0)
    _, latencies = carried(ends, PACED_COUNT, INTERVAL_NS)
    assert latencies is not None
    p50, p99 = np.percentile(latencies[WARM_UP:], [50, 99]) / MICROSECOND
    return {"throughput": 1000.0 * (ends.fastest_count - 1) / elapsed, "p50": float(p50), "p99": float(p99)}


def ring_rows(repeats: int = 5) -> list[dict[str, Any]]:
    """Rows of case `ring`."""
    reason = native.why_unavailable()
    if reason is not None:
        raise HostError(f"bench-host times the native core: {reason}")
    subjects = all_ends()
    found: dict[str, list[dict[str, float]]] = {ends.name: [] for ends in subjects}
    for repeat in range(repeats):
        for ends in subjects[:: 1 if repeat % 2 == 0 else -1]:
            found[ends.name].append(measure(ends))
    rows: list[dict[str, Any]] = [
        {
            "case": "ring",
            "subject": name,
            "metric": metric,
            "unit": unit,
            "value": statistics.median(one[metric] for one in repeated),
        }
        for name, repeated in found.items()
        for metric, unit in MEASURED.items()
    ]
    peers = [name for name in found if name not in (OURS, SAME_CALLER)]
    for metric in MEASURED:
        rows.append(_ratio(metric, found, peers))
    return rows


def ring_note(rows: Sequence[dict[str, Any]]) -> str:
    """A paragraph above them: how, and who is missing."""
    cores = two_cores()
    note = f"ring: sender on core {cores[0]}, receiver on core {cores[1]}; medians of repeats."
    if not any(row["subject"].startswith("zeromq") for row in rows):
        note += " No zeromq rows: pyzmq isn't installed (pip install 'strikeforge[bench]')."
    return note


def _ratio(metric: str, found: dict[str, list[dict[str, float]]], peers: Sequence[str]) -> dict[str, Any]:
    """Ours from Python against the best peer, repeat by repeat; above 1 means ours is better."""
    more_is_better = metric == "throughput"

    def middle(name: str) -> float:
        return statistics.median(one[metric] for one in found[name])

    best = max(peers, key=middle) if more_is_better else min(peers, key=middle)
    pairs = [(ours[metric], peer[metric]) for ours, peer in zip(found[SAME_CALLER], found[best], strict=True)]
    ratios = [ours / peer if more_is_better else peer / ours for ours, peer in pairs]
    row = {"case": "ring", "subject": "ratio", "metric": metric, "unit": "ratio", "value": statistics.median(ratios)}
    return {**row, "of": SAME_CALLER, "against": best}


def main(arguments: Sequence[str]) -> int:
    """Measure, and write `host_ring.jsonl` and `.md`; bench-host writes the same rows into `host.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=FOLDER, help="where host_ring.jsonl and host_ring.md go")
    options = parser.parse_args(arguments)
    rows = ring_rows(options.repeats)
    for path in write_results("host_ring", rows, note=ring_note(rows), folder=options.results):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
