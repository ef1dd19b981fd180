"""The accuracy benchmark's page: the tables people read, above the raw rows.

In: the scored cases (benchmarks/accuracy_table.py). Out: Markdown. Invariant: every figure on it is one of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.accuracy_cases import CURVE, MAIN, MARKETS, NO_ANCHORS, OTHERS, SETUPS, Case
from benchmarks.accuracy_cells import Refusal
from benchmarks.accuracy_table import AGAINST, Scored

HEADINGS = {
    MAIN: ("SPX 2019, three anchors (14, 45, 120 days at the money)", "walk-forward: each fold trains on all dates "
           "before it, with an embargo date between; `all folds`: their rows together"),
    NO_ANCHORS: ("SPX 2019, no anchors", "without anchors the shift is zero, so anchored sticky strike is sticky "
                 "strike"),
    CURVE: ("SPX 2019, June: more anchors", "columns: number of anchors. All are scored on the rows that are scored "
            "with the most anchors, so a row at one of those anchors' strikes is left out everywhere, and figures "
            "differ a little from the tables above"),
    OTHERS: ("Other markets, through the same experiment file", "settings were chosen on SPX; `deribit_made_up` is no "
             "real market: its quotes are made up in Deribit's layout"),
}  # fmt: skip
TOO_FEW = "too few data"


def page(
    cases: Sequence[Case], models: Sequence[str], seeds: Sequence[int], scored: Mapping[str, Scored | Refusal],
    overrides: Sequence[str] = (),
) -> str:  # fmt: skip
    """Headings, tables and notes for `note` of write_results."""
    plural = "s" if len(seeds) != 1 else ""
    parts = [
        f"Reproduce: `make bench-accuracy` (`python -m benchmarks.accuracy`, options: `--help`). Seed{plural} "
        f"{', '.join(map(str, seeds))}" + (f"; overrides `{' '.join(overrides)}`" if overrides else "") + ".",
        "Cells: IV RMSE in vol points, price RMSE in dollars, share inside the spread; pooled over rows, mean over "
        "seeds, ± the standard deviation over seeds of the IV RMSE where seeds matter. Tests: Diebold-Mariano by date "
        "(Harvey-Leybourne-Newbold correction, two-sided); positive t: the subject is better; a date's error is its "
        "mean over seeds; *worst*: the largest p of a seed by itself, 1 where that seed is behind.",
    ]
    for table, (heading, remark) in HEADINGS.items():
        chosen = [case for case in cases if case.table == table]
        if not chosen:
            continue
        found = {case: one for case in chosen if isinstance(one := scored[case.name], Scored)}
        parts += [f"## {heading}", f"{remark[0].upper()}{remark[1:]}."]
        if found:
            parts += [
                _main(chosen, found),
                *([_ratios(found, models)] if table != CURVE else []),
                _tests(found, models),
            ]
        parts += [f"`{case.name}`: {one.error} (exit code {one.exit_code}): {one.message}."
                  for case in chosen if isinstance(one := scored[case.name], Refusal)]  # fmt: skip
        parts += _untested(found, models)
    titles = dict.fromkeys(MARKETS[SETUPS[name].market].title for case in cases for name in case.setups)
    parts += ["## All rows", f"Markets: {'; '.join(titles)}."]
    return "\n\n".join(parts)


def _main(chosen: Sequence[Case], found: Mapping[Case, Scored]) -> str:
    """A row per subject, a column per case."""
    subjects = list(dict.fromkeys(name for one in found.values() for name in one.subjects))
    heads = [f"{case.column} ({found[case].dates} dates, {found[case].rows:,} rows)" if case in found else case.column
             for case in chosen]  # fmt: skip
    body = [[f"`{name}`", *(_cell(found[case], name) if case in found else TOO_FEW for case in chosen)]
            for name in subjects]  # fmt: skip
    return _table(["subject", *heads], body)


def _cell(scored: Scored, name: str) -> str:
    spread = scored.spread(name, "iv_rmse")
    error = f"{scored.mean(name, 'iv_rmse'):.3f}" + ("" if spread is None else f" ± {spread:.3f}")
    return f"{error}, {scored.mean(name, 'price_rmse'):.3g}, {scored.mean(name, 'inside_spread'):.1f} %"


def _ratios(found: Mapping[Case, Scored], models: Sequence[str]) -> str:
    """IV RMSE over that of anchored sticky strike and of the best baseline."""

    def lines(metric: str, head: str) -> list[list[str]]:
        return [[f"`{name}`, {head}", *(_ratio(one, name, metric) for one in found.values())] for name in models]

    body = [
        *lines("ratio_to_anchored", "IV RMSE / anchored sticky strike's"),
        *lines("price_ratio_to_anchored", "price RMSE / anchored sticky strike's"),
        *lines("ratio_to_best_baseline", "IV RMSE / best baseline's"),
    ]
    return _table(["ratio", *(case.column for case in found)], body)


def _ratio(scored: Scored, name: str, metric: str) -> str:
    spread = scored.spread(name, metric)
    return f"{scored.mean(name, metric):.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _tests(found: Mapping[Case, Scored], models: Sequence[str]) -> str:
    """t, p and the worst seed's p of the models against each baseline."""

    def told(one: Scored, name: str, against: str) -> str:
        test = one.tests.get((name, against))
        return "-" if test is None else f"t {test[0]:.2f}, p {test[1]:.3f} (worst {test[2]:.3f})"

    body = [[f"`{name}` against `{against}`", *(told(one, name, against) for one in found.values())]
            for name in models for against in AGAINST]  # fmt: skip
    return _table(["test", *(case.column for case in found)], body)


def _untested(found: Mapping[Case, Scored], models: Sequence[str]) -> list[str]:
    """Why there is no test where there is none, said once per case and reason."""
    reasons = {
        (case.name, reason): None
        for case, one in found.items() for (name, _), reason in one.untested.items() if name in models
    }  # fmt: skip
    return [f"No test for `{name}`: {reason}." for name, reason in reasons]


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
