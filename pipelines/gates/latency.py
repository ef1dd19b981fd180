"""Latency: a market step and a chain of contracts stay within a budget, on the machine that promotes.

In: the stored bundle in each of `engines` that runs it here, in each of `precisions` (an engine that has only fp32 in
that alone), the same calls in the null engine, the exam's windows and contracts. Timed per call,
from Python, one thread, after warm-up: `step` is `evaluate` of the newest market step of an exam date whose earlier
steps are committed; `chain` is `head` over a date's contracts. Both engines take turns call by call, so that both meet
the same machine; a repeat gives p50 and p99 of each. Reported: the median over repeats of the engine's p50, and of its
p99 less the null engine's (`p99_excess`): what the machine does to a loop that computes nothing isn't the model's.
Steps slower than SLOW_US are timed a tenth as often. `value` is the largest share of a budget; every engine that was
measured must keep them. Engines that can't run here are named; at least one must. Figures of the first stand at the
top, those of all under `engines`, with the CPU's name: engine packs repeat them (pipelines/native_packs.py).
Figures differ from run to run: they are in the report, but aren't part of its verdict (pipelines/gate_report.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED, Count, Positive
from pipelines.gate_context import GateContext, GateOutcome
from serving.bundle import Bundle
from serving.engine import COMPILED, FP32, PRECISIONS, Engine, Floats, open_engine, unavailable_engines
from serving.errors import DataError, EngineError
from serving.machine import cpu_name
from serving.pricing import feature_spec

if TYPE_CHECKING:
    from pipelines.exam import Exam
    from serving.features import FeatureSpec

NAME = "latency"
TASKS = ("pricing",)  # a surface net is off the tick's path and has no null engine
DATES = 8  # whose windows and contracts are timed, spread evenly
WARM_UP = 200
SLOW_US = 100.0


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """Budgets in microseconds, generous: ONNX Runtime takes 20 to 400 for a step; tighten them for your hosts."""

    engines: tuple[str, ...] = Field(default=("native", "ort"), min_length=1)
    precisions: tuple[str, ...] = Field(default=("fp32", "bf16", "int8"), min_length=1)
    calls: Count = 20_000  # over all repeats
    repeats: Count = 5
    step_p50_us: Positive = 1_000.0
    step_p99_excess_us: Positive = 5_000.0
    chain_p50_us: Positive = 5_000.0
    chain_p99_excess_us: Positive = 20_000.0


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    bundle = context.bundle()
    spec = feature_spec(bundle)
    running, why_not = _engines(bundle, settings)
    if not running:
        raise DataError(f"no engine could be timed here: {'; '.join(why_not)}")
    null = open_engine(bundle, "null")
    measured = {name: _measure(engine, null, spec, context.exam, settings) for name, engine in running.items()}
    budgets = [name for name in next(iter(measured.values())) if hasattr(settings, name)]
    shares = {
        (engine, name): figures[name] / float(getattr(settings, name))
        for engine, figures in measured.items()
        for name in budgets
    }
    over = [one for one, share in shares.items() if not share <= 1.0]
    message = "; ".join(
        f"{engine}: {_words(name)} {measured[engine][name]:.1f} us {'>' if (engine, name) in over else '<='} "
        f"{getattr(settings, name):g}"
        for engine, name in over or shares
    )
    rows = int(np.median([_contracts(context.exam, place) for place in _places(context.exam)]))
    runtimes = ", ".join(dict.fromkeys(engine.info().runtime for engine in running.values()))
    message = "; ".join([message, f"a chain is {rows} contracts, a median of dates", runtimes, *why_not])
    told = {name: {**figures, "runtime": running[name].info().runtime} for name, figures in measured.items()}
    figures = {**next(iter(measured.values())), "chain_contracts": rows, "engines": told, "cpu": cpu_name()}
    return GateOutcome(NAME, not over, max(shares.values()), 1.0, message, figures)


def _engines(bundle: Bundle, settings: Settings) -> tuple[dict[str, Engine], list[str]]:
    """The engines to time, by back end and precision; and why the others aren't."""
    running: dict[str, Engine] = {}
    why_not = []
    unavailable = unavailable_engines()
    for backend in settings.engines:
        if unavailable.get(backend) is not None:
            why_not.append(f"{backend} not timed: {unavailable[backend]}")
            continue
        if backend in COMPILED:
            why_not.append(f"{backend} not timed: it runs engine packs, which hosts time (serving/warm.py)")
            continue
        known = PRECISIONS.get(backend, (FP32,))
        for precision in [one for one in settings.precisions if one in known] or [FP32]:
            try:
                running[f"{backend} {precision}"] = open_engine(bundle, backend, precision=precision)
            except EngineError as error:
                why_not.append(f"{backend} {precision} not timed: {error}")
    return running, why_not


def _measure(engine: Engine, null: Engine, spec: FeatureSpec, exam: Exam, settings: Settings) -> dict[str, float]:
    measured: dict[str, float] = {}
    for part, calls in (("step", _steps), ("chain", _chains)):
        ours, theirs = calls(engine, spec, exam), calls(null, spec, exam)
        measured |= {f"{part}_{name}": value for name, value in timed(ours, theirs, settings).items()}
    return measured


def _words(name: str) -> str:
    return name.removesuffix("_us").replace("_", " ")


Call = Callable[[], None]


def _steps(engine: Engine, spec: FeatureSpec, exam: Exam) -> list[tuple[Call, Call]]:
    """For some dates: what prepares the step (not timed), and the step."""
    from pipelines.exam_answers import scaled_window

    context = np.zeros(engine.info().context_size, np.float32)

    def of(window: Floats) -> tuple[Call, Call]:
        def prepare() -> None:
            engine.reset()
            for step in window[:-1]:
                engine.advance(step)

        return prepare, lambda: engine.evaluate(window[-1], context)

    return [of(scaled_window(spec, exam, place)) for place in _places(exam)]


def _chains(engine: Engine, spec: FeatureSpec, exam: Exam) -> list[tuple[Call, Call]]:
    from pipelines.exam_answers import scaled_contracts

    context = np.zeros(engine.info().context_size, np.float32)

    def of(contracts: Floats) -> tuple[Call, Call]:
        out = np.zeros(len(contracts), np.float32)
        return lambda: None, lambda: engine.head(context, contracts, out)

    return [of(np.ascontiguousarray(scaled_contracts(spec, exam, place))) for place in _places(exam)]


def _contracts(exam: Exam, place: int) -> int:
    return int(np.count_nonzero(exam.rows["snapshot"] == place))


def _places(exam: Exam) -> list[int]:
    return [int(place) for place in np.unique(np.linspace(0, len(exam.date) - 1, DATES).astype(int))]


def timed(ours: list[tuple[Call, Call]], theirs: list[tuple[Call, Call]], settings: Settings) -> dict[str, float]:
    """`p50_us`, `p99_excess_us` and the null engine's `null_p50_us`, `null_p99_us`: medians over the repeats."""
    pairs = cycle(list(zip(ours, theirs, strict=True)))
    per_pair = max(1, WARM_UP // len(ours))
    warm = [_repeat(*next(pairs), per_pair) for _ in range(len(ours))]
    slow = float(np.median(np.concatenate([one for one, _ in warm]))) > SLOW_US
    calls = settings.calls // (10 if slow else 1)
    per_date = max(1, -(-calls // (settings.repeats * len(ours))))
    found = []
    for _ in range(settings.repeats):
        parts = [_repeat(*next(pairs), per_date) for _ in range(len(ours))]
        engine, null = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
        found.append([np.median(engine), np.quantile(engine, 0.99) - np.quantile(null, 0.99), np.median(null),
                      np.quantile(null, 0.99)])  # fmt: skip
    names = ("p50_us", "p99_excess_us", "null_p50_us", "null_p99_us")
    return dict(zip(names, np.median(found, axis=0).tolist(), strict=True))


def _repeat(ours: tuple[Call, Call], theirs: tuple[Call, Call], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of `count` calls of each, in turns."""
    clock = time.perf_counter_ns
    (prepare, act), (prepare_null, act_null) = ours, theirs
    prepare()
    prepare_null()
    out = np.zeros((2, count))
    for call in range(count):
        begin = clock()
        act()
        middle = clock()
        act_null()
        out[0, call], out[1, call] = middle - begin, clock() - middle
    return out[0] / 1e3, out[1] / 1e3
