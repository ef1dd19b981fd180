"""Market steps: native engine and peers on the same bundle, judged against float64 and timed.

In: a `Case`. Out: rows of `bench-engines`, and notes: a subject that can't run the case gives no row and a note with
the reason. A peer that can be set up in several ways is timed in the fastest that answers rightly (error at most half
of what contexts vary by); the row says which it was.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines_cases import CALIBRATION_STEPS, Built, Case, Floats, build_case
from benchmarks.engines_choice import TRIAL_CALLS, Subject, absent_peers, choose, openvino_setups
from benchmarks.engines_rows import timing_rows
from benchmarks.engines_runners import MakeProgram, Runner, calibration, encoder, encoder_file
from benchmarks.engines_timing import Block, Effort, Nanoseconds, interleaved, pin
from models.pricing_lstm import PricingLSTM
from serving import native
from serving.engine import open_engine

PRECISIONS = ("fp32", "bf16", "int8")
CHUNK = 200
TIMED_STEPS = 64  # few, since a host's features are fresh in the cache: a megabyte of them would push weights out
WARM_UP = {"stateful": 200, "window": 50}  # rounds, twice; a window's advance is T-1 steps
LOWER_ISAS = ("avx2", "avx512")


def largest_error(built: Built, runner: Runner) -> float:
    """Largest absolute error of a context over the checked steps; infinite where an answer isn't a number."""
    runner.reset()
    out, worst = np.zeros(built.expected.shape[1], np.float32), 0.0
    for x, expected in zip(built.steps[: len(built.expected)], built.expected, strict=True):
        runner.evaluate(x, out)
        difference = float(np.abs(out - expected).max())
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
        runner.advance(x)
    return worst


def spread(built: Built) -> float:
    """How much contexts vary from step to step: the standard deviation, averaged over the context's entries."""
    return float(built.expected.std(axis=0).mean())


def native_subjects(built: Built, every_isa: bool) -> Iterator[tuple[str, Subject]]:
    """The native engine in each precision; with `every_isa` also limited to instruction sets of other hosts."""
    opening = importlib.import_module("serving.engines.native").open_engine
    lower = [isa for isa in native.core().isas()[:-1] if isa in LOWER_ISAS] if every_isa else []
    for isa, precision in itertools.product(("", *lower), PRECISIONS):
        engine = opening(built.bundle, precision=precision, isa=isa)
        name = f"native_{precision}{'_' * bool(isa)}{isa}"
        yield name, Subject(engine, engine.info().runtime, largest_error(built, engine))


def peer_setups(built: Built, compiled: bool) -> dict[str, dict[str, MakeProgram]]:
    """All set-ups of all peers, by subject and description."""
    from benchmarks import engines_ort, engines_torch

    file = encoder_file(built.bundle)
    raw = built.bundle.read(file.name)
    seen = calibration(
        built.bundle, built.steps[:CALIBRATION_STEPS], lambda file, inputs: engines_ort.BoundProgram(raw, file, inputs)
    )
    graphs = {"": raw}
    stateful = built.case.semantics == "stateful"
    if stateful and isinstance(built.net, PricingLSTM):
        from benchmarks.engines_decomposed import export_decomposed

        graphs[", gates as matrix products"] = export_decomposed(built.net)
    found: dict[str, dict[str, MakeProgram]] = {}
    for graph, content in graphs.items():
        for subject, setups in {**engines_ort.setups(content), **openvino_setups(content, seen)}.items():
            found.setdefault(subject, {}).update({f"{name}{graph}": make for name, make in setups.items()})
    (part,) = (part for part in built.net.parts() if part.role == ("step" if stateful else "window"))
    return {**found, **engines_torch.setups(part.module, compiled)}


def block_of(built: Built, subject: Subject) -> Block:
    """Evaluates, and an advance after every `ticks_per_step` of them, each timed by itself.

    In `window` semantics, of the native engine also the call in the core's own timer, without the way from Python and
    back, and what the machine does meanwhile to arithmetic that needs no memory (`idle`).
    """
    steps, every = list(built.steps[:TIMED_STEPS]), built.case.ticks_per_step
    out = np.zeros(built.expected.shape[1], np.float32)
    evaluate, advance, clock = subject.runner.evaluate, subject.runner.advance, time.perf_counter_ns
    core = getattr(subject.runner, "core", None) if built.case.semantics == "window" else None

    def block(calls: int) -> Mapping[str, Nanoseconds]:
        evaluated, advanced = np.zeros(calls, np.int64), np.zeros(-(-calls // every), np.int64)
        for number in range(calls):
            x = steps[number % len(steps)]
            begin = clock()
            evaluate(x, out)
            evaluated[number] = clock() - begin
            if number % every == every - 1 or number == calls - 1:
                begin = clock()
                advance(x)
                advanced[number // every] = clock() - begin
        found = {"evaluate": evaluated, "advance": advanced}
        return found if core is None else {**found, **native_block(built.steps[:TIMED_STEPS], core, calls)}

    return block


def native_block(steps: Floats, core: Any, calls: int) -> Mapping[str, Nanoseconds]:
    """The core's own timer around each evaluate, an advance after each; after every chunk as many times arithmetic
    without memory that takes as long as the chunk's median call. One more call begins each chunk and isn't counted: it
    finds what Python did in between in the caches, which no loop of a host does.
    """
    called, idle = [], []
    for begin in range(0, calls, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, calls) + 1) % len(steps)
        called.append(np.asarray(core.time_evaluate(steps[rows], True))[1:])
        idle.append(np.asarray(native.core().idle_arrivals(len(called[-1]), 0, int(np.median(called[-1])))))
    return {"native": np.concatenate(called), "idle": np.concatenate(idle)}


def run_case(
    case: Case, folder: Path, effort: Effort, *, compiled: bool = True, every_isa: bool = True
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and notes of a case."""
    core = pin()
    built = build_case(case, folder)
    varies, notes = spread(built), []
    notes.append(f"{case.name}: on core {core}; contexts vary by {varies:.3g} (standard deviation)")
    subjects: dict[str, Subject] = {}
    reason = native.why_unavailable()
    if reason is None:
        # Lower sets are left out of window cases, whose advance takes milliseconds.
        subjects.update(native_subjects(built, every_isa and case.semantics == "stateful"))
    else:
        notes.append(f"{case.name}: no native rows: {reason}")
    notes += absent_peers(case.name)
    out = np.zeros(built.expected.shape[1], np.float32)
    for name, setups in peer_setups(built, compiled).items():
        makes = {setup: (lambda make=make: encoder(built.bundle, make)) for setup, make in setups.items()}
        chosen = choose(case.name, name, makes, lambda runner: largest_error(built, runner),
                        lambda runner: runner.evaluate(built.steps[0], out), 0.5 * varies, notes,
                        min(TRIAL_CALLS, effort.calls))  # fmt: skip
        if chosen is not None:
            subjects[name] = chosen
    subjects["null"] = Subject(open_engine(built.bundle, "null"), "no work", 0.0)
    timings = interleaved({name: block_of(built, subject) for name, subject in subjects.items()}, effort,
                          WARM_UP[case.semantics])  # fmt: skip
    about = {name: (one.setup, one.error) for name, one in subjects.items()}
    return timing_rows(case.name, timings, about, native_call=case.semantics == "window", spread=varies), notes
