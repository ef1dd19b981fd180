"""Precision put into the ONNX: TensorRT 11 and TensorRT-RTX take the type of every operation from the file.

In: float32 ONNX of `pipelines.onnx_export`, a precision, and for int8 and fp8 samples of the file's inputs. Out: ONNX
of the same inputs and outputs, float32 at its borders, so that every engine of a net shares its buffers.

    fp32   folded, else unchanged
    fp16, bf16   casts around the matrix products (MatMul, Gemm, LSTM); all other arithmetic stays float32
    int8, fp8    Q/DQ pairs on the activation and DQ on the weights of products with constant weights; symmetric, zero
                 point 0; weights per output channel, activations per tensor by the largest value of the samples

Invariants: only edges into a product change. A head's prior volatility, which goes around the products, is never
rounded (`quantize_static` of ONNX Runtime replaces graph inputs for all their consumers and rounds it to steps of some
vol points: docs/compile.md). Scales are positive and finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from pipelines.tensorrt.target import Precision
from serving.errors import EngineError

Floats = npt.NDArray[np.float32]
Samples = Sequence[Mapping[str, Floats]]  # inputs of the file by name, one mapping per run
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

FLOAT_INPUTS = {"MatMul": (0, 1), "Gemm": (0, 1, 2), "LSTM": (0, 1, 2, 3, 5, 6, 7)}  # 4 of an LSTM: lengths, integers
WEIGHTS = {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2)}
BF16_OPSET = 22  # the first in which an LSTM may be bf16
CAST_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Grid:
    """A quantised type and the largest magnitude that is used of it."""

    onnx_type: int
    dtype: Any
    largest: float


GRIDS = {
    "int8": Grid(TensorProto.INT8, np.int8, 127.0),
    "fp8": Grid(TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448.0),
}


def fold(raw: bytes) -> onnx.ModelProto:
    """Constants folded and dead nodes removed; the same inputs and outputs."""
    import onnxslim

    model = onnx.load_from_string(raw)
    before = [value.name for value in (*model.graph.input, *model.graph.output)]
    folded: onnx.ModelProto = onnxslim.slim(model)
    if [value.name for value in (*folded.graph.input, *folded.graph.output)] != before:
        raise EngineError(f"folding changed the tensors {before}; report it, with the version of onnxslim")
    return folded


def convert(raw: bytes, precision: Precision, samples: Samples = ()) -> bytes:
    """The file in that precision; EngineError where int8 or fp8 has no samples to be calibrated by."""
    model = fold(raw)
    if precision == "bf16":
        model = onnx.version_converter.convert_version(model, BF16_OPSET)
    if precision in CAST_TYPES:
        _cast_products(model.graph, CAST_TYPES[precision])
    elif precision in GRIDS:
        if not samples:
            raise EngineError(f"{precision} needs samples of the file's inputs to be calibrated by; none were given")
        _quantise_products(model, GRIDS[precision], samples)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def is_product(node: onnx.NodeProto) -> bool:
    """Whether the precision of this node is chosen."""
    return node.op_type in FLOAT_INPUTS


def _cast_products(graph: onnx.GraphProto, to: int) -> None:
    """Constants are stored in the type, other inputs cast to it, outputs cast back."""
    constants = {constant.name: constant for constant in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    lowered: dict[str, str] = {}
    for node in graph.node:
        if not is_product(node):
            nodes.append(node)
            continue
        for place in FLOAT_INPUTS[node.op_type]:
            if place >= len(node.input) or not node.input[place]:
                continue
            name = node.input[place]
            if name not in lowered:
                lowered[name] = f"{name}/low"
                if name in constants:
                    graph.initializer.append(_constant_as(constants[name], lowered[name], to))
                else:
                    nodes.append(helper.make_node("Cast", [name], [lowered[name]], name=lowered[name], to=to))
            node.input[place] = lowered[name]
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name:
                node.output[place] = f"{name}/low_out"
                nodes.append(
                    helper.make_node("Cast", [f"{name}/low_out"], [name], name=f"{name}/raise", to=TensorProto.FLOAT)
                )
    _replace_nodes(graph, nodes)


def _constant_as(constant: onnx.TensorProto, name: str, to: int) -> onnx.TensorProto:
    dtype = np.float16 if to == TensorProto.FLOAT16 else ml_dtypes.bfloat16
    values = numpy_helper.to_array(constant)
    with np.errstate(over="ignore"):
        low = values.astype(dtype)
    if not np.isfinite(low.astype(np.float32)).all():
        raise EngineError(
            f"tensor {constant.name!r}: {np.abs(values).max():g} is beyond the range of {np.dtype(dtype)}"
        )
    return numpy_helper.from_array(low, name)


def _quantise_products(model: onnx.ModelProto, grid: Grid, samples: Samples) -> None:
    """Q/DQ on the activation, DQ on the weights, of every product with constant weights."""
    graph = model.graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    nodes = list(graph.node)
    fits = [is_product(node) and all(node.input[at] in constants for at in WEIGHTS[node.op_type]) for node in nodes]
    if not any(fits):
        raise EngineError("no product with constant weights: there is nothing to quantise")
    activations = {node.input[0] for node, fit in zip(nodes, fits, strict=True) if fit}
    largest = _largest_values(model, sorted(activations), samples)
    ordered: list[onnx.NodeProto] = []
    done: dict[tuple[str, int | None], str] = {}
    for node, fit in zip(nodes, fits, strict=True):
        if not fit:
            ordered.append(node)
            continue
        activation = node.input[0]
        if (activation, None) not in done:
            done[activation, None] = _quantised_activation(graph, ordered, activation, largest[activation], grid)
        node.input[0] = done[activation, None]
        for place in WEIGHTS[node.op_type]:
            name, axis = node.input[place], _channel_axis(node)
            if (name, axis) not in done:
                done[name, axis] = _quantised_weights(graph, ordered, name, constants[name], axis, grid)
            node.input[place] = done[name, axis]
        ordered.append(node)
    _replace_nodes(graph, ordered)


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the weights along which outputs lie."""
    if node.op_type == "LSTM":
        return 1  # [directions, 4 H, inputs]
    transposed = node.op_type == "Gemm" and any(part.name == "transB" and part.i for part in node.attribute)
    return 0 if transposed else 1


def _scale(largest: Floats, grid: Grid) -> Floats:
    """Positive; what is always zero needs no particular scale."""
    return np.where(largest > 0, largest / np.float32(grid.largest), np.float32(1.0)).astype(np.float32)


def _quantised_activation(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], name: str, largest: float, grid: Grid
) -> str:
    scale, zero, low, out = f"{name}/scale", f"{name}/zero", f"{name}/q", f"{name}/dq"
    graph.initializer.append(numpy_helper.from_array(_scale(np.array(largest, np.float32), grid), scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), grid.dtype), zero))
    nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [low], name=low))
    nodes.append(helper.make_node("DequantizeLinear", [low, scale, zero], [out], name=out))
    return out


def _quantised_weights(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], name: str, values: Floats, axis: int, grid: Grid
) -> str:
    """Weights stored in the quantised type, one scale per output channel (over the directions of an LSTM too)."""
    axis = axis if values.ndim > axis else 0
    others = tuple(place for place in range(values.ndim) if place != axis)
    scales = _scale(np.abs(values).max(axis=others).astype(np.float32), grid)
    steps = values / np.expand_dims(scales, others)
    low = (np.rint(steps) if grid.dtype is np.int8 else steps).clip(-grid.largest, grid.largest).astype(grid.dtype)
    scale, zero, stored, out = f"{name}/scale{axis}", f"{name}/zero{axis}", f"{name}/q{axis}", f"{name}/dq{axis}"
    graph.initializer.append(numpy_helper.from_array(low, stored))
    graph.initializer.append(numpy_helper.from_array(scales, scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), grid.dtype), zero))
    nodes.append(helper.make_node("DequantizeLinear", [stored, scale, zero], [out], name=out, axis=axis))
    return out


def _largest_values(model: onnx.ModelProto, names: list[str], samples: Samples) -> dict[str, float]:
    """The largest magnitude each tensor takes over the samples, by ONNX Runtime in float32."""
    from pipelines.tensorrt.numerics import run_model

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs, outputs = ({value.name for value in side} for side in (model.graph.input, model.graph.output))
    inner = [name for name in names if name not in inputs]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in outputs
    )
    largest = dict.fromkeys(names, 0.0)
    for feeds, found in zip(samples, run_model(watched.SerializeToString(), samples, inner), strict=True):
        for name in names:
            values = np.asarray(found[name] if name in found else feeds[name])
            if not np.isfinite(values).all():
                raise EngineError(f"tensor {name!r}: isn't finite on a sample, so it has no scale; check the samples")
            largest[name] = max(largest[name], float(np.abs(values).max(initial=0.0)))
    return largest


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Nodes in this order, dead constants dropped; inferred types are those of before, so they go."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    live = [constant for constant in graph.initializer if constant.name in used]
    constants = [onnx.TensorProto.FromString(constant.SerializeToString()) for constant in live]
    del graph.initializer[:]
    graph.initializer.extend(constants)
