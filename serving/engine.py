"""The one interface every inference back end has, opening one for a bundle, and golden parity.

Data in and out: float32 arrays that the caller owns and an engine fills; nothing is allocated for the caller.
    x [F]               one market step, scaled
    context [D]         what the encoder knows; members of an ensemble lie side by side, D is their sum
    contracts [N, K]    contract features, scaled
    iv [N]              implied volatility, a fraction, averaged over the members
Semantics: `window`: the answer is that of the last T steps alone, zeros before the first (reset: all zeros);
`stateful`: the state is carried over all steps since `reset`. A bundle names the one it was gated with.

Precision: that of weights and of what they are multiplied with; fp32 unless said.

Invariants: `evaluate` commits nothing; only `advance` and `reset` change the state. Every array is checked; an
EngineError names the tensor, what was expected and what was found. Back ends are imported only when opened.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle
from serving.errors import BundleError, EngineError
from serving.golden import GOLDEN
from serving.manifest import Manifest, Member, MemberFile, TensorSpec
from serving.surface_score import SurfaceAnswer, SurfaceInput

Floats = npt.NDArray[np.float32]

BACKENDS = ("native", "ort", "null")
PRECISIONS = ("fp32", "bf16", "int8")
SURFACE_BACKENDS = {"native": "serving.engines.native_surface", "ort": "serving.engines.ort"}
REDUCED = ("native",)  # back ends that take a precision other than fp32
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
    precision: str = "fp32"


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


@dataclass(frozen=True)
class Layout:
    """Sizes of a bundle's tensors; letters as in the module's docstring."""

    window_steps: int
    step_features: int
    contract_features: int
    context_sizes: tuple[int, ...]  # one per member

    @property
    def context_slices(self) -> tuple[slice, ...]:
        """Where each member's context lies in the caller's array."""
        ends = np.cumsum(self.context_sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.context_sizes, strict=True))


class CheckedEngine:
    """What all back ends share: the checks. Subclasses fill in the underscored methods, which trust their input."""

    def __init__(self, bundle: Bundle, backend: str, runtime: str) -> None:
        manifest = bundle.manifest
        self.layout = layout_of(manifest)
        self._info = EngineInfo(
            backend, runtime, manifest.model, bundle.sha256, manifest.semantics, len(manifest.members),
            self.layout.window_steps, self.layout.step_features, self.layout.contract_features,
            sum(self.layout.context_sizes),
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


def open_engine(bundle: Bundle, backend: str = "ort", semantics: str | None = None, precision: str = "fp32") -> Engine:
    """An engine for a verified bundle; refuses semantics other than those the bundle was gated with."""
    gated = bundle.manifest.semantics
    if bundle.manifest.task != "pricing":
        raise EngineError(
            f"bundle {bundle.sha256} completes and judges surfaces; it prices nothing: use strikeforge-host inspect"
        )
    if semantics is not None and semantics != gated:
        raise EngineError(f"semantics {semantics!r} asked for, but bundle {bundle.sha256} was gated with {gated!r}")
    if backend not in BACKENDS:
        raise EngineError(f"there is no engine {backend!r}; there are {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise EngineError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if precision != "fp32" and backend not in REDUCED:
        raise EngineError(f"engine {backend!r} has fp32 only, {precision!r} was asked for: {', '.join(REDUCED)} has it")
    module = importlib.import_module(f"serving.engines.{backend}")
    engine: Engine = module.open_engine(bundle, precision) if backend in REDUCED else module.open_engine(bundle)
    return engine


def open_surface_engine(bundle: Bundle, backend: str = "ort") -> SurfaceEngine:
    """An engine for a verified surface bundle, in fp32: a reduced precision misses the golden latents."""
    if bundle.manifest.task != "surface":
        raise EngineError(f"bundle {bundle.sha256} prices contracts; it holds no surface net")
    if backend not in SURFACE_BACKENDS:
        raise EngineError(f"there is no engine {backend!r} for surfaces; there are {', '.join(SURFACE_BACKENDS)}")
    module = importlib.import_module(SURFACE_BACKENDS[backend])
    engine: SurfaceEngine = module.open_surface_engine(bundle)
    return engine


def unavailable_engines() -> dict[str, str | None]:
    """For each back end why it can't be opened here, or None; imports no inference library."""
    return {name: importlib.import_module(f"serving.engines.{name}").why_unavailable() for name in BACKENDS}


def member_file(member: Member, role: str, index: int) -> MemberFile:
    """The file of a role; EngineError where the member has none."""
    file = member.files.get(role)
    if file is None:
        there = ", ".join(sorted(member.files))
        raise EngineError(f"member {index} of the bundle has no {role!r} file; it has {there}")
    return file


def tensor(file: MemberFile, name: str, *, output: bool = False) -> TensorSpec:
    """The float32 tensor of that name; EngineError where there is none."""
    specs = file.outputs if output else file.inputs
    for spec in specs:
        if spec.name == name:
            if spec.dtype != "float32":
                raise EngineError(f"{file.name}: tensor {name!r}: expected float32, found {spec.dtype}")
            return spec
    side = "output" if output else "input"
    raise EngineError(f"{file.name}: no {side} tensor {name!r}; there are {', '.join(spec.name for spec in specs)}")


def require_shape(file: MemberFile, spec: TensorSpec, *expected: int | None) -> None:
    """EngineError unless the manifest gives the tensor this shape; None is a free dimension."""
    if spec.shape != expected:
        raise EngineError(f"{file.name}: tensor {spec.name!r}: expected shape {expected}, found {spec.shape}")


def _fixed(file: MemberFile, spec: TensorSpec, rank: int) -> tuple[int, ...]:
    sizes = tuple(size for size in spec.shape if size is not None)
    if len(sizes) != rank or len(spec.shape) != rank:
        raise EngineError(f"{file.name}: tensor {spec.name!r}: expected {rank} fixed dimensions, found {spec.shape}")
    return sizes


def layout_of(manifest: Manifest) -> Layout:
    """The sizes of a bundle, checked to agree over roles and members."""
    layouts = [_member_layout(manifest, member, index) for index, member in enumerate(manifest.members)]
    sizes = {(one.window_steps, one.step_features, one.contract_features) for one in layouts}
    if len(sizes) > 1:
        raise EngineError(f"members of the bundle differ in (steps, step features, contract features): {sorted(sizes)}")
    ((window_steps, step_features, contract_features),) = sizes
    return Layout(window_steps, step_features, contract_features, tuple(one.context_sizes[0] for one in layouts))


def _member_layout(manifest: Manifest, member: Member, index: int) -> Layout:
    head = member_file(member, "head", index)
    (_, context_size) = _fixed(head, tensor(head, "context"), 2)
    contracts = tensor(head, "contracts")
    contract_features = contracts.shape[-1] if contracts.shape else None
    if len(contracts.shape) != 2 or contracts.shape[0] is not None or contract_features is None:
        raise EngineError(f"{head.name}: tensor 'contracts': expected (None, K), found {contracts.shape}")
    require_shape(head, tensor(head, "context"), 1, context_size)
    require_shape(head, tensor(head, "iv", output=True), None)
    role = "step" if manifest.semantics == "stateful" else "window"
    encoder = member_file(member, role, index)
    require_shape(encoder, tensor(encoder, "context", output=True), 1, context_size)
    if role == "window":
        _, steps, features = _fixed(encoder, tensor(encoder, "window"), 3)
        require_shape(encoder, tensor(encoder, "window"), 1, steps, features)
    else:
        (_, features) = _fixed(encoder, tensor(encoder, "x"), 2)
        require_shape(encoder, tensor(encoder, "x"), 1, features)
        steps = _stated_window(manifest)
        if any(spec.name == "memory" for spec in encoder.inputs):
            memory = tensor(encoder, "memory")
            (_, width) = _fixed(encoder, memory, 2)
            require_shape(encoder, memory, steps - 1, width)
            require_shape(encoder, tensor(encoder, "output", output=True), 1, width)
    return Layout(steps, features, contract_features, (context_size,))


def _stated_window(manifest: Manifest) -> int:
    steps = manifest.feature_spec.get("window")
    if type(steps) is not int or steps < 1:
        raise BundleError(f"manifest.json: feature_spec.window must be a number of steps, found {steps!r}")
    return steps


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
