"""A net as ONNX: one file for each of its parts, with the tensor names and shapes of the bundle's contract.

In: a net of models/ in evaluation mode. Out: the bytes of each file and its `MemberFile` (names, shapes, dtypes).
Invariant: exported dimensions are asserted: the exporter silently freezes dimensions it can't follow.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

import models
from models.parts import Part, Tensors
from serving.errors import EngineError
from serving.manifest import MemberFile, TensorSpec

OPSET = 20
EXAMPLE_ROWS = 7  # of a free dimension, while exporting


def export_member(net: models.Net, folder: str) -> tuple[dict[str, bytes], dict[str, MemberFile]]:
    """Bytes by file name and `MemberFile` by role of one net, a file for each of its parts."""
    files, roles = {}, {}
    for part in net.parts():
        name = f"{folder}/{part.role}.onnx"
        files[name] = _export(part, name)
        roles[part.role] = MemberFile(name, _specs(part.inputs), _specs(part.outputs))
    return files, roles


def _specs(tensors: Tensors) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape, "float32") for name, shape in tensors)


def _export(part: Part, name: str) -> bytes:
    example = tuple(torch.zeros([EXAMPLE_ROWS if size is None else size for size in shape]) + 0.1
                    for _, shape in part.inputs)  # fmt: skip
    rows = torch.export.Dim("rows", min=1)
    free = tuple({axis: rows for axis, size in enumerate(shape) if size is None} for _, shape in part.inputs)
    noisy = [logging.getLogger(logger) for logger in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part.module.eval(), example, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=free if any(free) else None,
                input_names=[tensor for tensor, _ in part.inputs],
                output_names=[tensor for tensor, _ in part.outputs],
            )  # fmt: skip
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    proto = program.model_proto
    _check_dimensions(proto.graph, (*part.inputs, *part.outputs), name)
    _forget_where(proto)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _forget_where(proto: Any) -> None:
    """Remove the exporter's notes (stack traces, source paths): a bundle is the same wherever it was made."""
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    for owner in (proto.graph, *proto.functions):
        for part in (owner, *owner.node, *getattr(owner, "value_info", ())):
            del part.metadata_props[:]
            part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")


def _check_dimensions(graph: Any, tensors: Tensors, name: str) -> None:
    """Raise EngineError where the exporter froze or changed a dimension."""
    found = {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.output)
    }
    for tensor, shape in tensors:
        if found.get(tensor) != list(shape):
            raise EngineError(f"{name}: exported tensor {tensor!r} has shape {found.get(tensor)}, wanted {list(shape)}")
