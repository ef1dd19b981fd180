"""Figures of a comparison: several nets of one task on the same rows.

In: a predictions table whose nets go by their families' names (pipelines/comparison.py), and the best baseline's name.
Out: matplotlib figures by name; CAPTIONS explains them.
Invariant: each family has one colour; axes carry units; style and colours are those of pipelines/plot_style.py.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from pipelines import metrics, plots
from pipelines.plot_style import MARKET_COLOUR, is_ours, label, look, styled
from serving.normal import Array

CAPTIONS = {
    "pooled_errors": plots.CAPTIONS["pooled_errors"],
    "error_by_date": "IV error of each test date, the families and the best baseline.",
    "gain_by_date": "Squared IV error gained on the best baseline so far: the sum over dates of its daily mean squared "
    "error minus the family's. A line that rises steadily gains on most dates, one that jumps on few.",
    "error_by_bucket": "IV RMSE of each family over the best baseline's: below 1 it beats the baseline there, above 1 "
    f"it loses. Cells with fewer than {plots.FEWEST_ROWS} quotes are left out.",
    "smiles": "The market, the families and the last-seen baseline, on the median and worst date of the best family; "
    "below each smile the same lines minus the market mid. RMSE: the families', in the order of the legend, in vol "
    "points.",
}


def only(table: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The table with these predictors alone."""
    others = [name for name in metrics.predictors(table) if name not in names]
    return table.drop(f"{kind}_{name}" for name in others for kind in ("iv", "price"))


@styled
def gain_by_date(table: pl.DataFrame, baseline: str) -> Figure:
    """Running sum over dates of the baseline's minus each family's daily mean squared IV error [squared vol points]."""
    names = metrics.predictors(table)
    daily = metrics.by_date(table).pivot(on="predictor", index="date", values="iv_rmse").sort("date")
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color=MARKET_COLOUR, linewidth=1.0, linestyle="--", label=label(baseline))
    for name in (name for name in names if is_ours(name)):
        gain = np.cumsum(daily[baseline].to_numpy() ** 2 - daily[name].to_numpy() ** 2)
        drawn = look(name, names) | {"marker": "" if len(gain) > 1 else "o"}
        axes.plot(daily["date"].to_numpy(), gain, label=label(name), **drawn)
    locator = AutoDateLocator(minticks=3, maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set(xlabel="date (UTC)", ylabel="gain so far [vol points squared]")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bucket_ratios(table: pl.DataFrame, baseline: str) -> dict[str, Array]:
    """By family: its IV RMSE over the baseline's by tenor and moneyness; NaN where a bucket has too few rows."""
    buckets = metrics.by_bucket(table).filter(pl.col("rows") >= plots.FEWEST_ROWS)
    reference = plots.bucket_grid(buckets, baseline)
    reference[reference == 0] = np.nan
    return {name: plots.bucket_grid(buckets, name) / reference for name in metrics.predictors(table) if is_ours(name)}


@styled
def error_by_bucket(ratios: dict[str, Array], baseline: str) -> Figure:
    """A heat map per family of its `bucket_ratios`; at least one cell must be a number."""
    every = np.stack(list(ratios.values()))
    across = min(2, len(ratios))
    down = -(-len(ratios) // across)
    figure = Figure(figsize=(6.0 if across == 1 else 10.5, 3.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(ratios) :]:
        axes.set_axis_off()
    for axes, (name, ratio) in zip(panels.flat, ratios.items(), strict=False):
        title = f"{label(name)} / {label(baseline)} [ratio]"
        plots.heat(axes, ratio, title, cmap="PuOr_r", norm=plots.around_one(every))
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    return figure


def all_figures(table: pl.DataFrame, baseline: str | None) -> dict[str, Figure]:
    """Every figure the input allows, by the names of CAPTIONS, in the order of the report."""
    names = metrics.predictors(table)
    ours = [name for name in names if is_ours(name)]
    last_seen = [name for name in plots.LAST_SEEN if name in names][:1]
    reference = [baseline] if baseline else []
    figures = {
        "pooled_errors": plots.pooled_errors(table),
        "error_by_date": plots.error_by_date(only(table, [*ours, *reference])),
    }
    if baseline:
        figures["gain_by_date"] = gain_by_date(table, baseline)
        ratios = bucket_ratios(table, baseline)
        if any(np.isfinite(ratio).any() for ratio in ratios.values()):
            figures["error_by_bucket"] = error_by_bucket(ratios, baseline)
    if plots.panel_smiles(table, ours[0]):
        figures["smiles"] = plots.smiles(only(table, [*ours, *last_seen]))
    return figures
