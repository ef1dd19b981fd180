"""Bundles of our real families, small: the torch nets of models/ with seeded weights, exported as `export` does.

The head's last layers are drawn at random too (a fresh head answers its prior). Golden contexts and volatilities are
torch's own, in float64. Exporting takes seconds, so a member's files are made once a process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

import models
from models.pricing import PricingNet
from pipelines.onnx_export import export_member
from serving.bundle import Bundle, write_bundle
from serving.features import CONTRACT_FEATURES, STEP_FEATURES, FeatureSpec, Scaler
from serving.last_seen import AnchorTarget
from serving.manifest import Member, MemberFile
from tests.tiny_bundle import npz_bytes

T, F, K, D = 5, len(STEP_FEATURES), len(CONTRACT_FEATURES), 8
COMMON = {"step_features": F, "contract_features": K, "window": T, "context": D, "head_width": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "pricing_lstm": COMMON | {"hidden": 20, "layers": 2},
    "pricing_transformer": COMMON | {"width": 16, "heads": 2, "layers": 2, "band": 3},
}
TOLERANCE = 5e-6  # float32 against float64, sums of at most 100 products of order one
SAMPLES, CONTRACTS = 3, 6


def _spec() -> FeatureSpec:
    unit = [Scaler((0.0,) * width, (1.0,) * width) for width in (F, K)]
    return FeatureSpec(T, (AnchorTarget(14.0), AnchorTarget(45.0), AnchorTarget(120.0)), unit[0], unit[1])


@cache
def family_net(family: str, seed: int) -> PricingNet:
    """The net in evaluation mode; don't change it."""
    torch.manual_seed(seed)
    net = models.build(family, FAMILIES[family]).eval()
    assert isinstance(net, PricingNet)
    for layer in (net.head.linear, net.head.network[-1]):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, 0, 0.4)
        nn.init.normal_(layer.bias, 0, 0.4)
    return net


@cache
def _exported(family: str, seed: int, folder: str) -> tuple[dict[str, bytes], dict[str, MemberFile]]:
    net = family_net(family, seed)
    files, roles = export_member(net, folder)
    name = f"{folder}/weights.safetensors"
    return files | {name: save(net.state_dict())}, roles | {"weights": MemberFile(name)}


def contracts_of(count: int, seed: int = 1) -> np.ndarray:
    """Contract features with a prior of about 0.2 and anchors that quote."""
    contracts = np.random.default_rng(seed).normal(0, 1, (count, K)).astype(np.float32)
    contracts[:, 0] = 0.2 + 0.02 * np.tanh(contracts[:, 0])
    contracts[:, 2] = 1.0
    return contracts


def family_bundle(directory: Path, family: str, *, semantics: str = "window", members: int = 1) -> Bundle:
    """A bundle of `members` nets of the family, seeds 0, 1, ..."""
    window = np.random.default_rng(1).normal(size=(SAMPLES, T, F)).astype(np.float32)
    contracts = contracts_of(CONTRACTS)
    golden: dict[str, np.ndarray] = {"window": window, "contracts": contracts}
    files: dict[str, bytes] = {}
    made = []
    for seed in range(members):
        its_files, roles = _exported(family, seed, f"member-{seed}")
        files |= its_files
        made.append(Member(roles))
        context, iv = answers(family_net(family, seed), window, contracts)
        golden |= {f"context-{seed}": context.astype(np.float32), f"iv-{seed}": iv.astype(np.float32)}
    golden["iv"] = np.mean([golden[f"iv-{seed}"] for seed in range(members)], axis=0)
    return write_bundle(
        directory, model=family, model_config=FAMILIES[family], members=made,
        files={**files, "golden.npz": npz_bytes(**golden)}, feature_spec=_spec().to_json(), semantics=semantics,
        tolerances={"context": TOLERANCE, "iv": TOLERANCE}, data_sha256="ab" * 32, config_sha256="cd" * 32,
    )  # fmt: skip


def answers(net: PricingNet, window: np.ndarray, contracts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contexts [S, D] of windows [S, T, F], and volatilities [N] under the first, in float64."""
    try:
        with torch.no_grad():
            context = net.double().encode(torch.from_numpy(window).double())
            iv = net.head(context[:1].expand(len(contracts), -1), torch.from_numpy(contracts).double())
        return context.numpy(), iv.numpy()
    finally:
        net.float()
