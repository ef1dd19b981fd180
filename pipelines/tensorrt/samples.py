"""What a bundle's files are calibrated by and compared on: the golden vectors' inputs, brought to each file.

In: a verified bundle. Out: inputs of a file by its role, and a bundle's answers end to end, with one set of files or
another. Invariant: states of a step file are carried as a host carries them (serving/engines/ort.py), from zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.tensorrt.numerics import open_file
from pipelines.tensorrt.precision import Floats, Samples
from serving.bundle import Bundle
from serving.errors import BundleError
from serving.golden import GOLDEN
from serving.manifest import MemberFile
from serving.npz import Arrays

STEP_SAMPLES = 64  # states to calibrate a step file by, spread over the golden windows
ROLES = ("window", "step", "head", "surface")


def network_files(bundle: Bundle) -> dict[str, tuple[int, str, MemberFile]]:
    """Every ONNX file of the bundle by name: its member, role and tensors."""
    return {
        file.name: (index, role, file)
        for index, member in enumerate(bundle.manifest.members)
        for role, file in member.files.items() if role in ROLES
    }  # fmt: skip


def samples_of(bundle: Bundle, name: str) -> Samples:
    """Inputs of the file `name`; BundleError where the bundle has no golden vectors for it."""
    index, role, file = network_files(bundle)[name]
    golden = bundle.arrays(GOLDEN)
    if role == "step":
        _, fed = run_steps(bundle.read(name), file, _golden(golden, "window"))
        return [fed[place] for place in np.linspace(0, len(fed) - 1, min(STEP_SAMPLES, len(fed))).astype(int)]
    if role == "window":
        return [{"window": window[np.newaxis]} for window in _golden(golden, "window")]
    if role == "head":
        contracts = _golden(golden, "contracts")
        return [{"context": one[np.newaxis], "contracts": contracts} for one in _golden(golden, f"context-{index}")]
    return [{spec.name: _golden(golden, spec.name) for spec in file.inputs}]


def run_steps(raw: bytes, file: MemberFile, windows: Floats) -> tuple[Floats, list[dict[str, Floats]]]:
    """Context [S, D] at the end of each window [S, T, F] from zero state, and everything the file was fed."""
    run, fed, contexts = open_file(raw), [], []
    for window in windows:
        states = {spec.name: np.zeros([size or 0 for size in spec.shape], np.float32) for spec in file.inputs}
        for x in window:
            feeds = states | {"x": x[np.newaxis]}
            fed.append(feeds)
            found = run(feeds)
            states = {name: _carried(name, state, found) for name, state in states.items() if name != "x"}
        contexts.append(found["context"][0])
    return np.stack(contexts), fed


def _carried(name: str, state: Floats, found: Mapping[str, Floats]) -> Floats:
    """A state after a step; `memory` loses its oldest row and takes `output` at its end."""
    if name == "memory":
        return np.concatenate([state[1:], found["output"]])[: len(state)]
    return found[f"{name}_out"]


def contexts_of(raw: bytes, role: str, file: MemberFile, windows: Floats) -> Floats:
    """Context [S, D] of each window, by a window or a step file."""
    if role == "step":
        return run_steps(raw, file, windows)[0]
    run = open_file(raw)
    return np.concatenate([run({"window": window[np.newaxis]})["context"] for window in windows])


def volatilities_of(raw: bytes, contexts: Floats, contracts: Floats) -> Floats:
    """Implied volatility [S, N] of the contracts under each context, by a head file."""
    run = open_file(raw)
    return np.stack([run({"context": one[np.newaxis], "contracts": contracts})["iv"] for one in contexts])


def golden_inputs(bundle: Bundle) -> tuple[Floats, Floats]:
    """Windows [S, T, F] and contracts [N, K]."""
    golden = bundle.arrays(GOLDEN)
    return _golden(golden, "window"), _golden(golden, "contracts")


def _golden(golden: Arrays, name: str) -> Floats:
    if name not in golden:
        raise BundleError(f"{GOLDEN}: array {name!r} is missing, so nothing can be calibrated or compared by it")
    return np.ascontiguousarray(golden[name], dtype=np.float32)
