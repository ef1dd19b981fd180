"""The smallest surface bundle that is real: one ONNX file ONNX Runtime runs, golden surfaces computed in NumPy.

The net: known cells stay, unknown ones are the last surface's plus `shift`; the deviation is 0.01 everywhere, the
latent is the move, the surprise the mean distance from the last surface, the regimes are equally likely.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from serving.bundle import Bundle, write_bundle
from serving.manifest import Member, MemberFile, TensorSpec
from serving.surface_grid import CELLS, MOVE_FEATURES, grid_spec
from tests.tiny_bundle import HASH, npz_bytes, onnx_bytes

REGIMES = ("calm", "stressed")
MOVES = len(MOVE_FEATURES)
GRIDS = tuple(TensorSpec(name, (None, CELLS), "float32") for name in ("surface", "mask", "last", "last_mask"))
INPUTS = [*GRIDS, TensorSpec("move", (None, MOVES), "float32")]
OUTPUTS = [
    TensorSpec("completed", (None, CELLS), "float32"), TensorSpec("deviation", (None, CELLS), "float32"),
    TensorSpec("latent", (None, MOVES), "float32"), TensorSpec("surprise", (None,), "float32"),
    TensorSpec("regime", (None, len(REGIMES)), "float32"),
]  # fmt: skip


def net(shift: float) -> bytes:
    """The ONNX file; `last_mask` is read too, so that no input is dropped."""
    node = helper.make_node
    return onnx_bytes(
        [
            node("Mul", ["last_mask", "zero"], ["nothing"]), node("Add", ["last", "nothing"], ["before"]),
            node("Sub", ["surface", "before"], ["change"]), node("Mul", ["change", "mask"], ["seen"]),
            node("Sub", ["one", "mask"], ["hidden"]), node("Mul", ["hidden", "shift"], ["moved"]),
            node("Add", ["before", "seen"], ["known"]), node("Add", ["known", "moved"], ["completed"]),
            node("Mul", ["completed", "zero"], ["flat"]), node("Add", ["flat", "spread"], ["deviation"]),
            node("Identity", ["move"], ["latent"]), node("Abs", ["seen"], ["distance"]),
            node("ReduceMean", ["distance"], ["surprise"], axes=[1], keepdims=0),
            node("ReduceMean", ["flat"], ["row"], axes=[1], keepdims=1), node("Add", ["row", "half"], ["regime"]),
        ],
        INPUTS, OUTPUTS, zero=np.float32(0), one=np.float32(1), shift=np.float32(shift), spread=np.float32(0.01),
        half=np.full((1, len(REGIMES)), 0.5, np.float32),
    )  # fmt: skip


def surface_bundle(directory: Path, *, seed: int = 0, golden_shift: float = 0.0, samples: int = 3) -> Bundle:
    """Another `seed` gives another net; `golden_shift` spoils the golden completions."""
    rng = np.random.default_rng(5)
    shift = 0.001 * seed
    grids: dict[str, NDArray[Any]] = {
        "surface": rng.uniform(0.1, 0.4, (samples, CELLS)), "mask": rng.integers(0, 2, (samples, CELLS)),
        "last": rng.uniform(0.1, 0.4, (samples, CELLS)), "last_mask": np.ones((samples, CELLS)),
        "move": rng.normal(0, 0.01, (samples, MOVES)),
    }  # fmt: skip
    grids = {name: values.astype(np.float32) for name, values in grids.items()}
    seen = grids["mask"] * (grids["surface"] - grids["last"])
    answers = {
        "completed": grids["last"] + seen + np.float32(shift) * (1 - grids["mask"]) + np.float32(golden_shift),
        "deviation": np.full((samples, CELLS), 0.01), "latent": grids["move"], "surprise": np.abs(seen).mean(1),
        "regime": np.full((samples, len(REGIMES)), 0.5),
    }  # fmt: skip
    golden = grids | {f"{name}-0": np.asarray(values, np.float32) for name, values in answers.items()}
    file = MemberFile("member-0/surface.onnx", tuple(INPUTS), tuple(OUTPUTS))
    return write_bundle(
        directory, model="surface_vae", model_config={"cells": CELLS, "seed": seed},
        members=[Member({"surface": file})],
        files={"member-0/surface.onnx": net(shift), "golden.npz": npz_bytes(**golden)},
        feature_spec=grid_spec() | {"regimes": list(REGIMES)}, semantics="window", tolerances={"surface": 1e-4},
        data_sha256=HASH, config_sha256=HASH,
    )  # fmt: skip
