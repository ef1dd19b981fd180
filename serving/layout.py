"""The sizes of a bundle's tensors, from its manifest, and looking up its files and tensors by name.

Data in: a manifest. Data out: a `Layout`; letters as in serving/engine.py. Invariant: what a member lacks, and what
doesn't agree over roles and members, is an EngineError that names file, tensor, expected and found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.errors import BundleError, EngineError
from serving.manifest import Manifest, Member, MemberFile, TensorSpec


@dataclass(frozen=True)
class Layout:
    """Sizes of a bundle's tensors; letters as in the module's docstring."""

    window_steps: int
    step_features: int
    contract_features: int
    context_sizes: tuple[int, ...]  # one per member

    @property
    def context_slices(self) -> tuple[slice, ...]:
        """Where each member's context lies in the caller's array."""
        ends = np.cumsum(self.context_sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.context_sizes, strict=True))


def member_file(member: Member, role: str, index: int) -> MemberFile:
    """The file of a role; EngineError where the member has none."""
    file = member.files.get(role)
    if file is None:
        there = ", ".join(sorted(member.files))
        raise EngineError(f"member {index} of the bundle has no {role!r} file; it has {there}")
    return file


def tensor(file: MemberFile, name: str, *, output: bool = False) -> TensorSpec:
    """The float32 tensor of that name; EngineError where there is none."""
    specs = file.outputs if output else file.inputs
    for spec in specs:
        if spec.name == name:
            if spec.dtype != "float32":
                raise EngineError(f"{file.name}: tensor {name!r}: expected float32, found {spec.dtype}")
            return spec
    side = "output" if output else "input"
    raise EngineError(f"{file.name}: no {side} tensor {name!r}; there are {', '.join(spec.name for spec in specs)}")


def require_shape(file: MemberFile, spec: TensorSpec, *expected: int | None) -> None:
    """EngineError unless the manifest gives the tensor this shape; None is a free dimension."""
    if spec.shape != expected:
        raise EngineError(f"{file.name}: tensor {spec.name!r}: expected shape {expected}, found {spec.shape}")


def _fixed(file: MemberFile, spec: TensorSpec, rank: int) -> tuple[int, ...]:
    sizes = tuple(size for size in spec.shape if size is not None)
    if len(sizes) != rank or len(spec.shape) != rank:
        raise EngineError(f"{file.name}: tensor {spec.name!r}: expected {rank} fixed dimensions, found {spec.shape}")
    return sizes


def layout_of(manifest: Manifest) -> Layout:
    """The sizes of a bundle, checked to agree over roles and members."""
    layouts = [_member_layout(manifest, member, index) for index, member in enumerate(manifest.members)]
    sizes = {(one.window_steps, one.step_features, one.contract_features) for one in layouts}
    if len(sizes) > 1:
        raise EngineError(f"members of the bundle differ in (steps, step features, contract features): {sorted(sizes)}")
    ((window_steps, step_features, contract_features),) = sizes
    return Layout(window_steps, step_features, contract_features, tuple(one.context_sizes[0] for one in layouts))


def _member_layout(manifest: Manifest, member: Member, index: int) -> Layout:
    head = member_file(member, "head", index)
    (_, context_size) = _fixed(head, tensor(head, "context"), 2)
    contracts = tensor(head, "contracts")
    contract_features = contracts.shape[-1] if contracts.shape else None
    if len(contracts.shape) != 2 or contracts.shape[0] is not None or contract_features is None:
        raise EngineError(f"{head.name}: tensor 'contracts': expected (None, K), found {contracts.shape}")
    require_shape(head, tensor(head, "context"), 1, context_size)
    require_shape(head, tensor(head, "iv", output=True), None)
    role = "step" if manifest.semantics == "stateful" else "window"
    encoder = member_file(member, role, index)
    require_shape(encoder, tensor(encoder, "context", output=True), 1, context_size)
    if role == "window":
        _, steps, features = _fixed(encoder, tensor(encoder, "window"), 3)
        require_shape(encoder, tensor(encoder, "window"), 1, steps, features)
    else:
        (_, features) = _fixed(encoder, tensor(encoder, "x"), 2)
        require_shape(encoder, tensor(encoder, "x"), 1, features)
        steps = _stated_window(manifest)
        if any(spec.name == "memory" for spec in encoder.inputs):
            memory = tensor(encoder, "memory")
            (_, width) = _fixed(encoder, memory, 2)
            require_shape(encoder, memory, steps - 1, width)
            require_shape(encoder, tensor(encoder, "output", output=True), 1, width)
    return Layout(steps, features, contract_features, (context_size,))


def _stated_window(manifest: Manifest) -> int:
    steps = manifest.feature_spec.get("window")
    if type(steps) is not int or steps < 1:
        raise BundleError(f"manifest.json: feature_spec.window must be a number of steps, found {steps!r}")
    return steps
