"""How fast the engines answer a tick: native core against ONNX Runtime, OpenVINO and PyTorch, on the same bundles.

In: nothing but this machine (weights are random, seeded). Out: `benchmarks/results/engines.jsonl` and `.md`, and the
tables of docs/engines.md. Cases: benchmarks/engines_cases.py and engines_chain.py; peers: engines_ort.py,
engines_openvino.py, engines_torch.py; how calls are timed: engines_timing.py; ratios: engines_rows.py; the least time
that memory allows: engines_bandwidth.py.

Each case runs in a process of its own, so that no case meets the threads, arenas and heap of the one before; the
subjects of a case share one, in turns. One thread: the libraries' own settings, and OMP_NUM_THREADS and its like.
Results are written after every case. A case that fails is named at the end, with exit code 1; the others are kept. A
whole run needs every peer; with `--quick`, a peer that isn't installed is named in the notes.

Run: python -m benchmarks.engines [--cases lstm_small_step chain_5000] [--calls 20000] [--seconds 0.4] [--repeats 5]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import engines_page
from benchmarks.engines_choice import OPTIONAL_PEERS
from benchmarks.engines_timing import Effort
from benchmarks.results import FOLDER, write_results
from serving.errors import EngineError, StrikeforgeError, run_command

STEPS = (
    "lstm_small_step", "lstm_mid_step", "lstm_production_step", "stac_lstm_a_window", "stac_lstm_b_window",
    "transformer_step",
)  # fmt: skip
CHAIN, OVERHEAD, BANDWIDTH = "chain_5000", "overhead", "bandwidth"
CASES = (*STEPS, CHAIN, OVERHEAD, BANDWIDTH)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
NOTE = (
    "Medians over repeats of each repeat's percentile (`lowest` and `highest` beside); one thread, one core, governor "
    "unknown. `error`: largest absolute difference from the same net in float64; `spread`: standard deviation of what "
    "is answered. `advance_p50`: work done between ticks. `null` answers zeros: what clock, caller and checks cost. "
    "`idle_p99`: a loop on the same core that only reads the clock until `p50` has passed, once after every call; "
    "`p99_excess`: p99 without what that loop's p99 exceeds its median by. `whole_p50`: evaluate and advance together, "
    "as if nothing were known ahead. `head_p50`: the head alone."
)
LONGEST_SECONDS = 900  # of a case: one that hangs mustn't keep the others from being written


def run_one(case: str, effort: Effort, quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and notes of one case, in this process."""
    if case == BANDWIDTH:
        from benchmarks.engines_bandwidth import bandwidth_rows, measured_bandwidth
        from benchmarks.engines_cases import CASES as NETS
        from benchmarks.engines_timing import pin

        pin()
        return bandwidth_rows(NETS, measured_bandwidth()), []
    if case == OVERHEAD:
        from benchmarks.engines_overhead import run_overhead

        return run_overhead(effort)
    with tempfile.TemporaryDirectory(prefix="strikeforge-engines-") as scratch:
        if case == CHAIN:
            from benchmarks.engines_chain import run_chain

            return run_chain(Path(scratch), effort, compiled=not quick)
        from benchmarks.engines_cases import CASES as NETS
        from benchmarks.engines_steps import run_case

        (net,) = (one for one in NETS if one.name == case)
        return run_case(net, Path(scratch), effort, compiled=not quick, every_isa=not quick)


def run_apart(case: str, arguments: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The same in a process of its own; StrikeforgeError where it fails."""
    command = [sys.executable, "-m", "benchmarks.engines", *arguments, "--inside", case]
    try:
        done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True,
                              check=False, timeout=LONGEST_SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise StrikeforgeError(f"{case}: not done after {LONGEST_SECONDS} s") from problem
    if done.returncode:
        raise StrikeforgeError(f"{case}: the process that timed it ended with {done.returncode}; its errors are above")
    rows, notes = json.loads(done.stdout.splitlines()[-1])
    unusable = [row for row in rows if not math.isfinite(row["value"])]
    if unusable:
        raise StrikeforgeError(f"{case}: not a number, or infinite: {unusable}")
    return rows, notes


def write(rows: Sequence[dict[str, Any]], notes: Sequence[str], results: Path, page: Path) -> tuple[Path, ...]:
    """Results and page, of the cases that are done."""
    note = "\n\n".join((NOTE, "\n".join(f"- {one}" for one in notes)))
    written = write_results("engines", rows, note=note, folder=results)
    engines_page.write_tables([json.loads(line) for line in written[0].read_text().splitlines()], page)
    return (*written, page)


def refuse_absent_peers() -> None:
    """EngineError where a whole run would lack a peer."""
    absent = [name for name in OPTIONAL_PEERS if importlib.util.find_spec(name) is None]
    if absent:
        raise EngineError(f"bench-engines compares with {', '.join(absent)}, not installed here: `make bench-engines` "
                          "installs it, --quick goes without")  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=" ".join(CASES))
    parser.add_argument(
        "--calls", type=int, default=Effort.calls, help="at most so many calls of a subject in a repeat"
    )
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="of a subject in a repeat, about")
    parser.add_argument("--repeats", type=int, default=Effort.repeats)
    parser.add_argument("--quick", action="store_true", help="no torch.compile, no lower instruction sets")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where engines.jsonl and engines.md go")
    parser.add_argument("--page", type=Path, default=engines_page.PAGE, help="whose tables are replaced")
    parser.add_argument("--inside", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if min(given.calls, given.repeats) < 1 or given.seconds <= 0:
        parser.error("--calls, --repeats and --seconds must be positive")
    effort = Effort(given.calls, given.seconds, given.repeats)
    if given.inside:
        sys.stdout.write(json.dumps(run_one(given.inside, effort, given.quick)) + "\n")
        return 0
    if not given.quick:
        refuse_absent_peers()
    passed = [f"--calls={given.calls}", f"--seconds={given.seconds}", f"--repeats={given.repeats}"]
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    failed: list[str] = []
    written: tuple[Path, ...] = ()
    for case in given.cases:
        begin = time.monotonic()
        try:
            found = run_apart(case, [*passed, *["--quick"] * given.quick])
        except StrikeforgeError as problem:
            sys.stderr.write(f"{problem}\n")
            failed.append(case)
            notes.append(f"{case}: failed, no rows")
            continue
        sys.stderr.write(f"{case}: {time.monotonic() - begin:.0f} s\n")
        rows += found[0]
        notes += found[1]
        written = write(rows, notes, given.results, given.page)
    if failed and rows:
        written = write(rows, notes, given.results, given.page)
    for path in written:
        sys.stdout.write(f"{path}\n")
    if failed:
        raise StrikeforgeError(f"{len(failed)} of {len(given.cases)} cases failed: {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main, None))
