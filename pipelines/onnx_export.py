"""A net as ONNX: streaming step, window and head, each with the tensor names and shapes of the bundle's contract.

In: a net of models/ in evaluation mode. Out: the bytes of each file and its `MemberFile` (names, shapes, dtypes).
Shapes: T window, F step features, L layers, H hidden, D context, N contracts (free), K contract features.
Invariant: exported dimensions are asserted: the exporter silently freezes dimensions it can't follow.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from models.pricing_lstm import PricingLSTM
from serving.errors import EngineError
from serving.manifest import MemberFile, TensorSpec

OPSET = 20


class _Window(nn.Module):
    def __init__(self, net: PricingLSTM) -> None:
        super().__init__()
        self.net = net

    def forward(self, window: Tensor) -> Tensor:
        return self.net.encode(window)


class _Step(nn.Module):
    def __init__(self, net: PricingLSTM) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.net.step(x, hidden, cell, memory)


class _Head(nn.Module):
    def __init__(self, net: PricingLSTM) -> None:
        super().__init__()
        self.head = net.head

    def forward(self, context: Tensor, contracts: Tensor) -> Tensor:
        volatility: Tensor = self.head(context.expand(contracts.shape[0], -1), contracts)
        return volatility


def export_member(net: PricingLSTM, folder: str) -> tuple[dict[str, bytes], dict[str, MemberFile]]:
    """Bytes by file name and `MemberFile` by role of one net."""
    size = net.config
    t, f, layers, h = size.window, size.step_features, size.layers, size.hidden
    d, k = size.context, size.contract_features
    parts: dict[str, tuple[nn.Module, list[tuple[str, list[int | None]]], list[tuple[str, list[int | None]]]]] = {
        "window": (_Window(net), [("window", [1, t, f])], [("context", [1, d])]),
        "step": (
            _Step(net),
            [("x", [1, f]), ("hidden", [layers, 1, h]), ("cell", [layers, 1, h]), ("memory", [t - 1, h])],
            [("context", [1, d]), ("hidden_out", [layers, 1, h]), ("cell_out", [layers, 1, h]), ("output", [1, h])],
        ),
        "head": (_Head(net), [("context", [1, d]), ("contracts", [None, k])], [("iv", [None])]),
    }
    files, roles = {}, {}
    for role, (module, inputs, outputs) in parts.items():
        name = f"{folder}/{role}.onnx"
        files[name] = _export(module.eval(), inputs, outputs, name)
        roles[role] = MemberFile(name, _specs(inputs), _specs(outputs))
    return files, roles


def _specs(tensors: list[tuple[str, list[int | None]]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, tuple(shape), "float32") for name, shape in tensors)


def _export(module: nn.Module, inputs: list[tuple[str, list[int | None]]], outputs: list[Any], name: str) -> bytes:
    example = tuple(torch.zeros([size or 7 for size in shape]) + 0.1 for _, shape in inputs)
    rows = torch.export.Dim("rows", min=1)
    free = {tensor: {axis: rows for axis, size in enumerate(shape) if size is None} for tensor, shape in inputs}
    noisy = [logging.getLogger(logger) for logger in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, example, dynamo=True, opset_version=OPSET, dynamic_shapes=free, verbose=False,
                input_names=[tensor for tensor, _ in inputs], output_names=[tensor for tensor, _ in outputs],
            )  # fmt: skip
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    proto = program.model_proto
    _check_dimensions(proto.graph, [*inputs, *outputs], name)
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


def _check_dimensions(graph: Any, tensors: list[tuple[str, list[int | None]]], name: str) -> None:
    """Raise EngineError where the exporter froze or changed a dimension."""
    found = {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.output)
    }
    for tensor, shape in tensors:
        if found.get(tensor) != shape:
            raise EngineError(f"{name}: exported tensor {tensor!r} has shape {found.get(tensor)}, wanted {shape}")
