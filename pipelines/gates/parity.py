"""Parity: every engine there is answers like the trained net, on the golden vectors and on the exam's real features.

In: the stored bundle, its golden vectors, the exam with the trained net's own answers. Every back end of
serving/engine.py that computes and can run this bundle here is asked, in every way the bundle holds a file for (the
`window` file, the `step` file run over the window from zero state), in fp32: tolerances are the manifest's; reduced
precisions are pipelines/gates/precision.py's. Engines that aren't here, or that refuse the net, are named with the
reason; those of `required` must run. What runs engine packs alone (`trt`) isn't asked here: a host holds it to the
golden vectors before it serves (serving/warm.py). An engine that runs and answers otherwise fails the gate, required or
not.
`value` is the largest difference in units of what is allowed; figure `admitted` lists the engines that were compared.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines.config import CLOSED
from pipelines.gate_context import GateContext, GateOutcome
from pipelines.parity import ParityCheck, recompute, ways_of
from serving.bundle import Bundle
from serving.engine import (
    BACKENDS,
    COMPILED,
    IV_TOLERANCE,
    SURFACE_TOLERANCE,
    open_engine,
    open_surface_engine,
    tolerance_of,
    unavailable_engines,
)
from serving.errors import BundleError, DataError, EngineError

NAME = "parity"
NOT_COMPUTING = ("null",)  # answers zeros, to measure overhead
REFERENCE = "ort"  # what it can't open is no bundle; another engine may lack what a net is made of


@dataclass(frozen=True, config=CLOSED)
class Settings:
    """`required`: engines without whose comparison nothing is promoted."""

    required: tuple[str, ...] = Field(default=("ort",), min_length=1)


def check(context: GateContext, settings: Settings) -> GateOutcome:
    """See the module."""
    bundle = context.bundle()
    computing = [name for name in BACKENDS if name not in NOT_COMPUTING]
    why_not = {name: why_not_here(bundle, name) for name in computing}
    running = [name for name in computing if why_not[name] is None]
    if lacking := [name for name in settings.required if name not in running]:
        reasons = "; ".join(
            f"{name}: {why_not.get(name) or 'there is no such engine for this model'}" for name in lacking
        )
        raise DataError(f"required engines that can't run here: {reasons}")
    checks = [one for backend in running for one in compare(context, bundle, backend)]
    worst = max(checks, key=lambda one: one.excess)
    failed = [one for one in checks if one.excess > 1.0]
    message = "; ".join(
        f"{one.name} differs by {one.difference:.3g}, allowed {one.tolerance:.3g}" for one in failed or [worst]
    )
    if not failed:
        message = f"{len(checks)} comparisons agree, at the worst {message}"
    skipped = [f"{name} not asked: {why_not[name]}" for name in computing if name not in running]
    listed = [{"name": one.name, "difference": one.difference, "tolerance": one.tolerance} for one in checks]
    figures = {"checks": listed, "not_here": skipped, "admitted": running if not failed else []}
    value = worst.excess if math.isfinite(worst.excess) else None
    return GateOutcome(NAME, not failed, value, 1.0, "; ".join([message, *skipped]), figures)


def why_not_here(bundle: Bundle, backend: str) -> str | None:
    """Why an engine can't run a bundle on this machine, or None.

    Only an engine other than the reference may refuse a net; what the reference refuses is the bundle's fault.
    """
    if backend in COMPILED:
        return "it runs engine packs, which hosts hold to the golden vectors before they serve"
    reason = unavailable_engines()[backend]
    if reason is not None or backend == REFERENCE:
        return reason
    try:
        if bundle.manifest.task == "surface":
            open_surface_engine(bundle, backend)
        else:
            open_engine(bundle, backend)
    except (EngineError, BundleError) as error:
        return f"refuses this net: {error}"
    return None


def compare(context: GateContext, bundle: Bundle, backend: str) -> list[ParityCheck]:
    """One engine against the golden vectors and the exam's answers."""
    from pipelines.exam_answers import answer

    golden = [
        ParityCheck(f"{backend}: {one.name}", one.difference, one.tolerance) for one in recompute(bundle, backend)
    ]
    wanted = context.exam.rows["answer"].astype(np.float64)
    if bundle.manifest.task == "surface":
        found = {"": answer(bundle, context.exam, backend=backend)}
        tolerance = tolerance_of(bundle, SURFACE_TOLERANCE)
    else:
        found = {f" ({role})": answer(bundle, context.exam, backend=backend, semantics=semantics)
                 for role, semantics in ways_of(bundle).items()}  # fmt: skip
        tolerance = tolerance_of(bundle, IV_TOLERANCE)
    return golden + [_distance(f"{backend}: exam{way}", values, wanted, tolerance) for way, values in found.items()]


def _distance(name: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> ParityCheck:
    difference = float(np.max(np.abs(found - wanted)))
    return ParityCheck(name, difference if math.isfinite(difference) else math.inf, tolerance)
