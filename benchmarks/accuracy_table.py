"""Scores of the accuracy benchmark, from the predictions that were kept.

In: the cells' files by (setup, subject, seed), and the setups that were refused. Out: `Scored` figures by case, and the
rows of benchmarks/results.py.
Units: IV errors in vol points, prices in US dollars, `inside_spread` in per cent, `dm_*` without unit.
Invariants: all subjects of a case are scored on the same rows, held together by the quotes' identity (a difference is
an error); errors are pooled over rows; a subject's figure is the mean over seeds, `<metric>_std` its standard deviation
(n - 1) over seeds; a Diebold-Mariano test takes each date's squared error as its mean over seeds, `dm_p_worst_seed` is
the largest p among the seeds one by one (1 where a seed is behind).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.accuracy_cases import BASELINES, Case
from benchmarks.accuracy_cells import Refusal
from pipelines import metrics
from pipelines.comparison import SAME
from pipelines.metrics import NUMBERS, ROW
from serving.errors import DataError

ANCHORED = "anchored_sticky_strike"
AGAINST = (ANCHORED, "regression_anchored", "lightgbm_anchored")
UNITS = {"iv_rmse": "vol points", "iv_mae": "vol points", "price_rmse": "USD", "inside_spread": "%"}


@dataclass(frozen=True)
class Computed:
    """Files of the cells, by (setup, subject, seed), and refused setups."""

    files: Mapping[tuple[str, str, int], Path]
    refusals: Mapping[str, Refusal]


@dataclass
class Scored:
    """A case's figures: (subject, metric) -> a value per seed; (subject, against) -> test; counts."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    tests: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)  # t, p, worst p of a seed
    untested: dict[tuple[str, str], str] = field(default_factory=dict)
    rows: int = 0
    dates: int = 0

    @property
    def subjects(self) -> list[str]:
        """In the order of the tables."""
        return list(dict.fromkeys(subject for subject, _ in self.values))

    def mean(self, subject: str, metric: str) -> float:
        """Over seeds."""
        return float(np.mean(self.values[subject, metric]))

    def spread(self, subject: str, metric: str) -> float | None:
        """Standard deviation over seeds; None with one seed, or where the seed decides nothing."""
        values = self.values[subject, metric]
        return float(np.std(values, ddof=1)) if len(set(values)) > 1 else None


def score_cases(
    cases: Sequence[Case], models: Sequence[str], seeds: Sequence[int], computed: Computed
) -> dict[str, Scored | Refusal]:
    """By the case's name: its figures, or why it has none."""
    out: dict[str, Scored | Refusal] = {}
    for case in cases:
        needed = (*case.setups, *([case.rows_of] if case.rows_of else []))
        refusal = next((computed.refusals[name] for name in needed if name in computed.refusals), None)
        out[case.name] = refusal or score(case_tables(case, models, seeds, computed), models)
    return out


def result_rows(scored: Mapping[str, Scored | Refusal], seeds: int) -> list[dict[str, Any]]:
    """Rows for benchmarks/results.py; `seeds` counts them."""
    out: list[dict[str, Any]] = []
    for case, found in scored.items():
        out += [_refused_row(case, found)] if isinstance(found, Refusal) else _case_rows(case, found, seeds)
    return out


def case_tables(case: Case, models: Sequence[str], seeds: Sequence[int], computed: Computed) -> list[pl.DataFrame]:
    """A predictions table per seed (as in pipelines/metrics.py): every model and baseline on the case's rows."""
    tables = []
    for seed in seeds:
        table = pl.concat([setup_table(name, models, seed, computed) for name in case.setups])
        if case.rows_of is not None:
            kept = pl.read_parquet(computed.files[case.rows_of, BASELINES, seeds[0]], columns=list(ROW))
            table = table.join(kept, on=list(ROW), how="semi")
            if len(table) != len(kept):
                raise DataError(f"{case.name}: {len(kept) - len(table)} of the {len(kept)} rows that {case.rows_of} "
                                f"scores aren't scored by {', '.join(case.setups)}: their anchors must be among its "
                                "anchors (benchmarks/accuracy_cases.py)")  # fmt: skip
        tables.append(table)
    return tables


def setup_table(setup: str, models: Sequence[str], seed: int, computed: Computed) -> pl.DataFrame:
    """One setup's baselines, labels and models for a seed; DataError where they aren't of the same quotes."""
    table = pl.read_parquet(computed.files[setup, BASELINES, seed])
    own = []
    for model in models:
        file = computed.files[setup, model, seed]
        predicted = pl.read_parquet(file)
        if not predicted.select(ROW).equals(table.select(ROW)):
            raise DataError(f"{file} doesn't hold the rows of {computed.files[setup, BASELINES, seed]}: delete both "
                            "and run again")  # fmt: skip
        own += [predicted[f"{kind}_{model}"] for kind in ("iv", "price")]
    labels = list(dict.fromkeys((*ROW, *NUMBERS)))
    return table.select(labels).with_columns(own).hstack(table.select(pl.exclude(labels)))


def score(tables: Sequence[pl.DataFrame], models: Sequence[str]) -> Scored:
    """Figures of a case from its tables, one per seed."""
    out = Scored()
    for table in tables:
        pooled = metrics.scores(table)
        best = min((one["iv_rmse"], name) for name, one in pooled.items() if name not in models)
        for name, found in pooled.items():
            values = {
                "iv_rmse": found["iv_rmse"], "iv_mae": found["iv_mae"], "price_rmse": found["price_rmse"],
                "inside_spread": 100.0 * found["inside_spread"],
                "ratio_to_anchored": found["iv_rmse"] / pooled[ANCHORED]["iv_rmse"],
                "price_ratio_to_anchored": found["price_rmse"] / pooled[ANCHORED]["price_rmse"],
            }  # fmt: skip
            if name in models:
                values["ratio_to_best_baseline"] = found["iv_rmse"] / best[0]
            for metric, value in values.items():
                out.values.setdefault((name, metric), []).append(value)
            out.rows, out.dates = found["rows"], found["dates"]
    together = pl.concat([
        table.with_columns(underlying=pl.col("underlying") + f" seed {place}") for place, table in enumerate(tables)
    ])  # fmt: skip
    for name in out.subjects:
        for against in AGAINST if name in models else (ANCHORED,):
            if name == against:
                continue
            if _same(together, name, against):
                out.untested[name, against] = f"{name} answers as {against} does"
                continue
            test = _test(together, name, against)
            if test.reason:
                out.untested[name, against] = test.reason
                continue
            worst = max(_p_of_a_lead(_test(table, name, against)) for table in tables)
            out.tests[name, against] = (test.t, test.p, worst)
    return out


def _same(table: pl.DataFrame, name: str, against: str) -> bool:
    """Whether two predictors differ by rounding alone (nets answer in single precision)."""
    return bool((table[f"iv_{name}"] - table[f"iv_{against}"]).abs().max() < SAME)  # type: ignore[operator]


def _test(table: pl.DataFrame, name: str, against: str) -> metrics.DieboldMariano:
    """On these two predictors' columns alone, which is faster."""
    labels = list(dict.fromkeys((*ROW, *NUMBERS)))
    pair = [f"{kind}_{one}" for one in (name, against) for kind in ("iv", "price")]
    return metrics.diebold_mariano(table.select(*labels, *pair), name, against)


def _p_of_a_lead(test: metrics.DieboldMariano) -> float:
    """p where the first is ahead; 1 where it isn't, or where nothing can be tested."""
    return test.p if test.t > 0 else 1.0


def _refused_row(case: str, refusal: Refusal) -> dict[str, Any]:
    said = f"{refusal.error}: {refusal.message}"
    return {"case": case, "subject": "strikeforge", "metric": "exit_code", "unit": "code", "value": refusal.exit_code,
            "message": said}  # fmt: skip


def _case_rows(case: str, scored: Scored, seeds: int) -> Iterator[dict[str, Any]]:

    def row(subject: str, metric: str, unit: str, value: float, **more: Any) -> dict[str, Any]:
        return {"case": case, "subject": subject, "metric": metric, "unit": unit, "value": value, **more}

    yield row("data", "rows", "count", scored.rows)
    yield row("data", "dates", "count", scored.dates)
    for subject in scored.subjects:
        for (name, metric), _ in scored.values.items():
            if name != subject:
                continue
            unit = UNITS.get(metric, "ratio")
            yield row(subject, metric, unit, scored.mean(subject, metric), seeds=seeds)
            if (spread := scored.spread(subject, metric)) is not None:
                yield row(subject, f"{metric}_std", unit, spread, seeds=seeds)
        for (name, against), (t, p, worst) in scored.tests.items():
            if name == subject:
                yield row(subject, "dm_t", "t", t, against=against, seeds=seeds)
                yield row(subject, "dm_p", "p", p, against=against, seeds=seeds)
                if seeds > 1:
                    yield row(subject, "dm_p_worst_seed", "p", worst, against=against, seeds=seeds)
