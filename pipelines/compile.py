"""A registered version's nets, or a bundle's, compiled with TensorRT for one kind of GPU: an engine pack.

In: a bundle of the store (`version=`, else the champion) or of a folder (`bundle=`), a target (conf/target/). Out: the
pack in `out/<its sha256>/` (serving/engine_pack.py): for every net `<member>/<role>.engine` and, beside it, the
converted `<role>.onnx` it was built from, so that a host that is configured to can build for itself.
Invariants: precision is put into the ONNX, and the ONNX is compared with float32 before anything is built; an engine is
built, or taken from the cache by everything it depends on, never guessed to fit. A pack says whether it was executed:
what is compiled here never was (docs/compile.md).

Run: python -m pipelines.compile model=M version=V target=trt_rtx_sm89_fp16
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.config import CompileConfig, load_compile
from pipelines.tensorrt.cache import EngineCache
from pipelines.tensorrt.comparison import Check, compare
from pipelines.tensorrt.precision import convert
from pipelines.tensorrt.refusals import check_network, check_profile, check_target, free_inputs
from pipelines.tensorrt.samples import network_files, samples_of
from pipelines.tensorrt.target import Profile, Target
from pipelines.tensorrt.worker import Job, build_all
from serving.blobstore import BlobStore, open_store
from serving.bundle import Bundle, fetch_bundle, load_bundle
from serving.canonical import sha256_hex
from serving.engine import CONTEXT_TOLERANCE, IV_TOLERANCE
from serving.engine_pack import EnginePack, engine_key, load_pack, write_pack
from serving.engines.trt_builder import import_library
from serving.engines.trt_driver import probe_driver
from serving.errors import ConfigError, EngineError, LedgerError
from serving.ledger import Ledger
from serving.warm import ALLOWED

log = logging.getLogger("strikeforge.compile")

ENGINE_SUFFIX = ".engine"
NOT_EXECUTED = {
    "tensorrt_rtx": "AOT-compiled with TensorRT-RTX, not executed",
    "tensorrt": "compiled with TensorRT on a host with such a GPU, not executed",
}


@dataclass(frozen=True)
class Compiled:
    """What was made."""

    pack: EnginePack
    built: int  # engines; the others came from the cache
    seconds: float  # of building
    checks: tuple[Check, ...]

    @property
    def message(self) -> str:
        """For people."""
        manifest = self.pack.manifest
        files = [name for name in manifest.files if name.endswith(ENGINE_SUFFIX)]
        lines = [
            f"{manifest.target}: {len(files)} engines ({self.built} built in {self.seconds:.1f} s) by "
            f"{manifest.runtime['library']} {manifest.runtime['version']}, pack {self.pack.sha256}",
            *(f"  {one.name}: differs from float32 by {one.difference:.2g} on the CPU, {one.tolerance:.2g} allowed"
              for one in self.checks),
            *(f"  {note}" for note in manifest.notes[:1]),
            f"  in {self.pack.directory}",
        ]  # fmt: skip
        return "\n".join(lines)


def run(cfg: CompileConfig) -> Compiled:
    """Compile what the configuration names."""
    check_target(cfg.target)
    check_profile(cfg.target.rows)
    target = for_this_host(cfg.target)
    out = Path(cfg.out)
    if cfg.bundle and cfg.version is not None:
        raise ConfigError([f"bundle={cfg.bundle} and version={cfg.version} both say what to compile: leave one out"])
    if cfg.bundle:
        bundle = load_bundle(Path(cfg.bundle))
    else:
        bundle = stored_bundle(open_store(cfg.storage.url), cfg.model.name, cfg.version, Path(cfg.bundles))
    cache = EngineCache(None if cfg.cache is None else Path(cfg.cache))
    return compile_bundle(bundle, target, cache, out)


def stored_bundle(store: BlobStore, model: str, version: int | None, into: Path) -> Bundle:
    """The bundle of the version, or of the champion."""
    state = Ledger(store, model).state()
    chosen = state.champion if version is None else state.known(version)
    if chosen is None:
        raise LedgerError(f"{model}: there is no champion yet: say version=NUMBER")
    return fetch_bundle(store, chosen.bundle, into)


def for_this_host(target: Target) -> Target:
    """The target with its SM; full TensorRT builds on a host with that very GPU only."""
    if target.kind == "tensorrt_rtx":
        return target
    driver = probe_driver()
    if driver.reason is not None:
        raise EngineError(
            f"{target.name}: full TensorRT compiles on the GPU's own host, and here {driver.reason}: compile there, or "
            "ahead of time with TensorRT-RTX (target=trt_rtx_sm89_fp16)"
        )
    found = driver.gpus[0]
    if target.sm not in (None, found.sm):
        raise EngineError(
            f"target.sm={target.sm}: this host's GPU is {found.name}, SM{found.sm}; compile on such a one"
        )
    resolved = dataclasses.replace(target, sm=found.sm)
    check_target(resolved)
    return resolved


def compile_bundle(bundle: Bundle, target: Target, cache: EngineCache, out: Path) -> Compiled:
    """Convert, compare, build or take from the cache, write the pack."""
    version = str(import_library(target.kind).__version__)
    converted: dict[str, bytes] = {}
    for name in network_files(bundle):
        raw = bundle.read(name)
        check_network(raw, name)
        samples = samples_of(bundle, name) if target.precision in ("int8", "fp8") else ()
        converted[name] = convert(raw, target.precision, samples)
    if not converted:
        raise EngineError(f"bundle {bundle.sha256} holds no ONNX file: there is nothing to compile")
    checks = compare(bundle, converted, target.precision)
    start = time.perf_counter()
    engines, built = _engines(converted, target, version, cache)
    seconds = time.perf_counter() - start
    pack = _published(
        out, bundle=bundle, target=target.name, backend="trt", precision=target.precision,
        library=target.kind, version=version, sm=f"sm{target.sm}",
        files={engine_name(name): engine for name, engine in engines.items()} | converted,
        configuration=_configuration(target) | {
            "converted": {name: sha256_hex(raw) for name, raw in converted.items()},
            "onnxslim": metadata.version("onnxslim"), **_allowed(bundle, checks),
        },
        executed=False, notes=_notes(target, checks),
    )  # fmt: skip
    return Compiled(pack, built, seconds, tuple(checks))


def _published(out: Path, **content: Any) -> EnginePack:
    """The pack in `out/<sha256>`; its name is known once it is written."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=out) as folder:
        made = write_pack(Path(folder) / "pack", **content)
        place = out / made.sha256
        if not place.exists():
            made.directory.rename(place)
    return load_pack(place, expected_sha256=made.sha256)


def engine_name(onnx_name: str) -> str:
    """Where the engine of an ONNX file lies in the pack: member-0/window.onnx -> member-0/window.engine."""
    return onnx_name.removesuffix(".onnx") + ENGINE_SUFFIX


def _configuration(target: Target) -> dict[str, Any]:
    return {"kind": target.kind, "rows": dataclasses.asdict(target.rows)}


def _allowed(bundle: Bundle, checks: Sequence[Check]) -> dict[str, Any]:
    """What a host holds an engine to that never ran here (serving/warm.py), by golden array of the bundle's way."""
    if bundle.manifest.task != "pricing":
        return {}
    role = "step" if bundle.manifest.semantics == "stateful" else "window"
    largest = {
        name: max(one.tolerance for one in checks if one.name.startswith(f"{name} ({role}"))
        for name in (CONTEXT_TOLERANCE, IV_TOLERANCE)
    }
    return {ALLOWED: {name: float(f"{value:.6g}") for name, value in largest.items()}}


def _engines(
    converted: Mapping[str, bytes], target: Target, version: str, cache: EngineCache
) -> tuple[dict[str, bytes], int]:
    """The engine of every file, and how many of them were built now."""
    profiles: dict[str, Profile | None] = {
        name: target.rows if free_inputs(check_network(raw, name)) else None for name, raw in converted.items()
    }
    keys = {
        name: engine_key({name: sha256_hex(raw)}, _configuration(target), version, f"sm{target.sm}", target.precision)
        for name, raw in converted.items()
    }
    engines = {name: engine for name, key in keys.items() if (engine := cache.get(key)) is not None}
    missing = [name for name in converted if name not in engines]
    with tempfile.TemporaryDirectory(prefix="compile-") as folder:
        jobs = []
        for place, name in enumerate(missing):
            source = Path(folder) / f"{place}.onnx"
            source.write_bytes(converted[name])
            jobs.append(Job(name, source, source.with_suffix(ENGINE_SUFFIX), profiles[name]))
        outcomes = build_all(jobs, target) if jobs else {}
        for job in jobs:
            outcome = outcomes[job.name]
            if outcome.version != version:
                raise EngineError(f"{job.name}: built by version {outcome.version}, {version} is imported here")
            for warning in outcome.warnings:
                log.warning("%s: %s", job.name, warning)
            engines[job.name] = job.engine.read_bytes()
            cache.put(keys[job.name], engines[job.name])
    return engines, len(missing)


def _notes(target: Target, checks: Sequence[Check]) -> list[str]:
    numerics = "; ".join(f"{one.name} {one.difference:.3g} of {one.tolerance:.3g}" for one in checks)
    return [
        NOT_EXECUTED[target.kind],
        f"the converted ONNX against float32, by ONNX Runtime on the CPU, on the golden inputs: {numerics}",
    ]


if __name__ == "__main__":
    from pipelines.command import with_overrides

    raise SystemExit(with_overrides(__doc__, lambda overrides: run(load_compile(overrides))))
