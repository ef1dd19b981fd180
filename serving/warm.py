"""An engine that may serve: opened, held to its golden vectors, its latency probed, or refused with the reason.

Data in: a verified bundle, the engine packs of its release, which engine and precision to run, a budget. Data out:
`Warm`: the engine and what was found. Every command that serves opens its engine here.

What it is held to: fp32 to the golden vectors within the manifest's tolerances. A reduced precision (bf16, int8) to the
answers that its pack recorded where it was admitted (pipelines/native_packs.py): within the manifest's tolerances where
the same version and instruction set answers again, since that is the same arithmetic. Another one may be as far from
fp32 as the recorded answers are, on the other side: twice their largest distance to the golden vectors; as those are
a sample, SPREAD = 4 times it; never more than SPREAD roundings of the largest value. A pack that never ran where it was
compiled recorded no answers: then the golden vectors themselves, within the manifest's tolerance and what its compiler
allowed the precision (pipelines/tensorrt/comparison.py), or, where it says nothing, those roundings. A precision
without a pack wasn't admitted and doesn't run; what is compiled (`trt`) has a pack in fp32 too.
The probe times single market steps, one thread, from Python. `max_step_us` is a promise of the caller: a p99 above it
is refused. Without one, the p99 budget the pack recorded is a warning.
Invariants: nothing falls back to another engine or precision; a mismatch or a breach is an EngineError naming it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engine import (
    COMPILED,
    CONTEXT_TOLERANCE,
    FP32,
    IV_TOLERANCE,
    Engine,
    Parity,
    SurfaceEngine,
    golden_parity,
    open_engine,
    open_surface_engine,
    surface_parity,
    tolerance_of,
)
from serving.engine_pack import EnginePack, check_pack_of
from serving.errors import BundleError, EngineError
from serving.golden import GOLDEN, golden_answers
from serving.machine import library_version

ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp8": 2.0**-4, "int8": 1.0 / 254.0}  # half a step of values near 1
SPREAD = 4
PACK_GOLDEN = "golden.npz"
RUNTIME = "engine_runtime"  # key of a native pack's configuration: what recorded the answers, in the engine's own words
ALLOWED = "golden_tolerances"  # key of a compiled pack's configuration: how far its answers may be, by golden array
BUDGET_US = "step_p99_budget_us"  # key of a pack's latency
PROBES, PROBE_WARM_UP = 4_000, 200
CPU = "cpu"  # ONNX Runtime's provider unless said
REMEDY = "choose another engine (--engine ort)"


@dataclass(frozen=True)
class Probe:
    """Microseconds of a single market step, from Python; `budget_us` and where it comes from, if there is one."""

    p50_us: float
    p99_us: float
    budget_us: float | None
    warning: str = ""

    def line(self) -> str:
        """For people."""
        budget = "" if self.budget_us is None else f", budget {self.budget_us:g} us for p99"
        return f"a market step takes {self.p50_us:.1f} us (p50), {self.p99_us:.1f} us (p99){budget}{self.warning}"


@dataclass(frozen=True)
class Warm:
    """An engine and what it was held to; `probe` where it was asked for."""

    engine: Engine
    precision: str
    parities: tuple[Parity, ...]
    held_to: str
    probe: Probe | None = None

    def require_parity(self) -> None:
        """EngineError naming what the engine doesn't reach."""
        broken = [one for one in self.parities if not one.holds]
        if broken:
            said = "; ".join(
                f"{one.name} differs by {one.max_abs_difference:.3g}, tolerance {one.tolerance:g}" for one in broken
            )
            info = self.engine.info()
            raise EngineError(
                f"golden parity is broken: {info.runtime} doesn't reach {self.held_to}: {said}; don't use this engine "
                f"on this machine{'' if info.backend == 'ort' else f': {REMEDY}'}"
            )


def held_engine(
    bundle: Bundle, packs: Sequence[EnginePack], backend: str, precision: str = FP32, provider: str = CPU, isa: str = ""
) -> Warm:
    """The engine asked for and how far it is from what it must answer; judges nothing yet."""
    try:
        compiled = pack_of(bundle, packs, backend, precision) if backend in COMPILED else None
        engine = open_engine(bundle, backend, precision=precision, pack=compiled, provider=provider, isa=isa)
    except EngineError as error:
        raise _with_remedy(error, backend) from error
    pack = None if precision == FP32 else compiled or pack_of(bundle, packs, backend, precision)
    parities, held_to = held(bundle, engine, pack, precision)
    return Warm(engine, precision, tuple(parities), held_to)


def open_verified_engine(
    bundle: Bundle,
    packs: Sequence[EnginePack],
    backend: str,
    precision: str = FP32,
    *,
    provider: str = CPU,
    max_step_us: float | None = None,
    probe: bool = True,
    isa: str = "",
) -> Warm:
    """The engine that will serve, held to what it must answer; EngineError or BundleError where it may not serve."""
    warm = held_engine(bundle, packs, backend, precision, provider, isa)
    warm.require_parity()
    if not probe and max_step_us is None:
        return warm
    return probed(bundle, packs, warm, max_step_us)


def open_verified_surface_engine(
    bundle: Bundle, backend: str, precision: str = FP32, provider: str = CPU
) -> tuple[SurfaceEngine, tuple[Parity, ...]]:
    """The surface engine that will serve, its golden surfaces recomputed; EngineError where it may not serve."""
    try:
        engine = open_surface_engine(bundle, backend, precision, provider=provider)
    except EngineError as error:
        raise _with_remedy(error, backend) from error
    return engine, tuple(surface_parity(bundle, engine))


def pack_of(bundle: Bundle, packs: Sequence[EnginePack], backend: str, precision: str) -> EnginePack:
    """The release's pack of an engine and precision; EngineError if there is none, or none that fits this GPU."""
    found = [pack for pack in packs if _is_for(pack, backend, precision)]
    for pack in found:
        check_pack_of(pack.manifest, bundle)
    if backend in COMPILED:
        module = importlib.import_module(f"serving.engines.{backend}")
        reason = module.why_unavailable()
        if reason is not None:  # comes before the lack of a pack: no pull mends it
            raise EngineError(f"engine {backend!r}: {reason}")
        if found:
            fitting: EnginePack = module.fitting(found)
            return fitting
    elif found:
        return found[0]
    there = ", ".join(sorted(pack.manifest.target for pack in packs)) or "none"
    said = f"engine {backend} {precision}: the release has no engine pack of it here (there are: {there}), so this "
    if backend in COMPILED:
        raise EngineError(f"{said}precision wasn't compiled, or wasn't pulled; pull with --target, and say --precision")
    raise EngineError(
        f"{said}precision wasn't admitted, or wasn't pulled; use --precision {FP32}, or pull with --target {backend}"
    )


def _is_for(pack: EnginePack, backend: str, precision: str) -> bool:
    return (pack.manifest.backend, pack.manifest.precision) == (backend, precision)


def _with_remedy(error: EngineError, backend: str) -> EngineError:
    return error if backend == "ort" or REMEDY in str(error) else EngineError(f"{error}; {REMEDY}")


def held(bundle: Bundle, engine: Engine, pack: EnginePack | None, precision: str) -> tuple[list[Parity], str]:
    """Every comparison, and in words what was compared with."""
    if precision == FP32 or pack is None:
        return golden_parity(bundle, engine), "the bundle's golden vectors"
    golden = bundle.arrays(GOLDEN)
    found = golden_answers(golden, engine)
    members = [golden[f"context-{member}"] for member in range(engine.info().members)]
    exact = {"context": np.concatenate(members, axis=1), "iv": golden["iv"]}
    ran = PACK_GOLDEN in pack.manifest.files
    recorded = pack.arrays(PACK_GOLDEN) if ran else exact
    by = (pack.manifest.configuration.get(RUNTIME), pack.manifest.runtime["version"])
    same = ran and by == (engine.info().runtime, library_version())
    checks = []
    for name, tolerance in (("context", CONTEXT_TOLERANCE), ("iv", IV_TOLERANCE)):
        if name not in recorded or recorded[name].shape != found[name].shape:
            raise BundleError(f"{PACK_GOLDEN} of pack {pack.sha256}: lacks {name!r} of shape {found[name].shape}")
        allowed = tolerance_of(bundle, tolerance)
        if not ran and ALLOWED in pack.manifest.configuration:
            allowed += _compilers(pack, name)
        elif not same:
            unit = ROUNDING[precision] * float(np.max(np.abs(recorded[name])))
            unit = min(unit, _distance(recorded[name], exact[name])) if ran else unit
            allowed = max(allowed, SPREAD * unit)
        checks.append(Parity(f"{name} ({precision})", _distance(found[name], recorded[name]), allowed))
    if not ran:
        return checks, "the bundle's golden vectors, within what its pack allows: it never ran where it was made"
    return (
        checks,
        f"the answers that its pack recorded with {'the same engine' if same else f'{by[0]}, version {by[1]}'}",
    )


def _compilers(pack: EnginePack, name: str) -> float:
    """What the compiler allowed a golden array; BundleError where that isn't a number."""
    given = pack.manifest.configuration[ALLOWED]
    value = given.get(name) if isinstance(given, dict) else None
    if not isinstance(value, int | float) or not 0.0 <= value < np.inf:
        raise BundleError(f"pack {pack.sha256}: configuration.{ALLOWED}.{name}: expected a number, found {value!r}")
    return float(value)


def demo_tolerance(bundle: Bundle, precision: str, expected: NDArray[Any]) -> float:
    """How far volatilities may be from those the trained net gave in fp32, by an engine that was held already.

    In a reduced precision SPREAD roundings of the largest volatility: it shows wrong inputs, not a slightly wrong net.
    """
    tolerance = tolerance_of(bundle, IV_TOLERANCE)
    if precision == FP32:
        return tolerance
    return max(tolerance, SPREAD * ROUNDING[precision] * float(np.nanmax(np.abs(expected), initial=0.0)))


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64))))


def probed(bundle: Bundle, packs: Sequence[EnginePack], warm: Warm, max_step_us: float | None) -> Warm:
    """The same engine, timed against its budget; EngineError for a breach of `max_step_us`."""
    info = warm.engine.info()
    p50, p99 = probe_step(bundle, warm.engine)
    if max_step_us is not None:
        if not p99 <= max_step_us:
            raise EngineError(
                f"{info.runtime}: a market step takes {p99:.1f} us (p99; p50 {p50:.1f} us), more than the "
                f"--max-step-us {max_step_us:g} asked for; pin the process to a quiet core, or allow more"
            )
        return replace(warm, probe=Probe(p50, p99, max_step_us))
    pack = next((one for one in packs if _is_for(one, info.backend, warm.precision)), None)
    budget = (pack.manifest.latency or {}).get(BUDGET_US) if pack is not None else None
    warning = ": WARNING, over the budget of the release" if budget is not None and not p99 <= budget else ""
    return replace(warm, probe=Probe(p50, p99, budget, warning))


def probe_step(bundle: Bundle, engine: Engine) -> tuple[float, float]:
    """p50 and p99 of `evaluate` in microseconds, over the golden windows' last steps; the engine is reset after it."""
    windows = bundle.arrays(GOLDEN)["window"].astype(np.float32)
    context = np.zeros(engine.info().context_size, np.float32)
    engine.reset()
    for step in windows[0][:-1]:
        engine.advance(step)
    steps = [np.ascontiguousarray(window[-1]) for window in windows]
    clock, taken = time.perf_counter_ns, np.zeros(PROBES)
    for call in range(-PROBE_WARM_UP, PROBES):
        step = steps[call % len(steps)]
        begin = clock()
        engine.evaluate(step, context)
        end = clock()
        if call >= 0:
            taken[call] = end - begin
    engine.reset()
    return float(np.median(taken)) / 1e3, float(np.quantile(taken, 0.99)) / 1e3
