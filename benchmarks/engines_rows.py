"""From timings to the rows of `bench-engines`: percentiles, errors, ratios.

A percentile is taken of each repeat's calls; the row holds the median over the repeats, with the lowest and the
highest. `max` is the largest of all. Ratios are peer/ours within a repeat, median over the repeats, both called from
Python; `against` is the peer with the lowest median. `ratio` compares with the best peer in fp32 or bf16, `ratio_int8`
with the best int8 peer. Where an int8 peer is the best of all, `ratio` has a second row against it; where a bf16 peer
beats the fp32 ones, ours in fp32 has one against the best of those. The `peers` column says which.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.engines_timing import Timings

FULL_PEERS = ("ort", "ort_iobinding", "openvino_f32", "torch")
FLOAT_PEERS = (*FULL_PEERS, "openvino_bf16")
INT8_PEERS = ("ort_int8", "openvino_int8")
OURS = ("native_fp32", "native_bf16", "native_int8")

Row = dict[str, Any]


def timing_rows(
    case: str, timings: Mapping[str, Timings], about: Mapping[str, tuple[str, float]], *,
    native_call: bool = False, spread: float = 1.0, error_of: str = "context",
) -> list[Row]:  # fmt: skip
    """All rows of a case. `about` gives set-up and error of a subject; `native_call`: the headline of ours is the call
    timed in the core, Python's beside it. `spread` is what the answers vary by, to read the error against."""
    rows: list[Row] = []
    for subject, found in timings.items():
        setup, error = about[subject]
        headline = "native" if "native" in found.repeats else "evaluate"
        rows += _percentile_rows(case, subject, found, headline, "", setup)
        rows.append(_row(case, subject, "max", "us", max(found.percentiles(headline, 100.0)), setup=setup))
        if native_call:
            rows += _percentile_rows(case, subject, found, "evaluate", "python_", setup)
        if "idle" in found.repeats:
            rows += _idle_rows(case, subject, found, setup)
        for name in ("advance", "head"):
            if name in found.repeats:
                values = found.percentiles(name, 50.0)
                rows.append(_spread_row(case, subject, f"{name}_p50", "us", values, setup=setup))
        if subject in OURS and "advance" in found.repeats and "native" not in found.repeats:
            both = (found.percentiles(name, 50.0) for name in ("evaluate", "advance"))
            rows.append(_spread_row(case, subject, "whole_p50", "us", [sum(pair) for pair in zip(*both, strict=True)],
                                    setup=setup))  # fmt: skip
        if subject != "null":
            rows.append(_row(case, subject, "error", "absolute", error, setup=setup, of_what=error_of, spread=spread))
    return rows + ratio_rows(case, timings)


def ratio_rows(case: str, timings: Mapping[str, Timings]) -> list[Row]:
    """Ours against the best peers; nothing where either side is missing."""
    rows: list[Row] = []
    ours = sorted((name for name in OURS if name in timings), key=_median_of(timings))
    full, either, reduced = (
        min((name for name in peers if name in timings), key=_median_of(timings), default=None)
        for peers in (FULL_PEERS, FLOAT_PEERS, INT8_PEERS)
    )
    for name in ours:
        if either is not None:
            rows += _ratios(case, "ratio", timings, name, either, "fp32 and bf16")
        if reduced is not None and (either is None or _median_of(timings)(reduced) < _median_of(timings)(either)):
            rows += _ratios(case, "ratio", timings, name, reduced, "all")
        if full is not None and full != either and name == "native_fp32":
            rows += _ratios(case, "ratio", timings, name, full, "fp32")
        if reduced is not None and name == "native_int8":
            rows += _ratios(case, "ratio_int8", timings, name, reduced, "int8")
    return rows


def _median_of(timings: Mapping[str, Timings]) -> Callable[[str], float]:
    return lambda name: statistics.median(timings[name].percentiles("evaluate", 50.0))


def _ratios(case: str, subject: str, timings: Mapping[str, Timings], ours: str, peer: str, peers: str) -> list[Row]:
    rows = []
    for metric, percent in (("p50", 50.0), ("p99", 99.0)):
        both = (timings[name].percentiles("evaluate", percent) for name in (peer, ours))
        values = [theirs / mine for theirs, mine in zip(*both, strict=True)]
        rows.append(_spread_row(case, subject, metric, "ratio", values, of=ours, against=peer, peers=peers))
    return rows


def _percentile_rows(case: str, subject: str, found: Timings, name: str, prefix: str, setup: str) -> list[Row]:
    rows = []
    for metric, percent in (("p50", 50.0), ("p99", 99.0)):
        values, calls = found.percentiles(name, percent), found.calls(name)
        rows.append(_spread_row(case, subject, f"{prefix}{metric}", "us", values, calls=calls, setup=setup))
    return rows


def _idle_rows(case: str, subject: str, found: Timings, setup: str) -> list[Row]:
    """What the machine did to arithmetic as long as the calls, and the p99 less what it added to theirs."""
    calls, medians, tails = (found.percentiles(*which) for which in (("native", 99.0), ("idle", 50.0), ("idle", 99.0)))
    excess = [call - (tail - median) for call, median, tail in zip(calls, medians, tails, strict=True)]
    return [_spread_row(case, subject, "idle_p99", "us", tails, setup=setup),
            _spread_row(case, subject, "p99_excess", "us", excess, setup=setup)]  # fmt: skip


def _spread_row(case: str, subject: str, metric: str, unit: str, values: Sequence[float], **more: Any) -> Row:
    return _row(case, subject, metric, unit, statistics.median(values), lowest=min(values), highest=max(values),
                repeats=len(values), **more)  # fmt: skip


def _row(case: str, subject: str, metric: str, unit: str, value: float, **more: Any) -> Row:
    return {"case": case, "subject": subject, "metric": metric, "unit": unit, "value": value, **more}
