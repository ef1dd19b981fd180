"""Results of the benchmarks: one format for all of them.

In: rows, each with at least `case`, `subject`, `metric`, `unit`, `value`. Out: `benchmarks/results/<bench>.jsonl`, one
JSON object per row, with `bench`, `machine` and `date` added, and the same as a table in `<bench>.md`.
Invariants: both files are replaced whole at each run, never half; a row that lacks a field, or whose value isn't a
finite number, is refused before anything is written.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
FIELDS = ("case", "subject", "metric", "unit", "value")


def machine() -> str:
    """The CPU's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def write_results(
    bench: str, rows: Sequence[Mapping[str, Any]], *, note: str = "", folder: Path = FOLDER
) -> tuple[Path, Path]:
    """Write both files and return their paths; `note` is a paragraph above the table. Raises ValueError."""
    for place, row in enumerate(rows):
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise ValueError(f"{bench}: row {place} lacks {', '.join(missing)}: {dict(row)}")
        if not math.isfinite(row["value"]):
            raise ValueError(f"{bench}: row {place} has the value {row['value']}: {dict(row)}")
    stamp = {"machine": machine(), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    complete = [{"bench": bench, **row, **stamp} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in complete)
    written = folder / f"{bench}.jsonl", folder / f"{bench}.md"
    _replace(written[0], lines)
    _replace(written[1], _page(bench, complete, stamp, note))
    return written


def _page(bench: str, rows: Sequence[Mapping[str, Any]], stamp: Mapping[str, str], note: str) -> str:
    extra = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in (*FIELDS, "bench")]
    columns = [*FIELDS, *(name for name in extra if name not in stamp)]
    cells = [[_text(row.get(name, "")) for name in columns] for row in rows]
    table = ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *cells)]
    paragraphs = [f"# {bench}", f"{stamp['machine']}; {stamp['date']}.", *([note] if note else []), "\n".join(table)]
    return "\n\n".join(paragraphs) + "\n"


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
