"""What of device memory an engine needs: planned from the manifest and the engine's own tensors, without a GPU.

Data in: the tensors of a compiled file as the engine names them, the manifest's `MemberFile`, the profile's largest
count of rows. Data out: `Plan`: for every tensor its bytes; which output is the next value of which state.
Invariants: names, types and sizes of the engine's tensors are the manifest's, or an EngineError says which aren't; a
state is any input with an output called `<name>_out`; `memory` goes with `output` (serving/engines/ort.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.errors import EngineError
from serving.manifest import MemberFile, TensorSpec

FLOAT_BYTES = 4
MEMORY, NEWEST = "memory", "output"


@dataclass(frozen=True)
class EngineTensor:
    """A tensor as a compiled engine declares it; a free dimension is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    is_input: bool


@dataclass(frozen=True)
class Plan:
    """Buffers of one file. A state has two places, which change roles with every committed step."""

    sizes: Mapping[str, int]  # bytes by tensor, states and their outputs left out
    states: Mapping[str, int]  # bytes by state
    memory_rows: int  # rows of `memory`; 0 where there is none
    memory_row_bytes: int
    free: frozenset[str]  # tensors with a free dimension


def plan_buffers(file: MemberFile, tensors: Sequence[EngineTensor], rows: int) -> Plan:
    """Buffers for at most `rows` rows; EngineError where the engine isn't of this file."""
    there = {one.name: one for one in tensors}
    wanted = {spec.name: (spec, True) for spec in file.inputs} | {spec.name: (spec, False) for spec in file.outputs}
    if there.keys() != wanted.keys():
        raise EngineError(f"{file.name}: the manifest's tensors are {sorted(wanted)}, the engine's are {sorted(there)}")
    for name, (spec, is_input) in wanted.items():
        _check(file, spec, there[name], is_input)
    outputs = {spec.name: spec for spec in file.outputs}
    states, memory = {}, None
    for spec in file.inputs:
        following = outputs.get(f"{spec.name}_out")
        if following is not None:
            if following.shape != spec.shape:
                raise EngineError(f"{file.name}: state {spec.name!r} is {spec.shape}, its next value {following.shape}")
            states[spec.name] = _bytes(spec, rows)
        elif spec.name == MEMORY:
            memory = spec
    sizes = {
        name: _bytes(spec, rows) for name, (spec, _) in wanted.items()
        if name not in states and name.removesuffix("_out") not in states and name != MEMORY
    }  # fmt: skip
    memory_rows = (memory.shape[0] or 0) if memory else 0
    row_bytes = FLOAT_BYTES * math.prod(size or 0 for size in memory.shape[1:]) if memory else 0
    if memory and (NEWEST not in sizes or sizes[NEWEST] != row_bytes):
        raise EngineError(
            f"{file.name}: {MEMORY!r} takes rows of {row_bytes} bytes, and no output {NEWEST!r} gives one"
        )
    free = frozenset(name for name, (spec, _) in wanted.items() if None in spec.shape)
    return Plan(sizes, states, memory_rows, row_bytes, free)


def _check(file: MemberFile, spec: TensorSpec, found: EngineTensor, is_input: bool) -> None:
    if found.is_input != is_input:
        raise EngineError(f"{file.name}: tensor {spec.name!r} is an {'output' if is_input else 'input'} of the engine")
    if found.dtype != spec.dtype or found.shape != spec.shape:
        raise EngineError(
            f"{file.name}: tensor {spec.name!r}: expected {spec.dtype} {spec.shape} by the manifest, "
            f"found {found.dtype} {found.shape} in the engine: compile the bundle again"
        )
    if spec.dtype != "float32":
        raise EngineError(f"{file.name}: tensor {spec.name!r}: expected float32, found {spec.dtype}")


def _bytes(spec: TensorSpec, rows: int) -> int:
    return FLOAT_BYTES * math.prod(rows if size is None else size for size in spec.shape)


def chunks(count: int, most: int) -> list[slice]:
    """`count` rows as slices of at most `most`."""
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]
