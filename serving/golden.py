"""Golden vectors: inputs with the answers the trained net gave, kept in the bundle to recompute anywhere.

Data in: the arrays of `golden.npz` and the manifest. Names, for S windows of T steps with F features, D
context values and N contracts of K columns:

    window [S, T, F]   contracts [N, K]   context-<m> [S, D] and iv-<m> [N] of member m   iv [N], their mean

`iv-<m>` is head(context-<m>[0:1], contracts). A bundle with a `surface` file has, instead, that file's inputs by their
names and its outputs as `<output>-<m>`. Other tensors are found by these names, else by position:

    window(window) -> context            head(context, contracts) -> iv
    step(x, states...) -> (context, states...)   states in the same order on both sides, zero at first

Invariants: what is checked here agrees with every member's tensors in rank and in all sizes but the first
(the sample axis), holds finite floats only, and is complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import BundleError
from serving.manifest import Manifest, Member, TensorSpec

if TYPE_CHECKING:
    from serving.engine import Engine

GOLDEN = "golden.npz"


def pick_tensor(specs: Sequence[TensorSpec], name: str, position: int, where: str) -> TensorSpec:
    """The tensor of that name, else the one at that position."""
    for spec in specs:
        if spec.name == name:
            return spec
    if position >= len(specs):
        raise BundleError(f"{where}: no tensor {name!r} and none at position {position}")
    return specs[position]


def check_golden(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    """BundleError naming the array whose shape, type or values don't fit the manifest, or that is missing."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise BundleError(f"{GOLDEN}: array {name!r}: only finite floats are allowed, found {array.dtype}")
    for index, member in enumerate(manifest.members):
        if "head" in member.files:
            _check_member(member, index, arrays)
        if "surface" in member.files:
            file = member.files["surface"]
            specs = {
                **{spec.name: spec for spec in file.inputs},
                **{f"{spec.name}-{index}": spec for spec in file.outputs},
            }
            if len({len(_fitting(arrays, name, spec)) for name, spec in specs.items()}) > 1:
                raise BundleError(f"{GOLDEN}: arrays {', '.join(specs)} differ in length")


def golden_answers(arrays: Mapping[str, NDArray[Any]], engine: Engine) -> dict[str, NDArray[np.float32]]:
    """What an engine answers to the golden inputs: `context` [S, D] of all members side by side, `iv` [N].

    As golden values are made, `iv` is that of the first window; here by the engine's own context of it.
    """
    windows = _get(arrays, "window").astype(np.float32)
    contracts = np.ascontiguousarray(_get(arrays, "contracts"), dtype=np.float32)
    contexts = np.zeros((len(windows), engine.info().context_size), np.float32)
    for window, context in zip(windows, contexts, strict=True):
        engine.reset()
        for step in window[:-1]:
            engine.advance(step)
        engine.evaluate(window[-1], context)
    engine.reset()
    iv = np.zeros(len(contracts), np.float32)
    engine.head(contexts[0], contracts, iv)
    return {"context": contexts, "iv": iv}


def _check_member(member: Member, index: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    where = f"member {index}"
    head = member.files["head"]
    context_spec = pick_tensor(head.inputs, "context", 0, f"{where} head inputs")
    iv_spec = pick_tensor(head.outputs, "iv", 0, f"{where} head outputs")
    context = _fitting(arrays, f"context-{index}", context_spec)
    contracts = _fitting(arrays, "contracts", pick_tensor(head.inputs, "contracts", 1, f"{where} head inputs"))
    for name in (f"iv-{index}", "iv"):
        iv = _fitting(arrays, name, iv_spec)
        if len(iv) != len(contracts):
            raise BundleError(f"{GOLDEN}: array {name!r} has {len(iv)} values for {len(contracts)} contracts")
    if "window" in member.files:
        spec = pick_tensor(member.files["window"].inputs, "window", 0, f"{where} window inputs")
        _same_length(_fitting(arrays, "window", spec), context, index)
    if "step" in member.files:
        spec = pick_tensor(member.files["step"].inputs, "x", 0, f"{where} step inputs")
        window = _get(arrays, "window")
        values_per_step = math.prod(size or 1 for size in spec.shape)
        if window.ndim != 3 or window.shape[2] != values_per_step:
            raise BundleError(
                f"{GOLDEN}: array 'window' has shape {window.shape}, "
                f"the step tensor {spec.name!r} of {where} takes {values_per_step} values"
            )
        _same_length(window, context, index)


def _same_length(window: NDArray[Any], context: NDArray[Any], index: int) -> None:
    if len(window) != len(context):
        raise BundleError(f"{GOLDEN}: {len(window)} windows, but array 'context-{index}' has {len(context)} rows")


def _fitting(arrays: Mapping[str, NDArray[Any]], name: str, spec: TensorSpec) -> NDArray[Any]:
    array = _get(arrays, name)
    sizes = zip(array.shape[1:], spec.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(want not in (None, found) for found, want in sizes):
        raise BundleError(f"{GOLDEN}: array {name!r} has shape {array.shape}, tensor {spec.name!r} wants {spec.shape}")
    if array.size == 0:
        raise BundleError(f"{GOLDEN}: array {name!r} is empty: {array.shape}")
    return array


def _get(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in arrays:
        raise BundleError(f"{GOLDEN}: array {name!r} is missing; there are {sorted(arrays)}")
    return arrays[name]
