"""What was to be reached, beside what a run found: the first table of docs/engines.md.

In: the rows of `bench-engines`. Out: a `Verdict` per target that the rows can judge; a target whose rows are missing
has none. A ratio is judged by our fastest precision unless the target names one, against the best peer of all
precisions unless it names a group (see engines_rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = ("native_fp32", "native_bf16", "native_int8")

Row = Mapping[str, Any]
Find = Callable[[Sequence[Row]], float | None]


@dataclass(frozen=True)
class Target:
    """`at_most`: reached where what is found is not above the limit, else where it is not below."""

    case: str
    what: str
    limit: float
    at_most: bool
    find: Find


@dataclass(frozen=True)
class Verdict:
    target: Target
    found: float

    @property
    def reached(self) -> bool:
        return self.found <= self.target.limit if self.target.at_most else self.found >= self.target.limit


def lowest(metric: str) -> Find:
    """The least of our precisions."""
    return lambda rows: min((row["value"] for row in rows if row["subject"] in OURS and row["metric"] == metric),
                            default=None)  # fmt: skip


def tail(rows: Sequence[Row]) -> float | None:
    """p99 over p50 of our fastest precision."""
    medians = {row["subject"]: row["value"] for row in rows if row["subject"] in OURS and row["metric"] == "p50"}
    if not medians:
        return None
    fastest = min(medians, key=lambda subject: medians[subject])
    return next((float(row["value"]) / medians[fastest] for row in rows
                 if row["subject"] == fastest and row["metric"] == "p99"), None)  # fmt: skip


def ratio(*groups: str, ours: Sequence[str] = OURS) -> Find:
    """The highest of ours against the first of the groups of peers that has a row: the first is the strictest."""

    def find(rows: Sequence[Row]) -> float | None:
        ratios = [row for row in rows if row["unit"] == "ratio" and row["metric"] == "p50" and row["of"] in ours]
        for group in groups:
            found = [float(row["value"]) for row in ratios if row["peers"] == group]
            if found:
                return max(found)
        return None

    return find


BEST_PEER = ("all", "fp32 and bf16")
TARGETS = (
    Target("lstm_small_step", "p50, us", 2.5, True, lowest("p50")),
    Target("lstm_small_step", "times the best peer", 8, False, ratio(*BEST_PEER)),
    Target("lstm_small_step", "p99 over p50", 3, True, tail),
    Target("lstm_mid_step", "p50, us", 5, True, lowest("p50")),
    Target("lstm_mid_step", "times the best peer", 7, False, ratio(*BEST_PEER)),
    Target("lstm_mid_step", "p99 over p50", 3, True, tail),
    Target("lstm_production_step", "p50, us", 25, True, lowest("p50")),
    Target("lstm_production_step", "times the best fp32 or bf16 peer", 12, False, ratio("fp32 and bf16")),
    Target("lstm_production_step", "times the best int8 peer", 4.5, False, ratio("int8")),
    Target("lstm_production_step", "p99 over p50", 3, True, tail),
    Target("stac_lstm_a_window", "p99 of the native call, us", 4.7, True, lowest("p99")),
    Target("stac_lstm_b_window", "p99 of the native call, us", 10, True, lowest("p99")),
    Target("transformer_step", "times the best peer", 5, False, ratio(*BEST_PEER)),
    Target("chain_5000", "p50, us", 1000, True, lowest("p50")),
    Target("chain_5000", "in fp32: times the best fp32 peer", 3, False,
           ratio("fp32", "fp32 and bf16", ours=("native_fp32",))),
    Target("chain_5000", "in bf16 or int8: times the best peer", 8, False,
           ratio(*BEST_PEER, ours=("native_bf16", "native_int8"))),
)  # fmt: skip


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Of every target that these rows can judge."""
    judged = []
    for target in TARGETS:
        found = target.find([row for row in rows if row["case"] == target.case])
        if found is not None:
            judged.append(Verdict(target, found))
    return judged
