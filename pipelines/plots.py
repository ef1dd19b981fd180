"""Figures of an evaluation: one function each, returning a matplotlib `Figure` that nobody else holds on to.

In: the `predictions` table of `pipelines.metrics`, attention weights, a training curve. Out: figures for the report and
for PNG files; `all_figures` makes every one the input allows, in the order of the report; CAPTIONS explains them.

Invariant: axes carry units; colours and style are those of pipelines/plot_style.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

from pipelines import metrics
from pipelines.metrics import MODEL
from pipelines.plot_style import MARKET_COLOUR, MODEL_COLOUR, OTHER_COLOUR, is_ours, label, look, styled
from serving import black76
from serving.errors import DataError
from serving.normal import Array
from serving.surface import DAYS_PER_YEAR

LAST_SEEN = ("anchored_sticky_strike", "sticky_strike")  # the first that is there is drawn beside the model
PANEL_TENORS_DAYS = (14, 45, 120)
FEWEST_STRIKES = 8  # of a smile worth a panel
FEWEST_ROWS = 20  # of a bucket worth a number
OFF_SCALE = 3.0  # bars longer than this many times the shortest are cut

CAPTIONS = {
    "pooled_errors": "Pooled error and share of prices inside the bid-ask spread, every predictor. Bars that end in an "
    "arrow are longer than the axis.",
    "error_by_date": "IV error of each test date. A model worth having lies below the baselines on most dates.",
    "error_by_bucket": "Where the model errs, and where it beats the best baseline (below 1) or loses to it (above 1). "
    f"Cells with fewer than {FEWEST_ROWS} quotes are left out.",
    "smiles": "The market, the model and the last-seen baseline, on the model's median and worst date; below each "
    "smile the same lines minus the market mid. RMSE: the model's, in vol points.",
    "volatility_changes": "Predicted and realised change of IV since the last snapshot (sticky strike predicts none).",
    "attention": "Attention weight over the steps of the window, mean over dates and their 10-90 % range.",
    "training": "Loss on training and validation dates.",
}


def _plain_log(axes: Axes) -> None:
    """Logarithmic y axis labelled 0.2, 0.5, 1, 2, 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


@styled
def pooled_errors(table: pl.DataFrame) -> Figure:
    """Bars of pooled IV RMSE [vol points] and of the share inside the spread, best predictor on top."""
    pooled = metrics.scores(table)
    names = sorted(pooled, key=lambda name: pooled[name]["iv_rmse"], reverse=True)
    figure = Figure(figsize=(9.5, 1.1 + 0.34 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = [look(name, names)["color"] if is_ours(name) else OTHER_COLOUR for name in names]
    errors = np.array([pooled[name]["iv_rmse"] for name in names])
    on_scale = errors <= OFF_SCALE * max(errors.min(), 1e-9)
    limit = 1.2 * errors[on_scale].max() or 1.0
    left.barh(range(len(names)), np.minimum(errors, 0.96 * limit), color=colours, height=0.72)
    for place, (error, fits) in enumerate(zip(errors, on_scale, strict=True)):
        if fits:
            left.text(error + 0.01 * limit, place, f"{error:.3f}", va="center")
        else:
            left.text(0.94 * limit, place, f"{error:.2f}  \N{RIGHTWARDS ARROW}", va="center", ha="right")
    left.set(xlim=(0, limit), xlabel="pooled IV RMSE [vol points]", yticks=range(len(names)))
    left.set_yticklabels([label(name) for name in names])
    shares = np.array([pooled[name]["inside_spread"] for name in names])
    right.barh(range(len(names)), shares, color=colours, height=0.72)
    for place, share in enumerate(shares):
        right.text(share, place, f" {100 * share:.1f} %", va="center")
    right.set(xlim=(0, min(1.15, max(1.2 * shares.max(), 0.1))), xlabel="prices inside the spread [% of rows]")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    right.tick_params(axis="y", length=0)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    return figure


@styled
def error_by_date(table: pl.DataFrame) -> Figure:
    """Daily IV RMSE [vol points] of the model and each baseline; logarithmic where one is far above the others."""
    daily = metrics.by_date(table)
    names = metrics.predictors(table)
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    axes = figure.subplots()
    several = daily["date"].n_unique() <= 60
    widest = 1.2 if not several and sum(is_ours(name) for name in names) > 1 else 2.2
    pooled = metrics.scores(table)
    for name in sorted(names, key=lambda name: -pooled[name]["iv_rmse"]):
        rows = daily.filter(pl.col("predictor") == name)
        drawn = look(name, names) | ({"markersize": 4} if several else {"marker": ""})
        drawn["linewidth"] = min(drawn["linewidth"], widest)
        axes.plot(rows["date"].to_numpy(), rows["iv_rmse"].to_numpy(), label=label(name), **drawn)
    errors = daily["iv_rmse"].to_numpy()
    if errors.min() > 0 and errors.max() > 4 * errors.min():
        _plain_log(axes)
    else:
        axes.set_ylim(bottom=0)
    locator = AutoDateLocator(minticks=3, maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set(xlabel="date (UTC)", ylabel="IV RMSE [vol points]")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)
    return figure


@styled
def error_by_bucket(table: pl.DataFrame) -> Figure:
    """Heat maps by tenor and moneyness: the model's IV RMSE [vol points], and its ratio to the best baseline's."""
    best = metrics.best_baseline(metrics.scores(table))
    buckets = metrics.by_bucket(table).filter(pl.col("rows") >= FEWEST_ROWS)
    if buckets.is_empty():
        raise DataError(f"predictions: no bucket has {FEWEST_ROWS} rows, so there is no heat map to draw")
    model, ratio = bucket_grid(buckets, MODEL), np.array([])
    if best is not None:
        reference = bucket_grid(buckets, best)
        ratio = model / np.where(reference > 0, reference, np.nan)
    compared = bool(np.isfinite(ratio).any())
    figure = Figure(figsize=(10.5, 3.6) if compared else (6.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 1 + compared, squeeze=False)[0]
    heat(panels[0], model, "model: IV RMSE [vol points]", cmap="YlGnBu")
    if best is not None and compared:
        heat(panels[1], ratio, f"IV RMSE, model / {label(best)} [ratio]", cmap="PuOr_r", norm=around_one(ratio))
        panels[1].set_ylabel("")
    return figure


def around_one(ratio: Array) -> TwoSlopeNorm:
    """Colours of ratios: 1 in the middle, the widest deviation (0.1 to 1) at both ends."""
    reach = min(1.0, max(0.1, float(np.nanmax(np.abs(ratio - 1.0)))))
    return TwoSlopeNorm(1.0, 1.0 - reach, 1.0 + reach)


def bucket_grid(buckets: pl.DataFrame, name: str) -> Array:
    """IV RMSE [vol points] of a predictor by tenor and moneyness, NaN where there is no bucket."""
    grid = np.full((len(metrics.TENOR_LABELS), len(metrics.MONEYNESS_LABELS)), np.nan)
    for row in buckets.filter(pl.col("predictor") == name).iter_rows(named=True):
        place = metrics.TENOR_LABELS.index(row["tenor"]), metrics.MONEYNESS_LABELS.index(row["moneyness"])
        grid[place] = row["iv_rmse"]
    return grid


def heat(axes: Axes, grid: Array, title: str, **colours: Any) -> None:
    """One annotated heat map; empty rows and columns are left out, other empty cells stay grey."""
    rows, columns = (np.flatnonzero(np.isfinite(grid).any(axis=axis)) for axis in (1, 0))
    grid = grid[np.ix_(rows, columns)]
    axes.set_facecolor("#ececec")
    image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", **colours)
    paint = np.asarray(image.cmap(image.norm(np.nan_to_num(grid))))
    for (row, column), number in np.ndenumerate(grid):
        text, ink = "\N{EN DASH}", "#777777"
        if np.isfinite(number):
            red, green, blue, _ = paint[row, column]
            text, ink = f"{number:.2f}", "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        axes.text(column, row, text, ha="center", va="center", color=ink)
    moneyness = [metrics.MONEYNESS_LABELS[column] for column in columns]
    axes.set_xticks(range(len(columns)), moneyness, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [metrics.TENOR_LABELS[row] for row in rows])
    axes.set(title=title, xlabel="moneyness ln(K/F)/sqrt(tau) [per sqrt(year)]", ylabel="time to expiry")
    axes.grid(visible=False)
    axes.tick_params(length=0)


def panel_smiles(table: pl.DataFrame, judged: str = MODEL) -> list[tuple[str, pl.DataFrame]]:
    """Up to six smiles: of the predictor's median and worst date, those with expiries nearest 14, 45 and 120 days."""
    rows = metrics.checked(table).with_columns(date=pl.col("ts").dt.date())
    daily = metrics.by_date(table).filter(pl.col("predictor") == judged).sort("iv_rmse", "date")
    dates = {"median date": daily["date"][(daily.height - 1) // 2], "worst date": daily["date"][-1]}
    panels = []
    for kind, date in dates.items():
        if kind == "worst date" and date == dates["median date"]:
            continue
        smiles = rows.filter(pl.col("date") == date).partition_by(list(metrics.SMILE), maintain_order=True)
        left = sorted((smile for smile in smiles if smile.height >= FEWEST_STRIKES), key=lambda smile: -smile.height)
        chosen: list[pl.DataFrame] = []
        for days in PANEL_TENORS_DAYS:
            free = [smile for smile in left if not any(smile["tau"][0] == other["tau"][0] for other in chosen)]
            if free:
                chosen.append(min(free, key=lambda smile: abs(smile["tau"][0] * DAYS_PER_YEAR - days)))
        panels += [(kind, smile) for smile in sorted(chosen, key=lambda smile: float(smile["tau"][0]))]
    return panels


@styled
def smiles(table: pl.DataFrame) -> Figure:
    """IV [%] against strike (market's bid-ask band and mid, nets of ours, last-seen baseline); below, minus the mid."""
    ours = [name for name in metrics.predictors(table) if is_ours(name)]
    panels = panel_smiles(table, ours[0])
    if not panels:
        raise DataError(f"predictions: no smile has {FEWEST_STRIKES} rows, so there is none to draw")
    names = metrics.predictors(table)
    last_seen = next((name for name in LAST_SEEN if name in names), None)
    bands = (len(panels) + len(PANEL_TENORS_DAYS) - 1) // len(PANEL_TENORS_DAYS)
    figure = Figure(figsize=(10.5, 0.4 + 4.3 * bands), layout="constrained")
    grid = figure.subplots(2 * bands, len(PANEL_TENORS_DAYS), squeeze=False, height_ratios=[3, 2] * bands)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (kind, smile) in enumerate(panels):
        band, column = divmod(place, len(PANEL_TENORS_DAYS))
        upper, lower = grid[2 * band, column], grid[2 * band + 1, column]
        strike, mid = smile["strike"].to_numpy(), 100 * smile["iv_market"].to_numpy()
        low, high = (_quote_volatility(smile, side) for side in ("bid", "ask"))
        for axes, origin in ((upper, np.zeros_like(mid)), (lower, mid)):
            axes.set_axis_on()
            axes.fill_between(strike, low - origin, high - origin, color="#d0d0d0", label="market, bid to ask")
            axes.plot(strike, mid - origin, ".", color=MARKET_COLOUR, markersize=2.5, label="market mid")
            if last_seen is not None:
                drawn = look(last_seen, names) | {"marker": "", "linewidth": 1.2}
                axes.plot(strike, 100 * smile[f"iv_{last_seen}"].to_numpy() - origin, label=label(last_seen), **drawn)
            for name in ours:
                drawn = look(name, names) | {"marker": "", "linewidth": 1.5}
                axes.plot(strike, 100 * smile[f"iv_{name}"].to_numpy() - origin, label=label(name), **drawn)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        errors = [100 * smile[f"iv_{name}"].to_numpy() - mid for name in (*ours, last_seen) if name is not None]
        days = round(smile["tau"][0] * DAYS_PER_YEAR)
        upper.set_title(
            f"{kind} {smile['ts'][0]:%Y-%m-%d}\n"
            f"{smile['root'][0]}, {days} days, RMSE "
            + ", ".join(f"{np.sqrt(np.mean(error**2)):.2f}" for error in errors[: len(ours)])
        )
        upper.set(ylabel="IV [%]", ylim=_padded(mid, mid))
        upper.tick_params(labelbottom=False)
        quotes = np.r_[np.quantile(low - mid, 0.1), np.quantile(high - mid, 0.9)]
        lower.set(xlabel="strike [money]", ylabel="IV - mid [vol points]", ylim=_padded(*errors, quotes))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _padded(*values: Array) -> tuple[float, float]:
    """Limits of an axis that shows all values and a margin."""
    low, high = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
    margin = 0.15 * (high - low) or 1.0
    return low - margin, high + margin


def _quote_volatility(smile: pl.DataFrame, side: str) -> Array:
    """IV [%] of the bid or ask; a side without one (a bid below intrinsic value) takes the mid's."""
    right = np.where(smile["right"].to_numpy() == "C", 1.0, -1.0)
    price, forward, strike, tau, discount = (
        smile[name].to_numpy() for name in (side, "forward", "strike", "tau", "discount")
    )
    volatility, _ = black76.implied_volatility(price, forward, strike, tau, discount, right)
    return 100.0 * np.where(np.isfinite(volatility), volatility, smile["iv_market"].to_numpy())


@styled
def volatility_changes(table: pl.DataFrame, predictor: str = MODEL) -> Figure:
    """Predicted against realised change of IV since the last snapshot [vol points], counted in hexagons."""
    rows = metrics.checked(table)
    if "sticky_strike" not in metrics.predictors(table):
        raise DataError("predictions: no iv_sticky_strike, which holds the last seen IV; changes can't be drawn")
    last = rows["iv_sticky_strike"].to_numpy()
    realised = 100 * (rows["iv_market"].to_numpy() - last)
    predicted = 100 * (rows[f"iv_{predictor}"].to_numpy() - last)
    reach = float(np.quantile(np.abs(realised), 0.995)) or 1.0
    figure = Figure(figsize=(5.6, 4.7), layout="constrained")
    axes = figure.subplots()
    largest = np.maximum(np.abs(realised), np.abs(predicted))
    if not (largest <= reach).any():
        reach = float(largest.max())
    shown = largest <= reach
    mesh = axes.hexbin(realised[shown], predicted[shown], gridsize=55, extent=(-reach, reach, -reach, reach),
                       cmap="viridis_r", norm=LogNorm(), mincnt=1, linewidths=0.1)  # fmt: skip
    axes.plot([-reach, reach], [-reach, reach], color=MODEL_COLOUR, linewidth=1.2, linestyle="--")
    total = float(np.sum(realised**2))
    if total > 0:
        explained = 1.0 - float(np.sum((realised - predicted) ** 2)) / total
        axes.set_title(f"explains {100 * explained:.0f} % of the squared change")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="realised change of IV [vol points]",
             ylabel=f"change predicted by {label(predictor)} [vol points]", aspect="equal")  # fmt: skip
    axes.text(0.97, 0.03, f"{100 * (1 - shown.mean()):.1f} % of rows outside", transform=axes.transAxes, ha="right")
    figure.colorbar(mesh, ax=axes, label="rows per hexagon")
    return figure


@styled
def attention(weights: Array) -> Figure:
    """Attention weight of each step of the window, [T] or [dates, T], oldest step first."""
    if weights.ndim not in (1, 2) or not weights.size:
        raise DataError(f"attention weights: shape {weights.shape}; [T] or [dates, T] needed")
    by_day = np.atleast_2d(weights)
    steps = np.arange(by_day.shape[1]) - by_day.shape[1] + 1
    figure = Figure(figsize=(9.5, 2.8), layout="constrained")
    axes = figure.subplots()
    if len(by_day) > 1:
        low, high = np.quantile(by_day, (0.1, 0.9), axis=0)
        axes.fill_between(steps, low, high, color=MODEL_COLOUR, alpha=0.25, linewidth=0, label="10-90 % of dates")
    axes.plot(steps, by_day.mean(axis=0), color=MODEL_COLOUR, marker="o", markersize=3, label="mean")
    axes.axhline(1.0 / by_day.shape[1], color=MARKET_COLOUR, linestyle="--", linewidth=1.0, label="equal weights")
    axes.set(xlabel="step of the window (0 = latest)", ylabel="attention weight [share]")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left")
    return figure


@styled
def training(curve: pl.DataFrame) -> Figure:
    """Losses against epochs; columns `epoch`, `train_loss`, `validation_loss`. The best validation epoch is marked."""
    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    axes = figure.subplots()
    curve = curve.sort("epoch")
    epoch = curve["epoch"].to_numpy()
    losses = {"training": "train_loss", "validation": "validation_loss"}
    looks = {"training": ("#0072B2", "--"), "validation": (MODEL_COLOUR, "-")}
    for name, column in losses.items():
        colour, dashes = looks[name]
        axes.plot(epoch, curve[column].cast(pl.Float64).to_numpy(), color=colour, linestyle=dashes, label=name)
    held_out = curve["validation_loss"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if np.isfinite(held_out).any():
        best = int(np.nanargmin(held_out))
        axes.plot(epoch[best], held_out[best], "o", color=MODEL_COLOUR, label=f"best: epoch {epoch[best]}")
    both = curve.select(pl.col(list(losses.values())).cast(pl.Float64)).to_numpy()
    both = both[np.isfinite(both)]
    if both.size and both.min() > 0 and both.max() > 4 * both.min():
        _plain_log(axes)
    axes.set(xlabel="epoch", ylabel="loss (as trained)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    return figure


def all_figures(
    table: pl.DataFrame, *, attention_weights: Array | None = None, training_curve: pl.DataFrame | None = None
) -> dict[str, Figure]:
    """Every figure the input allows, by the names of CAPTIONS, in the report's order."""
    figures = {"pooled_errors": pooled_errors(table), "error_by_date": error_by_date(table)}
    if MODEL in metrics.predictors(table):
        if (metrics.by_bucket(table)["rows"] >= FEWEST_ROWS).any():
            figures["error_by_bucket"] = error_by_bucket(table)
        if panel_smiles(table):
            figures["smiles"] = smiles(table)
        if "sticky_strike" in metrics.predictors(table):
            figures["volatility_changes"] = volatility_changes(table)
    if attention_weights is not None:
        figures["attention"] = attention(attention_weights)
    if training_curve is not None:
        figures["training"] = training(training_curve)
    return figures
