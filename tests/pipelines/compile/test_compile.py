"""`python -m pipelines.compile`: from a bundle or a registered version to a pack; the cache; a worker that dies."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import compile as compiling
from pipelines.config import CONF, load_compile
from pipelines.lineage import ROOT
from pipelines.tensorrt import worker
from pipelines.tensorrt.cache import ENGINE, EngineCache
from pipelines.tensorrt.target import Profile, Target
from pipelines.tensorrt.worker import Job, Outcome
from serving.engine_pack import load_pack
from serving.engines.trt_driver import Driver, Gpu
from serving.errors import ConfigError, EngineError, LedgerError
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import Desk
from tests.tiny_surface import surface_bundle

RTX_HERE = pytest.mark.usefixtures("rtx")
ADA = Target("tensorrt_rtx", "fp16", 89, Profile(1, 8, 64))


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'strikeforge[trt-rtx]'")


def names() -> list[str]:
    return sorted(path.stem for path in (CONF / "target").glob("*.yaml"))


@pytest.mark.parametrize("name", names())
def test_every_target_is_what_its_name_says(name: str) -> None:
    target = load_compile([f"target={name}"]).target
    assert target.name == name
    compiling.check_target(target)
    compiling.check_profile(target.rows)
    assert f"target={name} " in (CONF / "target" / f"{name}.yaml").read_text().splitlines()[0]


def test_there_is_a_target_for_every_generation_and_precision_that_go_together() -> None:
    there = set(names())
    for sm in (80, 86, 89, 120):
        assert {f"trt_rtx_sm{sm}_{precision}" for precision in ("fp32", "fp16", "bf16", "int8")} <= there


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("target=trt_rtx_sm89_fp17", "no such choice.*did you mean trt_rtx_sm89_fp16"),
        ("target.presicion=fp16", r"target\.presicion: unknown key .*did you mean precision"),
        ("target.rows.opt=0", r"target\.rows\.opt"),
    ],
)
def test_wrong_settings_are_named(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_compile(["target=trt_rtx_sm89_fp16", override])


def test_a_bundle_and_a_version_are_one_too_many(tmp_path: Path) -> None:
    cfg = load_compile(["target=trt_rtx_sm89_fp16", f"bundle={tmp_path}", "version=3"])
    with pytest.raises(ConfigError, match=r"bundle=.* and version=3 both say what to compile"):
        compiling.run(cfg)


def test_rows_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    cfg = load_compile(["target=trt_rtx_sm89_fp16", "target.rows.min=9", "target.rows.opt=8"])
    with pytest.raises(EngineError, match=r"target\.rows: min 9, opt 8, max 16384"):
        compiling.run(cfg)


# Full TensorRT: on the GPU's own host.


def host(*gpus: Gpu):  # type: ignore[no-untyped-def]
    return lambda: Driver(gpus, None if gpus else "there is no NVIDIA driver")


@pytest.mark.parametrize(
    ("sm", "gpus", "told"),
    [
        (None, (), "here there is no NVIDIA driver: compile there, or ahead of time with TensorRT-RTX"),
        (90, (Gpu("L4", 89),), "this host's GPU is L4, SM89"),
        (None, (Gpu("P100", 60),), "no target SM60"),
    ],
)
def test_full_tensorrt_needs_its_gpu(
    monkeypatch: pytest.MonkeyPatch, sm: int | None, gpus: tuple[Gpu, ...], told: str
) -> None:
    monkeypatch.setattr(compiling, "probe_driver", host(*gpus))
    with pytest.raises(EngineError, match=told):
        compiling.for_this_host(Target("tensorrt", "fp16", sm, Profile(1, 8, 64)))


def test_full_tensorrt_takes_the_hosts_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "probe_driver", host(Gpu("H100", 90)))
    target = compiling.for_this_host(Target("tensorrt", "fp16", None, Profile(1, 8, 64)))
    assert target.name == "trt_sm90_fp16"


# Packs.


@RTX_HERE
@pytest.mark.slow
@pytest.mark.parametrize("source", ["pricing", "surface"])
def test_a_bundle_is_compiled_from_the_command_line(tmp_path: Path, source: str) -> None:
    make = tiny_bundle if source == "pricing" else surface_bundle
    bundle = make(tmp_path / "bundle")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.compile", f"bundle={bundle.directory}", "target=trt_rtx_sm89_fp16",
         f"out={tmp_path / 'packs'}", f"cache={tmp_path / 'cache'}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "packs").iterdir()
    pack = load_pack(folder, bundle=bundle, target="trt_rtx_sm89_fp16")
    assert folder.name == pack.sha256
    manifest = pack.manifest
    assert (manifest.backend, manifest.precision, manifest.sm, manifest.executed) == ("trt", "fp16", "sm89", False)
    assert manifest.runtime["library"] == "tensorrt_rtx"
    assert manifest.notes[0] == "AOT-compiled with TensorRT-RTX, not executed"
    assert "AOT-compiled with TensorRT-RTX, not executed" in done.stdout
    roles = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    assert set(manifest.files) == {compiling.engine_name(name) for name in roles} | set(roles)


@pytest.mark.slow
def test_a_registered_version_is_found(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    first, second = desk.register(1), desk.register(2)
    for version, bundle in ((first.version, first.bundle_sha256), (second.version, second.bundle_sha256)):
        found = compiling.stored_bundle(desk.store, "tiny", version, tmp_path / "bundles")
        assert found.sha256 == bundle
    with pytest.raises(LedgerError, match="tiny: there is no champion yet: say version=NUMBER"):
        compiling.stored_bundle(desk.store, "tiny", None, tmp_path / "bundles")
    with pytest.raises(LedgerError, match="3"):
        compiling.stored_bundle(desk.store, "tiny", 3, tmp_path / "bundles")


# The cache, with builds that are counted instead of made.


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    class Library:
        __version__ = "1.0"

    def build_all(jobs: list[Job], target: Target) -> dict[str, Outcome]:
        for job in jobs:
            made.append(job.name)
            job.engine.write_bytes(f"engine {len(made)}".encode())
        return {job.name: Outcome(Library.__version__, 0.1, ()) for job in jobs}

    monkeypatch.setattr(compiling, "build_all", build_all)
    monkeypatch.setattr(compiling, "import_library", lambda kind: Library)
    return made


def test_what_was_built_is_not_built_again(tmp_path: Path, builds: list[str]) -> None:
    bundle, cache = tiny_bundle(tmp_path / "bundle"), EngineCache(tmp_path / "cache")
    first = compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs")
    again = compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs")
    assert (first.built, again.built, len(builds)) == (3, 0, 3)
    assert first.pack.sha256 == again.pack.sha256
    assert sum(1 for path in (tmp_path / "packs").iterdir()) == 1


@pytest.mark.parametrize(
    "change",
    [{"sm": 120}, {"precision": "bf16"}, {"rows": Profile(1, 8, 65)}],
    ids=["sm", "precision", "rows"],
)
def test_another_configuration_is_built_anew(tmp_path: Path, builds: list[str], change: dict[str, object]) -> None:
    bundle, cache = tiny_bundle(tmp_path / "bundle"), EngineCache(tmp_path / "cache")
    one = compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs")
    two = compiling.compile_bundle(bundle, dataclasses.replace(ADA, **change), cache, tmp_path / "packs")
    assert (one.built, two.built) == (3, 3)
    assert one.pack.manifest.key != two.pack.manifest.key


def test_another_version_or_net_is_built_anew(
    tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache = tiny_bundle(tmp_path / "bundle"), EngineCache(tmp_path / "cache")
    compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs")
    monkeypatch.setattr(compiling.import_library("tensorrt_rtx"), "__version__", "2.0")
    assert compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs").built == 3
    other = tiny_bundle(tmp_path / "other", seed=1)
    assert compiling.compile_bundle(other, ADA, cache, tmp_path / "packs").built == 3


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "no entry", "junk entry"])
def test_a_damaged_entry_is_built_anew(
    tmp_path: Path, builds: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, cache = tiny_bundle(tmp_path / "bundle"), EngineCache(tmp_path / "cache")
    compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs")
    place = sorted((tmp_path / "cache").iterdir())[0]
    if damage == "no entry":
        (place / "entry.json").unlink()
    elif damage == "junk entry":
        (place / "entry.json").write_bytes(b"{")
    else:
        (place / ENGINE).write_bytes(b"" if damage == "truncated" else b"other engine")
    with caplog.at_level(logging.WARNING):
        assert compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs").built == 1
    assert ("it is built anew" in caplog.text) == (damage != "no entry")
    assert compiling.compile_bundle(bundle, ADA, cache, tmp_path / "packs").built == 0


# The builder's process.


def job(folder: Path, raw: bytes) -> Job:
    (folder / "in.onnx").write_bytes(raw)
    return Job("member-0/window.onnx", folder / "in.onnx", folder / "out.engine", None)


@RTX_HERE
def test_a_worker_tells_what_it_was_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"member-0/window\.onnx: isn't an ONNX file"):
        worker.build_all([job(tmp_path, b"\xff junk")], ADA)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"process died \(signal 11\)"),
        ("import sys; sys.stderr.write('out of memory'); sys.exit(3)", r"process died \(exit code 3\): out of memory"),
        ("print('{}')", r"process died \(exit code 0\)"),
        ("print('not json')", r"process died"),
    ],
)
def test_a_worker_that_dies_is_an_error_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    real = subprocess.run
    monkeypatch.setattr(worker.subprocess, "run",
                        lambda command, **options: real([sys.executable, "-c", code], **options))  # fmt: skip
    with pytest.raises(EngineError, match=rf"trt_rtx_sm89_fp16: the builder's {told}"):
        worker.build_all([job(tmp_path, b"")], ADA)
