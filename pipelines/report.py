"""The evaluation report: ONE HTML file that needs no network, no scripts and no other file.

In: a `Report`: scores and tests (see `pipelines.metrics`), and optional sections: tables, figures, texts. Out: the HTML
file (inline CSS, PNG images in base64; readable in light and dark and on paper) and, by `save_figures`, PNG files.

Invariants: everything is escaped; a section whose input is missing leaves no trace; each number of the head table
stands in full in its cell's `<data value=...>`; the verdict is computed from the numbers and claims a difference only
where p < SIGNIFICANT_P and the test and the pooled errors agree on its sign. Equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from pipelines import metrics
from pipelines.metrics import MODEL, DieboldMariano, Score
from pipelines.plot_style import label, png
from pipelines.plots import CAPTIONS
from serving.errors import DataError

SIGNIFICANT_P = 0.05
LONG_TABLE = 45  # rows; longer ones start folded
TEMPLATES = Path(__file__).parent / "templates"
FINDINGS = {"better": "significantly better", "worse": "significantly worse", "undecided": "not significant"}
ScoreName = Literal["iv_rmse", "iv_mae", "price_rmse", "price_mae", "inside_spread"]


@dataclass(frozen=True)
class SanityBound:
    """A run whose error must lie on a known side of the model's: worse (shuffled labels) or better (leaked quotes)."""

    name: str
    iv_rmse: float  # vol points
    should_be: Literal["worse", "better"]
    note: str = ""

    def holds(self, model_iv_rmse: float) -> bool:
        """Whether it lies there."""
        return self.iv_rmse > model_iv_rmse if self.should_be == "worse" else self.iv_rmse < model_iv_rmse


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says. Only `title`, `scores` and `tests` are needed; whatever else is empty is left out.

    `tests` holds, by baseline, the Diebold-Mariano test of the model (a) against it (b). `greeks` is any small table,
    as are those of `tables`, by title. `lineage`, `split` and `summary` are shown as names with values. Texts are
    plain; a blank line begins a paragraph.
    """

    title: str
    scores: Mapping[str, Score]
    tests: Mapping[str, DieboldMariano]
    summary: Mapping[str, object] = field(default_factory=dict)
    provenance: str = ""
    split: Mapping[str, object] = field(default_factory=dict)
    buckets: pl.DataFrame | None = None
    dates: pl.DataFrame | None = None
    shape: pl.DataFrame | None = None
    greeks: pl.DataFrame | None = None
    sanity: Sequence[SanityBound] = ()
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    configuration_yaml: str = ""
    lineage: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, predictions: pl.DataFrame, *, title: str, **sections: Any) -> Report:
        """A report with scores, tests, buckets, dates and arbitrage violations computed from the predictions."""
        names = metrics.predictors(predictions)
        if MODEL not in names:
            raise DataError(f"predictions: no iv_{MODEL}; a report compares the model with {', '.join(names)}")
        tests = {name: metrics.diebold_mariano(predictions, MODEL, name) for name in names if name != MODEL}
        computed: dict[str, Any] = {
            "scores": metrics.scores(predictions),
            "tests": tests,
            "buckets": metrics.by_bucket(predictions),
            "dates": metrics.by_date(predictions),
            "shape": metrics.shape_violations(predictions),
        }
        return cls(title=title, **(computed | sections))


def conclusion(model: Score, baseline: Score, test: DieboldMariano) -> Literal["better", "worse", "undecided"]:
    """What may be said of the model: only a test with p < SIGNIFICANT_P that agrees with the pooled errors decides."""
    gain = baseline["iv_rmse"] - model["iv_rmse"]
    if not test.p < SIGNIFICANT_P or gain * test.t <= 0:
        return "undecided"
    return "better" if gain > 0 else "worse"


def verdict(report: Report) -> list[str]:
    """Sentences in plain language, computed from scores and tests alone."""
    model = report.scores[MODEL]
    best = metrics.best_baseline(report.scores)
    head = f"The model's pooled IV RMSE is {model['iv_rmse']:.3f} vol points over {model['rows']:,} quotes on "
    head += f"{model['dates']} date{'s' * (model['dates'] != 1)}; {100 * model['inside_spread']:.1f} % of its prices "
    head += "lie inside the bid-ask spread."
    if best is None:
        return [head, "There is no baseline to compare it with, so nothing can be said about its worth."]
    return [head, _against(model, report.scores[best], report.tests.get(best), label(best)), *_all_baselines(report)]


def _against(model: Score, baseline: Score, test: DieboldMariano | None, name: str) -> str:
    ratio = model["iv_rmse"] / baseline["iv_rmse"] if baseline["iv_rmse"] > 0 else math.nan
    side = "equal to" if ratio == 1.0 else f"{abs(100 * (1 - ratio)):.1f} % {'better' if ratio < 1 else 'worse'} than"
    if math.isnan(ratio):
        side = "no better than" if model["iv_rmse"] > 0 else "equal to"
    text = f"That is {side} the best baseline, {name} ({baseline['iv_rmse']:.3f}). "
    if test is None:
        return text + "No test was made, so no significance can be claimed."
    if math.isnan(test.p):
        return text + f"No test is possible ({test.reason}), so no significance can be claimed."
    numbers = (
        f"Diebold-Mariano t = {test.t:.2f}, p {'' if test.p < 0.001 else '= '}{_p_text(test.p)}, {test.dates} dates"
    )
    decided = conclusion(model, baseline, test)
    if decided == "undecided":
        why = "" if test.p >= SIGNIFICANT_P else "; the daily test and the pooled errors point in opposite directions"
        return text + f"The difference is not statistically significant ({numbers}{why})."
    return text + f"The model is significantly {decided} by the daily test ({numbers})."


def _all_baselines(report: Report) -> list[str]:
    groups: dict[str, list[str]] = {"better": [], "undecided": [], "worse": []}
    for name, test in report.tests.items():
        groups[conclusion(report.scores[MODEL], report.scores[name], test)].append(label(name))
    texts = {
        "better": "Significantly better than",
        "undecided": "No significant difference from",
        "worse": "Significantly worse than",
    }
    listed = [f"{texts[kind]}: {', '.join(names)}." for kind, names in groups.items() if names]
    return [" ".join(listed)] if len(report.tests) > 1 else []


def _p_text(p: float) -> str:
    """Three decimals, more where rounding would hide on which side of SIGNIFICANT_P it lies."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if round(p, 3) != SIGNIFICANT_P else f"{p:.6f}"


class _Cell(NamedTuple):
    """A cell of a table: text, the number in full where there is one, and whether it is the best of its kind."""

    text: str
    value: str = ""
    best: bool = False


class _Table(NamedTuple):
    """A table as the template draws it; the first `labels` columns are row headings."""

    heads: Sequence[str]
    rows: Sequence[Sequence[_Cell]]
    labels: int = 1
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(row[column].value for row in self.rows) for column in range(len(self.heads))]


def _cell(value: object, pattern: str = ".4g", best: bool = False) -> _Cell:
    """Text of a value, floats by `pattern`; numbers stand in full in `value`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _Cell("\N{EN DASH}", "" if value is None else "nan")
    if isinstance(value, bool):
        return _Cell("yes" if value else "no")
    if isinstance(value, float):
        return _Cell(format(value, pattern), repr(value), best)
    if isinstance(value, int):
        return _Cell(f"{value:,}", str(value), best)
    return _Cell(f"{value:%Y-%m-%d}" if isinstance(value, date) else str(value))


def _head_table(report: Report) -> _Table:
    """The model, then the baselines, best first."""
    names = sorted(report.scores, key=lambda name: (name != MODEL, report.scores[name]["iv_rmse"]))
    columns: dict[str, tuple[ScoreName, str]] = {
        "IV RMSE [vol points]": ("iv_rmse", ".3f"),
        "IV MAE [vol points]": ("iv_mae", ".3f"),
        "price RMSE [money]": ("price_rmse", ".3f"),
        "price MAE [money]": ("price_mae", ".3f"),
        "inside spread [% of quotes]": ("inside_spread", ".1%"),
    }
    winners = {}
    for key, _ in columns.values():
        every = [report.scores[name][key] for name in names]
        winners[key] = max(every) if key == "inside_spread" else min(every)
    rows = []
    for name in names:
        score, test = report.scores[name], report.tests.get(name)
        row = [_Cell(label(name))]
        row += [_cell(score[key], pattern, score[key] == winners[key]) for key, pattern in columns.values()]
        if name == MODEL:
            row += [_Cell("")] * 4
        else:
            ratio = report.scores[MODEL]["iv_rmse"] / score["iv_rmse"] if score["iv_rmse"] > 0 else math.nan
            p = _cell(test.p if test else None)
            p = p._replace(text=_p_text(test.p)) if test and p.value not in ("", "nan") else p
            row += [_cell(ratio, ".3f"), _cell(test.t if test else None, ".2f"), p]
            finding = conclusion(report.scores[MODEL], score, test) if test else "undecided"
            row.append(_Cell((test.reason if test else "not tested") or FINDINGS[finding]))
        rows.append(row)
    return _Table(["predictor", *columns, "IV RMSE, model / this", "DM t", "p", "model against this"], rows)


def _wide(scored: pl.DataFrame, keys: Sequence[str], title: str) -> _Table:
    """IV RMSE of every predictor side by side, a row for each group, its best predictor marked."""
    names = scored["predictor"].unique(maintain_order=True).to_list()
    rows = []
    for group in scored.partition_by(keys, maintain_order=True):
        errors = dict(zip(group["predictor"], group["iv_rmse"], strict=True))
        least = min(errors.values())
        labels = [_cell(group[key][0]) for key in keys]
        cells = [_cell(errors.get(name), ".3f", errors.get(name) == least) for name in names]
        rows.append([*labels, _cell(group["rows"][0]), *cells])
    return _Table([*keys, "quotes", *(label(name) for name in names)], rows, len(keys), title)


def _plain(frame: pl.DataFrame, shares: bool = False) -> _Table:
    """Any small table as it is; floats as percentages where they are shares."""
    if "predictor" in frame.columns:
        frame = frame.with_columns(pl.Series("predictor", [label(str(name)) for name in frame["predictor"]]))
    rows = [[_cell(value, ".2%" if shares else ".4g") for value in row] for row in frame.iter_rows()]
    return _Table([column.replace("_", " ") for column in frame.columns], rows)


def _sanity_table(report: Report) -> _Table:
    model = report.scores[MODEL]["iv_rmse"]
    rows = [
        [
            _Cell(bound.name),
            _cell(bound.iv_rmse, ".3f"),
            _Cell(f"{bound.should_be} than the model ({model:.3f})"),
            _Cell("holds" if bound.holds(model) else "BROKEN"),
            _Cell(bound.note),
        ]
        for bound in report.sanity
    ]
    return _Table(["run", "IV RMSE [vol points]", "must be", "result", "note"], rows)


def render(report: Report) -> str:
    """The report's HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sections: dict[str, _Table | None] = {
        "buckets": _wide(report.buckets, ["tenor", "moneyness"], "by tenor and moneyness ln(K/F)/sqrt(tau)")
        if report.buckets is not None
        else None,
        "dates": _wide(report.dates, ["date"], "by date") if report.dates is not None else None,
        "shape": _plain(report.shape, shares=True) if report.shape is not None else None,
        "greeks": _plain(report.greeks) if report.greeks is not None else None,
        "sanity": _sanity_table(report) if report.sanity else None,
    }
    tables = {title: _plain(table) for title, table in report.tables.items()}
    images = [
        {
            "name": name.replace("_", " "),
            "caption": report.captions.get(name, CAPTIONS.get(name, "")),
            "base64": base64.b64encode(png(figure)).decode("ascii"),
        }
        for name, figure in report.figures.items()
    ]
    return environment.get_template("report.html.j2").render(
        report=report, verdict=verdict(report), head=_head_table(report), sections=sections, images=images,
        tables=tables,
        paragraphs=[text.strip() for text in report.provenance.split("\n\n") if text.strip()], long=LONG_TABLE,
        significant_p=SIGNIFICANT_P,
    )  # fmt: skip


def write_report(out_html: Path, report: Report) -> Path:
    """Write the report as one HTML file, making its folder; returns the path."""
    text = render(report)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    out_html.write_text(text, encoding="utf-8")
    return out_html


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as <name>.png into the folder, making it; returns the paths in the figures' order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(png(figure))
    return paths
