"""One way of asking every library: a `Program` runs an ONNX file (or a net), a runner keeps the state around it.

Data in: market steps x [F]. Data out: the context [D] in the caller's array, as in serving/engine.py. The state
handling is that of serving/engines/ort.py, the same code for every peer, without the engine's checks: what is timed of
a peer is the peer, two small copies and three Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from benchmarks.engines_cases import Floats
from serving.bundle import Bundle
from serving.manifest import MemberFile

Arrays = dict[str, Floats]


class Program(Protocol):
    """A compiled function over named tensors: reads the arrays it was given, keeps what it found."""

    def run(self) -> None:
        """Compute the outputs of what now stands in the inputs."""

    def read(self, name: str) -> Floats:
        """An output of the last run."""


class Runner(Protocol):
    """What is timed: the part of `serving.engine.Engine` that sees market steps."""

    def reset(self) -> None: ...
    def evaluate(self, x: Floats, out: Floats) -> None: ...
    def advance(self, x: Floats) -> None: ...


MakeProgram = Callable[[MemberFile, Arrays], Program]


class StepRunner:
    """step.onnx: the state in one set of buffers, what a step makes of it in the program's outputs."""

    def __init__(self, file: MemberFile, make: MakeProgram) -> None:
        self._inputs = zero_inputs(file)
        self._program = make(file, self._inputs)
        self._x = self._inputs["x"][0]
        self._memory = self._inputs.get("memory")
        self._states = [(name, array) for name, array in self._inputs.items() if name not in ("x", "memory")]

    def reset(self) -> None:
        for array in self._inputs.values():
            array.fill(0.0)

    def evaluate(self, x: Floats, out: Floats) -> None:
        self._x[:] = x
        self._program.run()
        out[:] = self._program.read("context")[0]

    def advance(self, x: Floats) -> None:
        self._x[:] = x
        self._program.run()
        for name, array in self._states:
            array[:] = self._program.read(f"{name}_out")
        if self._memory is not None:
            self._memory[:-1] = self._memory[1:]
            self._memory[-1] = self._program.read("output")[0]


class WindowRunner:
    """window.onnx: the whole window at every call; rows 0..T-2 are closed steps, the last row is the open one."""

    def __init__(self, file: MemberFile, make: MakeProgram) -> None:
        self._inputs = zero_inputs(file)
        self._program = make(file, self._inputs)
        self._steps = self._inputs["window"][0]

    def reset(self) -> None:
        self._steps.fill(0.0)

    def evaluate(self, x: Floats, out: Floats) -> None:
        self._steps[-1] = x
        self._program.run()
        out[:] = self._program.read("context")[0]

    def advance(self, x: Floats) -> None:
        self._steps[:-2] = self._steps[1:-1]
        self._steps[-2] = x


def zero_inputs(file: MemberFile, rows: int = 1) -> Arrays:
    """An array for every input of the file; a free dimension gets `rows`."""
    return {spec.name: np.zeros([rows if size is None else size for size in spec.shape], np.float32)
            for spec in file.inputs}  # fmt: skip


def encoder_file(bundle: Bundle) -> MemberFile:
    """The file of the bundle's one member that its semantics asks for."""
    (member,) = bundle.manifest.members
    return member.files["step" if bundle.manifest.semantics == "stateful" else "window"]


def encoder(bundle: Bundle, make: MakeProgram) -> Runner:
    """The runner that the bundle's semantics asks for."""
    file = encoder_file(bundle)
    return StepRunner(file, make) if bundle.manifest.semantics == "stateful" else WindowRunner(file, make)


def calibration(bundle: Bundle, steps: Floats, make: MakeProgram) -> list[Mapping[str, Floats]]:
    """The inputs that the encoder sees over `steps`, from an empty state on: for peers that need activation ranges."""
    seen: list[Mapping[str, Floats]] = []

    def recording(file: MemberFile, inputs: Arrays) -> Program:
        return _Recording(make(file, inputs), inputs, seen)

    runner = encoder(bundle, recording)
    out = np.zeros(next(spec.shape[1] or 0 for spec in encoder_file(bundle).outputs if spec.name == "context"), "f4")
    for x in steps:
        runner.evaluate(x, out)
        runner.advance(x)
    return seen


class _Recording:
    def __init__(self, program: Program, inputs: Arrays, seen: list[Mapping[str, Floats]]) -> None:
        self._program, self._inputs, self._seen = program, inputs, seen

    def run(self) -> None:
        self._seen.append({name: array.copy() for name, array in self._inputs.items()})
        self._program.run()

    def read(self, name: str) -> Floats:
        return self._program.read(name)
