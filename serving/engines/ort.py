"""ONNX Runtime, one thread: on the CPU, or on a GPU by its CUDA or TensorRT provider.

Data in: a verified bundle's ONNX files, as bytes; per member `window.onnx` or `step.onnx` (by the bundle's
semantics) and `head.onnx`. Data out: as in serving/engine.py. Shapes: T window, F step features, K contract
features, H hidden, L layers, D context.
    window.onnx  window [1,T,F] -> context [1,D]
    step.onnx    x [1,F], states..., memory [T-1,H] -> context [1,D], <state>_out..., output [1,H]
    head.onnx    context [1,D], contracts [N,K] -> iv [N]
A state is any input with an output of the same shape called `<name>_out` (hidden, cell); memory holds the top
layer's outputs of the last T-1 steps, oldest first, and takes `output` at its end.

ONNX Runtime's LSTM clamps NaN away and answers plausible numbers; here a context is NaN for as long as NaN is in what
it follows from: the window, the step, or the state that a step left (until `reset`).

Invariants: sessions are built from bytes that were just verified and may not read any other file; the provider that
really runs is the one asked for: ONNX Runtime may neither leave it out nor put single nodes onto the CPU, and one that
this build hasn't is refused by name; buffers are bound once and reused; names, types and shapes of the ONNX files equal
the manifest's.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import numpy as np

from serving.bundle import Bundle
from serving.engine import CheckedEngine, Floats, check_array
from serving.errors import EngineError
from serving.layout import Layout, member_file, require_shape, tensor
from serving.manifest import MemberFile, TensorSpec
from serving.surface_score import SurfaceAnswer, SurfaceInput

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# What TensorRT can't take goes to CUDA, never to the CPU.
ASKED = {"cpu": ("cpu",), "cuda": ("cuda",), "tensorrt": ("tensorrt", "cuda")}
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")  # both install the module `onnxruntime`
ORT_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(int64)": "int64"}
NO_FOLDER = f"{os.devnull}/bundles-hold-no-external-data"  # tensors outside the verified bytes can't be found


def why_unavailable() -> str | None:
    """Why this engine can't be opened here, or None; ONNX Runtime isn't imported."""
    found = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if not found:
        return "ONNX Runtime isn't installed: pip install 'strikeforge[cpu]'"
    if len(found) > 1:
        return f"{' and '.join(found)} are both installed and overwrite each other: uninstall both, then install one"
    return None


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def open_engine(bundle: Bundle, provider: str = "cpu") -> OrtEngine:
    """Sessions for every member of the bundle on that provider: cpu, cuda or tensorrt."""
    reason = why_unavailable()
    if reason is not None:
        raise EngineError(f"engine 'ort': {reason}")
    return OrtEngine(bundle, provider)


class OrtEngine(CheckedEngine):
    """All members of a bundle in ONNX Runtime."""

    def __init__(self, bundle: Bundle, provider: str = "cpu") -> None:
        runtime = _Runtime(provider)
        super().__init__(bundle, "ort", runtime.description)
        encode = _Stateful if bundle.manifest.semantics == "stateful" else _Window
        self._encoders: list[_Stateful | _Window] = []
        self._heads: list[_Head] = []
        for index, member in enumerate(bundle.manifest.members):
            role = "step" if encode is _Stateful else "window"
            file = member_file(member, role, index)
            self._encoders.append(encode(runtime, file, bundle.read(file.name), self.layout))
            file = member_file(member, "head", index)
            self._heads.append(_Head(runtime, file, bundle.read(file.name), self.layout.context_sizes[index]))
        self._slices = self.layout.context_slices
        self.reset()

    def reset(self) -> None:
        for encoder in self._encoders:
            encoder.reset()

    def _evaluate(self, x: Floats, out: Floats) -> None:
        for encoder, place in zip(self._encoders, self._slices, strict=True):
            out[place] = encoder.run(x)

    def _advance(self, x: Floats) -> None:
        for encoder in self._encoders:
            encoder.commit(x)

    def _head(self, context: Floats, contracts: Floats, out: Floats) -> None:
        rows = np.ascontiguousarray(contracts)
        out.fill(0.0)
        for head, place in zip(self._heads, self._slices, strict=True):
            out += head.run(context[place], rows)
        out /= np.float32(len(self._heads))


def open_surface_engine(bundle: Bundle, provider: str = "cpu") -> OrtSurfaceEngine:
    """A session for the bundle's surface net on that provider: cpu, cuda or tensorrt."""
    reason = why_unavailable()
    if reason is not None:
        raise EngineError(f"engine 'ort': {reason}")
    return OrtSurfaceEngine(bundle, provider)


class OrtSurfaceEngine:
    """The surface net of a bundle in ONNX Runtime; off every tick's path, so nothing is preallocated."""

    def __init__(self, bundle: Bundle, provider: str = "cpu") -> None:
        if len(bundle.manifest.members) > 1:
            raise EngineError(f"bundle {bundle.sha256} has several surface nets; latents can't be averaged: give one")
        self._runtime = _Runtime(provider)
        self._file = member_file(bundle.manifest.members[0], "surface", 0)
        self._session = self._runtime.session(self._file, bundle.read(self._file.name))
        self.runtime = self._runtime.description

    def answer(self, known: SurfaceInput) -> SurfaceAnswer:
        feeds = {}
        for spec in self._file.inputs:
            array = getattr(known, spec.name, None)
            if array is None:
                raise EngineError(f"{self._file.name}: input tensor {spec.name!r} isn't one of a surface net's")
            check_array(spec.name, array, (len(known.surface), *(size or 0 for size in spec.shape[1:])))
            feeds[spec.name] = array
        names = [spec.name for spec in self._file.outputs]
        try:
            found = dict(zip(names, self._session.run(names, feeds), strict=True))
        except self._runtime.errors as error:
            raise EngineError(f"{self._file.name}: ONNX Runtime {self._runtime.version} failed: {error}") from error
        lacking = [name for name in SurfaceAnswer.__dataclass_fields__ if name not in found]
        if lacking:
            raise EngineError(f"{self._file.name}: no output tensor {', '.join(lacking)}")
        return SurfaceAnswer(*(found[name] for name in SurfaceAnswer.__dataclass_fields__))


class _Runtime:
    """The imported library and one way of making a session with it."""

    def __init__(self, provider: str) -> None:
        import onnxruntime

        if provider not in PROVIDERS:
            raise EngineError(f"engine 'ort': there is no provider {provider!r}; there are {', '.join(PROVIDERS)}")
        self.library: Any = onnxruntime
        self.version = str(onnxruntime.__version__)
        self.providers = [PROVIDERS[name] for name in ASKED[provider]]
        self._bound: dict[Any, dict[str, Any]] = {}  # of a GPU's provider: inputs by binding
        self.description = f"onnxruntime {self.version} {PROVIDERS[provider]}, 1 thread"
        there = onnxruntime.get_available_providers()
        lacking = [name for name in self.providers if name not in there]
        if lacking:
            raise EngineError(
                f"engine 'ort': provider {provider!r}: this onnxruntime {self.version} has no {' nor '.join(lacking)}, "
                f"only {', '.join(there)}: on a GPU host, uninstall onnxruntime and pip install 'strikeforge[gpu]'"
            )
        onnxruntime.set_default_logger_severity(3)
        state = onnxruntime.capi.onnxruntime_pybind11_state
        named = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
        self.errors: tuple[type[Exception], ...] = (*named, RuntimeError, ValueError)

    def session(self, file: MemberFile, raw: bytes) -> Any:
        """A session on these bytes, its tensors checked against the manifest."""
        options = self.library.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = self.library.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if PROVIDERS["cpu"] not in self.providers:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)
        try:
            session = self.library.InferenceSession(raw, options, providers=self.providers)
        except self.errors as error:
            raise EngineError(f"{file.name}: ONNX Runtime {self.version} refuses the model: {error}") from error
        running = session.get_providers()
        # ONNX Runtime always lists its CPU provider last; with the fallback disabled no node may be given to it.
        if running != self.providers and running != [*self.providers, PROVIDERS["cpu"]]:
            raise EngineError(f"{file.name}: {', '.join(self.providers)} was asked for, but {running} would run")
        _check_tensors(file, file.inputs, session.get_inputs(), "input")
        _check_tensors(file, file.outputs, session.get_outputs(), "output")
        return session

    def run(self, file: MemberFile, session: Any, binding: Any) -> None:
        try:
            for name, value in self._bound.get(binding, {}).items():
                binding.bind_ortvalue_input(name, value)  # this is when ONNX Runtime copies host memory to a GPU
            session.run_with_iobinding(binding)
        except self.errors as error:
            raise EngineError(f"{file.name}: ONNX Runtime {self.version} failed: {error}") from error

    def bind(self, binding: Any, name: str, array: Floats, *, output: bool = False) -> None:
        """Bind an array whose memory the session uses (a CPU's directly); it must outlive the binding."""
        value = self.library.OrtValue.ortvalue_from_numpy(array)
        if not output and PROVIDERS["cpu"] not in self.providers:
            self._bound.setdefault(binding, {})[name] = value
        (binding.bind_ortvalue_output if output else binding.bind_ortvalue_input)(name, value)


def _check_tensors(file: MemberFile, specs: tuple[TensorSpec, ...], found: list[Any], side: str) -> None:
    """Names and types equal; sizes equal, and what is free in the manifest is free in the file."""
    wanted = {spec.name: spec for spec in specs}
    there = {node.name: node for node in found}
    if wanted.keys() != there.keys():
        raise EngineError(
            f"{file.name}: the manifest's {side} tensors are {sorted(wanted)}, the file's are {sorted(there)}"
        )
    for name, spec in wanted.items():
        node = there[name]
        kind = ORT_TYPES.get(node.type, node.type)
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        same = len(shape) == len(spec.shape) and all(
            actual == want or (side == "output" and actual is None)  # not inferred; the bound buffer fixes it
            for actual, want in zip(shape, spec.shape, strict=False)
        )
        if kind != spec.dtype or not same:
            raise EngineError(
                f"{file.name}: {side} tensor {name!r}: expected {spec.dtype} {spec.shape} by the manifest, "
                f"found {kind} {shape}"
            )


class _Window:
    """window.onnx over a preallocated window: rows 0..T-2 are closed steps, the last row is the open one."""

    def __init__(self, runtime: _Runtime, file: MemberFile, raw: bytes, layout: Layout) -> None:
        self._runtime, self._file = runtime, file
        self._session = runtime.session(file, raw)
        (size,) = tensor(file, "context", output=True).shape[1:]
        self._window = np.zeros((1, layout.window_steps, layout.step_features), np.float32)
        self._context = np.zeros((1, size or 0), np.float32)
        self._answer: Floats = self._context[0]
        self._binding = self._session.io_binding()
        runtime.bind(self._binding, "window", self._window)
        runtime.bind(self._binding, "context", self._context, output=True)

    def reset(self) -> None:
        self._window.fill(0.0)

    def run(self, x: Floats) -> Floats:
        self._window[0, -1] = x
        self._runtime.run(self._file, self._session, self._binding)
        if np.isnan(self._window).any():
            self._answer.fill(np.nan)
        return self._answer

    def commit(self, x: Floats) -> None:
        steps = self._window[0]
        if len(steps) > 1:
            steps[:-2] = steps[1:-1]
            steps[-2] = x


class _Stateful:
    """step.onnx: state in one set of buffers, what a step would make of it in another."""

    def __init__(self, runtime: _Runtime, file: MemberFile, raw: bytes, layout: Layout) -> None:
        self._runtime, self._file = runtime, file
        self._session = runtime.session(file, raw)
        self._inputs = {spec.name: _zeros(spec) for spec in file.inputs}
        self._outputs = {spec.name: _zeros(spec) for spec in file.outputs}
        self._x: Floats = self._inputs["x"][0]
        self._answer: Floats = self._outputs["context"][0]
        self._states: list[tuple[Floats, Floats]] = []
        for spec in file.inputs:
            if spec.name in ("x", "memory"):
                continue
            require_shape(file, tensor(file, f"{spec.name}_out", output=True), *spec.shape)
            self._states.append((self._inputs[spec.name], self._outputs[f"{spec.name}_out"]))
        self._memory = self._inputs.get("memory")
        self._cell = self._inputs.get("cell")  # an LSTM's, where NaN stays
        self._binding = self._session.io_binding()
        for name, array in self._inputs.items():
            runtime.bind(self._binding, name, array)
        for name, array in self._outputs.items():
            runtime.bind(self._binding, name, array, output=True)

    def reset(self) -> None:
        for array in self._inputs.values():
            array.fill(0.0)

    def run(self, x: Floats) -> Floats:
        self._x[:] = x
        self._runtime.run(self._file, self._session, self._binding)
        if self._is_spoiled():
            self._answer.fill(np.nan)
        return self._answer

    def _is_spoiled(self) -> bool:
        return bool(np.isnan(self._x).any()) or (self._cell is not None and bool(np.isnan(self._cell).any()))

    def commit(self, x: Floats) -> None:
        self.run(x)
        spoiled = self._is_spoiled()
        for state, following in self._states:
            state[:] = following
        if spoiled and self._cell is not None:
            self._cell.fill(np.nan)
        if self._memory is not None and len(self._memory):
            self._memory[:-1] = self._memory[1:]
            self._memory[-1] = self._outputs["output"][0]


def _zeros(spec: TensorSpec) -> Floats:
    return np.zeros([size or 0 for size in spec.shape], np.float32)


class _Head:
    """head.onnx; scratch memory grows to the largest chain seen and is rebound when the count changes."""

    def __init__(self, runtime: _Runtime, file: MemberFile, raw: bytes, context_size: int) -> None:
        self._runtime, self._file = runtime, file
        self._session = runtime.session(file, raw)
        self._binding = self._session.io_binding()
        self._context = np.zeros((1, context_size), np.float32)
        self._iv = np.zeros(0, np.float32)
        runtime.bind(self._binding, "context", self._context)

    def run(self, context: Floats, contracts: Floats) -> Floats:
        self._context[0] = context
        if len(self._iv) != len(contracts):
            self._iv = np.zeros(len(contracts), np.float32)
            self._runtime.bind(self._binding, "iv", self._iv, output=True)
        self._runtime.bind(self._binding, "contracts", contracts)
        self._runtime.run(self._file, self._session, self._binding)
        return self._iv
