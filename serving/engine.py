"""The one interface every inference back end has, opening one for a bundle, and golden parity.

Data in and out: float32 arrays that the caller owns and an engine fills; nothing is allocated for the caller.
    x [F]               one market step, scaled
    context [D]         what the encoder knows; members of an ensemble lie side by side, D is their sum
    contracts [N, K]    contract features, scaled
    iv [N]              implied volatility, a fraction, averaged over the members
Semantics: `window`: the answer is that of the last T steps alone, zeros before the first (reset: all zeros);
`stateful`: the state is carried over all steps since `reset`. A bundle names the one it was gated with.

Precision: that of weights and of what they are multiplied with; fp32 unless said. `provider`: on what ONNX Runtime
computes. `trt` runs what an engine pack holds (serving/engine_pack.py), in the precision that the pack was compiled in.

Invariants: `evaluate` commits nothing; only `advance` and `reset` change the state. NaN in what an answer follows from
gives NaN, never a plausible number (`native` and `ort`; `null` answers zeros, `trt` ran nowhere yet). Every array is
checked; an EngineError names the tensor, what was expected and what was found. Back ends are imported only when opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle
from serving.engine_pack import EnginePack
from serving.errors import BundleError, EngineError
from serving.golden import GOLDEN
from serving.layout import layout_of
from serving.surface_score import SurfaceAnswer, SurfaceInput

Floats = npt.NDArray[np.float32]

FP32 = "fp32"
PRECISIONS: Mapping[str, tuple[str, ...]] = {  # of each back end, its best first
    "native": (FP32, "bf16", "int8"),
    "ort": (FP32,),
    "trt": (FP32, "fp16", "bf16", "int8", "fp8"),
    "null": (FP32,),
}
BACKENDS = tuple(PRECISIONS)
COMPILED = ("trt",)  # back ends that run an engine pack, not the bundle's own files
PROVIDERS = ("cpu", "cuda", "tensorrt")  # of ONNX Runtime
SURFACE_BACKENDS = {"native": "serving.engines.native_surface", "ort": "serving.engines.ort"}
FLOAT32 = np.dtype(np.float32)
CONTEXT_TOLERANCE, IV_TOLERANCE, SURFACE_TOLERANCE = "context", "iv", "surface"  # keys of the manifest's tolerances
GOLDEN_HEAD_WINDOW = 0  # the golden window whose context the golden volatilities were computed from


@dataclass(frozen=True)
class EngineInfo:
    """What runs, and the sizes a caller must provide."""

    backend: str
    runtime: str  # library, version, provider that really runs
    model: str
    bundle_sha256: str
    semantics: str
    members: int
    window_steps: int  # T
    step_features: int  # F
    contract_features: int  # K
    context_size: int  # D, summed over the members
    precision: str = FP32


class Engine(Protocol):
    """Inference of one bundle. Not thread-safe: one engine per thread."""

    def reset(self) -> None:
        """Forget all steps."""

    def evaluate(self, x: Floats, out: Floats) -> None:
        """Context [D] into `out` as if the open step were `x` [F]; commits nothing."""

    def advance(self, x: Floats) -> None:
        """Commit the closed step `x` [F]."""

    def head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        """Implied volatility of `contracts` [N, K] under `context` [D] into `out` [N]."""

    def info(self) -> EngineInfo:
        """Sizes and what runs."""


class SurfaceEngine(Protocol):
    """Inference of a surface bundle: any number of surfaces at a time; keeps no state."""

    @property
    def runtime(self) -> str:
        """Library, version, provider that really runs."""

    def answer(self, known: SurfaceInput) -> SurfaceAnswer:
        """Completed surfaces, deviations, latents, surprises, regimes."""


class CheckedEngine:
    """What all back ends share: the checks. Subclasses fill in the underscored methods, which trust their input."""

    def __init__(self, bundle: Bundle, backend: str, runtime: str, precision: str = FP32) -> None:
        manifest = bundle.manifest
        self.layout = layout_of(manifest)
        self._info = EngineInfo(
            backend, runtime, manifest.model, bundle.sha256, manifest.semantics, len(manifest.members),
            self.layout.window_steps, self.layout.step_features, self.layout.contract_features,
            sum(self.layout.context_sizes), precision,
        )  # fmt: skip
        self._x_shape = (self._info.step_features,)
        self._context_shape = (self._info.context_size,)

    def info(self) -> EngineInfo:
        return self._info

    def reset(self) -> None:
        raise NotImplementedError

    def evaluate(self, x: Floats, out: Floats) -> None:
        check_array("x", x, self._x_shape)
        check_array("context", out, self._context_shape, written=True)
        self._evaluate(x, out)

    def advance(self, x: Floats) -> None:
        check_array("x", x, self._x_shape)
        self._advance(x)

    def head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        check_array("context", context, self._context_shape)
        count = len(contracts) if isinstance(contracts, np.ndarray) and contracts.ndim else 0
        check_array("contracts", contracts, (count, self._info.contract_features))
        check_array("iv", out, (count,), written=True)
        if count:
            self._head(context, contracts, out)

    def _evaluate(self, x: Floats, out: Floats) -> None:
        raise NotImplementedError

    def _advance(self, x: Floats) -> None:
        raise NotImplementedError

    def _head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        raise NotImplementedError


def check_array(name: str, array: Floats, shape: tuple[int, ...], *, written: bool = False) -> None:
    """EngineError unless `array` is float32 of `shape` (and writable)."""
    if not isinstance(array, np.ndarray):
        raise EngineError(f"tensor {name!r}: expected a NumPy array, found {type(array).__name__}")
    if array.dtype != FLOAT32 or array.shape != shape:
        raise EngineError(f"tensor {name!r}: expected float32 {shape}, found {array.dtype} {array.shape}")
    if written and not array.flags.writeable:
        raise EngineError(f"tensor {name!r}: expected an array to write into, found a read-only one")


def open_engine(
    bundle: Bundle, backend: str = "ort", semantics: str | None = None, precision: str = FP32, *,
    pack: EnginePack | None = None, provider: str = "cpu", isa: str = "",
) -> Engine:  # fmt: skip
    """An engine for a verified bundle; refuses semantics other than those the bundle was gated with.

    `pack`: what `trt` runs. The other engines run the bundle itself, and don't take one. `isa`: of `native`.
    """
    gated = bundle.manifest.semantics
    if bundle.manifest.task != "pricing":
        raise EngineError(
            f"bundle {bundle.sha256} completes and judges surfaces; it prices nothing: use strikeforge-host inspect"
        )
    if semantics is not None and semantics != gated:
        raise EngineError(f"semantics {semantics!r} asked for, but bundle {bundle.sha256} was gated with {gated!r}")
    if backend not in BACKENDS:
        raise EngineError(f"there is no engine {backend!r}; there are {', '.join(BACKENDS)}")
    _check_precision(backend, precision)
    module = importlib.import_module(f"serving.engines.{backend}")
    options = _ways(backend, provider)
    if backend in COMPILED:
        options = {"pack": _compiled(backend, precision, pack)}
    elif pack is not None:
        raise EngineError(f"engine {backend!r} runs the bundle itself: engine pack {pack.manifest.target!r} isn't its")
    elif len(PRECISIONS[backend]) > 1:
        options = {"precision": precision} | ({"isa": isa} if isa else {})
    elif isa:
        raise EngineError(f"engine {backend!r} picks its instruction sets itself: found isa {isa!r}")
    engine: Engine = module.open_engine(bundle, **options)
    return engine


def every_precision() -> tuple[str, ...]:
    """Of all engines together."""
    return tuple(dict.fromkeys(one for known in PRECISIONS.values() for one in known))


def _check_precision(backend: str, precision: str) -> None:
    if precision not in every_precision():
        raise EngineError(f"there is no precision {precision!r}; there are {', '.join(every_precision())}")
    if precision not in PRECISIONS[backend]:
        others = [f"{name} has it" for name, known in PRECISIONS.items() if precision in known]
        raise EngineError(
            f"engine {backend!r} has {', '.join(PRECISIONS[backend])}, {precision!r} was asked for: {', '.join(others)}"
        )


def _ways(backend: str, provider: str) -> dict[str, Any]:
    """The provider, for the engine that has any; EngineError where another is to have one."""
    if backend == "ort":
        return {"provider": provider}
    if provider != "cpu":
        raise EngineError(f"engine {backend!r} has no providers, {provider!r} was asked for: ort has them")
    return {}


def _compiled(backend: str, precision: str, pack: EnginePack | None) -> EnginePack:
    """The pack to run; EngineError where there is none, or one in another precision."""
    if pack is None:
        raise EngineError(
            f"engine {backend!r} runs engine packs, and none was given: pull one (--target trt_...) or compile one "
            "(python -m pipelines.compile)"
        )
    found = pack.manifest.precision
    if found != precision:
        raise EngineError(f"engine pack {pack.manifest.target!r} is in {found!r}, {precision!r} was asked for")
    return pack


def open_surface_engine(
    bundle: Bundle, backend: str = "ort", precision: str = FP32, *, provider: str = "cpu"
) -> SurfaceEngine:
    """An engine for a verified surface bundle, in fp32: a reduced precision misses the golden latents."""
    if bundle.manifest.task != "surface":
        raise EngineError(f"bundle {bundle.sha256} prices contracts; it holds no surface net")
    if backend not in SURFACE_BACKENDS:
        raise EngineError(f"there is no engine {backend!r} for surfaces; there are {', '.join(SURFACE_BACKENDS)}")
    if precision != FP32:
        raise EngineError(
            f"surfaces are completed and judged in {FP32}, {precision!r} was asked for: bundle {bundle.sha256} holds "
            "a surface net, whose latents a reduced precision misses"
        )
    module = importlib.import_module(SURFACE_BACKENDS[backend])
    engine: SurfaceEngine = module.open_surface_engine(bundle, **_ways(backend, provider))
    return engine


def unavailable_engines() -> dict[str, str | None]:
    """For each back end why it can't be opened here, or None; imports no inference library."""
    return {name: importlib.import_module(f"serving.engines.{name}").why_unavailable() for name in BACKENDS}


@dataclass(frozen=True)
class Parity:
    """Largest distance of recomputed golden values from the recorded ones."""

    name: str
    max_abs_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.max_abs_difference <= self.tolerance  # False for NaN


def tolerance_of(bundle: Bundle, name: str) -> float:
    """A tolerance of the manifest; BundleError where it has none of that name."""
    found = bundle.manifest.tolerances.get(name)
    if found is None:
        there = ", ".join(sorted(bundle.manifest.tolerances)) or "none"
        raise BundleError(f"manifest.json: no tolerance {name!r}; there are: {there}")
    return found


def golden_parity(bundle: Bundle, engine: Engine) -> list[Parity]:
    """Recompute the bundle's golden vectors through `reset`, `advance`, `evaluate` and `head`."""
    golden = bundle.arrays(GOLDEN)
    info = engine.info()
    missing = [name for name in ("window", "contracts", "iv") if name not in golden]
    if missing:
        raise BundleError(f"{GOLDEN}: lacks {', '.join(missing)}")
    windows = golden["window"].astype(np.float32)
    contexts = np.zeros((len(windows), info.context_size), np.float32)
    for window, context in zip(windows, contexts, strict=True):
        engine.reset()
        for x in window[:-1]:
            engine.advance(x)
        engine.evaluate(window[-1], context)
    engine.reset()
    expected = np.concatenate([golden[f"context-{member}"] for member in range(info.members)], axis=1)
    contracts = np.ascontiguousarray(golden["contracts"], dtype=np.float32)
    iv = np.zeros(len(contracts), np.float32)
    engine.head(contexts[GOLDEN_HEAD_WINDOW], contracts, iv)
    return [
        Parity("context", _distance(contexts, expected), tolerance_of(bundle, CONTEXT_TOLERANCE)),
        Parity("iv", _distance(iv, golden["iv"]), tolerance_of(bundle, IV_TOLERANCE)),
    ]


def surface_parity(bundle: Bundle, engine: SurfaceEngine) -> list[Parity]:
    """Recompute the golden surfaces; differences are relative where a value is above 1."""
    golden = bundle.arrays(GOLDEN)
    inputs = SurfaceInput.__dataclass_fields__
    missing = [name for name in inputs if name not in golden]
    if missing:
        raise BundleError(f"{GOLDEN}: lacks {', '.join(missing)}")
    answer = engine.answer(SurfaceInput(*(golden[name].astype(np.float32) for name in inputs)))
    checks = []
    for name in SurfaceAnswer.__dataclass_fields__:
        expected = golden[f"{name}-0"].astype(np.float64)
        unit = np.maximum(np.abs(expected), 1.0)
        checks.append(Parity(name, _distance(getattr(answer, name) / unit.astype(np.float32), expected / unit),
                             tolerance_of(bundle, SURFACE_TOLERANCE)))  # fmt: skip
    return checks


def _distance(found: Floats, expected: npt.NDArray[np.floating]) -> float:
    if found.shape != expected.shape:
        raise BundleError(f"{GOLDEN}: recorded values have shape {expected.shape}, recomputed ones {found.shape}")
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)), initial=0.0))
