"""Precision in the ONNX: what is rounded and what isn't, and that the comparison with float32 finds what is wrong."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from pipelines.tensorrt.comparison import compare
from pipelines.tensorrt.numerics import emulated, largest_difference, open_file, relative_tolerance, roundings
from pipelines.tensorrt.precision import FLOAT_INPUTS, GRIDS, PRECISIONS, convert, fold, is_product
from pipelines.tensorrt.samples import network_files, samples_of
from serving.errors import EngineError
from tests.pipelines.compile.nets import FILES, ROLES, bundle_of

pytestmark = pytest.mark.slow  # three exports

LOW = ("fp16", "bf16", "int8", "fp8")


def converted(family: str, precision: str) -> dict[str, bytes]:
    bundle = bundle_of(family)
    return {name: convert(bundle.read(name), precision, samples_of(bundle, name)) for name in network_files(bundle)}


@pytest.mark.parametrize("family", ROLES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_converted_nets_agree_with_float32_within_their_tolerance(family: str, precision: str) -> None:
    checks = compare(bundle_of(family), converted(family, precision), precision)
    wanted = {"iv (window)", "iv (step)", "context (window)", "context (step)"}
    assert {one.name for one in checks} == wanted if "head" in ROLES[family] else len(checks) == 5
    if precision in ("bf16", "int8", "fp8"):
        assert any(one.difference > 1e-6 for one in checks), "nothing was rounded"


@pytest.mark.parametrize("family", ROLES)
@pytest.mark.parametrize("precision", LOW)
def test_files_keep_their_float32_borders(family: str, precision: str) -> None:
    bundle = bundle_of(family)
    for name, raw in converted(family, precision).items():
        before, after = (onnx.load_from_string(one).graph for one in (bundle.read(name), raw))
        for one, two in ((before.input, after.input), (before.output, after.output)):
            assert [(value.name, value.type.tensor_type.elem_type) for value in one] == [
                (value.name, value.type.tensor_type.elem_type) for value in two
            ]
        onnx.checker.check_model(onnx.load_from_string(raw), full_check=True)


@pytest.mark.parametrize(("family", "role"), FILES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_product_and_nothing_else_is_in_16_bits(family: str, role: str, precision: str) -> None:
    (name,) = (one for one in network_files(bundle_of(family)) if one.endswith(f"{role}.onnx"))
    graph = onnx.load_from_string(convert(bundle_of(family).read(name), precision)).graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {one.name: one.data_type for one in graph.initializer}
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16

    def is_low(tensor: str) -> bool:
        if tensor in constants:
            return constants[tensor] == low
        maker = makers.get(tensor)
        return maker is not None and maker.op_type == "Cast" and maker.attribute[0].i == low

    seen = 0
    for node in graph.node:
        if is_product(node):
            assert all(is_low(node.input[place]) for place in FLOAT_INPUTS[node.op_type]
                       if place < len(node.input) and node.input[place])  # fmt: skip
            seen += 1
        elif node.op_type != "Cast":
            assert not any(is_low(tensor) for tensor in node.input)
    assert seen


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(("family", "role"), FILES)
def test_quantisation_is_symmetric_with_weights_per_channel(family: str, role: str, precision: str) -> None:
    graph = onnx.load_from_string(converted(family, precision)[f"member-0/{role}.onnx"]).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    quantised = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantised
    for node in quantised:
        scale, zero = (constants[name] for name in node.input[1:3])
        assert np.all(scale > 0)
        assert np.all(np.isfinite(scale))
        assert not np.any(zero.astype(np.float32))
        assert zero.dtype == GRIDS[precision].dtype
        if node.input[0] in constants:
            (axis,) = (part.i for part in node.attribute if part.name == "axis")
            assert scale.shape == (constants[node.input[0]].shape[axis],)


@pytest.mark.parametrize("precision", LOW)
def test_a_heads_prior_is_never_rounded(precision: str) -> None:
    """With a correction of nothing the answer is the prior, bit for bit, in every precision."""
    bundle = bundle_of("pricing_lstm")
    name = "member-0/head.onnx"
    model = onnx.load_from_string(bundle.read(name))
    for constant in model.graph.initializer:
        if "head.linear" in constant.name or "network.6" in constant.name:
            constant.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(constant)), constant.name))
    raw = convert(model.SerializeToString(), precision, samples_of(bundle, name))
    (feeds, *_) = samples_of(bundle, name)
    np.testing.assert_array_equal(open_file(emulated(raw))(feeds)["iv"], feeds["contracts"][:, 0])


def test_emulation_is_what_onnx_runtime_computes_in_fp16() -> None:
    """ONNX Runtime has fp16 for the CPU, so there the stand-in can be checked; for bf16 it has none."""
    bundle = bundle_of("pricing_transformer")
    raw = convert(bundle.read("member-0/window.onnx"), "fp16")
    feeds = samples_of(bundle, "member-0/window.onnx")[0]
    direct, stand_in = (open_file(one)(feeds)["context"] for one in (raw, emulated(raw)))
    np.testing.assert_allclose(direct, stand_in, atol=4 * 2.0**-11)


def test_onnx_runtime_has_no_bf16_products_on_a_cpu() -> None:
    """The day it has, the emulation of bf16 can go."""
    raw = convert(bundle_of("pricing_transformer").read("member-0/window.onnx"), "bf16")
    with pytest.raises(EngineError, match="refuses the converted file"):
        open_file(raw)


def test_a_wrong_scale_is_found_by_the_comparison() -> None:
    files = converted("pricing_lstm", "int8")
    model = onnx.load_from_string(files["member-0/head.onnx"])
    (scale,) = (one for one in model.graph.initializer if one.name == "contracts/scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(20), scale.name))
    broken = files | {"member-0/head.onnx": model.SerializeToString()}
    with pytest.raises(EngineError, match=r"the nets in int8 aren't the float32 ones: iv \((window|step)\) differs by"):
        compare(bundle_of("pricing_lstm"), broken, "int8")


def test_int8_of_onnx_runtime_rounds_the_prior_and_ours_does_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Why `quantize_static` isn't used: it replaces the graph's input for every consumer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    bundle, name = bundle_of("pricing_lstm"), "member-0/head.onnx"
    samples = samples_of(bundle, name)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self):  # type: ignore[no-untyped-def]
            return next(self.left, None)

    onnx.save(fold(bundle.read(name)), tmp_path / "in.onnx")
    quantize_static(
        tmp_path / "in.onnx", tmp_path / "out.onnx", Reader(), op_types_to_quantize=["MatMul", "Gemm"],
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                       "AddQDQPairToWeight": True},
    )  # fmt: skip
    expected = open_file(bundle.read(name))(samples[0])["iv"]
    theirs = open_file((tmp_path / "out.onnx").read_bytes())(samples[0])["iv"]
    ours = open_file(converted("pricing_lstm", "int8")[name])(samples[0])["iv"]
    assert largest_difference(theirs, expected) > 10 * largest_difference(ours, expected)


def test_int8_without_samples_is_refused() -> None:
    with pytest.raises(EngineError, match="int8 needs samples"):
        convert(bundle_of("surface_vae").read("member-0/surface.onnx"), "int8")


def test_samples_that_are_not_finite_are_refused() -> None:
    bundle, name = bundle_of("pricing_lstm"), "member-0/head.onnx"
    spoiled = [{key: np.full_like(value, np.nan) for key, value in one.items()} for one in samples_of(bundle, name)]
    with pytest.raises(EngineError, match="isn't finite on a sample"):
        convert(bundle.read(name), "int8", spoiled)


def test_weights_beyond_fp16_are_refused() -> None:
    bundle, name = bundle_of("pricing_lstm"), "member-0/head.onnx"
    model = onnx.load_from_string(bundle.read(name))
    (weight,) = (one for one in model.graph.initializer if one.name.endswith("network.3.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e8), weight.name))
    with pytest.raises(EngineError, match=r"network\.3\.weight': .* is beyond the range of float16"):
        convert(model.SerializeToString(), "fp16")


def test_roundings_are_counted_along_the_longest_path() -> None:
    bundle = bundle_of("pricing_lstm")
    assert roundings(bundle.read("member-0/head.onnx"), "bf16", 1) == 3 * 3  # three layers; the skip beside them is one
    window = bundle.read("member-0/window.onnx")
    assert roundings(window, "bf16", 5) == 3 * (2 * 5 + roundings(window, "bf16", 0) // 3)
    assert relative_tolerance("fp16", 16) == 8 * relative_tolerance("fp16", 1) / 2
    assert onnxruntime.__version__
