"""A small real bundle of tick features, in an unsigned store, pulled as a person would: what a loop answers with.

The net is models/' LSTM with seeded weights; golden contexts and volatilities are torch's own, in float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import models
from models.pricing import PricingNet
from pipelines.onnx_export import export_member
from serving.bundle import Bundle, store_bundle, write_bundle
from serving.cli import main
from serving.features import Scaler
from serving.folder_store import FolderStore
from serving.host.tick_features import CONTRACT_FEATURES, STEP_FEATURES, UNSCALED, TickSpec
from serving.ledger import Ledger
from serving.manifest import Member, MemberFile
from tests.serving.host.run_host import MODEL, STEP_NS
from tests.tiny_bundle import npz_bytes
from tests.tiny_family import TOLERANCE, answers

T, F, K, D = 8, 48, 16, 8
SIZES = {
    "step_features": F,
    "contract_features": K,
    "window": T,
    "context": D,
    "head_width": 12,
    "hidden": 16,
    "layers": 1,
}


def tick_spec(step_ns: int = STEP_NS) -> TickSpec:
    unit = Scaler((0.0,) * len(STEP_FEATURES), (1.0,) * len(STEP_FEATURES), 5.0)
    kept = tuple(CONTRACT_FEATURES.index(name) for name in UNSCALED)
    contracts = Scaler((0.0,) * len(CONTRACT_FEATURES), (1.0,) * len(CONTRACT_FEATURES), 5.0, kept)
    return TickSpec(step_ns, T, F, K, unit, contracts)


def tick_bundle(folder: Path, spec: TickSpec | None = None) -> Bundle:
    torch.manual_seed(7)
    net = models.build(MODEL, SIZES).eval()
    assert isinstance(net, PricingNet)
    for layer in (net.head.linear, net.head.network[-1]):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, 0, 0.05)
        nn.init.normal_(layer.bias, 0, 0.05)
    random = np.random.default_rng(1)
    window = random.normal(size=(3, T, F)).astype(np.float32)
    contracts = random.normal(size=(6, K)).astype(np.float32)
    contracts[:, :3] = (0.5, 0.3, 1.0)
    context, iv = answers(net, window, contracts)
    golden = {"window": window, "contracts": contracts, "context-0": context.astype(np.float32),
              "iv-0": iv.astype(np.float32), "iv": iv.astype(np.float32)}  # fmt: skip
    files, roles = export_member(net, "member-0")
    from safetensors.torch import save

    name = "member-0/weights.safetensors"
    return write_bundle(
        folder, model=MODEL, model_config=SIZES, members=[Member(roles | {"weights": MemberFile(name)})],
        files={**files, name: save(net.state_dict()), "golden.npz": npz_bytes(**golden)},
        feature_spec=(spec or tick_spec()).to_json(), semantics="stateful",
        tolerances={"context": TOLERANCE, "iv": TOLERANCE}, data_sha256="ab" * 32, config_sha256="cd" * 32,
    )  # fmt: skip


def pulled_release(folder: Path) -> Path:
    """The folder that a development store's champion was pulled into."""
    bundle = tick_bundle(folder / "made")
    store = FolderStore(folder / "store")
    store_bundle(store, bundle)
    ledger = Ledger(store, MODEL)
    state = ledger.state()
    for kind, details in (("registered", {}), ("gated", {"passed": True}), ("promoted", {})):
        state = ledger.append(state, kind, version=1, bundle=bundle.sha256, by="test", details=details)
    to = folder / "pulled"
    code = main(["pull", "--model", MODEL, "--store", str(folder / "store"), "--to", str(to), "--development"])
    assert code == 0
    return to
