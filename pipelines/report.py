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
from pathlib import Path
from typing import Any, Literal

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from pipelines import metrics
from pipelines.metrics import MODEL, DieboldMariano, Score
from pipelines.plot_style import label, png
from pipelines.plots import CAPTIONS
from pipelines.report_tables import SIGNIFICANT_P, Cell, Table, cell, p_cell, p_text, plain, wide
from serving.errors import DataError

LONG_TABLE = 45  # rows; longer ones start folded
BUCKETS_TITLE = "by tenor and moneyness ln(K/F)/sqrt(tau)"
TEMPLATES = Path(__file__).parent / "templates"
FINDINGS = {"better": "significantly better", "worse": "significantly worse", "undecided": "not significant"}
ScoreName = Literal["iv_rmse", "iv_mae", "price_rmse", "price_mae", "inside_spread"]
ERROR_COLUMNS: dict[str, tuple[ScoreName, str]] = {
    "IV RMSE [vol points]": ("iv_rmse", ".3f"),
    "IV MAE [vol points]": ("iv_mae", ".3f"),
    "price RMSE [money]": ("price_rmse", ".3f"),
    "price MAE [money]": ("price_mae", ".3f"),
    "inside spread [% of quotes]": ("inside_spread", ".1%"),
}


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
    text = (
        f"That is {side(model['iv_rmse'], baseline['iv_rmse'])} the best baseline, {name} ({baseline['iv_rmse']:.3f}). "
    )
    return text + finding("The model", model, baseline, test)


def side(own: float, other: float) -> str:
    """How one error stands to another: `1.2 % better than`, `equal to`."""
    ratio = own / other if other > 0 else math.nan
    if math.isnan(ratio):
        return "no better than" if own > 0 else "equal to"
    return "equal to" if ratio == 1.0 else f"{abs(100 * (1 - ratio)):.1f} % {'better' if ratio < 1 else 'worse'} than"


def finding(subject: str, own: Score, other: Score, test: DieboldMariano | None) -> str:
    """A sentence with the test of own (a) against other (b), and what may be said from it."""
    if test is None:
        return "No test was made, so no significance can be claimed."
    if math.isnan(test.p):
        return f"No test is possible ({test.reason}), so no significance can be claimed."
    numbers = (
        f"Diebold-Mariano t = {test.t:.2f}, p {'' if test.p < 0.001 else '= '}{p_text(test.p)}, {test.dates} dates"
    )
    decided = conclusion(own, other, test)
    if decided == "undecided":
        why = "" if test.p >= SIGNIFICANT_P else "; the daily test and the pooled errors point in opposite directions"
        return f"The difference is not statistically significant ({numbers}{why})."
    return f"{subject} is significantly {decided} by the daily test ({numbers})."


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


def error_cells(scores: Mapping[str, Score]) -> dict[str, list[Cell]]:
    """Cells under ERROR_COLUMNS, by predictor, the best of each column marked."""
    rows: dict[str, list[Cell]] = {name: [] for name in scores}
    for key, pattern in ERROR_COLUMNS.values():
        every = [score[key] for score in scores.values()]
        winner = max(every) if key == "inside_spread" else min(every)
        for name, score in scores.items():
            rows[name].append(cell(score[key], pattern, score[key] == winner))
    return rows


def comparison_cells(own: Score, other: Score, test: DieboldMariano | None) -> list[Cell]:
    """Four cells: ratio of own to other, t, p, and the finding or why there is none."""
    ratio = own["iv_rmse"] / other["iv_rmse"] if other["iv_rmse"] > 0 else math.nan
    found = conclusion(own, other, test) if test else "undecided"
    said = Cell((test.reason if test else "not tested") or FINDINGS[found])
    return [cell(ratio, ".3f"), cell(test.t if test else None, ".2f"), p_cell(test.p if test else None), said]


def _head_table(report: Report) -> Table:
    """The model, then the baselines, best first."""
    names = sorted(report.scores, key=lambda name: (name != MODEL, report.scores[name]["iv_rmse"]))
    errors, model = error_cells(report.scores), report.scores[MODEL]
    rows = []
    for name in names:
        empty = [Cell("")] * 4
        tested = empty if name == MODEL else comparison_cells(model, report.scores[name], report.tests.get(name))
        rows.append([Cell(label(name)), *errors[name], *tested])
    return Table(["predictor", *ERROR_COLUMNS, "IV RMSE, model / this", "DM t", "p", "model against this"], rows)


def _sanity_table(report: Report) -> Table:
    model = report.scores[MODEL]["iv_rmse"]
    rows = [
        [
            Cell(bound.name),
            cell(bound.iv_rmse, ".3f"),
            Cell(f"{bound.should_be} than the model ({model:.3f})"),
            Cell("holds" if bound.holds(model) else "BROKEN"),
            Cell(bound.note),
        ]
        for bound in report.sanity
    ]
    return Table(["run", "IV RMSE [vol points]", "must be", "result", "note"], rows)


def render(report: Report) -> str:
    """The report's HTML."""
    sections: dict[str, Table | None] = {
        "buckets": wide(report.buckets, ["tenor", "moneyness"], BUCKETS_TITLE) if report.buckets is not None else None,
        "dates": wide(report.dates, ["date"], "by date") if report.dates is not None else None,
        "shape": plain(report.shape, shares=True) if report.shape is not None else None,
        "greeks": plain(report.greeks) if report.greeks is not None else None,
        "sanity": _sanity_table(report) if report.sanity else None,
    }
    return page(
        "report.html.j2", report=report, verdict=verdict(report), head=_head_table(report), sections=sections,
        images=pictures(report.figures, CAPTIONS | dict(report.captions)),
        tables={title: plain(table) for title, table in report.tables.items()},
        paragraphs=paragraphs(report.provenance),
    )  # fmt: skip


def page(template: str, **content: Any) -> str:
    """The HTML of a template of TEMPLATES; everything in `content` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(long=LONG_TABLE, significant_p=SIGNIFICANT_P, **content)


def pictures(figures: Mapping[str, Figure], captions: Mapping[str, str]) -> list[dict[str, str]]:
    """Figures as the template's `pictures` takes them."""
    return [
        {
            "name": name.replace("_", " "),
            "caption": captions.get(name, ""),
            "base64": base64.b64encode(png(figure)).decode("ascii"),
        }
        for name, figure in figures.items()
    ]


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a plain text: a blank line begins a new one."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


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
