"""A small bundle of each family, with random weights, exported as training exports it; made once per process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from models.parts import Part
from serving.bundle import Bundle, write_bundle
from serving.manifest import Member
from tests.pipelines.test_onnx_export import F, T, exported, inputs_of, part_of, torch_answer
from tests.tiny_bundle import HASH, npz_bytes

VARIANTS = {"pricing_lstm": "lstm-2-layers", "pricing_transformer": "transformer", "surface_vae": "surface"}
ROLES = {"pricing_lstm": ("window", "step", "head"), "pricing_transformer": ("window", "step", "head"),
         "surface_vae": ("surface",)}  # fmt: skip
FILES = [(family, role) for family, roles in ROLES.items() for role in roles]
WINDOWS, CONTRACTS = 4, 64


@functools.cache
def bundle_of(family: str) -> Bundle:
    """With golden vectors by torch."""
    made, files, roles = exported(VARIANTS[family])
    golden = _surfaces(part_of(made, "surface")) if family == "surface_vae" else _pricing(family)
    return write_bundle(
        Path(tempfile.mkdtemp(prefix="small-nets-")) / family, model=family, model_config={},
        members=[Member(roles)], files=dict(files) | {"golden.npz": npz_bytes(**golden)}, feature_spec={"window": T},
        semantics="window", tolerances={"iv": 1e-5, "context": 1e-5, "surface": 1e-4}, data_sha256=HASH,
        config_sha256=HASH,
    )  # fmt: skip


def _surfaces(part: Part) -> dict[str, np.ndarray]:
    feeds = inputs_of(part, 8)
    return feeds | {f"{name}-0": values for name, values in torch_answer(part, feeds).items()}


def _pricing(family: str) -> dict[str, np.ndarray]:
    made, _, _ = exported(VARIANTS[family])
    head = part_of(made, "head")
    window = np.random.default_rng(3).standard_normal((WINDOWS, T, F)).astype(np.float32)
    with torch.no_grad():
        context = made.encode(torch.from_numpy(window)).numpy()
    contracts = inputs_of(head, CONTRACTS)["contracts"]
    iv = torch_answer(head, {"context": context[:1], "contracts": contracts})["iv"]
    return {"window": window, "contracts": contracts, "context-0": context, "iv-0": iv, "iv": iv}
