"""What of a net runs on a host: each part one function over named tensors, to be exported as one file.

In: a net's modules. Out: `Part`s, which pipelines/onnx_export.py turns into ONNX files and the manifest's tensors.
Invariant: names and sizes are those of the bundle's contract (serving/engine.py); a size of None is free, and the free
sizes of one part are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

Tensors = tuple[tuple[str, tuple[int | None, ...]], ...]


@dataclass(frozen=True)
class Part:
    """One exported function: `module(*inputs) -> outputs`, float32 throughout."""

    role: str
    module: nn.Module
    inputs: Tensors
    outputs: Tensors
