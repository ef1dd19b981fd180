"""Families of nets evaluated in one run, read back and put side by side on the same rows.

In: `OUT/evaluate/<family>/{metrics.json, predictions.parquet}`, `OUT/train/<family>/{model.json, csv/metrics.csv}`.
Out: `Family`, and one `Comparison` per task: a predictions table in which each net goes by its family's name, its
scores, and Diebold-Mariano tests between the families and against the best baseline.
Invariants: families are compared on the same rows with the same labels and the same baselines, or not at all; what
metrics.json says of the net is what its predictions give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import metrics
from pipelines.config import FAMILIES
from pipelines.metrics import MODEL, NUMBERS, ROW, DieboldMariano, Score
from serving.errors import DataError

SAME = 1e-6  # of volatility: baselines further apart than this were made by other code or another seed
AGAIN = "run python -m pipelines.evaluate again with the same out= and seed= for each of them: model="


@dataclass(frozen=True)
class Training:
    """How a net came about; `seconds_per_epoch` is the median, None where the epochs' times weren't logged."""

    parameters: int
    best_epoch: int
    epochs: int
    seconds_per_epoch: float | None
    validation_iv_rmse: float | None  # vol points
    seed: int
    config_sha256: str
    features_sha256: str


@dataclass(frozen=True)
class Family:
    """One evaluated net: `metrics` as in metrics.json, `predictions` in canonical order (pipelines/metrics.py)."""

    name: str
    task: str
    metrics: Mapping[str, Any]
    predictions: pl.DataFrame
    training: Training


@dataclass(frozen=True)
class Comparison:
    """Families of one task, best first; in `table` too, with the baselines after them, best first.

    `tests[a, b]` is of family a against b, a family or the best baseline.
    """

    task: str
    families: Sequence[Family]
    table: pl.DataFrame
    scores: Mapping[str, Score]
    best_baseline: str | None
    tests: Mapping[tuple[str, str], DieboldMariano]

    @property
    def names(self) -> list[str]:
        """The families' names, best first."""
        return [family.name for family in self.families]


def evaluated(folder: Path) -> list[str]:
    """Names of the families that `folder` (OUT) holds an evaluation of, in the order of FAMILIES."""
    found = sorted(path.parent.name for path in (folder / "evaluate").glob("*/metrics.json"))
    unknown = [name for name in found if name not in FAMILIES]
    if unknown:
        raise DataError(
            f"{folder}/evaluate/{unknown[0]}: no such family; there are {', '.join(FAMILIES)}: move it away"
        )
    if not found:
        raise DataError(f"{folder} holds no evaluated family: run python -m pipelines.evaluate with the same out=, "
                        f"model= one of {', '.join(FAMILIES)}")  # fmt: skip
    return [name for name in FAMILIES if name in found]


def read_family(folder: Path, name: str) -> Family:
    """One family of `folder` (OUT); DataError where a file is missing or they don't belong together."""
    evaluation = folder / "evaluate" / name
    parquet = evaluation / "predictions.parquet"
    if not parquet.exists():
        raise DataError(f"{parquet} isn't there: {AGAIN}{name}")
    said = json.loads((evaluation / "metrics.json").read_text())
    try:
        predictions = metrics.checked(pl.read_parquet(parquet))
        own = metrics.scores(predictions)[MODEL]
    except KeyError as error:
        raise DataError(f"{parquet}: no iv_{MODEL}: {AGAIN}{name}") from error
    except (DataError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{parquet}: {error}: {AGAIN}{name}") from error
    recorded = said["test"][MODEL]
    if not math.isclose(recorded["iv_rmse"], own["iv_rmse"], rel_tol=1e-9) or recorded["rows"] != own["rows"]:
        raise DataError(
            f"{evaluation}: metrics.json has IV RMSE {recorded['iv_rmse']!r} over {recorded['rows']} rows, "
            f"predictions.parquet gives {own['iv_rmse']!r} over {own['rows']}: {AGAIN}{name}"
        )
    return Family(name, FAMILIES[name].task, said, predictions, read_training(folder / "train" / name))


def read_training(folder: Path) -> Training:
    """What is known of a training; DataError where its description isn't there."""
    import models

    path = folder / "model.json"
    if not path.exists():
        raise DataError(f"{path} isn't there: run python -m pipelines.train with the same out= and model={folder.name}")
    said = json.loads(path.read_text())
    net = models.build(said["model"], said["sizes"])
    log = folder / "csv" / "metrics.csv"
    times = pl.read_csv(log)["time_seconds"].to_numpy() if log.exists() else np.array([])
    return Training(
        parameters=sum(tensor.numel() for tensor in net.parameters()),
        best_epoch=said["best_epoch"],
        epochs=said["epochs"],
        seconds_per_epoch=float(np.median(np.diff(times))) if len(times) > 1 else None,
        validation_iv_rmse=said["validation_iv_rmse"],
        seed=said["seed"],
        config_sha256=said["config_sha256"],
        features_sha256=said["features_sha256"],
    )


def compare(families: Sequence[Family]) -> Comparison:
    """Put families of one task side by side; DataError where they weren't scored on the same quotes."""
    first = families[0]
    table = first.predictions.rename({f"{kind}_{MODEL}": f"{kind}_{first.name}" for kind in ("iv", "price")})
    names = [family.name for family in families]
    for other in families[1:]:
        _same_rows(first, other)
        _same_baselines(first, other)
        own = {f"{kind}_{MODEL}": f"{kind}_{other.name}" for kind in ("iv", "price")}
        table = table.with_columns(
            other.predictions[column].alias(own.get(column, column))
            for column in other.predictions.columns
            if column in own or column not in table.columns
        )
    scores = metrics.scores(table)
    by_error = sorted(scores, key=lambda name: scores[name]["iv_rmse"])
    ours = [name for name in by_error if name in names]
    ordered = [*ours, *(name for name in by_error if name not in ours)]
    labels = list(dict.fromkeys((*ROW, *NUMBERS)))
    table = table.select(*labels, *(f"{kind}_{name}" for name in ordered for kind in ("iv", "price")))
    best = metrics.best_baseline({name: score for name, score in scores.items() if name not in ours})
    pairs = [*combinations(ours, 2), *((name, best) for name in ours if best is not None)]
    return Comparison(
        first.task, sorted(families, key=lambda family: ours.index(family.name)), table, scores, best,
        {(a, b): metrics.diebold_mariano(table, a, b) for a, b in pairs},
    )  # fmt: skip


def _same_rows(one: Family, other: Family) -> None:
    """Raise DataError unless both were scored on the same quotes with the same labels."""
    both = f"{one.name} and {other.name}"
    remedy = f"{AGAIN}{one.name}, model={other.name}"
    mine, theirs = (family.predictions.select(ROW) for family in (one, other))
    if not mine.equals(theirs):
        lacking = [len(a.join(b, on=list(ROW), how="anti")) for a, b in ((mine, theirs), (theirs, mine))]
        raise DataError(
            f"{both} weren't scored on the same quotes, so they can't be compared: {lacking[0]} of {len(mine)} rows "
            f"only in the first, {lacking[1]} of {len(theirs)} only in the second; {remedy}"
        )
    for column in (name for name in NUMBERS if name not in ROW):
        differs = int((one.predictions[column] != other.predictions[column]).sum())
        if differs:
            raise DataError(
                f"{both} were scored against different labels, so they can't be compared: {column} differs in "
                f"{differs} of {len(mine)} rows; {remedy}"
            )


def _same_baselines(one: Family, other: Family) -> None:
    """Raise DataError where a baseline of both didn't predict the same."""
    theirs = metrics.predictors(other.predictions)
    for name in (name for name in metrics.predictors(one.predictions) if name != MODEL and name in theirs):
        gap = float(np.abs(one.predictions[f"iv_{name}"].to_numpy() - other.predictions[f"iv_{name}"].to_numpy()).max())
        if gap > SAME:
            raise DataError(
                f"{one.name} and {other.name} were held against different baselines: {name} differs by up to {gap:.3g} "
                f"of volatility; {AGAIN}{one.name}, model={other.name}"
            )
