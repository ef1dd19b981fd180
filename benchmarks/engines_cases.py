"""The nets that `bench-engines` times: the repository's own families in fixed shapes with seeded random weights.

Out: a bundle as export writes it (ONNX files of every part, weights.safetensors), the market steps to run it on, and
the contexts of the same net in float64. Shapes: T window, F step features, D context.
Invariant: the seed fixes weights and steps, so that two machines time and judge the same net on the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import nn

import models
from models.pricing import PricingNet, zero_states
from pipelines.onnx_export import export_member
from serving.bundle import Bundle, write_bundle
from serving.canonical import sha256_hex
from serving.manifest import Member, MemberFile

SEED = 20260
CONTRACT_FEATURES, CONTEXT, HEAD_WIDTH = 16, 16, 64
CHECKED_STEPS = 160  # contexts compared with float64, from an empty state on: T of any case is smaller
CALIBRATION_STEPS = 64  # what a peer that needs activation ranges may see

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One net and how it is asked: `semantics` as in serving/engine.py; `ticks_per_step` evaluates per advance."""

    name: str
    family: str
    sizes: Mapping[str, int]
    semantics: str
    ticks_per_step: int

    @property
    def window(self) -> int:
        return self.sizes["window"]


def _lstm(features: int, hidden: int, layers: int, window: int = 50) -> dict[str, int]:
    return {"step_features": features, "hidden": hidden, "layers": layers, "window": window}


_TRANSFORMER = {"step_features": 50, "width": 64, "heads": 4, "layers": 2, "band": 50, "window": 50}

# The STAC suite slides the window at every inference; a market step takes many ticks, ten here.
CASES = (
    Case("lstm_small_step", "pricing_lstm", _lstm(32, 64, 1), "stateful", 10),
    Case("lstm_mid_step", "pricing_lstm", _lstm(50, 128, 2), "stateful", 10),
    Case("lstm_production_step", "pricing_lstm", _lstm(50, 256, 3), "stateful", 10),
    Case("stac_lstm_a_window", "pricing_lstm", _lstm(100, 100, 2), "window", 1),
    Case("stac_lstm_b_window", "pricing_lstm", _lstm(250, 200, 3, window=100), "window", 1),
    Case("transformer_step", "pricing_transformer", _TRANSFORMER, "stateful", 10),
)


@dataclass(frozen=True)
class Built:
    """A case ready to run: bundle, net, steps [S, F], and the float64 contexts [S, D] of the first of them."""

    case: Case
    bundle: Bundle
    net: PricingNet
    steps: Floats
    expected: npt.NDArray[np.float64]


def make_net(family: str, sizes: Mapping[str, int]) -> PricingNet:
    """A net with seeded weights of unit gain, so that contexts vary as a trained net's do and errors mean something.

    The head's last layers, which training begins at zero, are drawn as well.
    """
    torch.manual_seed(SEED)
    whole = {**sizes, "contract_features": CONTRACT_FEATURES, "context": CONTEXT, "head_width": HEAD_WIDTH}
    net = models.build(family, whole).eval()
    assert isinstance(net, PricingNet)
    for weight in net.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return net


def make_bundle(folder: Path, family: str, sizes: Mapping[str, int], semantics: str) -> tuple[Bundle, PricingNet]:
    """The net of `make_net` exported, as a bundle without golden vectors."""
    net = make_net(family, sizes)
    onnx, roles = export_member(cast(models.Net, net), "member-0")
    weights = "member-0/weights.safetensors"
    whole = {**sizes, "contract_features": CONTRACT_FEATURES, "context": CONTEXT, "head_width": HEAD_WIDTH}
    bundle = write_bundle(
        folder / "bundle", model=family, model_config={**whole, "dropout": 0.1},
        members=[Member({**roles, "weights": MemberFile(weights)})],
        files={**onnx, weights: save(net.state_dict())},
        feature_spec={"window": sizes["window"]}, semantics=semantics, tolerances={},
        data_sha256=sha256_hex(b"no data: random weights"), config_sha256=sha256_hex(family.encode()),
    )  # fmt: skip
    return bundle, net


def build_case(case: Case, folder: Path) -> Built:
    """Bundle, steps and reference of a case."""
    bundle, net = make_bundle(folder, case.family, case.sizes, case.semantics)
    drawn = np.random.default_rng(SEED).standard_normal((1024, case.sizes["step_features"]))
    steps = drawn.clip(-4.0, 4.0).astype(np.float32)
    return Built(case, bundle, net, steps, reference_contexts(case, steps[:CHECKED_STEPS]))


@torch.no_grad()
def reference_contexts(case: Case, steps: Floats) -> npt.NDArray[np.float64]:
    """What `evaluate` should answer at every step, each followed by its `advance`; float64 throughout."""
    net = make_net(case.family, case.sizes).double()
    x = torch.from_numpy(steps).double()
    if case.semantics == "window":
        padded = torch.cat([torch.zeros(case.window - 1, x.shape[1], dtype=x.dtype), x])
        windows = padded.unfold(0, case.window, 1).transpose(1, 2)
        return np.asarray(net.encode(windows).numpy(), np.float64)
    states, contexts = [state.double() for state in zero_states(net)], []
    for row in x:
        context, *following = net.step(row.unsqueeze(0), *states)
        contexts.append(context[0])
        states = _carried(net, states, following)
    return np.asarray(torch.stack(contexts).numpy(), np.float64)


def _carried(net: PricingNet, states: list[torch.Tensor], following: list[torch.Tensor]) -> list[torch.Tensor]:
    """The states of the next step; a memory takes the step's output at its end."""
    names = [name for name, _ in net.step_tensors()[0]]
    return [
        torch.cat([state[1:], new]) if name == "memory" else new
        for name, state, new in zip(names, states, following, strict=True)
    ]
