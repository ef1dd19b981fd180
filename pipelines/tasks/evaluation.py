"""What an evaluation of any task hands to the report: predictions of every predictor on the same rows, and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from pipelines.exam import Exam
from pipelines.report import SanityBound

IDENTITY = ["ts", "underlying", "root", "expiry", "strike", "right"]  # columns that name a quote


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`predictions` as in pipelines/metrics.py; `exam` asks released bytes the same (pipelines/exam.py); `tables` and
    `notes` for the report; `measures` for metrics.json."""

    predictions: pl.DataFrame
    exam: Exam
    figures: Mapping[str, Figure]
    captions: Mapping[str, str] = field(default_factory=dict)
    sanity: Sequence[SanityBound] = ()
    greeks: pl.DataFrame | None = None
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
