"""Promotion and rollback disturbed in every way we know, and what came of it: `make chaos-release`.

In: nothing but this machine; real servers of every kind of store are started on it. Out: `results/chaos-release.jsonl`
and `.md`; exit code 1 if anything was inconsistent, a race had two winners, a forged store was accepted or a planted
defect went unnoticed. The parts: kill points (chaos_kills.py, chaos_kills_remote.py), power cuts (chaos_power.py),
races (chaos_races.py), an MLflow outage (chaos_outage.py), forged stores (tests/forgeries.py), defects
(chaos_plants.py).
Invariant: a part that can't run is an error; nothing is left out in silence.

Run: python -m benchmarks.chaos_release [--share 0.1] [--stores folder,s3,gcs,azure] [--parts kills,power,...]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import chaos_parts
from benchmarks.chaos_clouds import KINDS
from benchmarks.chaos_report import Report
from benchmarks.results import FOLDER, write_results

NOTE = """`points` are kills (before and after every write, and in the middle of those that can be cut) or different
disks after a power cut; `inconsistent` those after which a promise was broken. S3, Google and Azure are local servers
(moto, fake-gcs-server, Azurite), MLflow with them is a server too. A planted defect must be caught (1)."""
MEMORY = Path("/dev/shm")  # a file system without a disk: syncs are traced, not waited for
ROOM_BYTES = 1 << 30


def run(share: float, stores: Sequence[str], parts: Sequence[str], folder: Path) -> Report:
    """All of it, or a share; raises what keeps a part from running."""
    report = Report()
    memory = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES else None
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=memory) as name, ExitStack() as stack:
        bench = chaos_parts.Bench.started(stack, Path(name), stores, share)
        for part in parts:
            started = time.monotonic()
            PARTS[part](bench, report)
            sys.stdout.write(f"{part}: {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()
    note = f"{NOTE} Share of the points, races and forged stores: {share:g}."
    write_results("chaos-release", report.rows, note=note, folder=folder)
    return report


PARTS: dict[str, Callable[[chaos_parts.Bench, Report], None]] = {
    "kills": chaos_parts.kills,
    "power": chaos_parts.power,
    "races": chaos_parts.races,
    "outage": chaos_parts.outage,
    "forged": chaos_parts.forged,
    "plants": chaos_parts.plants,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos_release")
    parser.add_argument("--share", type=float, default=1.0, help="of the points, races and forged stores; default all")
    parser.add_argument("--stores", default=",".join(KINDS), help="comma-separated: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated: %(default)s")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    arguments = parser.parse_args(argv)
    stores, parts = arguments.stores.split(","), arguments.parts.split(",")
    for kind, asked, known in (("store", stores, KINDS), ("part", parts, PARTS)):
        for wrong in sorted(set(asked) - set(known)):
            parser.error(f"no such {kind}: {wrong!r}; there are {', '.join(known)}")
    if not 0.0 < arguments.share <= 1.0:
        parser.error(f"--share {arguments.share:g}: above 0, at most 1")
    report = run(arguments.share, stores, parts, arguments.out)
    for row in report.rows:
        sys.stdout.write(f"{row['case']:32} {row['subject']:36} {row['metric']:14} {row['value']}\n")
    for failure in report.failures:
        sys.stdout.write(f"FAILED {failure}\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
