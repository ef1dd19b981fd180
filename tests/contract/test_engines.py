"""Every back end keeps the engine's promises, under both semantics; and a bundle small enough to check by hand.

`small_bundle` is a two-layer LSTM with attention over its window, exported as the bundle contract says; its golden
vectors come from `reference_context`, the same net in NumPy float64. Bundles of the real families
(tests/tiny_family.py) have the same sizes; `native` runs those alone.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from serving import engine_pack
from serving.bundle import Bundle, write_bundle
from serving.engine import (
    BACKENDS,
    PRECISIONS,
    PROVIDERS,
    Engine,
    every_precision,
    golden_parity,
    open_engine,
    open_surface_engine,
    unavailable_engines,
)
from serving.engines import ort
from serving.engines.trt import TrtEngine
from serving.errors import EngineError
from serving.features import CONTRACT_FEATURES, STEP_FEATURES, FeatureSpec, Scaler
from serving.last_seen import AnchorTarget
from serving.manifest import Member, MemberFile, TensorSpec
from serving.warm import ROUNDING
from tests.serving.trt_memory import MemoryDevice, programs_of
from tests.tiny_bundle import npz_bytes, onnx_bytes
from tests.tiny_family import FAMILIES, TOLERANCE, contracts_of, family_bundle
from tests.tiny_surface import surface_bundle

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
SUBJECTS = [
    ("small", "ort", "fp32"),
    ("small", "null", "fp32"),
    ("small", "trt", "fp32"),  # on a device of plain memory
    ("pricing_lstm", "ort", "fp32"),
    *(
        pytest.param((family, "native", precision), marks=NATIVE)
        for family in FAMILIES
        for precision in PRECISIONS["native"]
    ),
]


@pytest.fixture(params=SUBJECTS, ids=lambda subject: "-".join(subject))
def engine(request: pytest.FixtureRequest, semantics: str, tmp_path: Path) -> Engine:
    model, backend, precision = request.param
    make = small_bundle if model == "small" else partial(family_bundle, family=model)
    if backend == "trt":
        bundle, device = small_bundle(tmp_path / "bundle", semantics=semantics, members=2), MemoryDevice()
        return TrtEngine(bundle, programs_of(bundle, device, 64), device, "memory")
    return open_engine(make(tmp_path / "bundle", semantics=semantics, members=2), backend, precision=precision)


def steps_of(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, F)).astype(np.float32)


def context_of(engine: Engine, x: np.ndarray) -> np.ndarray:
    out = np.full(engine.info().context_size, np.nan, np.float32)
    engine.evaluate(x, out)
    return out


def test_info_states_the_sizes(engine: Engine, semantics: str) -> None:
    info = engine.info()
    assert (info.semantics, info.members) == (semantics, 2)
    assert info.model in ("small", *FAMILIES)
    assert info.precision in PRECISIONS[info.backend]
    assert info.backend != "native" or info.precision in info.runtime
    assert (info.window_steps, info.step_features, info.contract_features, info.context_size) == (T, F, K, 2 * D)
    assert len(info.bundle_sha256) == 64


def test_evaluate_commits_nothing(engine: Engine) -> None:
    steps = steps_of(7)
    for x in steps[:4]:
        engine.advance(x)
    before = context_of(engine, steps[4])
    for x in steps:
        context_of(engine, 3 * x)
    assert np.array_equal(context_of(engine, steps[4]), before)
    assert np.isfinite(before).all()


def test_reset_forgets_everything(engine: Engine) -> None:
    steps = steps_of(9)
    fresh = context_of(engine, steps[0])
    for x in steps:
        engine.advance(x)
    engine.reset()
    assert np.array_equal(context_of(engine, steps[0]), fresh)


def test_inputs_are_left_alone(engine: Engine) -> None:
    x, contracts = steps_of(1)[0], np.full((3, K), 0.2, np.float32)
    context = context_of(engine, x)
    kept = x.copy(), context.copy(), contracts.copy()
    for array in (x, context, contracts):
        array.flags.writeable = False
    engine.advance(x)
    engine.head(context, contracts, np.zeros(3, np.float32))
    assert all(np.array_equal(array, copy) for array, copy in zip((x, context, contracts), kept, strict=True))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda e: e.evaluate(np.zeros(F + 1, np.float32), np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate(np.zeros(F), np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate([0.0] * F, np.zeros(2 * D, np.float32)), "'x'"),
        (lambda e: e.evaluate(np.zeros(F, np.float32), np.zeros(D, np.float32)), "'context'"),
        (lambda e: e.evaluate(np.zeros(F, np.float32), np.broadcast_to(np.float32(0), 2 * D)), "'context'"),
        (lambda e: e.advance(np.zeros((1, F), np.float32)), "'x'"),
        (lambda e: e.head(np.zeros(D, np.float32), np.zeros((2, K), np.float32), np.zeros(2, np.float32)), "'context'"),
        (lambda e: e.head(np.zeros(2 * D, np.float32), np.zeros((2, K - 1), np.float32), np.zeros(2, np.float32)),
         "'contracts'"),
        (lambda e: e.head(np.zeros(2 * D, np.float32), np.zeros((2, K), np.float32), np.zeros(3, np.float32)), "'iv'"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused_by_name(engine: Engine, call: Callable[[Any], None], name: str) -> None:
    with pytest.raises(EngineError, match=rf"tensor {name}: expected .*, found "):
        call(engine)


@pytest.mark.parametrize("count", [0, 1, 4, 2, 700])
def test_head_takes_any_number_of_contracts(engine: Engine, count: int) -> None:
    out = np.full(count, np.nan, np.float32)
    engine.head(np.zeros(2 * D, np.float32), np.full((count, K), 0.2, np.float32), out)
    assert np.isfinite(out).all()


def test_semantics_other_than_the_bundles_are_refused(tmp_path: Path, semantics: str) -> None:
    bundle = small_bundle(tmp_path / "bundle", semantics=semantics)
    other = next(name for name in SEMANTICS if name != semantics)
    with pytest.raises(EngineError, match="gated with"):
        open_engine(bundle, "null", semantics=other)
    assert open_engine(bundle, "null", semantics=semantics).info().semantics == semantics


# What runs, and what is refused.


def test_precisions_and_providers_are_the_same_everywhere() -> None:
    assert set(every_precision()) == set(engine_pack.PRECISIONS)
    assert set(BACKENDS) - {"null"} == set(engine_pack.BACKENDS)
    assert set(PROVIDERS) == set(ort.PROVIDERS)
    assert set(ROUNDING) == set(every_precision()) - {"fp32"}


@pytest.mark.parametrize(
    ("backend", "options", "told"),
    [
        ("abacus", {}, "there is no engine 'abacus'; there are native, ort, trt, null"),
        ("native", {"precision": "fp4"}, "there is no precision 'fp4'; there are fp32, bf16, int8, fp16, fp8"),
        ("native", {"precision": "fp16"}, "engine 'native' has fp32, bf16, int8, 'fp16' was asked for: trt has it"),
        ("ort", {"precision": "int8"}, "engine 'ort' has fp32, 'int8' was asked for: native has it, trt has it"),
        ("null", {"precision": "int8"}, "engine 'null' has fp32, 'int8' was asked for: native has it, trt has it"),
        ("ort", {"provider": "abacus"}, "no provider 'abacus'; there are cpu, cuda, tensorrt"),
        ("native", {"provider": "cuda"}, "engine 'native' has no providers, 'cuda' was asked for: ort has them"),
        ("trt", {"precision": "fp16"}, "engine 'trt' runs engine packs, and none was given: pull one"),
    ],
)
def test_what_an_engine_hasnt_is_refused_by_name(
    tmp_path: Path, backend: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EngineError, match=re.escape(told)):
        open_engine(small_bundle(tmp_path / "bundle"), backend, **options)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has GPU providers")
def test_ort_never_takes_the_cpu_where_a_gpu_was_asked_for(tmp_path: Path) -> None:
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(EngineError, match=rf"provider '{provider}': this onnxruntime .* has no "):
            open_engine(small_bundle(tmp_path / "bundle"), "ort", provider=provider)
        with pytest.raises(EngineError, match=rf"provider '{provider}': this onnxruntime .* has no "):
            open_surface_engine(surface_bundle(tmp_path / "surface"), "ort", provider=provider)


def test_a_pack_is_opened_by_the_engine_it_is_for_in_its_precision(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    pack = engine_pack.write_pack(
        tmp_path / "pack", bundle=bundle, target="trt_rtx_sm89_fp16", backend="trt", precision="fp16",
        library="tensorrt_rtx", version="1", sm="sm89", files={"member-0/window.engine": b"-"},
    )  # fmt: skip
    with pytest.raises(EngineError, match="pack 'trt_rtx_sm89_fp16' is in 'fp16', 'bf16' was asked for"):
        open_engine(bundle, "trt", precision="bf16", pack=pack)
    with pytest.raises(EngineError, match="'ort' runs the bundle itself: engine pack 'trt_rtx_sm89_fp16' isn't its"):
        open_engine(bundle, "ort", pack=pack)
    if unavailable_engines()["trt"] is not None:
        with pytest.raises(EngineError, match="engine 'trt': "):
            open_engine(bundle, "trt", precision="fp16", pack=pack)


@pytest.mark.parametrize(
    ("backend", "options", "told"),
    [
        ("native", {"precision": "bf16"}, "judged in fp32, 'bf16' was asked for: bundle .* holds a surface net"),
        ("ort", {"precision": "int8"}, "judged in fp32, 'int8' was asked for"),
        ("native", {"provider": "cuda"}, "engine 'native' has no providers"),
        ("trt", {}, "no engine 'trt' for surfaces; there are native, ort"),
    ],
)
def test_what_surfaces_havent_is_refused_by_name(
    tmp_path: Path, backend: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EngineError, match=told):
        open_surface_engine(surface_bundle(tmp_path / "surface"), backend, **options)


# What the native core computes.

# A hundredth of the context's range of -1..1; the head turns that into at most a tenth of a volatility point.
REDUCED = {"context": 2e-2, "iv": 1e-3}


@NATIVE
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("precision", PRECISIONS["native"])
def test_native_golden_vectors(tmp_path: Path, semantics: str, family: str, members: int, precision: str) -> None:
    bundle = family_bundle(tmp_path / "bundle", family, semantics=semantics, members=members)
    for parity in golden_parity(bundle, open_engine(bundle, "native", precision=precision)):
        allowed = TOLERANCE if precision == "fp32" else REDUCED[parity.name]
        assert parity.max_abs_difference <= allowed, parity


@NATIVE
@pytest.mark.parametrize("family", list(FAMILIES))
def test_native_answers_as_onnx_runtime_does(tmp_path: Path, semantics: str, family: str) -> None:
    """After every number of steps, also before the window is full."""
    bundle = family_bundle(tmp_path / "bundle", family, semantics=semantics, members=2)
    native, other = open_engine(bundle, "native"), open_engine(bundle, "ort")
    contracts, iv = contracts_of(70), np.zeros((2, 70), np.float32)
    for x in steps_of(4 * T):
        contexts = [context_of(one, x) for one in (native, other)]
        assert np.abs(contexts[0] - contexts[1]).max() < TOLERANCE
        for one, context, out in zip((native, other), contexts, iv, strict=True):
            one.head(context, contracts, out)
            one.advance(x)
        assert np.abs(iv[0] - iv[1]).max() < TOLERANCE


@NATIVE
def test_native_refuses_nets_it_doesnt_know(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine 'native' has no net 'small'.* it has pricing_lstm"):
        open_engine(small_bundle(tmp_path / "bundle"), "native")


# What ONNX Runtime computes.


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_the_reference_on_random_sequences(tmp_path: Path, semantics: str, members: int, seed: int) -> None:
    """evaluate after any number of advances: the zero-padded last T steps, or the state carried over all of them."""
    engine = open_engine(small_bundle(tmp_path / "bundle", semantics=semantics, members=members))
    weights = [weights_of(index) for index in range(members)]
    steps = steps_of(3 * T, seed)
    contracts = np.random.default_rng(seed).normal(0.3, 0.05, (50, K)).astype(np.float32)
    iv = np.zeros(50, np.float32)
    for count in range(1, len(steps) + 1):
        context = context_of(engine, steps[count - 1])
        if semantics == "window":
            padded = np.concatenate([np.zeros((T, F)), steps[:count]])[-T:]
            expected = [reference_context(one, padded, T) for one in weights]
        elif count < T:  # the attention still sees zeros of steps that never were
            engine.advance(steps[count - 1])
            continue
        else:
            expected = [reference_context(one, steps[:count], T) for one in weights]
        assert np.abs(context - np.concatenate(expected)).max() < 2e-6
        engine.head(context, contracts, iv)
        heads = [reference_head(one, part, contracts) for one, part in zip(weights, expected, strict=True)]
        assert np.abs(iv - np.mean(heads, axis=0)).max() < 2e-6
        engine.advance(steps[count - 1])


def test_both_semantics_agree_after_one_window(tmp_path: Path) -> None:
    steps = steps_of(T)
    contexts = []
    for name in SEMANTICS:
        engine = open_engine(small_bundle(tmp_path / name, semantics=name))
        for x in steps[:-1]:
            engine.advance(x)
        contexts.append(context_of(engine, steps[-1]))
    assert np.abs(contexts[0] - contexts[1]).max() < 1e-6


def test_golden_vectors_are_recomputed(tmp_path: Path, semantics: str) -> None:
    good = small_bundle(tmp_path / "good", semantics=semantics, members=2)
    parities = golden_parity(good, open_engine(good))
    assert [one.name for one in parities] == ["context", "iv"]
    assert all(one.holds and one.max_abs_difference < 2e-6 for one in parities)
    null = golden_parity(good, open_engine(good, "null"))
    assert not any(one.holds for one in null)


# What is refused when an engine is opened.


def _rebuilt(name: str, edit: Callable[[onnx.ModelProto], None]) -> Callable[[str, bytes], bytes]:
    def change(file: str, raw: bytes) -> bytes:
        if file != name:
            return raw
        model = onnx.load_model_from_string(raw)
        edit(model)
        return bytes(model.SerializeToString())

    return change


def test_frozen_contract_axis_is_refused(tmp_path: Path) -> None:
    def freeze(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 6
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 6

    bundle = small_bundle(tmp_path / "bundle", change=_rebuilt("member-0/head.onnx", freeze))
    with pytest.raises(EngineError, match=r"member-0/head.onnx: input tensor 'contracts': expected .*None.* found .*6"):
        open_engine(bundle)


def test_renamed_tensor_is_refused(tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "answer"
        model.graph.node[-1].output[0] = "answer"

    bundle = small_bundle(tmp_path / "bundle", change=_rebuilt("member-0/window.onnx", rename))
    with pytest.raises(EngineError, match=r"window.onnx: .*'context'.*'answer'"):
        open_engine(bundle)


def test_unreadable_model_is_refused(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle", change=lambda name, raw: b"junk" if name.endswith("w.onnx") else raw)
    with pytest.raises(EngineError, match=r"member-0/window.onnx: ONNX Runtime .* refuses the model"):
        open_engine(bundle)


def test_tensors_outside_the_verified_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would read external data from the working directory."""
    monkeypatch.chdir(tmp_path)

    def externalise(model: onnx.ModelProto) -> None:
        v = next(one for one in model.graph.initializer if one.name == "v")
        Path("v.bin").write_bytes(numpy_helper.to_array(v).tobytes())
        v.ClearField("raw_data")
        v.data_location = onnx.TensorProto.EXTERNAL
        v.external_data.add(key="location", value="v.bin")

    bundle = small_bundle(tmp_path / "bundle", change=_rebuilt("member-0/head.onnx", externalise))
    with pytest.raises(EngineError, match=r"member-0/head\.onnx"):
        open_engine(bundle)


def test_member_without_its_role_is_refused(tmp_path: Path) -> None:
    member, _ = member_files(0, weights_of(0))
    heads = {role: file for role, file in member.files.items() if role != "step"}
    bundle = small_bundle(tmp_path / "bundle", members=1)
    bundle = write_bundle(
        tmp_path / "other", model="small", model_config={}, members=[Member(heads)],
        files={name: bundle.read(name) for name in bundle.manifest.files}, feature_spec=SPEC.to_json(),
        semantics="stateful", tolerances={}, data_sha256="ab" * 32, config_sha256="cd" * 32,
    )  # fmt: skip
    with pytest.raises(EngineError, match="member 0 of the bundle has no 'step' file; it has head, window"):
        open_engine(bundle)


def _installed(*names: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "1"

    return version


def test_two_onnx_runtimes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.metadata, "version", _installed("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(EngineError, match="onnxruntime and onnxruntime-gpu are both installed"):
        open_engine(small_bundle(tmp_path / "bundle"))


def test_missing_onnx_runtime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.metadata, "version", _installed())
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        assert name != "onnxruntime", "must not be imported"
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EngineError, match=r"strikeforge\[cpu\]"):
        open_engine(small_bundle(tmp_path / "bundle"))
    assert unavailable_engines()["null"] is None
