"""Figures of a surface net: its latent plane, scores and regimes over time, one completed surface.

In: latents, regimes, scores of snapshots; a grid and its completion. Out: matplotlib figures; CAPTIONS explains them.
Invariant: axes carry units; style and colours are those of pipelines/plot_style.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from pipelines.plot_style import BASELINE_COLOURS, MARKERS, MODEL_COLOUR, styled
from serving.normal import Array
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS

CAPTIONS = {
    "latent_plane": "Means of the latent, every date, on the plane of its two widest directions: by regime's label "
    "(grey: none), and by the level of the 45-day at-the-money volatility. Ringed: test dates.",
    "regimes": "Regime probabilities by the net, and below them the labels it is compared with on test dates.",
    "anomaly_score": "Anomaly score of every test date: its most unusual statistic, in the distance that a tenth of "
    "the dates exceed (line). Marked: above 99 % of the reference dates.",
    "completed_surface": "A test surface with half of its quotes hidden: what the net was given, what it made of it, "
    "and what it misses the hidden quotes' grid by.",
}
UNLABELLED = "#c4c4c4"


def plane(latents: Array) -> Array:
    """[S, 2]: the latents on their two widest directions (principal components), signs fixed by the largest weight."""
    centred = latents - latents.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
    out = centred @ (directions * signs[:, np.newaxis]).T
    return np.pad(out, ((0, 0), (0, 2 - out.shape[1])))


@styled
def latent_plane(latents: Array, labels: Sequence[str | None], level: Array, is_test: npt.NDArray[np.bool_]) -> Figure:
    """Scatter of all dates; `level` is a volatility (fraction)."""
    points = plane(latents)
    figure = Figure(figsize=(10.0, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    named = np.array([label or "" for label in labels])
    left.scatter(*points[named == ""].T, s=8, color=UNLABELLED, label="no label")
    for place, name in enumerate(sorted(set(named) - {""})):
        mine = named == name
        colour, marker = BASELINE_COLOURS[place % len(BASELINE_COLOURS)], MARKERS[place % len(MARKERS)]
        left.scatter(*points[mine].T, s=16, color=colour, marker=marker, label=name, alpha=0.8, linewidths=0)
    left.scatter(*points[is_test].T, s=34, facecolors="none", edgecolors="#333333", linewidths=0.4)
    left.legend(loc="best", title="label")
    drawn = right.scatter(*points.T, s=12, c=100 * level, cmap="viridis")
    figure.colorbar(drawn, ax=right, label="45-day at-the-money volatility [%]")
    for axes in (left, right):
        axes.set(xlabel="first direction")
    left.set(ylabel="second direction", title="by regime label")
    right.set(title="by volatility level")
    return figure


def _dated(axes: Axes) -> None:
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


@styled
def regimes(dates: npt.NDArray[np.datetime64], probabilities: Array, names: Sequence[str],
            labels: Sequence[str | None]) -> Figure:  # fmt: skip
    """Stacked probabilities [S, R] over time, labels as marks below."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    axes = figure.subplots()
    colours = [BASELINE_COLOURS[place % len(BASELINE_COLOURS)] for place in range(len(names))]
    axes.stackplot(dates, probabilities.T, labels=names, colors=colours, alpha=0.75, step="mid")
    for name, colour in zip(names, colours, strict=True):
        mine = np.array([label == name for label in labels])
        axes.plot(dates[mine], np.full(int(mine.sum()), -0.05), "|", color=colour, markersize=7)
    axes.set(ylim=(-0.1, 1.0), ylabel="probability", xlim=(dates[0], dates[-1]) if len(dates) > 1 else None)
    _dated(axes)
    axes.legend(loc="upper left", ncols=len(names))
    return figure


@styled
def anomaly_score(dates: npt.NDArray[np.datetime64], scores: Array, percentile: Array, unusual: float) -> Figure:
    """Score by test date, in the distance that a tenth of the dates exceed; unusual ones marked."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(dates, scores, color="#0072B2", linewidth=1.0, marker=".", markersize=4)
    marked = percentile > unusual
    axes.plot(
        dates[marked], scores[marked], "o", color=MODEL_COLOUR, label=f"above {100 * unusual:g} % of the reference"
    )
    axes.axhline(1.0, color=UNLABELLED, linewidth=0.8)
    axes.set(ylabel="score [distance exceeded by a tenth]", yscale="log")
    _dated(axes)
    axes.legend(loc="upper left")
    return figure


@styled
def completed_surface(given: Array, mask: Array, completed: Array, true: Array, true_mask: Array, title: str) -> Figure:
    """Three heat maps over tenor and moneyness, volatilities in %, misses in vol points; arrays [G]."""
    shown = (
        ("given", np.where(mask > 0, 100 * given, np.nan), "viridis", "volatility [%]"),
        ("completed", 100 * completed, "viridis", "volatility [%]"),
        ("completed minus true", np.where(true_mask > 0, 100 * (completed - true), np.nan), "RdBu_r", "vol points"),
    )
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    low, high = 100 * float(completed.min()), 100 * float(completed.max())
    for axes, (name, values, colours, unit) in zip(figure.subplots(1, 3, sharey=True), shown, strict=True):
        reach = max(float(np.nanmax(np.abs(values))), 1e-3) if unit == "vol points" else 0.0
        limits = (-reach, reach) if unit == "vol points" else (low, high)
        image = axes.imshow(values.reshape(SHAPE), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto",
                            origin="lower")  # fmt: skip
        axes.grid(visible=False)
        axes.set(title=name, xlabel="moneyness ln(K/F)/sqrt(tau)", xticks=range(0, SHAPE[1], 2), yticks=range(SHAPE[0]))
        axes.set_xticklabels([f"{MONEYNESS[place]:g}" for place in range(0, SHAPE[1], 2)])
        axes.set_yticklabels([f"{days:g}" for days in TENORS_DAYS])
        figure.colorbar(image, ax=axes, label=unit)
    figure.axes[0].set_ylabel("tenor [days]")
    figure.suptitle(title)
    return figure
