"""One whole run in a folder of its own, outside DVC: ingest, features, train, evaluate.

In: quotes (`data.path`) in some layout. Out: `OUT/metrics.json`, `OUT/report.html`, `OUT/predictions.parquet`, and the
stages' own folders under OUT. Registers nothing.

Run: python -m pipelines.run experiment=spx_2019 data.path=FILE split.test_from=2019-06-03 out=DIR
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import Config
from pipelines.lineage import ROOT
from serving.errors import ConfigError

log = logging.getLogger("strikeforge.run")

RESULTS = ("metrics.json", "report.html", "predictions.parquet")


@dataclass(frozen=True)
class RunResult:
    """Errors are IV RMSE in vol points, on the test dates."""

    folder: Path
    model_iv_rmse: float
    best_baseline: str
    best_baseline_iv_rmse: float


def run(cfg: Config) -> RunResult:
    """Every stage in order; an error of any stage ends the run and leaves earlier results as they were."""
    from pipelines import evaluate, features, ingest, train

    owned = [(place / "artifacts").resolve() for place in (ROOT, Path.cwd())]
    if any(cfg.folder.resolve().is_relative_to(folder) for folder in owned):
        raise ConfigError([f"out: {cfg.out} belongs to dvc repro; give this run a folder of its own, out=DIR"])
    for name, stage_run in (("ingest", ingest.run), ("features", features.run), ("train", train.run)):
        log.info("%s: %s", name, stage_run(cfg))
    done = evaluate.run(cfg)
    for name in RESULTS:
        aside = cfg.folder / f".{name}.new"
        shutil.copyfile(done.report.parent / name, aside)
        aside.replace(cfg.folder / name)
    return RunResult(cfg.folder, done.model_iv_rmse, done.best_baseline, done.best_baseline_iv_rmse)


if __name__ == "__main__":
    from pipelines.command import stage

    raise SystemExit(stage(__doc__, run))
