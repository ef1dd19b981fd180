"""The page that shows the families side by side: one HTML file, as self-contained as pipelines/report.py's.

In: a `Comparison` per task, figures, names of the families that weren't evaluated. Out: HTML, and the numbers of
`scores.json`.
Invariants: sentences are computed from the numbers; a difference is claimed only as `pipelines.report.conclusion`
allows, and where no test was made the sentence says so. Equal input gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from pipelines import metrics
from pipelines.comparison import Comparison, Family
from pipelines.metrics import MODEL
from pipelines.plot_style import label
from pipelines.plots_compare import CAPTIONS
from pipelines.report import (
    BUCKETS_TITLE,
    ERROR_COLUMNS,
    comparison_cells,
    conclusion,
    error_cells,
    finding,
    page,
    paragraphs,
    pictures,
    side,
)
from pipelines.report_tables import Cell, Table, cell, plain, wide

OWN_AREA, PLAIN_AREA = "AUC of the score", "AUC of the distance from the last surface"
TITLES = {"pricing": "Pricing: every contract from the underlying and the anchors",
          "surface": "Surfaces: completing a sparse one, regimes, faults"}  # fmt: skip
SCORED = {
    "pricing": "Every scored quote of the test dates; prices use the carried forward and the discount last seen.",
    "surface": "The hidden quotes of the test dates, each completed from the visible ones; forwards and discounts of "
    "the date are taken as known. These errors and those of the pricing families answer different questions.",
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page says; `figures` by task. Texts are plain."""

    comparisons: Sequence[Comparison]
    figures: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    absent: Sequence[str] = ()
    provenance: str = ""


def render(content: Page) -> str:
    """The page's HTML."""
    first = content.comparisons[0].families[0]
    summary = {f"{one.task} families": ", ".join(one.names) for one in content.comparisons}
    if content.absent:
        summary["not evaluated here"] = ", ".join(content.absent)
    sections = []
    for one in content.comparisons:
        images = pictures(content.figures.get(one.task, {}), CAPTIONS)
        sections.append({"title": TITLES[one.task], "scored": SCORED[one.task], "images": images, **tables(one)})
    return page(
        "compare.html.j2", title="The families side by side", summary=summary, sections=sections,
        verdicts=[(TITLES[one.task].partition(":")[0], verdict(one)) for one in content.comparisons],
        paragraphs=paragraphs(content.provenance), split=first.metrics["split"],
        training=_training([family for one in content.comparisons for family in one.families]),
    )  # fmt: skip


def tables(one: Comparison) -> dict[str, Any]:
    """The tables of a task's section, by the names the template knows."""
    by_family = [family for family in one.families if family.metrics.get("measures")]
    return {
        "head": _head(one), "tests": _tests(one),
        "buckets": wide(metrics.by_bucket(one.table), ["tenor", "moneyness"], BUCKETS_TITLE),
        "dates": wide(metrics.by_date(one.table), ["date"], "by date"),
        "shape": plain(metrics.shape_violations(one.table), shares=True),
        "completion": _completion(by_family), "faults": _faults(by_family), "regimes": _regimes(by_family),
    }  # fmt: skip


def verdict(one: Comparison) -> list[str]:
    """Sentences in plain language, computed from scores, tests and measures alone."""
    names, scores = one.names, one.scores
    best = scores[names[0]]
    who = f"Of {len(names)} {one.task} families {names[0]} has the lowest pooled IV RMSE:"
    if len(names) == 1:
        who = f"{names[0]} is the only {one.task} family here; its pooled IV RMSE is"
    dates = f"{best['dates']} date{'s' * (best['dates'] != 1)}"
    sentences = [f"{who} {best['iv_rmse']:.3f} vol points over {best['rows']:,} quotes on {dates}."]
    for (a, b), test in one.tests.items():
        against = f"the best baseline, {label(b)}" if b == one.best_baseline else b
        own, other = scores[a]["iv_rmse"], scores[b]["iv_rmse"]
        text = f"{a} ({own:.3f}) is {side(own, other)} {against} ({other:.3f})."
        sentences.append(f"{text} {finding(a, scores[a], scores[b], test)}")
    if one.best_baseline is None:
        sentences.append("There is no baseline to compare with, so nothing can be said about their worth.")
    for family in one.families:
        sentences += _of_measures(family)
    return sentences


def _of_measures(family: Family) -> list[str]:
    """What a surface family's measures say; they come without tests, and the sentences say so."""
    measures = family.metrics.get("measures") or {}
    sentences = []
    by_share = list(_errors_by_share(measures).items())
    for share, errors in by_share[1:]:  # the first share is the one tested
        others = {name: error for name, error in errors.items() if name != MODEL}
        best = min(others, key=others.__getitem__)
        sentences.append(
            f"With {share} of the quotes hidden {family.name}'s IV RMSE is {errors[MODEL]:.3f} vol points, "
            f"{side(errors[MODEL], others[best])} the best baseline there, {label(best)} ({others[best]:.3f})."
        )
    if faults := measures.get("faults"):
        own, other = ([row[column] for row in faults] for column in (OWN_AREA, PLAIN_AREA))
        above = sum(a > b for a, b in zip(own, other, strict=True))
        sentences.append(
            f"{family.name}'s anomaly score tells faulty surfaces from clean ones with areas under the ROC curve of "
            f"{min(own):.2f} to {max(own):.2f} over {len(own)} kind{'s' * (len(own) != 1)} of fault; it lies above the "
            f"distance from the last surface ({min(other):.2f} to {max(other):.2f}) in {above} of {len(own)}."
        )
    mean = next((row for row in measures.get("regimes") or [] if row["regime"] == "mean"), None)
    if mean is not None:
        sentences.append(
            f"{family.name}'s regimes agree with the labels of {mean['dates']} test dates with a mean F1 of "
            f"{mean['F1']:.2f}."
        )
    return [*sentences, "No test was made of these further figures."] if sentences else []


def _errors_by_share(measures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    shares: dict[str, dict[str, float]] = {}
    for row in measures.get("completion") or []:
        shares.setdefault(row["hidden"], {})[row["predictor"]] = row["iv_rmse"]
    return shares


def _order(one: Comparison) -> list[str]:
    """Families, then baselines, each best first."""
    return sorted(one.scores, key=lambda name: (name not in one.names, one.scores[name]["iv_rmse"]))


def _head(one: Comparison) -> Table:
    """Errors of families and baselines; of families also their size and how long they trained."""
    errors, families = error_cells(one.scores), {family.name: family for family in one.families}
    rows = []
    for name in _order(one):
        size = [Cell("\N{EN DASH}")] * 2
        if name in families:
            training = families[name].training
            size = [
                cell(training.parameters),
                Cell(f"{training.best_epoch} of {training.epochs}", str(training.epochs)),
            ]
        rows.append([Cell(label(name)), *errors[name], *size])
    return Table(["predictor", *ERROR_COLUMNS, "parameters", "best epoch of all"], rows)


def _tests(one: Comparison) -> Table | None:
    rows = [[Cell(a), Cell(label(b)), *comparison_cells(one.scores[a], one.scores[b], test)]
            for (a, b), test in one.tests.items()]  # fmt: skip
    heads = ["a", "b", "IV RMSE, a / b", "DM t", "p", "a against b"]
    return Table(heads, rows, labels=2) if rows else None


def _training(families: Sequence[Family]) -> Table:
    heads = ["family", "task", "parameters", "epochs", "best epoch", "seconds per epoch", "seed",
             "validation IV RMSE [vol points]", "configuration", "features"]  # fmt: skip
    rows = []
    for family in families:
        own = family.training
        hashes = [Cell(own.config_sha256[:12]), Cell(own.features_sha256[:12])]
        rows.append([Cell(family.name), Cell(family.task), cell(own.parameters), cell(own.epochs), cell(own.best_epoch),
                     cell(own.seconds_per_epoch, ".2f"), cell(own.seed), cell(own.validation_iv_rmse, ".3f"),
                     *hashes])  # fmt: skip
    return Table(heads, rows)


def _completion(families: Sequence[Family]) -> Table | None:
    """IV RMSE by predictor and share hidden; a baseline's is the same for every family (they share their rows)."""
    ours = [family.name for family in families]
    errors: dict[str, dict[str, float]] = {}
    for family in families:
        for share, found in _errors_by_share(family.metrics["measures"]).items():
            for predictor, error in found.items():
                errors.setdefault(family.name if predictor == MODEL else predictor, {})[share] = error
    shares = list(dict.fromkeys(share for found in errors.values() for share in found))
    if not shares:
        return None
    least = {share: min(found[share] for found in errors.values() if share in found) for share in shares}
    rows = [
        [Cell(label(name)), *(cell(found.get(share), ".3f", found.get(share) == least[share]) for share in shares)]
        for name, found in sorted(
            errors.items(), key=lambda item: (item[0] not in ours, item[1].get(shares[0], math.inf))
        )
    ]
    return Table(["predictor", *(f"{share} hidden" for share in shares)], rows)


def _faults(families: Sequence[Family]) -> Table | None:
    """Areas under the ROC curve by kind of fault: each family's score, and the plain distance."""
    found = {family.name: {row["fault"]: row for row in family.metrics["measures"].get("faults") or []}
             for family in families}  # fmt: skip
    faults = {fault: row for rows in found.values() for fault, row in rows.items()}
    if not faults:
        return None
    rows = []
    for fault, row in faults.items():
        areas = [rows_of.get(fault, {}).get(OWN_AREA) for rows_of in found.values()] + [row[PLAIN_AREA]]
        largest = max(area for area in areas if area is not None)
        rows.append([Cell(fault), cell(row["surfaces"]), *(cell(area, ".3f", area == largest) for area in areas)])
    return Table(["fault", "surfaces", *(f"{name}'s score" for name in found), "distance from the last surface"], rows)


def _regimes(families: Sequence[Family]) -> Table | None:
    rows = [[Cell(family.name), Cell(row["regime"]), cell(row["dates"]),
             *(cell(row[name], ".2f") for name in ("recall", "precision", "F1"))]
            for family in families for row in family.metrics["measures"].get("regimes") or []]  # fmt: skip
    return Table(["family", "regime", "labelled dates", "recall", "precision", "F1"], rows, labels=2) if rows else None


def numbers(comparisons: Sequence[Comparison], absent: Sequence[str]) -> dict[str, Any]:
    """What `scores.json` holds, by task; IV in vol points, prices in money; a test that couldn't be made is null."""
    out: dict[str, Any] = {}
    for one in comparisons:
        families = {}
        for family in one.families:
            score = one.scores[family.name]
            kept = {name: score[name] for name in ("iv_rmse", "iv_mae", "price_rmse", "inside_spread")}
            families[family.name] = {
                **kept, "parameters": family.training.parameters, "epochs": family.training.epochs,
            }  # fmt: skip
        out[one.task] = {
            "rows": one.scores[one.names[0]]["rows"], "families": families,
            "best_baseline": {"name": one.best_baseline, "iv_rmse": one.scores[one.best_baseline]["iv_rmse"]}
            if one.best_baseline
            else None,
            "tests": {
                f"{a} against {b}": {
                    "t": None if math.isnan(test.t) else test.t, "p": None if math.isnan(test.p) else test.p,
                    "finding": conclusion(one.scores[a], one.scores[b], test),
                }
                for (a, b), test in one.tests.items()
            },
        }  # fmt: skip
    return out | {"absent": ", ".join(absent) or "none"}
