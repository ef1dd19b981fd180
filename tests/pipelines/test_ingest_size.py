"""Ingest of much: a quarter of SPX quotes adds up, and three million rows more take no more memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import quote_table
from pipelines.ingest import ingest
from pipelines.layouts import load

REPOSITORY = Path(__file__).parents[2]
SPX_SET = REPOSITORY.parent / "shared/data/spx_options_2019"


@pytest.mark.real_data
def test_spx_2019(tmp_path: Path) -> None:
    if not SPX_SET.exists():
        pytest.skip(f"{SPX_SET} is absent")
    result = ingest(SPX_SET, load("cboe_snapshot"), tmp_path / "out")
    assert result.quotes_in == 569_184
    assert result.snapshots == 41
    assert result.reasons == {"expired": 562}  # SPX on the morning it settles, quoted 0/0 that afternoon
    quotes = pl.scan_parquet(result.quotes_path)
    assert quotes.select(pl.col("underlying_price").first()).collect().item() == 2919.04
    original = pl.read_parquet(sorted(SPX_SET.glob("*.parquet"))[0])
    total = original.filter(pl.col("bid") > 0)["bid"].cast(pl.String).cast(pl.Decimal(12, 4)).sum()
    assert quotes.select(pl.col("bid").sum()).collect().item() == pytest.approx(float(total), rel=1e-12)
    original.head(30_000).write_csv(tmp_path / "in.csv")
    original.head(30_000).write_parquet(tmp_path / "in.parquet")
    outcomes = [ingest(tmp_path / f"in.{kind}", load("cboe_snapshot"), tmp_path / kind) for kind in ("csv", "parquet")]
    assert outcomes[0].quotes_path.read_bytes() == outcomes[1].quotes_path.read_bytes()


# The peak of this process alone: `ru_maxrss` begins at the peak of the process that started it (Linux keeps it over
# exec), here of a pytest worker that may hold gigabytes.
MEMORY_PROGRAM = """
import sys
from pathlib import Path
from pipelines.ingest import ingest
from pipelines.layouts import load
result = ingest(sys.argv[1], load("cboe_snapshot"), sys.argv[2])
lines = Path("/proc/self/status").read_text().splitlines()
print(result.kept, next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
MEMORY_DAYS, MEMORY_CONTRACTS = 300, 2_000  # of one file


def write_file(file: Path, first: int) -> None:
    """A file of 600,000 rows in contract order, the hardest for a table sorted by time."""
    day = np.arange(MEMORY_DAYS).astype("timedelta64[D]") + np.datetime64("2018-01-01")
    contract = np.repeat(np.arange(first, first + MEMORY_CONTRACTS), MEMORY_DAYS)
    pl.DataFrame(
        {
            "quote_date": np.tile(day, MEMORY_CONTRACTS).astype("datetime64[us]"),
            "root": np.full(len(contract), "SPXW"),
            "expiration": np.datetime64("2019-06-28", "us") + (contract % 20).astype("timedelta64[D]"),
            "strike": (100 + contract).astype(np.float32),
            "cp": np.full(len(contract), "C"),
            "underlying_last": np.full(len(contract), 2919.04, dtype=np.float32),
            "bid": np.full(len(contract), 1.05, dtype=np.float32),
            "ask": np.full(len(contract), 1.15, dtype=np.float32),
            "volume": contract.astype(np.int32),
            "open_interest": contract.astype(np.int32),
        }
    ).write_parquet(file, mkdir=True)


def peak_bytes(folder: Path, files: int) -> int:
    """The most memory that ingesting so many files ever held, in a process of its own."""
    for number in range(files):
        write_file(folder / f"in/{number}.parquet", number * MEMORY_CONTRACTS)
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(folder / "in"), str(folder / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    kept, peak_kilobytes = map(int, finished.stdout.split())
    assert kept == files * MEMORY_CONTRACTS * MEMORY_DAYS
    return 1024 * peak_kilobytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's own peak is read from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """From two spills on, three million rows more take no more memory; held, their columns alone would take twice what
    is allowed, whatever the machine's threads and allocator."""
    smaller, larger = 4, 9
    row_bytes = sum(dtype.itemsize for dtype in quote_table._DTYPES.values())
    rows = MEMORY_CONTRACTS * MEMORY_DAYS
    assert smaller * rows > 2 * max(quote_table.SPILL_ROWS, quote_table.SLICE_ROWS)
    growth = peak_bytes(tmp_path / "larger", larger) - peak_bytes(tmp_path / "smaller", smaller)
    assert growth < (larger - smaller) * rows * row_bytes / 2
