"""What `make repro` ends with: a table of the registered versions, their errors, and what to type next.

In: `OUT/register/*/version.json`, `OUT/evaluate/*/metrics.json`, whether `OUT/compare/report.html` is there. Out: text
on the terminal. Invariant: the commands can be typed as they stand.

Run: python -m pipelines.summary [key=value ...]
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.channel.kept import Kept
from pipelines.config import FAMILIES, Config, Task
from serving.blobstore import open_store
from serving.errors import DataError
from serving.ledger import Ledger

USES: dict[Task, str] = {"pricing": "price --demo --out prices.csv", "surface": "inspect --demo"}


@dataclass(frozen=True)
class Line:
    """One model; errors are IV RMSE in vol points on the test dates, a surface model's over hidden quotes."""

    model: str
    task: Task
    version: int
    error: float
    baseline: str
    baseline_error: float
    report: Path


def collect(folder: Path) -> list[Line]:
    """One line per registered model, in the order of FAMILIES; raises DataError where there is none."""
    lines = []
    for version_path in folder.glob("register/*/version.json"):
        version = json.loads(version_path.read_text())
        model = version["model"]
        if model not in FAMILIES:
            raise DataError(f"{version_path}: {model!r} is no family; there are {', '.join(FAMILIES)}: move it away")
        evaluation = folder / "evaluate" / model
        if not (evaluation / "metrics.json").exists():
            raise DataError(f"{evaluation}/metrics.json isn't there: run make repro first")
        metrics = json.loads((evaluation / "metrics.json").read_text())
        own, best = metrics["test"]["model"], metrics["best_baseline"]
        lines.append(Line(model, FAMILIES[model].task, version["version"], own["iv_rmse"], best["name"],
                          best["iv_rmse"], evaluation / "report.html"))  # fmt: skip
    if not lines:
        raise DataError(f"{folder} holds no registered version: run make repro first")
    return sorted(lines, key=lambda line: list(FAMILIES).index(line.model))


def next_commands(lines: list[Line], store: str, root: Path) -> list[str]:
    """For the first model of each task: promote it, then pull and use it on a host that was given `root`."""
    commands = []
    for task, use in USES.items():
        first = next((line for line in lines if line.task == task), None)
        if first is not None:
            verb, _, rest = use.partition(" ")
            commands += [
                f".venv/bin/python -m pipelines.promote model={first.model} version={first.version} "
                "approve_by=$(whoami)",
                f".venv/bin/strikeforge-host pull --model {first.model} --store {shlex.quote(store)} "
                f"--root {shlex.quote(str(root))} --to host --development",
                f".venv/bin/strikeforge-host {verb} --from host --model {first.model} {rest}",
            ]
    return commands


def run(cfg: Config) -> None:
    """Print the table; raises DataError where the store no longer holds what was registered."""
    lines = collect(cfg.folder)
    for line in lines:
        if line.version not in Ledger(open_store(cfg.storage.url), line.model).state().versions:
            raise DataError(
                f"the store {cfg.storage.url!r} doesn't hold {line.model} version {line.version}: was it removed? "
                f"dvc repro -f -s register@{line.model} registers it again"
            )
    surfaces = ", ".join(line.model for line in lines if line.task == "surface")
    caption = "IV RMSE on the test dates, vol points" + (f"; {surfaces}: of hidden quotes" if surfaces else "")
    table = Table(title="registered", caption=caption)
    for heading in ("model", "version", "error", "best baseline", "its error"):
        right = "error" in heading or heading == "version"
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for line in lines:
        table.add_row(line.model, str(line.version), f"{line.error:.3f}", line.baseline, f"{line.baseline_error:.3f}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"data: {cfg.data.provenance}")
    for line in lines:
        console.print(f"report of {line.model} {line.version}: {line.report}")
    compared = cfg.folder / "compare" / "report.html"
    if compared.exists():
        console.print(f"all families side by side: {compared}")
    console.print("next:")
    keys = Path(os.environ.get("STRIKEFORGE_KEYS", "keys/development"))  # conf/signing/development.yaml
    for command in next_commands(lines, cfg.storage.url, Kept(keys).root_file()):
        console.print(f"  {command}")


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
