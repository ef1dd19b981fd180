"""What `make repro` ends with: a table of the registered versions, their errors, and what to type next.

In: `OUT/register/*/version.json`, `OUT/evaluate/*/metrics.json`. Out: text on the terminal.

Run: python -m pipelines.summary [key=value ...]
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.config import Config
from serving.blobstore import open_store
from serving.errors import DataError
from serving.ledger import Ledger


@dataclass(frozen=True)
class Line:
    """One model; errors are IV RMSE in vol points on the test dates."""

    model: str
    version: int
    error: float
    baseline: str
    baseline_error: float
    report: Path


def collect(folder: Path) -> list[Line]:
    """One line per registered model; raises DataError where there is none."""
    lines = []
    for version_path in sorted(folder.glob("register/*/version.json")):
        version = json.loads(version_path.read_text())
        evaluation = folder / "evaluate" / version["model"]
        if not (evaluation / "metrics.json").exists():
            raise DataError(f"{evaluation}/metrics.json isn't there: run make repro first")
        metrics = json.loads((evaluation / "metrics.json").read_text())
        best = metrics["best_baseline"]
        lines.append(Line(version["model"], version["version"], metrics["test"]["model"]["iv_rmse"], best["name"],
                          best["iv_rmse"], evaluation / "report.html"))  # fmt: skip
    if not lines:
        raise DataError(f"{folder} holds no registered version: run make repro first")
    return lines


def run(cfg: Config) -> None:
    """Print the table; raises DataError where the store no longer holds what was registered."""
    lines = collect(cfg.folder)
    for line in lines:
        if line.version not in Ledger(open_store(cfg.storage.url), line.model).state().versions:
            raise DataError(
                f"the store {cfg.storage.url!r} doesn't hold {line.model} version {line.version}: was it removed? "
                f"dvc repro -f -s register@{line.model} registers it again"
            )
    table = Table(title="registered", caption="IV RMSE on the test dates, vol points")
    for heading in ("model", "version", "test error", "best baseline", "its error"):
        table.add_column(heading, justify="right" if "error" in heading or heading == "version" else "left")
    for line in lines:
        table.add_row(line.model, str(line.version), f"{line.error:.3f}", line.baseline, f"{line.baseline_error:.3f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"data: {cfg.data.provenance}")
    for line in lines:
        console.print(f"report of {line.model} {line.version}: {line.report}")
    first, store = lines[0], shlex.quote(cfg.storage.url)
    console.print("next:")
    for command in (
        f".venv/bin/python -m pipelines.promote model={first.model} version={first.version}",
        f".venv/bin/strikeforge-host price --model {first.model} --channel champion --store {store} --demo "
        "--out prices.csv",
    ):
        console.print(f"  {command}")


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
