"""Random nets of all three families: the native core, ONNX Runtime on the exported files and torch agree.

Each is held to the float64 net by what float32 rounding allows (tests/serving/native/error_bound.py); the exported step
is run from carried states, as a host does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import models
from models.pricing import PricingNet
from models.surface_vae import Known, SurfaceVAE
from serving import native
from serving.engines import ort
from tests.serving.native.error_bound import UNIT, error_bound

reason = native.why_unavailable() or ort.why_unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=str(reason))]

Arrays = dict[str, NDArray[np.float32]]
STEPS = 30
SURFACE = ("completed", "deviation", "latent", "surprise", "regime")


def random_sizes(family: str, rng: np.random.Generator) -> dict[str, Any]:
    def whole(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    if family == "surface_vae":
        return {"cells": whole(1, 40), "moves": whole(1, 4), "regimes": whole(1, 5), "latent": whole(1, 8),
                "width": whole(1, 50), "shapes": whole(1, 6)}  # fmt: skip
    sizes = {"step_features": whole(1, 30), "contract_features": 4, "window": whole(2, 20), "layers": whole(1, 3),
             "context": whole(1, 20), "head_width": 8}  # fmt: skip
    if family == "pricing_lstm":
        return sizes | {"hidden": whole(1, 40)}
    heads = whole(1, 4)
    return sizes | {"heads": heads, "width": heads * whole(1, 20), "band": whole(2, 24)}


def random_net(family: str, seed: int) -> tuple[Any, dict[str, Any], np.random.Generator]:
    """In float32, evaluation mode; its sizes; what else is to be drawn comes from the same generator."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sizes = random_sizes(family, rng)
    net = models.build(family, sizes).eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            positive = name.startswith("unit_") or name.endswith("deviation") or "norm.weight" in name
            draw = rng.uniform(0.5, 1.5, tuple(tensor.shape)) if positive else rng.normal(0, 0.25, tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(np.asarray(draw, np.float32)))
    return net, sizes, rng


def weights_of(net: Any) -> Arrays:
    return {name: np.ascontiguousarray(value.detach().numpy(), np.float32) for name, value in net.state_dict().items()
            if not name.startswith("head.")}  # fmt: skip


def session_of(net: Any, role: str) -> Any:
    """The exported part in ONNX Runtime."""
    import onnxruntime

    from pipelines.onnx_export import export_member

    files, roles = export_member(net, "member-0")
    return onnxruntime.InferenceSession(files[roles[role].name], providers=["CPUExecutionProvider"])


def stepped(net: PricingNet, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """ONNX Runtime's contexts of all steps, from carried states."""
    session = session_of(net, "step")
    inputs = {one.name: np.zeros(one.shape, np.float32) for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    contexts = []
    for x in rows:
        inputs["x"] = x[None]
        found = dict(zip(names, session.run(names, inputs), strict=True))
        contexts.append(found["context"][0])
        inputs |= {name.removesuffix("_out"): value for name, value in found.items() if name.endswith("_out")}
        if "memory" in inputs and len(inputs["memory"]):
            inputs["memory"] = np.concatenate([inputs["memory"][1:], found["output"]])
    return np.array(contexts)


def native_contexts(
    family: str, sizes: dict[str, Any], weights: Arrays, rows: NDArray[np.float32], semantics: str, isa: str
) -> NDArray[np.float32]:
    numbers = {name: float(size) for name, size in sizes.items()}
    engine = native.core().Encoder(family, numbers, "weights.safetensors", weights, "fp32", semantics, isa)
    out = np.zeros((len(rows), sizes["context"]), np.float32)
    for x, context in zip(rows, out, strict=True):
        engine.evaluate(x, context)
        engine.advance(x)
    return out


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["pricing_lstm", "pricing_transformer"])
def test_pricing_encoders_agree(family: str, seed: int) -> None:
    net, sizes, rng = random_net(family, seed)
    weights = weights_of(net)
    rows = rng.normal(size=(STEPS, sizes["step_features"])).astype(np.float32)
    by_ort = stepped(net, rows)
    exact = net.double()
    padded = np.concatenate([np.zeros((sizes["window"], sizes["step_features"])), rows.astype(np.float64)])
    windows = [torch.from_numpy(padded[place + 1 : place + 1 + sizes["window"]])[None] for place in range(STEPS)]
    wanted = torch.cat([exact.encode(window) for window in windows]).detach().numpy()
    bound = np.max([error_bound(exact, lambda window=window: exact.encode(window), {}) for window in windows[::3]], 0)  # type: ignore[misc]
    for isa in native.core().isas():
        found = native_contexts(family, sizes, weights, rows, "window", isa)
        assert np.all(np.abs(found - wanted) <= 4.0 * bound), isa  # the bound is that of every third step
        carried = native_contexts(family, sizes, weights, rows, "stateful", isa)
        assert np.all(np.abs(carried - by_ort) <= 8.0 * bound), isa  # both are off


@pytest.mark.parametrize("seed", range(3))
def test_surface_nets_agree(seed: int) -> None:
    net, sizes, rng = random_net("surface_vae", seed)
    weights, count = weights_of(net), 6
    grid = (count, sizes["cells"])
    mask, last_mask = ((rng.random(grid) < share).astype(np.float32) for share in (0.6, 0.9))
    last_mask[0] = 0.0
    given = {"surface": mask * rng.uniform(0.1, 0.4, grid), "mask": mask, "last": rng.uniform(0.1, 0.4, grid),
             "last_mask": last_mask, "move": rng.normal(0, 1, (count, sizes["moves"]))}  # fmt: skip
    given = {name: np.ascontiguousarray(value, np.float32) for name, value in given.items()}
    found_by_ort = session_of(net, "surface").run(list(SURFACE), given)
    exact = net.double()
    assert isinstance(exact, SurfaceVAE)
    known = Known(**{name: torch.from_numpy(value.astype(np.float64)) for name, value in given.items()})
    made = native.core().SurfaceNet({name: float(size) for name, size in sizes.items()}, "weights.safetensors", weights)
    shapes = {"latent": (count, sizes["latent"]), "surprise": (count,), "regime": (count, sizes["regimes"])}
    found = [np.full(shapes.get(name, grid), np.nan, np.float32) for name in SURFACE]
    made.answer(*given.values(), *found)
    for name, ours, theirs in zip(SURFACE, found, found_by_ort, strict=True):
        wanted = getattr(exact(known), name).detach().numpy()
        bound = error_bound(exact, lambda name=name: getattr(exact(known), name), {}).reshape(wanted.shape)  # type: ignore[misc]
        # sums over cells and the head's slope to the surface, which the bound doesn't see, relative to the value
        allowed = bound + (64.0 + 8.0 * sizes["cells"]) * UNIT * np.maximum(np.abs(wanted), 1.0)
        assert np.all(np.abs(ours - wanted) <= allowed), name
        assert np.all(np.abs(theirs - wanted) <= allowed), f"ONNX Runtime's {name}"
