"""Stage compare: every family evaluated in this run, side by side on one page.

In: `OUT/evaluate/*/{metrics.json, predictions.parquet}`, `OUT/train/*/{model.json, csv/metrics.csv}`. Out, in
`OUT/compare/`: `report.html` (self-contained), `figures/<task>/*.png`; for dvc, `scores.json` (metrics).
Invariants: families of one task are compared on the same quotes, labels and baselines, or the stage says what to run
again; families that weren't evaluated are named. `model` isn't looked at: all that are there take part.

Run: python -m pipelines.compare [key=value ...]
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import FAMILIES, TASKS, Config

log = logging.getLogger("strikeforge.compare")


@dataclass(frozen=True)
class CompareResult:
    """The page, the families on it, and those that there are but weren't evaluated."""

    report: Path
    families: tuple[str, ...]
    absent: tuple[str, ...]


def run(cfg: Config) -> CompareResult:
    """Read, check, compare, write; raises DataError where there is nothing to compare or it doesn't fit together."""
    from pipelines.compare_report import Page, numbers, render
    from pipelines.comparison import compare, evaluated, read_family
    from pipelines.plots_compare import all_figures
    from pipelines.report import save_figures

    names = evaluated(cfg.folder)
    absent = tuple(name for name in FAMILIES if name not in names)
    if absent:
        log.warning("not evaluated in %s, so not compared: %s", cfg.folder, ", ".join(absent))
    families = [read_family(cfg.folder, name) for name in names]
    by_task = [[family for family in families if family.task == task] for task in TASKS]
    comparisons = [compare(members) for members in by_task if members]
    figures = {one.task: all_figures(one.table, one.best_baseline) for one in comparisons}
    html = render(Page(comparisons=comparisons, figures=figures, absent=absent, provenance=cfg.data.provenance))
    folder = cfg.folder / "compare"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(numbers(comparisons, absent), indent=1) + "\n")
    for task, drawn in figures.items():
        save_figures(drawn, folder / "figures" / task)
    return CompareResult(folder / "report.html", tuple(names), absent)


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
