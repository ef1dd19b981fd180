"""Bundles small enough to check by hand: weights, ONNX files, and the answers in NumPy.

`small_bundle` is a two-layer LSTM with attention over its window, exported as the bundle contract says; its golden
vectors come from `reference_context`, the same net in NumPy float64. Bundles of the real families
(tests/tiny_family.py) have the same sizes; `native` runs those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from serving.bundle import Bundle, write_bundle
from serving.engine import Engine, unavailable_engines
from serving.features import CONTRACT_FEATURES, STEP_FEATURES, FeatureSpec, Scaler
from serving.last_seen import AnchorTarget
from serving.manifest import Member, MemberFile, TensorSpec
from tests.tiny_bundle import npz_bytes, onnx_bytes

T, F, K, H, L = 5, len(STEP_FEATURES), len(CONTRACT_FEATURES), 4, 2
D = 2 * H
SAMPLES, CONTRACTS = 3, 6
SEMANTICS = ("window", "stateful")
Weights = dict[str, np.ndarray]


def unit_scaler(width: int) -> Scaler:
    return Scaler((0.0,) * width, (1.0,) * width)


SPEC = FeatureSpec(T, (AnchorTarget(14.0), AnchorTarget(45.0), AnchorTarget(120.0)), unit_scaler(F), unit_scaler(K))


def weights_of(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    sizes: dict[str, tuple[int, ...]] = {"v": (K, 1), "u": (D, 1)}
    for layer, width in enumerate([F, *[H] * (L - 1)]):
        sizes |= {f"w{layer}": (1, 4 * H, width), f"r{layer}": (1, 4 * H, H), f"b{layer}": (1, 8 * H)}
    return {name: rng.normal(0, 0.4, size).astype(np.float32) for name, size in sizes.items()}


def reference_context(weights: Weights, steps: np.ndarray, memory_steps: int) -> np.ndarray:
    """Context [D] after `steps` from zero state, attending to the last `memory_steps` outputs (gates: i, o, f, c)."""
    outputs = steps.astype(np.float64)
    for layer in range(L):
        w, r = weights[f"w{layer}"][0].astype(np.float64), weights[f"r{layer}"][0].astype(np.float64)
        bias = weights[f"b{layer}"][0].astype(np.float64).reshape(2, -1).sum(axis=0)
        hidden, cell, rows = np.zeros(H), np.zeros(H), []
        for x in outputs:
            gates = w @ x + r @ hidden + bias
            i, o, f = (1 / (1 + np.exp(-gates[at * H : (at + 1) * H])) for at in range(3))
            cell = f * cell + i * np.tanh(gates[3 * H :])
            hidden = o * np.tanh(cell)
            rows.append(hidden)
        outputs = np.array(rows)
    seen = outputs[-memory_steps:]
    score = np.exp(seen @ seen[-1])
    return np.r_[seen[-1], score / score.sum() @ seen]


def reference_head(weights: Weights, context: np.ndarray, contracts: np.ndarray) -> np.ndarray:
    """Volatility [N]: the prior (column 0), corrected by at most 10 %."""
    inner = contracts.astype(np.float64) @ weights["v"] + context @ weights["u"]
    return contracts[:, 0] * (1 + 0.1 * np.tanh(inner[:, 0]))


def _pooled() -> list[Any]:
    """From outputs [T,H] to context [1,D]."""
    node = helper.make_node
    return [
        node("Gather", ["outputs", "newest"], ["last"], axis=0),
        node("MatMul", ["outputs", "last"], ["score"]),
        node("Softmax", ["score"], ["share"], axis=0),
        node("MatMul", ["share", "outputs"], ["pooled"]),
        node("Concat", ["last", "pooled"], ["flat"], axis=0),
        node("Unsqueeze", ["flat", "zero"], ["context"]),
    ]


def member_files(index: int, weights: Weights) -> tuple[Member, dict[str, bytes]]:
    node = helper.make_node
    zero, one = np.array([0]), np.array([1])
    recurrent = {name: value for name, value in weights.items() if name[0] in "wrb"}
    newest = np.array(T - 1)
    window = [node("Transpose", ["window"], ["in0"], perm=[1, 0, 2])]
    step = [node("Unsqueeze", ["x", "zero"], ["in0"])]
    for layer in range(L):
        gates = [f"in{layer}", f"w{layer}", f"r{layer}", f"b{layer}"]
        window += [
            node("LSTM", gates, [f"y{layer}"], hidden_size=H),
            node("Squeeze", [f"y{layer}", "one"], [f"in{layer + 1}"]),
        ]
        step += [
            node("Gather", ["hidden", f"layer{layer}"], [f"h{layer}"], axis=0),
            node("Gather", ["cell", f"layer{layer}"], [f"c{layer}"], axis=0),
            node("LSTM", [*gates, "", f"h{layer}", f"c{layer}"], ["", f"in{layer + 1}", f"d{layer}"], hidden_size=H),
        ]
    window += [node("Squeeze", [f"in{L}", "one"], ["outputs"]), *_pooled()]
    step += [
        node("Concat", [f"in{layer + 1}" for layer in range(L)], ["hidden_out"], axis=0),
        node("Concat", [f"d{layer}" for layer in range(L)], ["cell_out"], axis=0),
        node("Squeeze", [f"in{L}", "zero"], ["output"]),
        node("Concat", ["memory", "output"], ["outputs"], axis=0),
        *_pooled(),
    ]
    head = [
        node("MatMul", ["contracts", "v"], ["a"]), node("MatMul", ["context", "u"], ["b"]),
        node("Add", ["a", "b"], ["inner"]), node("Tanh", ["inner"], ["bent"]), node("Mul", ["bent", "tenth"], ["move"]),
        node("Add", ["move", "unit"], ["factor"]), node("Gather", ["contracts", "zero"], ["prior"], axis=1),
        node("Mul", ["prior", "factor"], ["column"]), node("Squeeze", ["column", "one"], ["iv"]),
    ]  # fmt: skip

    def spec(name: str, *shape: int | None) -> TensorSpec:
        return TensorSpec(name, shape, "float32")

    state = [spec("hidden", L, 1, H), spec("cell", L, 1, H)]
    tensors = {
        "window": ([spec("window", 1, T, F)], [spec("context", 1, D)]),
        "step": (
            [spec("x", 1, F), *state, spec("memory", T - 1, H)],
            [spec("context", 1, D), spec("hidden_out", L, 1, H), spec("cell_out", L, 1, H), spec("output", 1, H)],
        ),
        "head": ([spec("context", 1, D), spec("contracts", None, K)], [spec("iv", None)]),
    }
    layers = {f"layer{layer}": np.array([layer]) for layer in range(L)}
    constants: dict[str, dict[str, Any]] = {
        "window": {**recurrent, "zero": zero, "one": one, "newest": newest},
        "step": {**recurrent, **layers, "zero": zero, "newest": newest},
        "head": {"v": weights["v"], "u": weights["u"], "zero": zero, "one": one,
                 "tenth": np.float32(0.1), "unit": np.float32(1.0)},
    }  # fmt: skip
    nodes = {"window": window, "step": step, "head": head}
    names = {role: f"member-{index}/{role}.onnx" for role in nodes}
    files = {names[role]: onnx_bytes(nodes[role], *tensors[role], **constants[role]) for role in nodes}
    member = {role: MemberFile(names[role], tuple(ins), tuple(outs)) for role, (ins, outs) in tensors.items()}
    return Member(member), files


def small_bundle(
    directory: Path, *, semantics: str = "window", members: int = 1, seed: int = 0, spec: FeatureSpec = SPEC,
    extra: dict[str, bytes] | None = None, change: Callable[[str, bytes], bytes] | None = None, **other: Any,
) -> Bundle:  # fmt: skip
    """A bundle of `members` nets; `extra` files are added, `change` may alter a file before it is hashed."""
    rng = np.random.default_rng(1)
    window = rng.normal(size=(SAMPLES, T, F)).astype(np.float32)
    contracts = rng.normal(0.2, 0.02, size=(CONTRACTS, K)).astype(np.float32)
    golden: dict[str, np.ndarray] = {"window": window, "contracts": contracts}
    made, files, volatilities = [], {}, []
    for index in range(members):
        weights = weights_of(seed + index)
        member, its_files = member_files(index, weights)
        made.append(member)
        files |= its_files
        context = np.array([reference_context(weights, one, T) for one in window])
        volatilities.append(reference_head(weights, context[0], contracts))
        golden |= {f"context-{index}": context.astype(np.float32), f"iv-{index}": volatilities[-1].astype(np.float32)}
    golden["iv"] = np.mean(volatilities, axis=0).astype(np.float32)
    files |= {"golden.npz": npz_bytes(**golden)} | (extra or {})
    arguments: dict[str, Any] = {
        "model": "small", "model_config": {"hidden": H, "layers": L}, "members": made,
        "files": {name: change(name, raw) if change else raw for name, raw in files.items()},
        "feature_spec": spec.to_json(), "semantics": semantics, "tolerances": {"context": 2e-6, "iv": 2e-6},
        "data_sha256": "ab" * 32, "config_sha256": "cd" * 32,
    }  # fmt: skip
    return write_bundle(directory, **(arguments | other))


@pytest.fixture(params=SEMANTICS)
def semantics(request: pytest.FixtureRequest) -> str:
    return str(request.param)


NATIVE = pytest.mark.skipif(unavailable_engines()["native"] is not None, reason=str(unavailable_engines()["native"]))


def steps_of(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, F)).astype(np.float32)


def context_of(engine: Engine, x: np.ndarray) -> np.ndarray:
    out = np.full(engine.info().context_size, np.nan, np.float32)
    engine.evaluate(x, out)
    return out
