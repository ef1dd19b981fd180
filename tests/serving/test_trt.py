"""The `trt` engine without a GPU: its logic on a device of plain memory (tests/serving/trt_memory.py), held to the
`ort` engine; what it refuses; and how it finds out that there is no GPU. With one: tests/serving/test_trt_gpu.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.engine import golden_parity, open_engine
from serving.engine_pack import write_pack
from serving.engines import trt
from serving.engines.trt_buffers import EngineTensor, chunks, plan_buffers
from serving.engines.trt_driver import Driver, Gpu, probe_driver
from serving.errors import EngineError
from serving.manifest import MemberFile, TensorSpec
from tests.serving.trt_memory import MemoryDevice, OrtProgram, programs_of
from tests.small_nets import F, K, small_bundle
from tests.tiny_bundle import tiny_bundle

ADA = Driver((Gpu("a GPU", 89),), None)


def engine_of(folder: Path, semantics: str, members: int = 1, most: int = 4) -> tuple[trt.TrtEngine, MemoryDevice]:
    bundle = small_bundle(folder, semantics=semantics, members=members)
    device = MemoryDevice()
    return trt.TrtEngine(bundle, programs_of(bundle, device, most), device, "memory"), device


@pytest.mark.parametrize("semantics", ["window", "stateful"])
@pytest.mark.parametrize("members", [1, 2])
def test_golden_vectors_are_recomputed(tmp_path: Path, semantics: str, members: int) -> None:
    engine, _ = engine_of(tmp_path / "bundle", semantics, members)
    assert all(one.holds for one in golden_parity(small_bundle(tmp_path / "bundle", semantics=semantics,
                                                               members=members), engine))  # fmt: skip


@pytest.mark.parametrize("semantics", ["window", "stateful"])
@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.sampled_from(["evaluate", "advance", "reset", "head"]), max_size=14), seed=st.integers(0, 99))
def test_any_sequence_of_calls_gives_what_ort_gives(
    semantics: str, acts: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Evaluate commits nothing, states change sides, chains of any size are answered in parts."""
    folder = tmp_path_factory.mktemp("any")
    ours, _ = engine_of(folder / "bundle", semantics)
    theirs = open_engine(small_bundle(folder / "bundle", semantics=semantics), "ort")
    random = np.random.default_rng(seed)
    contexts = [np.zeros(ours.info().context_size, np.float32) for _ in range(2)]
    for act in [*acts, "evaluate"]:
        x = random.normal(size=F).astype(np.float32)
        contracts = random.normal(0.3, 0.05, (int(random.integers(1, 11)), K)).astype(np.float32)
        answers = [np.full(len(contracts), np.nan, np.float32) for _ in range(2)]
        for engine, context, iv in zip((ours, theirs), contexts, answers, strict=True):
            if act == "evaluate":
                engine.evaluate(x, context)
            elif act == "advance":
                engine.advance(x)
            elif act == "reset":
                engine.reset()
            else:
                engine.head(context, contracts, iv)
        np.testing.assert_allclose(contexts[0], contexts[1], atol=1e-6)
        np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


@pytest.mark.parametrize("semantics", ["window", "stateful"])
def test_nothing_is_allocated_on_the_device_after_the_first_calls(tmp_path: Path, semantics: str) -> None:
    engine, device = engine_of(tmp_path / "bundle", semantics, members=2)
    before = device.allocations
    context, iv = np.zeros(engine.info().context_size, np.float32), np.zeros(9, np.float32)
    for _ in range(3):
        engine.advance(np.ones(F, np.float32))
        engine.evaluate(np.ones(F, np.float32), context)
        engine.head(context, np.ones((9, K), np.float32), iv)
    assert device.allocations == before


def test_graphs_of_the_head_are_kept_for_a_few_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, device = engine_of(tmp_path / "bundle", "window", most=64)
    recorded = []
    record = device.record
    monkeypatch.setattr(device, "record", lambda work: recorded.append(1) or record(work))
    context = np.zeros(engine.info().context_size, np.float32)
    for count in [5, 5, 6, 5, *range(10, 10 + trt.KEPT_GRAPHS), 5]:
        engine.head(context, np.full((count, K), 0.2, np.float32), np.zeros(count, np.float32))
    assert len(recorded) == 2 + trt.KEPT_GRAPHS + 1  # 5, 6, the others, and 5 again, forgotten meanwhile


@given(count=st.integers(0, 500), most=st.integers(1, 60))
def test_chunks_cover_every_row_once(count: int, most: int) -> None:
    parts = chunks(count, most)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start <= most for part in parts)


# Buffers.

STEP = MemberFile(
    "m/step.onnx",
    (TensorSpec("x", (1, 3), "float32"), TensorSpec("hidden", (2, 1, 5), "float32"),
     TensorSpec("memory", (7, 5), "float32")),
    (TensorSpec("context", (1, 4), "float32"), TensorSpec("hidden_out", (2, 1, 5), "float32"),
     TensorSpec("output", (1, 5), "float32")),
)  # fmt: skip


def declared(file: MemberFile) -> list[EngineTensor]:
    return [EngineTensor(spec.name, spec.shape, spec.dtype, spec in file.inputs)
            for spec in (*file.inputs, *file.outputs)]  # fmt: skip


def test_states_are_planned_apart_from_other_buffers() -> None:
    plan = plan_buffers(STEP, declared(STEP), 1)
    assert plan.sizes == {"x": 12, "context": 16, "output": 20}
    assert plan.states == {"hidden": 40}
    assert (plan.memory_rows, plan.memory_row_bytes) == (7, 20)
    assert plan.free == frozenset()


def test_free_dimensions_take_the_most_rows_of_the_profile() -> None:
    head = MemberFile("m/head.onnx", (TensorSpec("context", (1, 4), "float32"),
                                      TensorSpec("contracts", (None, 6), "float32")),
                      (TensorSpec("iv", (None,), "float32"),))  # fmt: skip
    plan = plan_buffers(head, declared(head), 100)
    assert plan.sizes == {"context": 16, "contracts": 2400, "iv": 400}
    assert plan.free == {"contracts", "iv"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors[:-1], r"the manifest's tensors are .*'output'.*, the engine's are"),
        (lambda tensors: [EngineTensor("x", (1, 4), "float32", True), *tensors[1:]],
         r"tensor 'x': expected float32 \(1, 3\) by the manifest, found float32 \(1, 4\) in the engine: compile"),
        (lambda tensors: [EngineTensor("x", (1, 3), "float16", True), *tensors[1:]], "found float16"),
        (lambda tensors: [EngineTensor("x", (1, 3), "float32", False), *tensors[1:]], "'x' is an output"),
    ],
)  # fmt: skip
def test_an_engine_of_other_tensors_is_refused(
    change: Callable[[list[EngineTensor]], list[EngineTensor]], told: str
) -> None:
    with pytest.raises(EngineError, match=rf"m/step\.onnx: .*{told}" if told.startswith("found") else told):
        plan_buffers(STEP, change(declared(STEP)), 1)


def test_a_memory_that_nothing_fills_is_refused() -> None:
    lacking = MemberFile(STEP.name, STEP.inputs, STEP.outputs[:-1])
    with pytest.raises(EngineError, match="'memory' takes rows of 20 bytes, and no output 'output' gives one"):
        plan_buffers(lacking, declared(lacking), 1)


# The driver, and packs.


def test_a_machine_without_a_driver_says_so() -> None:
    driver = probe_driver()
    if driver.gpus:
        pytest.skip("this machine has a GPU")
    assert driver.reason
    assert "NVIDIA driver" in driver.reason


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('hello')", "hello"),
        ("import json; print(json.dumps({'reason': 'cuInit says 999'}))", "cuInit says 999"),
    ],
)
def test_a_driver_that_crashes_is_a_reason(script: str, told: str) -> None:
    driver = probe_driver(script)
    assert not driver.gpus
    assert driver.reason is not None
    assert told in driver.reason


def test_gpus_are_told_with_their_generation() -> None:
    assert probe_driver("import json; print(json.dumps({'gpus': [['L4', 89], ['H100', 90]]}))") == Driver(
        (Gpu("L4", 89), Gpu("H100", 90)), None
    )


def test_asking_loads_neither_tensorrt_nor_the_driver() -> None:
    code = (
        "import sys; from serving.engines import trt; trt.why_unavailable();"
        "assert not {'tensorrt', 'tensorrt_rtx_bindings', 'cuda.bindings', 'onnxruntime'} & set(sys.modules);"
        "assert 'libcuda' not in open('/proc/self/maps').read()"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("what a process has loaded is read from /proc")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_host_without_a_driver_is_told_so_before_it_installs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorrt_rtx_bindings"}
    monkeypatch.setattr(trt, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(trt, "probe_driver", lambda: Driver((), "there is no NVIDIA driver"))
    assert trt.why_unavailable() == "there is no NVIDIA driver"
    monkeypatch.setattr(trt, "probe_driver", lambda: ADA)
    assert trt.why_unavailable() == "CUDA's Python bindings aren't installed: pip install cuda-bindings"
    there |= {"cuda", "cuda.bindings"}
    assert trt.why_unavailable() is None
    there.discard("tensorrt_rtx_bindings")
    assert str(trt.why_unavailable()).startswith("TensorRT isn't installed: ")


def test_opening_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "probe_driver", lambda: Driver((), "there is no NVIDIA driver"))
    with pytest.raises(EngineError, match=r"engine 'trt': (there is no NVIDIA driver|.*installed.*pip install)"):
        trt.open_engine(tiny_bundle(tmp_path / "bundle"))


def test_without_a_pack_nothing_is_run_unless_building_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no engine pack here: compile one, or allow building"):
        trt.engine_bytes(tiny_bundle(tmp_path / "bundle"), None, None, ADA)


class Library:
    __version__ = "1.0"


def pack_of(folder: Path, **other: object):  # type: ignore[no-untyped-def]
    bundle = tiny_bundle(folder / "bundle")
    files = {f"member-0/{role}.engine": role.encode() for role in ("window", "step", "head")}
    arguments = {"bundle": bundle, "target": "t", "backend": "trt", "precision": "fp16", "library": "tensorrt_rtx",
                 "version": "1.0", "sm": "sm89", "files": files}  # fmt: skip
    return bundle, write_pack(folder / "pack", **(arguments | other))


def test_engines_come_from_the_verified_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "import_library", lambda kind: Library)
    bundle, pack = pack_of(tmp_path)
    raw, kind = trt.engine_bytes(bundle, pack, None, ADA)
    assert (raw, kind) == ({"member-0/window.onnx": b"window", "member-0/head.onnx": b"head"}, "tensorrt_rtx")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"version": "0.9"}, r"was compiled by tensorrt_rtx 0\.9, here is 1\.0: compile it for this host"),
        ({"sm": "sm120"}, "is for sm120, this GPU is a GPU, sm89"),
        ({"library": "abacus"}, "is of library 'abacus'"),
        ({"backend": "native"}, "is of back end 'native'"),
    ],
)
def test_a_pack_for_something_else_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, object], told: str
) -> None:
    monkeypatch.setattr(trt, "import_library", lambda kind: Library)
    bundle, pack = pack_of(tmp_path, **other)
    with pytest.raises(EngineError, match=told):
        trt.engine_bytes(bundle, pack, None, ADA)


def test_a_pack_that_does_not_fit_is_rebuilt_where_that_is_allowed(tmp_path: Path) -> None:
    """Really built, from the pack's own converted ONNX, with the pack's own rows."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'strikeforge[trt-rtx]'")
    bundle = tiny_bundle(tmp_path / "other")
    onnx = {name: bundle.read(name) for name in bundle.manifest.files if name.endswith(".onnx")}
    bundle, pack = pack_of(tmp_path, version="0.9", files=onnx,
                           configuration={"rows": {"min": 1, "opt": 8, "max": 32}})  # fmt: skip
    raw, kind = trt.engine_bytes(bundle, pack, "tensorrt_rtx", ADA)
    assert kind == "tensorrt_rtx"
    assert raw.keys() == {"member-0/window.onnx", "member-0/head.onnx"}
    assert all(len(engine) > 1000 for engine in raw.values())


def test_a_pack_of_another_bundle_is_refused(tmp_path: Path) -> None:
    _, pack = pack_of(tmp_path)
    with pytest.raises(Exception, match="is of bundle"):
        trt.engine_bytes(tiny_bundle(tmp_path / "other", seed=1), pack, None, ADA)


def test_a_program_sees_the_addresses_of_its_recording(tmp_path: Path) -> None:
    """The stand-in itself: a graph replays with the places it was recorded with."""
    bundle = tiny_bundle(tmp_path / "bundle")
    file = bundle.manifest.members[0].files["window"]
    device = MemoryDevice()
    program = OrtProgram(bundle.read(file.name), file, device)
    window = np.ones((1, 4, 3), np.float32)
    inputs = device.allocate(window.nbytes)
    outputs = [device.allocate(8), device.allocate(8)]

    def work() -> None:
        program.place("window", inputs)
        program.place("context", outputs[0])
        program.run()

    replay = device.record(work)
    device.copy_in(inputs, window)
    program.place("context", outputs[1])
    replay()
    device.wait()
    assert device.view(outputs[0], 8).any()
    assert not device.view(outputs[1], 8).any()
