"""The hot loop, tick to order: `strikeforge-host run` itself, with a pulled and verified bundle, replaying real ticks.

In: the order-book files of `--data`. Out: `benchmarks/results/host.jsonl` and `.md`.

- `tick_to_order`: from a tick's *scheduled* arrival to the last order it caused in the order ring, of ticks that caused
  one; `tick_to_done`: every tick, to the end of its work. The hops between are timed from the end of the one before.
  The feed writes `--rate` ticks a second from one core, the loop polls on another; the quoted contracts are repriced on
  the path and every risk check runs. Values are medians over the repeats of each session's percentile.
- `p99_excess`, `p99.9_excess`: less what a loop without a purpose takes on the same core, same schedule: arithmetic
  without memory, as long as the hop's median (`idle_loop`), measured in turn with the sessions. It knows nothing of
  the core that ticks come from, so a tick that was written late counts as ours.
- `p99_excess_fed`, `p99.9_excess_fed`: less what the same arithmetic takes on the same core, *fed by the same feed*
  through the same ring (`idle_loop_fed`), in turn too: what the machine does to either core, and the feed's own
  lateness, is in both. The rest is the hot loop's, and that of what runs around it.
- The bench fails unless every order, fill and signal of every session equals the slow reference's
  (serving/host/reference) bit for bit, but for the two times that are only measured with, and unless the reference
  *without* each stage or check that matters here differs: removing one can't go unnoticed.
- `ring`: benchmarks/host_ring.py, with its peers. `installed`, `resident`: what a host weighs. `allocations`: of the
  loop's thread while it ran.

Run: python -m benchmarks.host [--data DIR] [--repeats 5] [--rate 20000] [--precision int8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.host_footprint import LIMITS_MB, installed_mb
from benchmarks.host_session import LOOP_CORE, Bench, Session, fed_idly, pinned, prepare, reference, resident_mb, run
from benchmarks.results import FOLDER, write_results
from serving import native
from serving.bundle import load_bundle
from serving.engines.native import open_engine
from serving.errors import HostError, run_command
from serving.host.loop import loop_isa, with_controls
from serving.host.records import Kind, Records
from serving.host.reference.compare import first_difference
from serving.host.reference.loop import STAGES

DATA = Path(__file__).parents[2] / "shared" / "data" / "binance_l2_20240808"
FILES = "usdm_btcusdt_20240808_{}.parquet"
PARTS = ("bbo", "book10", "trades")
PERCENTS = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
EXCESSES = ("p99", "p99.9")
WHOLE = "tick_to_order"
TARGETS = {"p50": 6.0, "p99_excess": 4.0, "p99.9_excess": 20.0}  # microseconds, of tick_to_order
IDLE_ARRIVALS = {WHOLE: 100_000}
FEWER_ARRIVALS = 20_000  # of the other hops
PLANT_RECORDS = 20_000  # that a reference without a stage is given
RESIDENT_MB = 100.0

Row = dict[str, Any]


Waits = dict[str, float]  # microseconds by metric


def session_rows(sessions: Sequence[Session], idle: Sequence[dict[str, Waits]], fed: Sequence[Waits]) -> list[Row]:
    """Percentiles of every hop, and what exceeds the idle loops'."""
    rows: list[Row] = []
    for hop in sessions[0].board["hops"]:
        found = [session.board["hops"][hop] for session in sessions]
        if not all(one.total for one in found):
            raise HostError(f"hop {hop!r} was never timed in a session: that stage didn't run")
        for metric, percent in PERCENTS.items():
            values = [one.percentile_ns(percent) / 1e3 for one in found]
            rows.append(_row(hop, metric, "us", values, count=found[0].total))
        rows.append(_row(hop, "max", "us", [one.max_ns / 1e3 for one in found]))
        for metric in EXCESSES:
            mine = [one.percentile_ns(PERCENTS[metric]) / 1e3 for one in found]
            excess = [value - waits[hop][metric] for value, waits in zip(mine, idle, strict=True)]
            rows.append(_row(hop, f"{metric}_excess", "us", excess))
            if hop == WHOLE:
                excess = [value - waits[metric] for value, waits in zip(mine, fed, strict=True)]
                rows.append(_row(hop, f"{metric}_excess_fed", "us", excess))
    for metric in PERCENTS:
        rows.append(_row("idle_loop", metric, "us", [waits[WHOLE][metric] for waits in idle]))
        rows.append(_row("idle_loop_fed", metric, "us", [waits[metric] for waits in fed]))
    return rows


def idle_waits(session: Session, period_ns: int) -> dict[str, Waits]:
    """Microseconds, by hop: what arithmetic as long as each hop's median takes on the loop's core."""
    out = {}
    with pinned(LOOP_CORE):
        for name, hop in session.board["hops"].items():
            busy_ns = int(hop.percentile_ns(50.0)) if hop.total else 0
            waits = native.core().idle_arrivals(IDLE_ARRIVALS.get(name, FEWER_ARRIVALS), period_ns, busy_ns)
            out[name] = _waits(waits)
    return out


def _waits(taken_ns: NDArray[np.int64]) -> Waits:
    return {metric: float(np.percentile(taken_ns, percent)) / 1e3 for metric, percent in PERCENTS.items()}


def _row(case: str, metric: str, unit: str, values: Sequence[float], **more: Any) -> Row:
    return {"case": case, "subject": "strikeforge", "metric": metric, "unit": unit, "value": statistics.median(values),
            "lowest": min(values), "highest": max(values), "repeats": len(values), **more}  # fmt: skip


def checked(bench: Bench, sessions: Sequence[Session]) -> list[str]:
    """HostError unless all sessions left what the reference says, and the reference notices what is missing."""
    bundle = load_bundle(bench.host.bundle.directory)
    records = bench.tape.records
    controlled = with_controls(records, sessions[0].signals)  # when it is stopped the loop cancels what works
    expected = _by_kind(reference(bench, open_engine(bundle, bench.precision, loop_isa())).process(controlled))
    for number, session in enumerate(sessions, 1):
        for name in KINDS:
            if difference := first_difference(getattr(session, name), expected[name]):
                raise HostError(f"session {number}: {name} differ from the reference's: {difference}")
    notes = [f"{len(sessions)} sessions: {len(expected['orders'])} records of orders, {len(expected['fills'])} fills, "
             f"{len(expected['signals'])} signals, each equal to the slow reference's"]  # fmt: skip
    some = records[: _events_end(records, PLANT_RECORDS)]
    whole = reference(bench, open_engine(bundle, bench.precision, loop_isa())).process(some)
    for stage in STAGES:
        without = reference(bench, open_engine(bundle, bench.precision, loop_isa()), without=(stage,)).process(some)
        if not first_difference(without, whole):
            raise HostError(f"what left without {stage!r} is what left with it: this bench wouldn't notice its absence")
    notes.append(f"without {', '.join(STAGES)} (one at a time, {PLANT_RECORDS} records) other records leave")
    return notes


KINDS = {"orders": Kind.ORDER, "fills": Kind.FILL, "signals": Kind.SIGNAL}


def _by_kind(records: Records) -> dict[str, Records]:
    return {name: records[records["kind"] == kind] for name, kind in KINDS.items()}


def _events_end(records: Records, count: int) -> int:
    """A place near `count` that doesn't cut a picture of the book in two."""
    place = min(count, len(records))
    while place < len(records) and records["kind"][place] == Kind.LEVEL:
        place += 1
    return place


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was to be reached beside what was found."""
    found = {(row["case"], row["subject"], row["metric"]): row["value"] for row in rows}
    wanted: list[tuple[str, tuple[str, str, str], float, bool]] = [
        *((f"{WHOLE} {metric}, us", (WHOLE, "strikeforge", metric), limit, True) for metric, limit in TARGETS.items()),
        *(
            (
                f"{WHOLE} {metric}_excess_fed, us",
                (WHOLE, "strikeforge", f"{metric}_excess_fed"),
                TARGETS[f"{metric}_excess"],
                True,
            )
            for metric in EXCESSES
        ),
        ("ring throughput, million/s", ("ring", "strikeforge", "throughput"), 20.0, False),
        ("ring p50, us", ("ring", "strikeforge", "p50"), 0.5, True),
        ("allocations", ("allocations", "strikeforge", "count"), 0.0, True),
        *((f"installed {name}, MB", ("installed", name, "size"), limit, True) for name, limit in LIMITS_MB.items()),
        ("resident, MB", ("resident", "strikeforge", "size"), RESIDENT_MB, True),
    ]
    lines = []
    for what, key, limit, at_most in wanted:
        if key in found:
            reached = found[key] <= limit if at_most else found[key] >= limit
            lines.append(f"- {what}: {found[key]:.4g} ({'<=' if at_most else '>='} {limit:g}: "
                         f"{'reached' if reached else '**not reached**'})")  # fmt: skip
    return lines


def main(argv: Sequence[str]) -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of {FILES.format('*')}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rate", type=int, default=20_000, help="ticks a second")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--only-loop", action="store_true", help="neither the ring's peers nor the installed size")
    given = parser.parse_args(argv)
    files = [given.data / FILES.format(part) for part in PARTS]
    if absent := [str(file) for file in files if not file.exists()]:
        raise HostError(f"bench-host replays real ticks; absent: {', '.join(absent)}: name their folder with --data")
    if len(os.sched_getaffinity(0)) < 2:
        raise HostError("bench-host needs two cores: one for the feed, one for the loop")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="strikeforge-host-") as scratch:
        folder = Path(scratch)
        directory = Path("/dev/shm") / folder.name
        bench = prepare(
            folder, directory, "binance_l2", files, f"{{events_per_second = {given.rate}}}", given.precision
        )
        sessions, idle, fed = [], [], []
        for repeat in range(given.repeats):
            sessions.append(run(bench))
            idle.append(idle_waits(sessions[-1], 1_000_000_000 // given.rate))
            fed.append(_waits(fed_idly(bench, sessions[-1], LOOP_CORE)))
            sys.stdout.write(f"session {repeat + 1} of {given.repeats}\n{sessions[-1].said}\n")
            sys.stdout.flush()
        notes = checked(bench, sessions)
        rows += session_rows(sessions, idle, fed)
        rows.append(_row("allocations", "count", "count", [float(one.board["allocations"]) for one in sessions]))
        rows.append(_row("resident", "size", "MB", [resident_mb(bench)]))
        if not given.only_loop:
            from benchmarks.host_ring import ring_rows

            rows += ring_rows()
            rows += [{"case": "installed", "subject": name, "metric": "size", "unit": "MB", "value": size}
                     for name, size in installed_mb(folder / "installed").items()]  # fmt: skip
    listed = verdicts(rows)
    note = "\n\n".join(("\n".join(f"- {one}" for one in notes), "\n".join(listed)))
    for path in write_results("host", rows, note=note, folder=given.results):
        sys.stdout.write(f"{path}\n")
    sys.stdout.write("\n".join(listed) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
