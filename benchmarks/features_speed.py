"""How long ingest and features take for a million quotes, one core.

In: vendor files, of which copies with all dates moved make up the number. Out: rows for benchmarks/training.py: the
seconds of `python -m pipelines.ingest` and `python -m pipelines.features`, the start of Python included, each in a
process of its own with one thread.

Three chains, for what they cost differs: many small snapshots (the sample market, some 700 quotes each), few large ones
(SPX 2019, some 14,000 each, where ../shared/data holds it), and the sample market again with its quotes read as
American, whose early exercise has to be taken out of every one.
Invariant: a copy's quotes have the prices, strikes and days to expiry of the original's, on other dates.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.lineage import ROOT
from serving.errors import DataError

QUOTES = 1_000_000
SAMPLE = ROOT / "data" / "quotes"
SPX = ROOT.parent / "shared" / "data" / "spx_options_2019"
SAMPLE_DAYS, SPX_DAYS = 261 * 7, 10 * 7  # a copy's dates are so much later: whole weeks, longer than the data
SAMPLE_DATES, SPX_DATES = ("quote_time", "expiration"), ("quote_date", "expiration")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


def require_sample() -> None:
    """DataError where the sample market hasn't been pulled."""
    if not SAMPLE.is_dir():
        raise DataError(f"{SAMPLE} isn't there: run dvc pull data.dvc, or make data/underlying.csv")


def run_stage(stage: str, overrides: Sequence[str]) -> float:
    """Seconds of one stage as a command with one thread; raises CalledProcessError where it fails."""
    began = time.perf_counter()
    command = [sys.executable, "-m", f"pipelines.{stage}", *overrides]
    subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def enlarge(source: Path, folder: Path, dates: Sequence[str], days: int, at_least: int) -> int:
    """Link the Parquet files of `source` into `folder`, and copies with the columns `dates` moved by `days` times 1,
    2, ...

    Files are added in order of name until they hold `at_least` quotes, which are counted and returned.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise DataError(f"{source} holds no Parquet file")
    folder.mkdir(parents=True)
    count, copy = 0, 0
    while count < at_least or not copy:
        for file in files:
            if copy and count >= at_least:
                break
            table = pl.read_parquet(file)
            count += table.height
            target = folder / f"{copy}-{file.name}"
            if copy:
                table.with_columns(pl.col(name).dt.offset_by(f"{copy * days}d") for name in dates).write_parquet(target)
            else:
                target.symlink_to(file.resolve())
        copy += 1
    return count


def feature_rows(folder: Path, at_least: int = QUOTES) -> list[dict[str, Any]]:
    """Measure every chain there is; `folder` is a scratch folder."""
    require_sample()
    chains: list[tuple[str, Path, tuple[str, str], int, list[str]]] = [
        ("", SAMPLE, SAMPLE_DATES, SAMPLE_DAYS, []),
        ("_american", SAMPLE, SAMPLE_DATES, SAMPLE_DAYS, ["data.constants.style=american"]),
    ]
    if SPX.is_dir():
        spx = ["experiment=spx_2019", "split.test_from=2019-06-03"]
        chains.append(("_dense", SPX, SPX_DATES, SPX_DAYS, spx))
    rows: list[dict[str, Any]] = []
    for ending, source, dates, days, overrides in chains:
        place = folder / f"quotes{ending}"
        quotes = enlarge(source, place / "raw", dates, days, at_least)
        given = [*overrides, f"data.path={place / 'raw'}", f"out={place / 'out'}"]
        for stage in ("ingest", "features"):
            seconds = run_stage(stage, given)
            rows.append({"case": f"{stage}_1m_quotes{ending}", "subject": "strikeforge", "metric": "seconds",
                         "unit": "s", "value": seconds, "quotes": quotes, "data": source.name})  # fmt: skip
    return rows
