"""The page of a gate report, from its JSON alone: verdict, one row per gate, settings, figures, errors by date.

In: the parsed report and its sha256. Out: one self-contained HTML page: no scripts, no links to anything outside.
Invariants: everything in it is escaped; a figure that isn't there is shown as missing, never as zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).resolve().parent / "templates"
WIDTH, HEIGHT, LEFT, BOTTOM = 900, 220, 46, 22  # of a plot, in pixels; margins
TICKS = 5  # at most, above zero
SERIES = {"by_date": "against the baseline", "by_date_with_champion": "against the champion"}


def page_of(report: Mapping[str, Any], sha256: str) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    outcomes = [_row(outcome) for outcome in report["outcomes"]]
    return environment.get_template("gate_report.html.j2").render(
        report=report, sha256=sha256, outcomes=outcomes, verdict=_verdict(report),
        off=[outcome for outcome in outcomes if outcome["verdict"] == "not asked"],
        plots=[plot for outcome in report["outcomes"] for plot in _plots(outcome["figures"])],
    )  # fmt: skip


def _verdict(report: Mapping[str, Any]) -> str:
    failed = [outcome["name"] for outcome in report["outcomes"] if not outcome["passed"]]
    asked = sum(bool(outcome["asked"]) for outcome in report["outcomes"])
    if failed:
        return f"Refused: {len(failed)} of {asked} gates say no ({', '.join(failed)}). Nothing was promoted."
    return f"Passed: {asked} gates were asked, all say yes."


def _row(outcome: Mapping[str, Any]) -> dict[str, Any]:
    verdict = "not asked" if not outcome["asked"] else "passed" if outcome["passed"] else "FAILED"
    figures = {name: value for name, value in outcome["figures"].items() if name not in SERIES}
    return {
        "name": outcome["name"].replace("_", " "),
        "verdict": verdict,
        "value": _number(outcome["value"]),
        "threshold": _number(outcome["threshold"]),
        "message": [part for part in outcome["message"].split("; ") if part],
        "settings": _lines(outcome["settings"]),
        "figures": _lines(figures),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _lines(values: Mapping[str, Any]) -> str:
    """One `name: value` line each, inner names behind their outer one's; a list of mappings is a line each."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in _flat("", values))


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(f"{prefix}{name}, ", value)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            found += [(f"{prefix}{name} {place}", one) for place, one in enumerate(value, 1)]
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _plots(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_plot(figures[name], words) for name, words in SERIES.items() if name in figures]


def _plot(series: Mapping[str, Sequence[Any]], words: str) -> dict[str, Any]:
    """Polylines of errors by date, in pixels; a date without a figure leaves a gap."""
    dates = list(series["date"])
    lines = {name: values for name, values in series.items() if name != "date"}
    highest = max((value for values in lines.values() for value in values if value is not None), default=0.0) or 1.0
    step = _step(highest / TICKS)
    top = step * math.ceil(highest / step - 1e-9)

    def x(place: int) -> float:
        return LEFT + (WIDTH - LEFT - 8) * (place / (len(dates) - 1) if len(dates) > 1 else 0.5)

    def y(value: float) -> float:
        return 8 + (HEIGHT - BOTTOM - 8) * (1.0 - value / top)

    drawn = []
    for name in sorted(lines, key=lambda one: one == "model"):  # the model on top
        runs: list[list[str]] = [[]]
        for place, value in enumerate(lines[name]):
            if value is None:
                runs.append([])
            else:
                runs[-1].append(f"{x(place):.1f},{y(value):.1f}")
        drawn.append({"name": name, "runs": [" ".join(run) for run in runs if run]})
    ticks = [{"at": y(step * count), "text": f"{step * count:.6g}"} for count in range(round(top / step) + 1)]
    places = sorted({0, len(dates) // 2, len(dates) - 1})
    labels = [{"at": x(place), "text": dates[place], "anchor": anchor}
              for place, anchor in zip(places, ("start", "middle", "end") if len(places) == 3 else ("start", "end"),
                                       strict=False)]  # fmt: skip
    return {"words": words, "lines": drawn, "ticks": ticks, "labels": labels, "width": WIDTH, "height": HEIGHT,
            "left": LEFT, "dates": len(dates)}  # fmt: skip


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is `least` or more."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1.0 - 1e-9))
