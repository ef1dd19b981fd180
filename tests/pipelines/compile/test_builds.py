"""Every exported file of every family, in every precision, for three generations of GPU: really parsed and built by
TensorRT-RTX, ahead of time, not executed. And every refusal, by a real call.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.tensorrt.builder import build
from pipelines.tensorrt.precision import convert
from pipelines.tensorrt.refusals import FULL_SM, RTX_SM, check_network, check_target, free_inputs
from pipelines.tensorrt.samples import samples_of
from pipelines.tensorrt.target import Kind, Precision, Profile, Target
from serving.engines.trt_builder import RTX, Rows, build_engine
from serving.errors import EngineError
from tests.pipelines.compile.nets import FILES, bundle_of

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'strikeforge[trt-rtx]'")
pytestmark = pytest.mark.slow

ROWS = Profile(1, 64, 512)
SMALLEST_ENGINE = 10_000  # bytes; an engine holds kernels


def target(precision: Precision, sm: int | None, kind: Kind = "tensorrt_rtx") -> Target:
    return Target(kind, precision, sm, ROWS)


def net(
    *nodes: onnx.NodeProto, inputs: tuple = (("x", (4, 8)),), outputs: tuple = (("y", None),), **constants
) -> bytes:  # type: ignore[no-untyped-def, type-arg]
    """A file of a few nodes, opset 20."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", values, made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


PRODUCT = net(helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), w=np.eye(8, dtype=np.float32))
FREE = net(helper.make_node("MatMul", ["x", "w"], ["y"]), inputs=(("x", (None, 8)),), w=np.eye(8, dtype=np.float32))


@pytest.mark.parametrize("sm", [80, 89, 120])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("family", "role"), FILES)
def test_every_net_is_compiled_ahead_of_time(family: str, role: str, precision: Precision, sm: int) -> None:
    bundle, name = bundle_of(family), f"member-0/{role}.onnx"
    raw = convert(bundle.read(name), precision, samples_of(bundle, name))
    profile = ROWS if free_inputs(check_network(raw, name)) else None
    assert (profile is not None) == (role in ("head", "surface"))
    made = build(raw, name, target(precision, sm), profile)
    assert len(made.engine) > SMALLEST_ENGINE
    assert made.version == trt.__version__


@pytest.mark.parametrize("sm", [89, 120])
@pytest.mark.parametrize(("family", "role"), FILES)
def test_fp8_is_compiled_where_there_is_fp8(family: str, role: str, sm: int) -> None:
    bundle, name = bundle_of(family), f"member-0/{role}.onnx"
    raw = convert(bundle.read(name), "fp8", samples_of(bundle, name))
    profile = ROWS if role in ("head", "surface") else None
    assert len(build(raw, name, target("fp8", sm), profile).engine) > SMALLEST_ENGINE


# Refusals before the builder is asked.


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (target("fp8", 80), r"precision=fp8: SM80 has no FP8; SM89 is the first"),
        (target("fp8", 86), r"SM86 has no FP8"),
        (target("fp32", 75), r"no float32 products on SM75: take fp16"),
        (target("int8", 75), r"no float32 products on SM75"),
        (target("bf16", 75), r"SM75 has no bf16; SM80 is the first"),
        (target("fp16", 90), r"no target SM90; it has 75, 80, .*: hosts with such GPUs take full TensorRT"),
        (target("fp16", 100), r"no target SM100.*full TensorRT"),
        (target("fp16", 103), r"no target SM103.*full TensorRT"),
        (target("fp16", 42), r"no target SM42; it has 75, 80, 86, 89, 120, 121$"),
        (target("fp16", 42, "tensorrt"), r"TensorRT has no target SM42"),
        (target("fp16", None), r"compiles ahead of time: name the GPU it is for"),
    ],
)
def test_targets_that_cannot_be_are_refused_by_name(wanted: Target, told: str) -> None:
    with pytest.raises(EngineError, match=told):
        build(PRODUCT, "net.onnx", wanted, None)


def test_the_targets_known_here_are_those_of_the_library() -> None:
    there = {int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert there == set(RTX_SM)
    assert there < set(FULL_SM)
    for sm in there:
        check_target(target("fp16", sm))


def test_dynamic_quantisation_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from onnxruntime.quantization import quantize_dynamic

    (tmp_path / "in.onnx").write_bytes(PRODUCT)
    quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx")
    with pytest.raises(EngineError, match=r"net\.onnx: node '.*' is DynamicQuantizeLinear: .* quantised dynamically"):
        build((tmp_path / "out.onnx").read_bytes(), "net.onnx", target("int8", 89), None)


@pytest.mark.parametrize("zero", [np.array(3, np.int8), np.array(128, np.uint8)])
def test_asymmetric_quantisation_is_refused(zero: np.ndarray) -> None:
    raw = net(
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        s=np.array(0.1, np.float32), z=zero,
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"node 'quantise': zero point 'z' isn't 0 of a signed type"):
        build(raw, "net.onnx", target("int8", 89), None)


def test_a_file_that_is_no_onnx_is_refused() -> None:
    with pytest.raises(EngineError, match=r"net\.onnx: isn't an ONNX file"):
        build(b"\xff\xff junk", "net.onnx", target("fp16", 89), None)


# Refusals of the builder itself, told with its own words. Nothing stands before it here.


def test_an_unsupported_operator_is_named() -> None:
    raw = net(helper.make_node("Det", ["x"], ["y"], name="determinant"), inputs=(("x", (4, 4)),))
    with pytest.raises(
        EngineError, match=r"net\.onnx: can't be parsed for SM89 by .*: operator Det \(node 'determinant'"
    ):
        build_engine(raw, "net.onnx", RTX, 89, None)


@pytest.mark.parametrize(
    ("raw", "rows", "told"),
    [
        (FREE, None, r"tensors \['x'\] have a free dimension and there is no profile"),
        (PRODUCT, Rows(1, 2, 3), r"a profile is given, but no input has a free dimension"),
        (FREE, Rows(9, 2, 3), r"give 1 <= min <= opt <= max"),
        (FREE, Rows(0, 2, 3), r"give 1 <= min <= opt <= max"),
    ],
)
def test_a_missing_or_mismatched_profile_is_refused(raw: bytes, rows: Rows | None, told: str) -> None:
    with pytest.raises(EngineError, match=rf"net\.onnx: {told}|{told}"):
        build_engine(raw, "net.onnx", RTX, 89, rows)


def test_a_profile_that_contradicts_the_net_is_refused_by_the_builder() -> None:
    """4 rows fit what x is reshaped to, 3 don't; nothing here knows that but the library."""
    raw = net(
        helper.make_node("Reshape", ["x", "w"], ["y"]), inputs=(("x", (None, 8)),), w=np.array([32])
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"net\.onnx: can't be built for SM89 by .*violate shape constraints"):
        build_engine(raw, "net.onnx", RTX, 89, Rows(2, 3, 6))


def test_products_in_float32_for_sm75_are_refused_by_the_builder() -> None:
    with pytest.raises(EngineError, match=r"can't be built for SM75 .*FP32 GEMM is not supported"):
        build_engine(PRODUCT, "net.onnx", RTX, 75, None)


def test_fp8_for_sm80_is_refused_by_the_builder() -> None:
    name = "member-0/head.onnx"
    raw = convert(bundle_of("pricing_lstm").read(name), "fp8", samples_of(bundle_of("pricing_lstm"), name))
    with pytest.raises(EngineError, match=r"can't be built for SM80 .*fp8_e4m3"):
        build_engine(raw, name, RTX, 80, Rows(1, 64, 512))


def test_an_unknown_generation_is_refused_by_the_builder() -> None:
    with pytest.raises(EngineError, match=r"SM90 isn't a target of tensorrt_rtx_bindings"):
        build_engine(PRODUCT, "net.onnx", RTX, 90, None)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt can't be imported .*: pip install 'strikeforge\[gpu\]'"):
        build_engine(PRODUCT, "net.onnx", "tensorrt", 90, None)
