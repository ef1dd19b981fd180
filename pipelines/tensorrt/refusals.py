"""What is refused before anything is built, by name and with the remedy.

In: a target, the ONNX to build. Out: nothing, or one EngineError. The builder refuses most of this too, late and in its
own words; what it says is an error all the same (pipelines/tensorrt/builder.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from pipelines.tensorrt.target import Profile, Target
from serving.errors import EngineError

RTX_SM = (75, 80, 86, 89, 120, 121)
FULL_SM = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
FIRST_FP8_SM, FIRST_BF16_SM = 89, 80
DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger")


def check_target(target: Target) -> None:
    """EngineError for a GPU generation that the library doesn't know, or a precision that the GPU hasn't."""
    sm, precision = target.sm, target.precision
    if sm is None:
        if target.kind == "tensorrt_rtx":
            raise EngineError("target.sm: TensorRT-RTX compiles ahead of time: name the GPU it is for, as target.sm=89")
        return
    if target.kind == "tensorrt_rtx" and sm not in RTX_SM:
        full = ": hosts with such GPUs take full TensorRT, target=trt_host_PRECISION, compiled there"
        raise EngineError(
            f"target.sm={sm}: TensorRT-RTX has no target SM{sm}; it has {_listed(RTX_SM)}"
            + (full if sm in FULL_SM else "")
        )
    if target.kind == "tensorrt" and sm not in FULL_SM:
        raise EngineError(f"target.sm={sm}: TensorRT has no target SM{sm}; it has {_listed(FULL_SM)}")
    if precision == "fp8" and sm < FIRST_FP8_SM:
        raise EngineError(f"target.precision=fp8: SM{sm} has no FP8; SM{FIRST_FP8_SM} is the first: take int8 or fp16")
    if precision == "bf16" and sm < FIRST_BF16_SM:
        raise EngineError(f"target.precision=bf16: SM{sm} has no bf16; SM{FIRST_BF16_SM} is the first: take fp16")
    if target.kind == "tensorrt_rtx" and sm == 75 and precision != "fp16":
        raise EngineError(f"target.precision={precision}: TensorRT-RTX has no float32 products on SM75: take fp16")


def _listed(sms: tuple[int, ...]) -> str:
    return ", ".join(str(sm) for sm in sms)


def check_profile(rows: Profile) -> None:
    """EngineError unless min <= opt <= max."""
    if not rows.min <= rows.opt <= rows.max:
        raise EngineError(f"target.rows: min {rows.min}, opt {rows.opt}, max {rows.max}: give min <= opt <= max")


def check_network(raw: bytes, name: str) -> onnx.ModelProto:
    """The file parsed; EngineError where its quantisation isn't static and symmetric."""
    try:
        model = onnx.load_from_string(raw)
    except DecodeError as error:
        raise EngineError(f"{name}: isn't an ONNX file: {error}") from error
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in _nodes(model.graph):
        if node.op_type in DYNAMIC:
            raise EngineError(
                f"{name}: node {node.name!r} is {node.op_type}: the file is quantised dynamically, which TensorRT "
                "can't build: give the float32 file and let target.precision=int8 quantise it"
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2]:
            _check_zero(name, node, constants.get(node.input[2]))
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _check_zero(name: str, node: onnx.NodeProto, zero: onnx.TensorProto | None) -> None:
    if zero is None:
        raise EngineError(f"{name}: node {node.name!r}: the zero point {node.input[2]!r} isn't a constant")
    if zero.data_type == TensorProto.UINT8 or np.any(numpy_helper.to_array(zero).astype(np.float32) != 0):
        raise EngineError(
            f"{name}: node {node.name!r}: zero point {node.input[2]!r} isn't 0 of a signed type; TensorRT quantises "
            "symmetrically only: give the float32 file and let target.precision=int8 quantise it"
        )


def free_inputs(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Inputs with a free dimension (None), by name."""
    shapes = {
        value.name: tuple(
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }
    return {name: shape for name, shape in shapes.items() if None in shape}
