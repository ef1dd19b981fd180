"""Tables of a report: cells with the number in full behind the text, and how small frames become them.

In: values, polars tables, the long scores of `pipelines.metrics`. Out: `Table`s, which templates/parts.html.j2 draws.
Invariants: a number stands in full in its cell's `value` (the page's `<data value=...>`); NaN and null are shown as a
dash; of equal best values all are marked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import polars as pl

from pipelines.plot_style import label

SIGNIFICANT_P = 0.05


class Cell(NamedTuple):
    """A cell of a table: text, the number in full where there is one, and whether it is the best of its kind."""

    text: str
    value: str = ""
    best: bool = False


class Table(NamedTuple):
    """A table as the template draws it; the first `labels` columns are row headings."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    labels: int = 1
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(row[column].value for row in self.rows) for column in range(len(self.heads))]


def cell(value: object, pattern: str = ".4g", best: bool = False) -> Cell:
    """Text of a value, floats by `pattern`; numbers stand in full in `value`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("\N{EN DASH}", "" if value is None else "nan")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, float):
        return Cell(format(value, pattern), repr(value), best)
    if isinstance(value, int):
        return Cell(f"{value:,}", str(value), best)
    return Cell(f"{value:%Y-%m-%d}" if isinstance(value, date) else str(value))


def p_cell(p: float | None) -> Cell:
    """A p value as `p_text` writes it."""
    made = cell(p)
    return made if p is None or math.isnan(p) else made._replace(text=p_text(p))


def p_text(p: float) -> str:
    """Three decimals, more where rounding would hide on which side of SIGNIFICANT_P it lies."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if round(p, 3) != SIGNIFICANT_P else f"{p:.6f}"


def wide(scored: pl.DataFrame, keys: Sequence[str], title: str) -> Table:
    """IV RMSE of every predictor side by side, a row for each group, its best predictor marked."""
    names = scored["predictor"].unique(maintain_order=True).to_list()
    rows = []
    for group in scored.partition_by(keys, maintain_order=True):
        errors = dict(zip(group["predictor"], group["iv_rmse"], strict=True))
        least = min(errors.values())
        labels = [cell(group[key][0]) for key in keys]
        cells = [cell(errors.get(name), ".3f", errors.get(name) == least) for name in names]
        rows.append([*labels, cell(group["rows"][0]), *cells])
    return Table([*keys, "quotes", *(label(name) for name in names)], rows, len(keys), title)


def plain(frame: pl.DataFrame, shares: bool = False) -> Table:
    """Any small table as it is; floats as percentages where they are shares."""
    if "predictor" in frame.columns:
        frame = frame.with_columns(pl.Series("predictor", [label(str(name)) for name in frame["predictor"]]))
    rows = [[cell(value, ".2%" if shares else ".4g") for value in row] for row in frame.iter_rows()]
    return Table([column.replace("_", " ") for column in frame.columns], rows)
