"""The report: its numbers are the metrics', its words follow from them, and it is one safe, self-contained file."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from pipelines import metrics, plot_style, plots
from pipelines.metrics import DieboldMariano, Score
from pipelines.report import Report, SanityBound, conclusion, render, save_figures, verdict, write_report
from serving.errors import DataError
from tests.pipelines.test_metrics import predictions

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('x')</script>"
CURVE = pl.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.5, 0.4], "validation_loss": [1.1, 0.7, 0.8]})
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Checks that tags nest, and collects headings, sources, table rows and `<data>` values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append(("", ""))
        if tag == "data":
            self.rows[-1][-1] = ("", dict(attrs)["value"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data.strip(), value)

    def row(self, first: str) -> list[tuple[str, str]]:
        """The first table row whose first cell has this text."""
        return next(row for row in self.rows if row and row[0][0] == first)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return predictions(strikes=12)


@pytest.fixture(scope="module")
def figures(table: pl.DataFrame) -> dict[str, Figure]:
    return plots.all_figures(table, attention_weights=np.full((4, 5), 0.2), training_curve=CURVE)


@pytest.fixture(scope="module")
def full(table: pl.DataFrame, figures: dict[str, Figure]) -> Report:
    return Report.of(
        table,
        title="pricing_lstm",
        figures=figures,
        summary={"data": "synthetic"},
        provenance="Quotes are real.\n\nForwards are implied.",
        split={"test": "2019-06-03 to 2019-06-08"},
        greeks=pl.DataFrame({"greek": ["delta"], "largest_error": [1.25e-9], "passed": [True]}),
        sanity=[SanityBound("shuffled labels", 99.0, "worse"), SanityBound("oracle", 98.0, "better", "sees t")],
        configuration_yaml="model:\n  name: <lstm>\n",
        lineage={"config_hash": "ab" * 32},
        notes=["first note"],
    )


@pytest.fixture(scope="module")
def html(full: Report) -> str:
    return render(full)


def score(iv_rmse: float) -> Score:
    return Score(iv_rmse=iv_rmse, iv_mae=iv_rmse, price_rmse=1.0, price_mae=1.0, inside_spread=0.5, rows=10, dates=9)


def two(model: float, baseline: float, t: float, p: float, reason: str = "") -> Report:
    tests = {"sticky_strike": DieboldMariano(t, p, t, 9, reason)}
    return Report(title="r", scores={"model": score(model), "sticky_strike": score(baseline)}, tests=tests)


def test_head_table_holds_the_metrics_in_full(full: Report, html: str, table: pl.DataFrame) -> None:
    page = Page(html)
    for name, expected in metrics.scores(table).items():
        row = page.row(plots.label(name))
        keys = ("iv_rmse", "iv_mae", "price_rmse", "price_mae", "inside_spread")
        assert [float(value) for _, value in row[1:6]] == [expected[key] for key in keys]
        for (text, _), key in zip(row[1:6], keys, strict=True):
            shown, unit = (float(text.rstrip("%")) / 100, 5e-4) if text.endswith("%") else (float(text), 5e-4)
            assert shown == pytest.approx(expected[key], abs=1.001 * unit)
        if name != "model":
            test = metrics.diebold_mariano(table, "model", name)
            ratio, t, p = (float(value) for _, value in row[6:9])
            assert (t, p) == (test.t, test.p)
            assert ratio == full.scores["model"]["iv_rmse"] / expected["iv_rmse"]


def test_detail_tables_hold_every_date_and_bucket(html: str, table: pl.DataFrame) -> None:
    page = Page(html)
    for date, group in metrics.by_date(table).group_by("date"):
        row = page.row(f"{date[0]:%Y-%m-%d}")
        assert [float(value) for _, value in row[2:]] == group["iv_rmse"].to_list()
    buckets = metrics.by_bucket(table).select("tenor", "moneyness").unique()
    shown = {(row[0][0], row[1][0]) for row in page.rows if row[0][0] in metrics.TENOR_LABELS}
    assert shown == {(str(tenor), str(moneyness)) for tenor, moneyness in buckets.iter_rows()}


def test_one_file_without_scripts_or_links(full: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", full)
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert len(page.links) == len(full.figures) == 7
    for link in page.links:
        head, _, data = link.partition("base64,")
        assert head == "data:image/png;"
        assert base64.b64decode(data, validate=True).startswith(PNG_HEAD)
    style = path.read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_everything_is_escaped(table: pl.DataFrame) -> None:
    hostile = table.rename({"iv_flat": f"iv_{HOSTILE}", "price_flat": f"price_{HOSTILE}"})
    report = replace(
        Report.of(hostile, title=HOSTILE),
        figures={HOSTILE: Figure()},
        captions={HOSTILE: HOSTILE + '" onload="x'},
        summary={HOSTILE: HOSTILE},
        split={HOSTILE: HOSTILE},
        lineage={HOSTILE: HOSTILE},
        provenance=HOSTILE,
        notes=[HOSTILE],
        configuration_yaml="</pre>" + HOSTILE,
        sanity=[SanityBound(HOSTILE, 1.0, "worse", HOSTILE)],
        greeks=pl.DataFrame({HOSTILE: [HOSTILE]}),
    )
    text = render(report)
    assert "<script" not in text.lower()
    assert "script" not in Page(text).tags
    assert text.count("&lt;script&gt;") > 15


def test_equal_input_gives_equal_bytes(full: Report, html: str) -> None:
    assert render(full) == html


def test_missing_sections_leave_no_trace(table: pl.DataFrame) -> None:
    report = Report(title="bare", scores=metrics.scores(table), tests={})
    page = Page(render(report))
    assert page.tags.count("h2") == 1
    assert not {"img", "details", "dl", "ul", "pre"} & set(page.tags)
    assert page.tags.count("table") == 1


def test_full_report_has_every_section(html: str) -> None:
    text = "".join(Page(html).text)
    for part in ("Data", "Figures", "IV RMSE in detail", "Arbitrage", "Greeks", "Sanity bounds", "Notes", "ab" * 32,
                 "Forwards are implied.", "name: <lstm>", "first note", "How it was made"):  # fmt: skip
        assert part in text


def test_broken_sanity_bound_is_said(html: str) -> None:
    page = Page(html)
    assert page.row("shuffled labels")[3][0] == "holds"
    assert page.row("oracle")[3][0] == "BROKEN"


@pytest.mark.parametrize(
    ("model", "baseline", "t", "p", "word"),
    [
        (0.3, 0.4, 3.0, 0.01, "better"),
        (0.4, 0.3, -3.0, 0.01, "worse"),
        (0.3, 0.4, 1.0, 0.3, "undecided"),
        (0.3, 0.4, 2.0, 0.05, "undecided"),
        (0.3, 0.4, -3.0, 0.01, "undecided"),  # the dates disagree with the pooled errors
        (0.3, 0.4, math.nan, math.nan, "undecided"),
    ],
)
def test_verdict_follows_the_numbers(model: float, baseline: float, t: float, p: float, word: str) -> None:
    report = two(model, baseline, t, p, "2 date(s)" if math.isnan(p) else "")
    assert conclusion(report.scores["model"], report.scores["sticky_strike"], report.tests["sticky_strike"]) == word
    text = " ".join(verdict(report))
    assert ("25.0 % better than" in text) == (model < baseline)
    assert ("33.3 % worse than" in text) == (model > baseline)
    assert (f"significantly {word}" in text) == (word != "undecided")
    if word == "undecided":
        assert "not statistically significant" in text or "no significance can be claimed" in text
    assert "nan" not in text


def test_p_just_below_the_bar_is_not_rounded_onto_it() -> None:
    assert "p = 0.049990" in " ".join(verdict(two(0.3, 0.4, 2.3, 0.04999)))
    assert "p < 0.001" in " ".join(verdict(two(0.3, 0.4, 9.0, 1e-7)))


def test_verdict_without_baselines_or_tests_claims_nothing() -> None:
    alone = Report(title="r", scores={"model": score(0.3)}, tests={})
    assert "no baseline" in " ".join(verdict(alone))
    untested = replace(two(0.3, 0.4, 1.0, 0.5), tests={})
    assert "No test was made" in " ".join(verdict(untested))
    perfect = two(0.0, 0.0, math.nan, math.nan, "the daily differences don't vary")
    assert "equal to the best baseline" in " ".join(verdict(perfect))
    assert Page(render(perfect)).row("sticky strike")[9][0] == "the daily differences don't vary"


def test_report_needs_the_model(table: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="no iv_model"):
        Report.of(table.drop("iv_model", "price_model"), title="r")


def test_figures_are_saved_as_png_and_leave_matplotlib_alone(table: pl.DataFrame, tmp_path: Path) -> None:
    before = {key: rcParams[key] for key in plot_style.STYLE}
    paths = save_figures({"pooled_errors": plots.pooled_errors(table)}, tmp_path / "figures")
    assert paths == [tmp_path / "figures" / "pooled_errors.png"]
    assert paths[0].read_bytes().startswith(PNG_HEAD)
    assert {key: rcParams[key] for key in plot_style.STYLE} == before


def test_every_figure_has_a_caption_and_units(figures: dict[str, Figure]) -> None:
    assert list(figures) == list(plots.CAPTIONS)
    for name, figure in figures.items():
        drawn = [axes for axes in figure.axes if axes.axison]
        assert drawn, name
        labels = [text for axes in drawn for text in (axes.get_xlabel(), axes.get_ylabel()) if text]
        assert any("[" in text or text == "epoch" for text in labels), name


def test_smile_panels_hold_the_median_and_the_worst_date(table: pl.DataFrame) -> None:
    panels = plots.panel_smiles(table)
    daily = metrics.by_date(table).filter(pl.col("predictor") == "model").sort("iv_rmse")
    shown = {kind: smile["ts"][0].date() for kind, smile in panels}
    assert shown == {"median date": daily["date"][2], "worst date": daily["date"][-1]}
    assert len(panels) == 6


@pytest.mark.parametrize("keep", [["model"], ["model", "sticky_strike"], ["model", "flat"]])
def test_figures_manage_with_few_predictors_dates_and_rows(table: pl.DataFrame, keep: list[str]) -> None:
    others = [name for name in ("model", "sticky_strike", "flat") if name not in keep]
    lean = table.drop(f"{kind}_{name}" for name in others for kind in ("iv", "price"))
    for rows in (lean.filter(pl.col("ts") == pl.col("ts").min()), lean.head(1)):
        figures = plots.all_figures(rows)
        for figure in figures.values():
            assert plot_style.png(figure).startswith(PNG_HEAD)
        Page(render(replace(Report.of(rows, title="lean"), figures=figures)))


def test_perfect_predictors_can_be_drawn(table: pl.DataFrame) -> None:
    mid = 0.5 * (pl.col("bid") + pl.col("ask"))
    names = metrics.predictors(table)
    perfect = table.with_columns(
        [pl.col("iv_market").alias(f"iv_{name}") for name in names] + [mid.alias(f"price_{name}") for name in names]
    )
    figures = plots.all_figures(perfect)
    Page(render(replace(Report.of(perfect, title="perfect"), figures=figures)))


def test_attention_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 2, 2\)"):
        plots.attention(np.ones((2, 2, 2)))
