"""Black-76 on one core: price and four Greeks, and implied volatility, of a listed-like chain of 5,000 options.

In: a seeded chain (forward 4,000, a week to a year, 10 to 60 % volatility, strikes within two deviations). Out:
`benchmarks/results/options.jsonl` and `.md`.

- `native`: `serving.black76.value_into` and `implied_volatility` as a host calls them; `native_<isa>`: the same kernels
  of a lower instruction set. Peers: benchmarks/options_peers.py. Every subject is warmed up, then all are timed call by
  call in turn, an order turned round every round; throughput is N over the median call, `ratio` the median over rounds
  of ours over the best peer's within the round. `implied_vol` inverts out-of-the-money prices.
- `error`: the largest against mpmath with 50 digits, over options drawn from sigma sqrt(tau) in [0.01, 3] and
  |ln(K/F)| <= 8 sigma sqrt(tau); relative for price and Greeks (theta's: to the sum of its terms' magnitudes),
  absolute, in volatility, for `implied_vol` where vega > 1e-8 F. `error_near`: of those with |ln(K/F)| <= 2 sigma
  sqrt(tau). An option that a peer gives no number for, or refuses, counts as an error of 1.

Run: python -m benchmarks.options [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np

from benchmarks.engines_timing import pin
from benchmarks.options_peers import Array, Subject, peers
from benchmarks.results import FOLDER, write_results
from serving import black76, native
from serving.errors import EngineError, StrikeforgeError, run_command

COUNT = 5000
CHECKED = 300
SECONDS = 0.02  # given to a subject in a round; at least one call


def chain(count: int = COUNT) -> Array:
    """[6, N]: forward, strike, tau, volatility, discount, right (the out-of-the-money one)."""
    rng = np.random.default_rng(7)
    forward = 4000.0 * rng.uniform(0.99, 1.01, count)
    tau, volatility = rng.uniform(7 / 365, 1.0, count), rng.uniform(0.1, 0.6, count)
    strike = forward * np.exp(volatility * np.sqrt(tau) * rng.uniform(-2, 2, count))
    return np.array([forward, strike, tau, volatility, np.exp(-0.04 * tau), np.where(strike >= forward, 1.0, -1.0)])


def wide_range(count: int = CHECKED) -> Array:
    rng = np.random.default_rng(8)
    deviation = np.exp(rng.uniform(np.log(0.01001), np.log(2.999), count))
    forward, tau = np.exp(rng.uniform(-2, 9, count)), rng.uniform(7 / 365, 3.0, count)
    distance = np.where(np.arange(count) % 2, rng.uniform(-7.99, 7.99, count), rng.uniform(-1.99, 1.99, count))
    strike = forward * np.exp(deviation * distance)
    right = np.where(strike >= forward, 1.0, -1.0)
    return np.array([forward, strike, tau, deviation / np.sqrt(tau), rng.uniform(0.7, 1.05, count), right])


def native_subjects() -> list[Subject]:
    if native.why_unavailable() is not None:
        raise EngineError(f"bench-options times the native core: {native.why_unavailable()}")

    def made(name: str, core: Any) -> Subject:
        def greeks(*columns: Array) -> Array:
            out = np.empty((5, columns[0].size))
            core.value(columns[0].size, *columns, *out, None, None, None)
            return out

        def implied(*columns: Array) -> Array:
            out, status = np.empty(columns[0].size), np.empty(columns[0].size, dtype=np.int8)
            core.implied_volatility(columns[0].size, *columns, out, status)
            return out

        return Subject(name, greeks, implied, COUNT)

    def greeks(*columns: Array) -> Array:
        out = np.empty((5, columns[0].size))
        black76.value_into(*columns, price=out[0], delta=out[1], gamma=out[2], vega=out[3], theta=out[4])
        return out

    public = Subject("native", greeks, lambda *columns: black76.implied_volatility(*columns)[0], COUNT)
    core = native.core()
    sets = [isa for isa in core.isas() if isa in ("portable", "avx2", "avx512")]
    return [public, *(made(f"native_{isa}", core.Options(isa)) for isa in sets)]


def as_taken(subject: Subject, columns: Array, count: int | None = None) -> list[Any]:
    """The first columns' options as `subject` takes them."""
    kept = [np.ascontiguousarray(column[:count]) for column in columns]
    return [column.tolist() for column in kept] if subject.in_python_numbers else list(kept)


def timed(call: Callable[..., Any], given: list[Any]) -> float:
    """Seconds of a call, median over the calls of `SECONDS`."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call(*given)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def throughputs(case: str, subjects: Sequence[Subject], columns: Array, rounds: int) -> dict[str, list[float]]:
    """Million options a second of each subject, one figure a round."""
    prepared = {}
    for subject in subjects:
        call = getattr(subject, case)
        if call is not None:
            prepared[subject.name] = (call, as_taken(subject, columns, subject.options), subject.options)
            call(*prepared[subject.name][1])  # warm: compiled, imported, in cache
    found: dict[str, list[float]] = {name: [] for name in prepared}
    for number in range(rounds):
        for name in list(prepared)[:: 1 if number % 2 else -1]:
            call, given, count = prepared[name]
            found[name].append(count / timed(call, given) / 1e6)
    return found


def exact(option: Array) -> tuple[list[Any], list[Any]]:
    """Price and four Greeks, and what each one's error is relative to."""
    f, k, t, v, d, w = (mpmath.mpf(float(number)) for number in option)
    root = mpmath.sqrt(t)
    s = v * root
    d1 = mpmath.log(f / k) / s + s / 2
    bell, inside = mpmath.npdf(d1), mpmath.ncdf(w * d1)
    price = d * w * (f * inside - k * mpmath.ncdf(w * (d1 - s)))
    vega, rate = d * f * bell * root, -mpmath.log(d) / t
    decay = vega * v / (2 * t)
    values = [price, d * w * inside, d * bell / (f * s), vega, rate * price - decay]
    return values, [*map(abs, values[:4]), abs(rate) * price + decay]


def alone(subject: Subject, case: str, columns: Array) -> list[Any]:
    """One option at a time: what it answers, or NaN where it refuses."""
    answers: list[Any] = []
    for place in range(columns.shape[1]):
        try:
            given = as_taken(subject, columns[:, place : place + 1])
            answers.append(np.asarray(getattr(subject, case)(*given), dtype=float).ravel())
        except (ArithmeticError, RuntimeError, ValueError) as refusal:  # counts as an error of 1
            sys.stderr.write(f"{subject.name}: {case}: {refusal!r}\n")
            answers.append(np.full(5, np.nan))
    return answers


def errors(case: str, subject: Subject) -> tuple[float, float]:
    """The largest over the whole range, and near the money."""
    columns = wide_range()
    forward, strike, tau, volatility, discount, right = columns
    near = np.abs(np.log(strike / forward)) <= 2.0 * volatility * np.sqrt(tau)
    with mpmath.workdps(50):
        truth = [exact(option) for option in columns.T]
        counts = np.ones(columns.shape[1], dtype=bool)
        if case == "greeks":
            answers = alone(subject, case, columns)
            found = [
                max(
                    _relative(ours * scale, *pair)
                    for ours, scale, *pair in zip(one, subject.scales, *true, strict=True)
                )
                for one, true in zip(answers, truth, strict=True)
            ]
        else:
            prices = np.array([float(values[0]) for values, _ in truth])
            counts = np.array([float(values[3]) for values, _ in truth]) > 1e-8 * forward
            answers = alone(subject, case, np.array([prices, forward, strike, tau, discount, right]))
            found = [_bounded(abs(one[0] - v)) for one, v in zip(answers, volatility, strict=True)]
    every = np.array(found)
    return float(every[counts].max()), float(every[counts & near].max())


def _bounded(error: float) -> float:
    return float(error) if np.isfinite(error) else 1.0


def _relative(ours: float, true: Any, size: Any) -> float:
    return _bounded(float(abs(mpmath.mpf(float(ours)) - true) / size)) if np.isfinite(ours) else 1.0


def rows_of(case: str, name: str, subjects: Sequence[Subject], columns: Array, rounds: int) -> list[dict[str, Any]]:
    found = throughputs(case, subjects, columns, rounds)
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        if subject.name not in found:
            continue
        row = {"case": name, "subject": subject.name}
        speed = statistics.median(found[subject.name])
        rows.append({**row, "metric": "throughput", "unit": "million/s per core", "value": speed})
        unit = "relative" if case == "greeks" else "volatility"
        for metric, error in zip(("error", "error_near"), errors(case, subject), strict=True):
            rows.append({**row, "metric": metric, "unit": unit, "value": error})
    others = {subject: speeds for subject, speeds in found.items() if not subject.startswith("native")}
    best = max(others, key=lambda subject: statistics.median(others[subject]))
    ratios = [ours / other for ours, other in zip(found["native"], others[best], strict=True)]
    rows.append({
        "case": name, "subject": "ratio", "metric": "throughput", "unit": "ratio", "value": statistics.median(ratios),
        "of": "native", "against": best,
    })  # fmt: skip
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure all of it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=FOLDER, help="where options.jsonl and options.md go")
    options = parser.parse_args(arguments)
    rounds, folder = options.rounds, options.results
    pin()
    others, absent = peers()
    subjects = [*native_subjects(), *others]
    columns = chain()
    prices = black76.price(*columns)
    forward, strike, tau, _, discount, right = columns
    quotes = np.array([prices, forward, strike, tau, discount, right])
    note = f"`native` is {black76.implementation()}. One thread, pinned, {COUNT} options a call. " + " ".join(absent)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for case, name, given in (("greeks", "black76_greeks", columns), ("implied", "implied_vol", quotes)):
        try:
            rows += rows_of(case, name, subjects, given, rounds)
        except Exception:  # noqa: BLE001 - a peer may fail in any way; the other case is written all the same
            traceback.print_exc()
            failed.append(name)
            continue
        written = write_results("options", rows, note=note.strip(), folder=folder)
    if rows:
        for path in written:
            sys.stdout.write(f"{path}\n")
    if failed:
        raise StrikeforgeError(f"failed, their errors are above: {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main, None))
