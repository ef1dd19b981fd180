"""The smallest bundles that are real: ONNX files ONNX Runtime runs, golden vectors computed in NumPy.

The net: context = sum over the window's steps of x @ W; iv = sigmoid(contracts @ V + context @ U). Its step file keeps
the sum as state, so both give the same context.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import Bundle, write_bundle
from serving.manifest import Member, MemberFile, TensorSpec

SAMPLES, STEPS, FEATURES, WIDTH, CONTRACTS, COLUMNS = 3, 4, 3, 2, 5, 3
HASH = "ab" * 32
WINDOW = TensorSpec("window", (1, STEPS, FEATURES), "float32")
CONTEXT = TensorSpec("context", (1, WIDTH), "float32")
CONTRACT_TABLE = TensorSpec("contracts", (None, COLUMNS), "float32")
IV = TensorSpec("iv", (None,), "float32")
STEP = TensorSpec("x", (1, FEATURES), "float32")
STATE, NEXT_STATE = TensorSpec("sum", (1, WIDTH), "float32"), TensorSpec("sum_out", (1, WIDTH), "float32")


def onnx_bytes(nodes: list[Any], inputs: list[TensorSpec], outputs: list[TensorSpec], **constants: Any) -> bytes:
    def values(specs: list[TensorSpec]) -> list[Any]:
        return [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, [n or "N" for n in s.shape]) for s in specs]

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def npz_bytes(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def member_files(index: int, seed: int) -> tuple[Member, dict[str, bytes], dict[str, NDArray[Any]]]:
    rng = np.random.default_rng([seed, index])
    w = rng.normal(0, 0.3, (FEATURES, WIDTH)).astype(np.float32)
    v = rng.normal(0, 0.3, (COLUMNS, 1)).astype(np.float32)
    u = rng.normal(0, 0.3, (WIDTH, 1)).astype(np.float32)
    node = helper.make_node
    files = {
        f"member-{index}/window.onnx": onnx_bytes(
            [node("MatMul", ["window", "w"], ["p"]), node("ReduceSum", ["p", "axis"], ["context"], keepdims=0)],
            [WINDOW], [CONTEXT], w=w, axis=np.array([1]),
        ),
        f"member-{index}/step.onnx": onnx_bytes(
            [
                node("MatMul", ["x", "w"], ["p"]),
                node("Add", ["sum", "p"], ["sum_out"]),
                node("Identity", ["sum_out"], ["context"]),
            ],
            [STEP, STATE], [CONTEXT, NEXT_STATE], w=w,
        ),
        f"member-{index}/head.onnx": onnx_bytes(
            [
                node("MatMul", ["contracts", "v"], ["a"]), node("MatMul", ["context", "u"], ["b"]),
                node("Add", ["a", "b"], ["c"]), node("Sigmoid", ["c"], ["d"]),
                node("Squeeze", ["d", "axis"], ["iv"]),
            ],
            [CONTEXT, CONTRACT_TABLE], [IV], v=v, u=u, axis=np.array([1]),
        ),
    }  # fmt: skip
    member = Member(
        {
            "window": MemberFile(f"member-{index}/window.onnx", (WINDOW,), (CONTEXT,)),
            "step": MemberFile(f"member-{index}/step.onnx", (STEP, STATE), (CONTEXT, NEXT_STATE)),
            "head": MemberFile(f"member-{index}/head.onnx", (CONTEXT, CONTRACT_TABLE), (IV,)),
        }
    )
    return member, files, {"w": w, "v": v, "u": u}


def tiny_bundle(
    directory: Path,
    *,
    model: str = "tiny",
    seed: int = 0,
    members: int = 1,
    change: dict[str, NDArray[Any]] | None = None,
    extra_files: dict[str, bytes] | None = None,
    **other: Any,
) -> Bundle:
    """Another `seed` gives another net; `change` replaces golden arrays, `other` arguments of write_bundle."""
    rng = np.random.default_rng(99)
    window = rng.normal(size=(SAMPLES, STEPS, FEATURES)).astype(np.float32)
    contracts = rng.normal(size=(CONTRACTS, COLUMNS)).astype(np.float32)
    golden: dict[str, NDArray[Any]] = {"window": window, "contracts": contracts}
    files: dict[str, bytes] = {"reference.npz": npz_bytes(edges=np.linspace(-1, 1, 5))}
    made: list[Member] = []
    ivs = []
    for index in range(members):
        member, its_files, weights = member_files(index, seed)
        made.append(member)
        files |= its_files
        context = window.sum(axis=1) @ weights["w"]
        iv = 1 / (1 + np.exp(-(contracts @ weights["v"] + context[0:1] @ weights["u"])[:, 0]))
        golden |= {f"context-{index}": context, f"iv-{index}": iv}
        ivs.append(iv)
    golden["iv"] = np.mean(ivs, axis=0)
    files["golden.npz"] = npz_bytes(**(golden | (change or {})))
    files |= extra_files or {}
    arguments: dict[str, Any] = {
        "model": model,
        "model_config": {"width": WIDTH, "net": {"seed": seed}},
        "members": made,
        "files": files,
        "feature_spec": {"step": "1d", "window": STEPS, "scaler": {"mean": [0.0] * FEATURES}},
        "semantics": "window",
        "tolerances": {"iv": 1e-5, "context": 1e-5},
        "data_sha256": HASH,
        "config_sha256": HASH,
    }
    return write_bundle(directory, **(arguments | other))
