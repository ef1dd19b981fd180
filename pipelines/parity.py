"""A bundle's golden vectors recomputed with ONNX Runtime.

Data in: a verified bundle. Data out: the largest absolute difference per golden array and per way of
computing it (the `window` file, the `step` file run over the window, the `head` from the golden context, all
of it end to end; a surface net's outputs).
Invariants: sessions are built from verified bytes; tensor names, types and fixed sizes of the ONNX files must
be those of the manifest; the CPU provider, one thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engine import open_surface_engine, surface_parity
from serving.errors import BundleError, EngineError
from serving.golden import GOLDEN, pick_tensor
from serving.manifest import MemberFile, TensorSpec
from serving.npz import Arrays

if TYPE_CHECKING:
    import onnxruntime

ONNX_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class ParityCheck:
    """One comparison; `excess` above 1 is a failure."""

    name: str
    difference: float
    tolerance: float

    @property
    def excess(self) -> float:
        if self.difference <= self.tolerance:
            return self.difference / self.tolerance if self.tolerance else 0.0
        return math.inf if not self.tolerance else self.difference / self.tolerance


class OnnxFile:
    """One ONNX file of a bundle, run by name and position."""

    def __init__(self, bundle: Bundle, file: MemberFile) -> None:
        self.file = file
        self.session = _session(bundle.read(file.name), file.name)
        _check_tensors(file.name, "input", self.session.get_inputs(), file.inputs)
        _check_tensors(file.name, "output", self.session.get_outputs(), file.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        names = [spec.name for spec in self.file.outputs]
        unfed = [spec.name for spec in self.file.inputs if spec.name not in inputs]
        if unfed:
            raise BundleError(f"{self.file.name}: inputs {unfed} have no golden array")
        typed = {spec.name: inputs[spec.name].astype(spec.dtype) for spec in self.file.inputs}
        try:
            outputs = self.session.run(names, typed)
        except _onnx_errors() as error:
            raise EngineError(f"{self.file.name}: ONNX Runtime failed: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def picked(self, name: str, position: int, *, output: bool = False) -> TensorSpec:
        specs = self.file.outputs if output else self.file.inputs
        return pick_tensor(specs, name, position, f"{self.file.name} {'outputs' if output else 'inputs'}")


def recompute(bundle: Bundle) -> list[ParityCheck]:
    """All comparisons; BundleError or EngineError if there is nothing to compare or it can't be computed."""
    if bundle.manifest.task == "surface":
        surfaces = surface_parity(bundle, open_surface_engine(bundle))
        return [ParityCheck(one.name, one.max_abs_difference, one.tolerance) for one in surfaces]
    tolerances = bundle.manifest.tolerances
    if "iv" not in tolerances:
        raise BundleError("manifest.json: no tolerance 'iv'")
    iv_tolerance = tolerances["iv"]
    context_tolerance = tolerances.get("context", iv_tolerance)
    if GOLDEN not in bundle.manifest.files:
        raise BundleError(f"{GOLDEN}: isn't in the bundle, so nothing can be compared")
    golden = bundle.arrays(GOLDEN)
    checks: list[ParityCheck] = []
    member_ivs = []
    for index, member in enumerate(bundle.manifest.members):
        if "head" not in member.files:
            raise BundleError(f"member {index}: has no head, so its iv can't be compared")
        context_name, iv_name = f"context-{index}", f"iv-{index}"
        context = golden[context_name]
        computed = context
        for role, contexts in (("step", _step_contexts), ("window", _window_contexts)):
            if role in member.files:
                computed = contexts(OnnxFile(bundle, member.files[role]), golden["window"])
                difference = largest_difference(computed, context)
                checks.append(ParityCheck(f"{context_name} ({role})", difference, context_tolerance))
        head = OnnxFile(bundle, member.files["head"])
        iv = _head_iv(head, context, golden)
        checks.append(ParityCheck(f"{iv_name} (head)", largest_difference(iv, golden[iv_name]), iv_tolerance))
        member_ivs.append(_head_iv(head, computed, golden).astype(np.float64))
    mean = np.mean(member_ivs, axis=0)
    checks.append(ParityCheck("iv (end to end)", largest_difference(mean, golden["iv"]), iv_tolerance))
    return checks


def largest_difference(computed: NDArray[Any], golden: NDArray[Any]) -> float:
    """Largest absolute difference in float64; infinity for another shape or a value that isn't finite."""
    if computed.shape != golden.shape:
        return math.inf
    difference = np.abs(computed.astype(np.float64) - golden.astype(np.float64))
    return float(difference.max()) if np.isfinite(difference).all() else math.inf


def _window_contexts(net: OnnxFile, window: NDArray[Any]) -> NDArray[Any]:
    spec, out = net.picked("window", 0), net.picked("context", 0, output=True)
    if spec.shape[0] == 1:
        return np.concatenate([net.run({spec.name: sample[np.newaxis]})[out.name] for sample in window])
    return net.run({spec.name: window})[out.name]


def _step_contexts(net: OnnxFile, window: NDArray[Any]) -> NDArray[Any]:
    """Each window step by step from a zero state; the context after its last step."""
    spec, out = net.picked("x", 0), net.picked("context", 0, output=True)
    states = [state for state in net.file.inputs if state.name != spec.name]
    next_states = [state.name for state in net.file.outputs if state.name != out.name]
    if len(states) != len(next_states):
        raise BundleError(f"{net.file.name}: {len(states)} states go in, {len(next_states)} come out")
    contexts = []
    for sample in window:
        values = {state.name: np.zeros([size or 1 for size in state.shape], state.dtype) for state in states}
        for step in sample:
            outputs = net.run({**values, spec.name: step.reshape([size or 1 for size in spec.shape])})
            pairs = zip(states, next_states, strict=True)
            values = {state.name: _carried(values[state.name], outputs[name]) for state, name in pairs}
        contexts.append(outputs[out.name].reshape(-1))
    return np.stack(contexts)


def _carried(before: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """The state for the next step: replaced, or, where a step returns fewer rows than it takes, the oldest dropped."""
    return np.concatenate([before[len(new) :], new]) if len(new) < len(before) else new


def _head_iv(head: OnnxFile, context: NDArray[Any], golden: Arrays) -> NDArray[Any]:
    inputs = {
        head.picked("context", 0).name: context[0:1],
        head.picked("contracts", 1).name: golden["contracts"],
    }
    return head.run(inputs)[head.picked("iv", 0, output=True).name]


def _session(content: bytes, name: str) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("onnxruntime isn't installed; install strikeforge[cpu]") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _onnx_errors() as error:
        raise EngineError(f"{name}: ONNX Runtime refuses it: {error}") from error


def _check_tensors(name: str, kind: str, found: list[Any], wanted: tuple[TensorSpec, ...]) -> None:
    there = {arg.name: arg for arg in found}
    if there.keys() != {spec.name for spec in wanted}:
        raise BundleError(f"{name}: {kind}s are {sorted(there)}, the manifest says {[spec.name for spec in wanted]}")
    for spec in wanted:
        arg = there[spec.name]
        shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
        if ONNX_TYPES.get(arg.type) != spec.dtype or shape != spec.shape:
            raise BundleError(
                f"{name}: {kind} {spec.name!r} is {arg.type} {shape}, the manifest says {spec.dtype} {spec.shape}"
            )


def _onnx_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented")
    native = tuple(getattr(state, name) for name in (*names, "NoSuchFile", "RuntimeException", "EPFail"))
    return (*native, ValueError, RuntimeError)
