"""What is refused before an engine answers anything: options it hasn't, packs, nets and libraries that don't fit."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from serving import engine_pack
from serving.bundle import write_bundle
from serving.engine import BACKENDS, PROVIDERS, every_precision, open_engine, open_surface_engine, unavailable_engines
from serving.engines import ort
from serving.errors import EngineError
from serving.manifest import Member
from serving.warm import ROUNDING
from tests.small_nets import SEMANTICS, SPEC, member_files, semantics, small_bundle, weights_of
from tests.tiny_surface import surface_bundle

__all__ = ["semantics"]  # fixtures


def test_semantics_other_than_the_bundles_are_refused(tmp_path: Path, semantics: str) -> None:
    bundle = small_bundle(tmp_path / "bundle", semantics=semantics)
    other = next(name for name in SEMANTICS if name != semantics)
    with pytest.raises(EngineError, match="gated with"):
        open_engine(bundle, "null", semantics=other)
    assert open_engine(bundle, "null", semantics=semantics).info().semantics == semantics


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
