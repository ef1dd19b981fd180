"""What a converted ONNX file answers, by ONNX Runtime on the CPU, and how far that may be from float32.

In: ONNX bytes and samples of their inputs. Out: outputs by name; differences and tolerances.

ONNX Runtime's CPU has no kernels for bf16 products (and lends fp16 its float32 ones); `emulated` makes of every product
in a 16-bit type what a GPU's matrix unit does: rounded inputs, products summed in float32, a rounded result. Q/DQ pairs
run as written, in float32, with all graph optimisations off, so that integer kernels of this CPU (which may saturate
where there is no VNNI) have no part in it.

Tolerance: a product rounds activation, weights and (16 bit) its result, each by at most the unit roundoff u of the
largest value there. Roundings of a path are taken for independent with mean zero, so n of them grow to sqrt(n) u
(Higham & Mary, SIAM J. Sci. Comput. 2019); LAMBDA sqrt(n) u of an output's largest magnitude is allowed, 3.5 standard
deviations of n roundings that are uniform within u. An LSTM counts once per step. int8 has the same step everywhere, so
a typical value, `CREST` times smaller than the largest (a Gaussian sample of 10,000 values), is rounded by as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipelines.tensorrt.precision import CAST_TYPES, FLOAT_INPUTS, Floats, Samples, is_product
from pipelines.tensorrt.target import Precision
from serving.errors import EngineError

CREST = 4.0
UNIT_ROUNDOFF: Mapping[Precision, float] = {
    "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": CREST * 0.5 / 127.0, "fp8": 2.0**-4,
}  # fmt: skip
ROUNDINGS: Mapping[Precision, int] = {"fp32": 3, "fp16": 3, "bf16": 3, "int8": 2, "fp8": 2}  # of one product
LAMBDA = 2.0


def run_model(raw: bytes, samples: Samples, names: Sequence[str] | None = None) -> list[dict[str, Floats]]:
    """Outputs by name, a mapping per sample; EngineError where ONNX Runtime refuses the file."""
    run = open_file(raw, names)
    return [run(feeds) for feeds in samples]


def open_file(raw: bytes, names: Sequence[str] | None = None) -> Callable[[Mapping[str, Floats]], dict[str, Floats]]:
    """A function from inputs to outputs (all, or those of `names`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    state: Any = onnxruntime.capi.onnxruntime_pybind11_state
    refusals = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        wanted = [node.name for node in session.get_outputs()] if names is None else list(names)
    except refusals as error:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} refuses the converted file: {error}") from error

    def run(feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        try:
            return dict(zip(wanted, session.run(wanted, dict(feeds)) if wanted else (), strict=True))
        except refusals as error:
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} failed on the file: {error}") from error

    return run


def emulated(raw: bytes) -> bytes:
    """The same function for a CPU without 16-bit products: inputs and outputs stay rounded, sums are float32."""
    model = onnx.load_from_string(raw)
    low_constants = {one.name: one.data_type for one in model.graph.initializer if one.data_type in CAST_TYPES.values()}
    casts = {node.output[0]: attribute.i for node in model.graph.node if node.op_type == "Cast"
             for attribute in node.attribute if attribute.name == "to"}  # fmt: skip
    low = {name: kind for name, kind in (casts | low_constants).items() if kind in CAST_TYPES.values()}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        kind = low.get(node.input[0]) if is_product(node) else None
        if kind is None:
            nodes.append(node)
            continue
        for place in FLOAT_INPUTS[node.op_type]:
            if place < len(node.input) and node.input[place]:
                name, raised = node.input[place], f"{node.output[0]}/in{place}"
                nodes.append(helper.make_node("Cast", [name], [raised], to=TensorProto.FLOAT))
                node.input[place] = raised
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name:
                node.output[place] = f"{name}/sum"
                nodes.append(helper.make_node("Cast", [f"{name}/sum"], [name], to=kind))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    content: bytes = model.SerializeToString()
    return content


def roundings(raw: bytes, precision: Precision, steps: int) -> int:
    """Roundings on the longest path of the float32 file; `steps`: how often an LSTM of it runs."""
    graph = onnx.load_from_string(raw).graph
    depth: dict[str, int] = {}
    for node in graph.node:  # ONNX nodes come in topological order
        products = (steps if node.op_type == "LSTM" else 1) if is_product(node) else 0
        reached = max((depth.get(name, 0) for name in node.input), default=0) + products
        depth |= dict.fromkeys(node.output, reached)
    return ROUNDINGS[precision] * max(depth.get(value.name, 0) for value in graph.output)


def relative_tolerance(precision: Precision, count: int) -> float:
    """Of an output's largest magnitude, after `count` roundings."""
    return LAMBDA * math.sqrt(max(count, 1)) * UNIT_ROUNDOFF[precision]


def largest_difference(found: Floats, expected: Floats) -> float:
    """Absolute; infinite where a value isn't finite."""
    distance = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return float(distance.max(initial=0.0)) if np.isfinite(distance).all() else math.inf
