"""A bundle's converted files against its float32 ones, end to end, on the golden inputs, by ONNX Runtime on the CPU.

In: the bundle and the converted bytes of each file. Out: one `Check` per answer: `iv (window)`, `iv (step)`, contexts,
or a surface net's outputs. Tolerances are relative (pipelines/tensorrt/numerics.py), of: the largest context; the
largest distance of a volatility from the contract's prior, which no precision rounds; a surface output's largest value.
Float32's own tolerance of the value is always added. Invariant: a value that isn't finite is an infinite difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.tensorrt.numerics import emulated, largest_difference, open_file, relative_tolerance, roundings
from pipelines.tensorrt.precision import Floats
from pipelines.tensorrt.samples import contexts_of, golden_inputs, network_files, samples_of, volatilities_of
from pipelines.tensorrt.target import Precision
from serving.bundle import Bundle
from serving.errors import EngineError
from serving.manifest import Manifest


@dataclass(frozen=True)
class Check:
    """One comparison, in the answer's own unit (a volatility is a fraction)."""

    name: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


def compare(bundle: Bundle, converted: Mapping[str, bytes], precision: Precision) -> list[Check]:
    """All comparisons; EngineError naming those that are beyond their tolerance."""
    made = {name: emulated(raw) for name, raw in converted.items()}
    task = _surface if bundle.manifest.task == "surface" else _pricing
    checks = task(bundle, made, precision)
    failed = [one for one in checks if not one.holds]
    if failed:
        told = "; ".join(f"{one.name} differs by {one.difference:.3g}, {one.tolerance:.3g} allowed" for one in failed)
        raise EngineError(f"the nets in {precision} aren't the float32 ones: {told}: choose another precision")
    return checks


def _tolerance(precision: Precision, count: int, scale: float, value: float) -> float:
    return relative_tolerance(precision, count) * scale + relative_tolerance("fp32", count) * value


def _pricing(bundle: Bundle, made: Mapping[str, bytes], precision: Precision) -> list[Check]:
    windows, contracts = golden_inputs(bundle)
    prior = contracts[:, 0]
    checks = []
    files = network_files(bundle)
    for name, (index, role, file) in files.items():
        if role not in ("window", "step"):
            continue
        head = bundle.manifest.members[index].files["head"].name
        raw = bundle.read(name)
        steps = windows.shape[1]
        encoder = steps * roundings(raw, precision, 1) if role == "step" else roundings(raw, precision, steps)
        count = encoder + roundings(bundle.read(head), precision, 1)
        context, found = (contexts_of(one, role, file, windows) for one in (raw, made[name]))
        iv, found_iv = (
            volatilities_of(one, state, contracts) for one, state in ((bundle.read(head), context), (made[head], found))
        )
        where = _where(bundle.manifest, index, role)
        size = float(np.abs(context).max())
        checks.append(Check(f"context {where}", largest_difference(found, context),
                            _tolerance(precision, encoder, size, size)))  # fmt: skip
        correction = float(np.abs(iv - prior).max())
        checks.append(Check(f"iv {where}", largest_difference(found_iv, iv),
                            _tolerance(precision, count, correction, float(np.abs(iv).max()))))  # fmt: skip
    return checks


def _surface(bundle: Bundle, made: Mapping[str, bytes], precision: Precision) -> list[Check]:
    checks = []
    for name, (index, role, _) in network_files(bundle).items():
        (feeds,) = samples_of(bundle, name)
        raw = bundle.read(name)
        expected: dict[str, Floats]
        expected, found = open_file(raw)(feeds), open_file(made[name])(feeds)
        count = roundings(raw, precision, 1)
        for output, values in expected.items():
            size = float(np.abs(values).max())
            checks.append(Check(f"{output} {_where(bundle.manifest, index, role)}",
                                largest_difference(found[output], values),
                                _tolerance(precision, count, size, size)))  # fmt: skip
    return checks


def _where(manifest: Manifest, index: int, role: str) -> str:
    return f"({role})" if len(manifest.members) == 1 else f"({role} of member {index})"
