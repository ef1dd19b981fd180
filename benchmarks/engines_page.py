"""docs/engines.md's tables, written between its markers from the results.

In: the rows of `bench-engines`. Out: per case a line for each subject, then the ratios beside what was to be reached.
Invariant: what stands outside the markers is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines_targets import TARGETS, verdicts

BEGIN, END = "<!-- bench-engines: begin -->", "<!-- bench-engines: end -->"
PAGE = Path(__file__).parents[1] / "docs" / "engines.md"

Row = Mapping[str, Any]

COLUMNS = (
    "p50", "p99", "max", "p99_excess", "idle_p99", "python_p50", "python_p99", "advance_p50", "whole_p50", "head_p50",
    "error", "lower_bound",
)  # fmt: skip


def tables(rows: Sequence[Row]) -> str:
    """Markdown of all cases."""
    stamp = next(iter(rows), {})
    measured = "Times in us, one thread, one core; p99: the median of the repeats (the worst)."
    parts = [f"{stamp.get('machine', '')}; {stamp.get('date', '')}. {measured}"]
    judged = [[one.target.case, one.target.what, f"{'<=' if one.target.at_most else '>='} {one.target.limit:g}",
               f"{one.found:,.3g}", "yes" if one.reached else "**no**"] for one in verdicts(rows)]  # fmt: skip
    if judged:
        parts.append(_table(("case", "what", "to reach", "found", "reached"), judged))
    cases = {target.case for target in TARGETS}
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        if case in cases and all(row["subject"] != "null" for row in of_case):
            continue  # not timed in this run
        if case in cases:
            parts += [f"### {case}", _case_table(of_case)]
            ratios = [row for row in of_case if row["unit"] == "ratio" and row["metric"] == "p50"]
            if ratios:
                parts.append(_table(("of", "against", "best of", "p50 ratio", "lowest", "highest"), [
                    [row["of"], row["against"], row["peers"], f"{row['value']:.1f}", f"{row['lowest']:.1f}",
                     f"{row['highest']:.1f}"] for row in ratios if row["subject"] == "ratio" or row["peers"] == "int8"
                ]))  # fmt: skip
        else:
            parts += [f"### {case}", _table(("what", "metric", "value"), [
                [row["subject"], row["metric"], f"{row['value']:.3g} {row['unit']}"] for row in of_case
            ])]  # fmt: skip
    return "\n\n".join(parts)


def _case_table(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row["metric"] in COLUMNS and row["unit"] != "ratio"]
    columns = [name for name in COLUMNS if any(row["metric"] == name for row in shown)]
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in shown):
        values = {row["metric"]: row for row in shown if row["subject"] == subject}
        setup = next((str(row["setup"]) for row in values.values() if row.get("setup")), "")
        if subject == "null" or any(name in values for name in ("p50", "error")):
            cells = ["" if name not in values else _bound(values) if name == "lower_bound" else
                     _cell(name, values[name]) for name in columns]  # fmt: skip
            lines.append([subject, *cells, setup])
    return _table(("subject", *columns, "set-up"), lines)


def _cell(metric: str, row: Row) -> str:
    """The value; of a p99 also the highest of the repeats."""
    worst = f" (<= {_number(metric, row['highest'])})" if metric in ("p99", "python_p99") else ""
    return f"{_number(metric, row['value'])}{worst}"


def _bound(values: Mapping[str, Row]) -> str:
    """The bound, and how many times as long the median call takes."""
    bound = values["lower_bound"]["value"]
    times = f" (p50 is {values['p50']['value'] / bound:.1f}x)" if "p50" in values else ""
    return f"{_number('lower_bound', bound)}{times}"


def _number(metric: str, value: float) -> str:
    return f"{value:.1e}" if metric == "error" else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def write_tables(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Replace what stands between the markers; ValueError where the page has none."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected one line {BEGIN!r} and one {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}", encoding="utf-8")
