"""Figures of a sweep: history, importance, learning curves, slices, parallel coordinates.

In: a `SweepTable`: trials by number with their states, values (vol points), parameters and reported values. Out:
matplotlib figures that nobody else holds on to, in the style of pipelines/plot_style.py.

Invariants: the best trial has one colour everywhere; values far above the others are drawn at the upper edge as arrows,
never left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.plot_style import MARKET_COLOUR, MODEL_COLOUR, STYLE

COMPLETE_COLOUR = "#0072B2"
PRUNED_COLOUR = "#9a9a9a"
CAPTIONS = {
    "history": "Validation error of every trial in the order of their making, and the best so far. A pruned trial "
    "stands at its last epoch's value; arrows are off the scale, dotted lines failed trials.",
    "importance": "Share of the variance of complete trials' errors that a key explains alone or with others "
    "(fANOVA, Hutter et al. 2014).",
    "learning_curves": "Validation error after each epoch.",
    "slices": "Validation error against each key.",
    "parallel_coordinates": "Every complete trial is a line through its values; dark is a small error.",
}
SLICES_PER_ROW = 4


@dataclass(frozen=True)
class Row:
    """A trial as the figures and the table see it."""

    number: int
    state: str  # COMPLETE, PRUNED, FAIL, RUNNING
    value: float | None  # vol points
    params: Mapping[str, Any]
    curve: Mapping[int, float]  # epoch: validation error
    seconds: float
    starts: int
    message: str


@dataclass(frozen=True)
class SweepTable:
    """All trials by number; `choices` has the order of a categorical key's values.

    `logarithmic` keys have a log scale, `whole` ones whole numbers.
    """

    rows: Sequence[Row]
    keys: Sequence[str]
    logarithmic: frozenset[str]
    whole: frozenset[str]
    choices: Mapping[str, Sequence[Any]]
    importance: Mapping[str, float]

    def of(self, state: str) -> list[Row]:
        """The trials of a state that have a finite value."""
        return [row for row in self.rows if row.state == state and row.value is not None and np.isfinite(row.value)]

    @property
    def best(self) -> Row | None:
        """The complete trial of the least value, the first of several."""
        return min(self.of("COMPLETE"), key=lambda row: (row.value, row.number), default=None)


def all_figures(table: SweepTable) -> dict[str, Figure]:
    """Every figure the trials allow, by the names of CAPTIONS."""
    figures = {}
    with mpl.rc_context(STYLE):
        if table.of("COMPLETE"):
            figures["history"] = _history(table)
            if table.importance:
                figures["importance"] = _importance(table)
            if any(row.curve for row in table.rows):
                figures["learning_curves"] = _learning_curves(table)
            figures["slices"] = _slices(table)
            if len(table.of("COMPLETE")) > 1 and len(table.keys) > 1:
                figures["parallel_coordinates"] = _parallel(table)
    return figures


def _ceiling(table: SweepTable) -> float:
    """The highest value still worth the scale: half again the spread of the better three quarters above them."""
    values = np.array([row.value for row in [*table.of("COMPLETE"), *table.of("PRUNED")]], dtype=float)
    low, high = values.min(), np.quantile(values, 0.75)
    return float(min(values.max(), high + 1.5 * max(high - low, 1e-3 * abs(high), 1e-12)))


def _scatter(axes: Axes, rows: Sequence[Row], x: Sequence[float], top: float, **look: Any) -> None:
    """Values at x; those above the top as arrows at the edge."""
    values = np.array([row.value for row in rows], dtype=float)
    place = np.asarray(x, dtype=float)
    inside = values <= top
    axes.scatter(place[inside], values[inside], s=22, **look)
    if (~inside).any():
        arrows = {name: item for name, item in look.items() if name not in ("label", "marker")}
        axes.scatter(place[~inside], np.full((~inside).sum(), top), s=26, marker="^", **arrows)


def _looks(table: SweepTable) -> list[tuple[list[Row], dict[str, Any]]]:
    """Groups of trials and how they are drawn."""
    best = table.best
    complete = [row for row in table.of("COMPLETE") if row is not best]
    return [
        (table.of("PRUNED"), {"facecolors": "none", "edgecolors": PRUNED_COLOUR, "label": "pruned"}),
        (complete, {"color": COMPLETE_COLOUR, "label": "complete"}),
        ([best] if best else [], {"color": MODEL_COLOUR, "label": "best", "zorder": 5}),
    ]


def _limits(axes: Axes, table: SweepTable, top: float) -> None:
    low = min(float(row.value or 0.0) for row in [*table.of("COMPLETE"), *table.of("PRUNED")])
    margin = 0.06 * (top - low) or 0.01
    axes.set_ylim(low - margin, top + margin)


def _history(table: SweepTable) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes, top = figure.subplots(), _ceiling(table)
    for rows, look in _looks(table):
        if rows:
            _scatter(axes, rows, [row.number for row in rows], top, **look)
    complete = table.of("COMPLETE")
    so_far = np.minimum.accumulate([float(row.value or 0.0) for row in complete])
    last = max(row.number for row in table.rows)
    axes.step([*(row.number for row in complete), last], [*so_far, so_far[-1]], where="post", color=MODEL_COLOUR,
              linewidth=1.4, label="best so far")  # fmt: skip
    for row in table.rows:
        if row.state == "FAIL":
            axes.axvline(row.number, color=MARKET_COLOUR, linewidth=0.8, linestyle=":")
    _limits(axes, table, top)
    axes.set(xlabel="trial", ylabel="validation IV RMSE [vol points]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def _importance(table: SweepTable) -> Figure:
    names = sorted(table.importance, key=lambda name: table.importance[name])
    figure = Figure(figsize=(9.5, 0.9 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = [table.importance[name] for name in names]
    bars = axes.barh(names, shares, color=COMPLETE_COLOUR)
    axes.bar_label(bars, labels=[f"{share:.2f}" for share in shares], padding=3)
    axes.set(xlabel="importance [share of the explained variance]", xlim=(0, max(*shares, 0.01) * 1.12))
    axes.grid(visible=False, axis="y")
    return figure


def _learning_curves(table: SweepTable) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.subplots()
    best, ends = table.best, []
    looks = {"PRUNED": (PRUNED_COLOUR, 0.9), "COMPLETE": (COMPLETE_COLOUR, 0.9), "RUNNING": ("#009E73", 1.2)}
    labelled: set[str] = set()
    for row in table.rows:
        if not row.curve or row.state not in looks:
            continue
        epochs = sorted(row.curve)
        values = np.array([row.curve[epoch] for epoch in epochs], dtype=float)
        values[~np.isfinite(values)] = np.nan
        ends.append(values)
        colour, width = looks[row.state]
        name = row.state.lower() if row.state not in labelled else None
        if row is best:
            colour, width, name = MODEL_COLOUR, 2.2, f"best: trial {row.number}"
        else:
            labelled.add(row.state)
        axes.plot(epochs, values, color=colour, linewidth=width, alpha=1.0 if row is best else 0.6,
                  zorder=5 if row is best else 2, label=name,
                  marker="o" if len(epochs) == 1 else "", markersize=3)  # fmt: skip
    values = np.concatenate(ends)
    values = values[np.isfinite(values)]
    low, high = values.min(), np.quantile(values, 0.9)
    axes.set_ylim(low - 0.06 * (high - low or 0.1), high + 0.1 * (high - low or 0.1))
    axes.set(xlabel="epoch", ylabel="validation IV RMSE [vol points]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def _slices(table: SweepTable) -> Figure:
    columns = min(SLICES_PER_ROW, len(table.keys))
    lines = -(-len(table.keys) // columns)
    figure = Figure(figsize=(9.5, 0.3 + 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    top = _ceiling(table)
    for axes in grid.flat[len(table.keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, table.keys, strict=False):
        for rows, look in _looks(table):
            if rows:
                _scatter(axes, rows, [_place(table, key, row) for row in rows], top, **look)
        if key in table.choices:
            axes.set_xticks(range(len(table.choices[key])), [_short(value) for value in table.choices[key]])
            axes.set_xlim(-0.5, len(table.choices[key]) - 0.5)
        elif key in table.logarithmic:
            axes.set_xscale("log")
        elif key in table.whole:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.set_xlabel(key)
    _limits(grid[0, 0], table, top)
    figure.supylabel("validation IV RMSE [vol points]", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _parallel(table: SweepTable) -> Figure:
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    axes = figure.subplots()
    rows, best = table.of("COMPLETE"), table.best
    places = np.array([[_place(table, key, row) for key in table.keys] for row in rows], dtype=float)
    for column, key in enumerate(table.keys):
        if key in table.logarithmic:
            places[:, column] = np.log10(places[:, column])
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = np.where(high > low, (places - low) / np.where(high > low, high - low, 1.0), 0.5)
    colours = mpl.colormaps["viridis"]
    values = [float(row.value or 0.0) for row in rows]
    norm = Normalize(min(values), min(max(values), _ceiling(table)))
    for place in sorted(range(len(rows)), key=lambda place: -values[place]):
        is_best = rows[place] is best
        colour = MODEL_COLOUR if is_best else colours(norm(values[place]))
        axes.plot(scaled[place], color=colour, linewidth=2.4 if is_best else 1.1, alpha=1.0 if is_best else 0.8)
    for column, key in enumerate(table.keys):
        axes.axvline(column, color=MARKET_COLOUR, linewidth=0.8, zorder=1)
        for edge, row_place, align in ((1.02, high[column], "bottom"), (-0.02, low[column], "top")):
            axes.text(column, edge, _tick(table, key, row_place), ha="center", va=align, fontsize=8)
    axes.set_xticks(range(len(table.keys)), table.keys)
    axes.tick_params(axis="x", length=0, pad=14, labelsize=8, rotation=15 if len(table.keys) > 5 else 0)
    axes.set(yticks=[], ylim=(-0.03, 1.1), xlim=(-0.4, len(table.keys) - 0.6))
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axes, label="validation IV RMSE [vol points]", pad=0.02)
    return figure


def _place(table: SweepTable, key: str, row: Row) -> float:
    value = row.params[key]
    return float(list(table.choices[key]).index(value)) if key in table.choices else float(value)


def _tick(table: SweepTable, key: str, place: float) -> str:
    if key in table.choices:
        return _short(table.choices[key][int(place)])
    return f"{10**place if key in table.logarithmic else place:.3g}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 14 else f"{text[:13]}…"
