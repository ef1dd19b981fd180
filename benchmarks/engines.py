"""How fast the engines answer a tick: native core against ONNX Runtime, OpenVINO and PyTorch, on the same bundles.

In: nothing but this machine (weights are random, seeded). Out: `benchmarks/results/engines.jsonl` and `.md`, and the
tables of docs/engines.md. Cases: benchmarks/engines_cases.py and engines_chain.py; peers: engines_ort.py,
engines_openvino.py, engines_torch.py; how calls are timed: engines_timing.py; ratios: engines_rows.py; the least time
that memory allows: engines_bandwidth.py.

Each case runs in a process of its own, so that no case meets the threads, arenas and heap of the one before; the
subjects of a case share one, in turns. One thread: the libraries' own settings, and OMP_NUM_THREADS and its like.

Run: python -m benchmarks.engines [--cases lstm_small_step chain_5000] [--calls 20000] [--seconds 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import engines_page
from benchmarks.engines_timing import Effort
from benchmarks.results import FOLDER, write_results
from serving.errors import StrikeforgeError, run_command

STEPS = (
    "lstm_small_step", "lstm_mid_step", "lstm_production_step", "stac_lstm_a_window", "stac_lstm_b_window",
    "transformer_step",
)  # fmt: skip
CHAIN, OVERHEAD, BANDWIDTH = "chain_5000", "overhead", "bandwidth"
CASES = (*STEPS, CHAIN, OVERHEAD, BANDWIDTH)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
NOTE = (
    "Medians over repeats of each repeat's percentile; one thread, one core, governor unknown. `error`: largest "
    "absolute difference from the same net in float64; `spread`: standard deviation of what is answered. `advance_p50`:"
    " work done between ticks. `null` answers zeros: what clock, caller and checks cost."
)


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
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StrikeforgeError(f"{case}: the process that timed it ended with {done.returncode}; its errors are above")
    rows, notes = json.loads(done.stdout.splitlines()[-1])
    return rows, notes


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
    passed = [f"--calls={given.calls}", f"--seconds={given.seconds}", f"--repeats={given.repeats}"]
    rows, notes = [], [NOTE]
    for case in given.cases:
        sys.stderr.write(f"{case}\n")
        found = run_apart(case, [*passed, *["--quick"] * given.quick])
        rows += found[0]
        notes += found[1]
    written = write_results("engines", rows, note="\n\n".join((notes[0], "\n".join(f"- {one}" for one in notes[1:]))),
                            folder=given.results)  # fmt: skip
    engines_page.write_tables([json.loads(line) for line in written[0].read_text().splitlines()], given.page)
    for path in (*written, given.page):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main, None))
