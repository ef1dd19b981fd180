"""The PyTorch peer: the net's own part under inference mode, one thread; eager, traced and frozen, or compiled.

Inputs are tensors over our own arrays. The compiled set-up is torch.compile with frozen weights; it needs a C++
compiler and the better part of a minute.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engines_cases import Floats
from benchmarks.engines_runners import Arrays, Program
from serving.manifest import MemberFile


class TorchProgram:
    """A callable over tensors in the order of the file's inputs."""

    def __init__(self, function: Callable[..., Any], file: MemberFile, inputs: Arrays) -> None:
        self._function = function
        self._arguments = [torch.from_numpy(inputs[spec.name]) for spec in file.inputs]
        self._place = {spec.name: place for place, spec in enumerate(file.outputs)}
        self._found: tuple[Tensor, ...] = ()

    def run(self) -> None:
        with torch.inference_mode():
            found = self._function(*self._arguments)
            self._found = found if isinstance(found, tuple) else (found,)

    def read(self, name: str) -> Floats:
        return self._found[self._place[name]].numpy()


def _traced(part: nn.Module, arguments: list[Tensor]) -> Callable[..., Any]:
    trace: Any = torch.jit.trace
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated in favour of torch.compile, and often faster
        traced: Callable[..., Any] = torch.jit.freeze(trace(part, tuple(arguments), check_trace=False).eval())
    return traced


def _compiled(part: nn.Module) -> Callable[..., Any]:
    import torch._inductor.config as inductor

    inductor.freezing = True
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    compiled: Callable[..., Any] = torch.compile(part, dynamic=False)

    def run(*arguments: Tensor) -> Any:
        return compiled(*arguments)

    return run


class CompiledProgram(TorchProgram):
    """Freezing of weights happens under no_grad, which inference mode doesn't count as."""

    def run(self) -> None:
        with torch.no_grad():
            found = self._function(*self._arguments)
            self._found = found if isinstance(found, tuple) else (found,)


def setups(part: nn.Module, compiled: bool) -> dict[str, dict[str, Callable[[MemberFile, Arrays], Program]]]:
    """By subject: what may be tried, by its description."""
    torch.set_num_threads(1)
    part = part.eval()

    def traced(file: MemberFile, inputs: Arrays) -> Program:
        return TorchProgram(_traced(part, [torch.from_numpy(inputs[spec.name]) for spec in file.inputs]), file, inputs)

    tried: dict[str, Callable[[MemberFile, Arrays], Program]] = {
        "eager": lambda file, inputs: TorchProgram(part, file, inputs),
        "traced and frozen": traced,
    }
    if compiled:
        tried["torch.compile, frozen"] = lambda file, inputs: CompiledProgram(_compiled(part), file, inputs)
    return {"torch": tried}
