"""An engine serves only if it answers as its pack recorded, in its precision, within its limits; nothing falls back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from serving.bundle import Bundle
from serving.cli import main
from serving.engine_pack import EnginePack, write_pack
from serving.engines import trt
from serving.engines.trt_driver import Driver, Gpu
from serving.errors import BundleError, EngineError, run_command
from serving.golden import GOLDEN
from serving.warm import ALLOWED, BUDGET_US, demo_tolerance, open_verified_engine
from tests.contract.packed_release import MODEL, TRT, Released, moves, native_pack, released, small_bundle, store
from tests.serving.trt_memory import MemoryDevice, OrtProgram
from tests.stand_in_native import Moves

__all__ = ["moves", "released", "store"]  # fixtures

# What a host holds its engine to before it serves.


def test_an_engine_that_answers_as_recorded_serves(tmp_path: Path, moves: Moves) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    packs = [native_pack(tmp_path / "packs", bundle, one) for one in ("bf16", "int8")]
    for precision in ("fp32", "bf16", "int8"):
        warm = open_verified_engine(bundle, packs, "native", precision)
        assert all(one.holds for one in warm.parities)
        assert warm.engine.info().runtime == f"native stand-in {precision}"
        assert warm.probe is not None
        assert 0 < warm.probe.p50_us <= warm.probe.p99_us
    assert {one.tolerance for one in warm.parities} == {2e-6}  # the same version and instruction set: the manifest's


@pytest.mark.parametrize(("precision", "moved"), [("fp32", "shift"), ("bf16", "shift"), ("int8", "context_shift")])
def test_an_engine_that_answers_otherwise_is_refused(tmp_path: Path, moves: Moves, precision: str, moved: str) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    packs = [native_pack(tmp_path / "packs", bundle, one) for one in ("bf16", "int8")]
    setattr(moves, moved, {precision: 1e-3})
    with pytest.raises(EngineError, match=rf"golden parity is broken: native stand-in {precision} .*--engine ort"):
        open_verified_engine(bundle, packs, "native", precision)


def test_another_instruction_set_may_differ_by_what_the_precision_costs_and_no_more(
    tmp_path: Path, moves: Moves
) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    packs = [native_pack(tmp_path / "packs", bundle, "bf16")]
    recorded, moves.instruction_set = 1e-4, "another"
    allowed = (
        4 * recorded
    )  # as far as the recorded answers are from fp32's, twice for the other side, twice for a sample
    moves.shift = {"bf16": recorded + 0.9 * allowed}
    warm = open_verified_engine(bundle, packs, "native", "bf16")
    assert "native stand-in bf16" in warm.held_to
    moves.shift = {"bf16": recorded + 1.1 * allowed}
    with pytest.raises(EngineError, match="golden parity is broken"):
        open_verified_engine(bundle, packs, "native", "bf16")


def test_a_pack_that_never_ran_is_held_to_the_golden_vectors_by_its_rounding(tmp_path: Path, moves: Moves) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    packs = [native_pack(tmp_path / "packs", bundle, "bf16", files={"note.txt": b"-"}, executed=False, latency=None)]
    allowed = 4 * 2.0**-8 * float(np.max(np.abs(bundle.arrays(GOLDEN)["iv"])))
    moves.shift = {"bf16": 0.9 * allowed}
    assert "never ran where it was made" in open_verified_engine(bundle, packs, "native", "bf16").held_to
    moves.shift = {"bf16": 1.1 * allowed}
    with pytest.raises(EngineError, match="golden parity is broken"):
        open_verified_engine(bundle, packs, "native", "bf16")


def test_a_precision_that_wasnt_admitted_doesnt_run(tmp_path: Path, moves: Moves) -> None:
    bundle, other = small_bundle(tmp_path / "bundle"), small_bundle(tmp_path / "other", members=2)
    packs = [native_pack(tmp_path / "packs", bundle, "bf16")]
    with pytest.raises(EngineError, match=r"native int8: the release has no engine pack of it here .*native_bf16"):
        open_verified_engine(bundle, packs, "native", "int8")
    with pytest.raises(BundleError, match=f"is of bundle {bundle.sha256}, expected {other.sha256}"):
        open_verified_engine(other, packs, "native", "bf16")


def test_nothing_falls_back(tmp_path: Path, moves: Moves) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    moves.absent = "it was built without a compiler"
    with pytest.raises(EngineError, match=r"native.*built without a compiler.*--engine ort"):
        open_verified_engine(bundle, [], "native")
    assert open_verified_engine(bundle, [], "ort").engine.info().backend == "ort"
    with pytest.raises(EngineError, match="golden parity is broken"):
        open_verified_engine(bundle, [], "null")


def test_a_step_over_the_limit_is_refused_over_the_packs_budget_warned(tmp_path: Path, moves: Moves) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    packs = [native_pack(tmp_path / "packs", bundle, "fp32", latency={BUDGET_US: 20.0})]
    moves.takes_us = 50.0
    warm = open_verified_engine(bundle, packs, "native")
    assert warm.probe is not None
    assert warm.probe.p50_us >= 50.0
    assert "WARNING, over the budget of the release" in warm.probe.line()
    with pytest.raises(EngineError, match=r"p99; .* more than the --max-step-us 50 asked for"):
        open_verified_engine(bundle, packs, "native", max_step_us=50.0)
    assert open_verified_engine(bundle, packs, "native", max_step_us=1e9).probe is not None


# The engine `trt`: of the release's packs the one that fits this GPU, held to what that pack allows.


def gpu_pack(folder: Path, bundle: Bundle, sm: int, source: Bundle | None = None, **other: Any) -> EnginePack:
    """As pipelines/compile.py makes it; its engines are `source`'s ONNX files, which a program of memory runs."""
    files = {f"member-0/{role}.engine": (source or bundle).read(f"member-0/{role}.onnx") for role in ("window", "head")}
    target = f"trt_rtx_sm{sm}_fp16"
    arguments: dict[str, Any] = {
        "target": target, "backend": "trt", "precision": "fp16", "library": "tensorrt_rtx", "version": "1.1",
        "sm": f"sm{sm}", "files": files, "configuration": {ALLOWED: {"context": 2e-3, "iv": 1e-3}},
    }  # fmt: skip
    return write_pack(folder / target, bundle=bundle, **(arguments | other))


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    """A bundle, on a host with an SM89 of plain memory."""
    bundle = small_bundle(tmp_path / "bundle")
    tensors = {file.name: file for member in bundle.manifest.members for file in member.files.values()}
    monkeypatch.setattr(trt, "why_unavailable", lambda: None)
    monkeypatch.setattr(trt, "probe_driver", lambda: Driver((Gpu("a GPU", 89),), None))
    monkeypatch.setattr(trt, "import_library", lambda kind: SimpleNamespace(__version__="1.1"))
    monkeypatch.setattr(trt, "CudaDevice", MemoryDevice)
    monkeypatch.setattr(
        trt, "TensorRTProgram", lambda library, raw, name, device: OrtProgram(raw, tensors[name], device, 64)
    )
    return bundle


def test_the_pack_that_fits_the_gpu_serves_within_what_it_allows(tmp_path: Path, ada: Bundle) -> None:
    packs = [gpu_pack(tmp_path, ada, sm) for sm in (80, 89)]
    warm = open_verified_engine(ada, packs, "trt", "fp16")
    info = warm.engine.info()
    assert (info.backend, info.precision) == ("trt", "fp16")
    assert "SM89" in info.runtime
    assert "it never ran where it was made" in warm.held_to
    assert [one.tolerance for one in warm.parities] == [2e-6 + 2e-3, 2e-6 + 1e-3]
    assert warm.probe is not None
    with pytest.raises(
        EngineError, match=r"trt bf16: the release has no engine pack .*trt_rtx_sm80_fp16, trt_rtx_sm89"
    ):
        open_verified_engine(ada, packs, "trt", "bf16")
    told = "no engine pack fits this host: 'trt_rtx_sm80_fp16' is for sm80, this GPU is a GPU, sm89: compile one"
    with pytest.raises(EngineError, match=told):
        open_verified_engine(ada, packs[:1], "trt", "fp16")


def test_an_engine_of_another_net_than_the_bundles_is_refused(tmp_path: Path, ada: Bundle) -> None:
    other = small_bundle(tmp_path / "other", seed=5)
    with pytest.raises(EngineError, match=r"golden parity is broken: tensorrt_rtx 1.1 on a GPU \(SM89\), fp16"):
        open_verified_engine(ada, [gpu_pack(tmp_path, ada, 89, other)], "trt", "fp16")


@pytest.mark.parametrize("allowed", [{}, {"context": 1e-3, "iv": "much"}, {"context": 1e-3, "iv": -1}, 3])
def test_what_a_pack_allows_must_be_numbers(tmp_path: Path, ada: Bundle, allowed: Any) -> None:
    pack = gpu_pack(tmp_path, ada, 89, configuration={ALLOWED: allowed})
    with pytest.raises(BundleError, match=rf"{pack.sha256}: configuration.golden_tolerances.* expected a number"):
        open_verified_engine(ada, [pack], "trt", "fp16")


def test_an_engine_that_cant_run_here_is_told_before_the_lack_of_a_pack(
    released: Released, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, host, _, _ = released
    host.pull("native", TRT)
    asked = ["--model", MODEL, "--from", str(host.folder), "--engine", "trt"]
    monkeypatch.setattr(trt, "why_unavailable", lambda: "there is no NVIDIA driver (libcuda.so.1)")
    for command in (["inspect"], ["price", "--demo", "--out", str(tmp_path / "out.csv")]):
        for precision in ("fp16", "fp32"):
            assert run_command(main, [*command, *asked, "--precision", precision]) == 8
            told = capsys.readouterr().err
            assert "error: engine 'trt': there is no NVIDIA driver (libcuda.so.1); choose another engine" in told
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has GPU providers")
def test_a_provider_this_host_hasnt_is_refused(
    released: Released, moves: Moves, capsys: pytest.CaptureFixture[str]
) -> None:
    _, host, _, _ = released
    host.pull()
    asked = ["inspect", "--model", MODEL, "--from", str(host.folder)]
    assert run_command(main, [*asked, "--engine", "ort", "--provider", "cuda"]) == 8
    assert "provider 'cuda': this onnxruntime" in capsys.readouterr().err
    assert run_command(main, [*asked, "--provider", "cuda"]) == 8
    assert "engine 'native' has no providers, 'cuda' was asked for" in capsys.readouterr().err


def test_the_commands_say_which_engine_and_hold_it(
    tmp_path: Path, released: Released, moves: Moves, capsys: pytest.CaptureFixture[str]
) -> None:
    _, host, _, _ = released
    model = ["--model", MODEL]
    told = ["pull", *model, "--store", str(host.store.root), "--root", str(host.root), "--to", str(host.folder)]
    assert run_command(main, [*told, "--target", "native", "--target", TRT]) == 0
    assert f"engine packs: native_bf16, native_fp32, {TRT}" in capsys.readouterr().out
    inspect = ["inspect", *model, "--from", str(host.folder)]
    assert run_command(main, inspect) == 0
    out = capsys.readouterr().out
    for text in (
        "engine native stand-in fp32, held to the bundle's golden vectors",
        "native_bf16",
        "a market step takes",
    ):
        assert text in out
    assert run_command(main, [*inspect, "--precision", "bf16"]) == 0
    assert "held to the answers that its pack recorded with the same engine" in capsys.readouterr().out
    assert run_command(main, [*inspect, "--precision", "int8"]) == 8
    assert "wasn't admitted" in capsys.readouterr().err
    assert run_command(main, [*inspect, "--max-step-us", "0.001"]) == 8
    assert "more than the --max-step-us 0.001 asked for" in capsys.readouterr().err
    moves.absent = "it was built without a compiler"
    assert run_command(main, inspect) == 8
    assert "--engine ort" in capsys.readouterr().err
    assert run_command(main, [*inspect, "--engine", "ort"]) == 0


def test_a_demo_in_a_reduced_precision_is_checked_by_its_rounding(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    expected = np.array([0.2, np.nan, 0.4])
    assert demo_tolerance(bundle, "fp32", expected) == bundle.manifest.tolerances["iv"]
    assert demo_tolerance(bundle, "bf16", expected) == 4 * 2.0**-8 * 0.4
    assert demo_tolerance(bundle, "int8", expected) == pytest.approx(4 / 254 * 0.4)
