"""TensorRT on a GPU: state stays on the device, a step is one CUDA graph, host memory is pinned.

Data in: a verified bundle and a verified engine pack of it (serving/engine_pack.py), compiled for this GPU by this
version of TensorRT; or, where the caller allows building here, the ONNX files of that pack (of the bundle, in float32,
where there is no pack). Data out: as in serving/engine.py.
Invariants: nothing is deserialised but bytes of a verified pack, or what was just built here: engines are code. States
have two places that change roles with every committed step, so `evaluate` commits nothing and copies no state. After
the first call with a count of contracts nothing is allocated on the device for it.

**Not executed where it was written: there was no GPU.** Its logic runs in tests on a device of plain memory with ONNX
Runtime as the program; deserialising, parity and time are tests marked `gpu` (docs/compile.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from serving.bundle import Bundle
from serving.engine import FP32, CheckedEngine, Floats
from serving.engine_pack import EnginePack, check_pack_of
from serving.engines.trt_buffers import FLOAT_BYTES, MEMORY, NEWEST, chunks, plan_buffers
from serving.engines.trt_builder import FULL, MODULES, REMEDIES, RTX, Rows, build_engine, import_library
from serving.engines.trt_device import CudaDevice, Device, Program, TensorRTProgram
from serving.engines.trt_driver import Driver, probe_driver
from serving.errors import EngineError
from serving.layout import Layout, member_file
from serving.manifest import MemberFile

BUILT_ROWS = Rows(1, 1024, 16384)  # of an engine built here without a pack that says more
KEPT_GRAPHS = 8  # chains of so many sizes are replayed as graphs

Programs = Mapping[str, Program]  # by the ONNX file's name in the manifest


def why_unavailable() -> str | None:
    """Why this engine can't be opened here, or None; neither TensorRT nor the driver is loaded into this process."""
    if not any(find_spec(module) for module in MODULES.values()):
        return f"TensorRT isn't installed: {REMEDIES[FULL]}; or {REMEDIES[RTX]}"
    reason = probe_driver().reason
    if reason is not None:
        return reason
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "CUDA's Python bindings aren't installed: pip install cuda-bindings"
    return None


def fitting(packs: Sequence[EnginePack]) -> EnginePack:
    """The first that runs on this GPU with this TensorRT; EngineError saying of each why not. The driver is there."""
    driver = probe_driver()
    misfits = []
    for pack in packs:
        misfit = _misfit(pack, pack.manifest.runtime["library"], driver)
        if misfit is None:
            return pack
        misfits.append(f"{pack.manifest.target!r} {misfit}")
    raise EngineError(f"engine 'trt': no engine pack fits this host: {'; '.join(misfits)}: compile one for it")


def open_engine(bundle: Bundle, pack: EnginePack | None = None, build: str | None = None) -> TrtEngine:
    """An engine from the pack, or built here by the library `build` (tensorrt, tensorrt_rtx) where that is allowed."""
    reason = why_unavailable()
    if reason is not None:
        raise EngineError(f"engine 'trt': {reason}")
    driver = probe_driver()
    raw, kind = engine_bytes(bundle, pack, build, driver)
    library = import_library(kind)
    device = CudaDevice()
    programs = {name: TensorRTProgram(library, one, name, device) for name, one in raw.items()}
    gpu = driver.gpus[0]
    precision = FP32 if pack is None else pack.manifest.precision
    runtime = f"{kind} {library.__version__} on {gpu.name} (SM{gpu.sm}), {precision}"
    return TrtEngine(bundle, programs, device, runtime, precision)


def engine_bytes(
    bundle: Bundle, pack: EnginePack | None, build: str | None, driver: Driver
) -> tuple[dict[str, bytes], str]:
    """Engines by the ONNX file's name, and the library that runs them; EngineError where the pack doesn't fit."""
    names = _names(bundle)
    if pack is None and build is None:
        raise EngineError(
            f"engine 'trt': bundle {bundle.sha256} has no engine pack here: compile one, or allow building"
        )
    if pack is None:
        assert build is not None
        return {name: _built(bundle.read(name), name, build, driver, None) for name in names}, build
    manifest = pack.manifest
    if manifest.backend != "trt":
        raise EngineError(f"engine 'trt': engine pack {pack.sha256} is of back end {manifest.backend!r}")
    check_pack_of(manifest, bundle)
    kind = manifest.runtime["library"]
    misfit = _misfit(pack, kind, driver)
    if misfit is None:
        return {name: pack.read(f"{name.removesuffix('.onnx')}.engine") for name in names}, kind
    if build is None:
        raise EngineError(f"engine 'trt': engine pack {manifest.target!r} {misfit}: compile it for this host")
    rows = manifest.configuration.get("rows")
    return {name: _built(pack.read(name), name, build, driver, rows) for name in names}, build


def _names(bundle: Bundle) -> list[str]:
    role = "step" if bundle.manifest.semantics == "stateful" else "window"
    return [
        member_file(member, part, index).name
        for index, member in enumerate(bundle.manifest.members) for part in (role, "head")
    ]  # fmt: skip


def _misfit(pack: EnginePack, kind: str, driver: Driver) -> str | None:
    """Why the pack's engines can't run here."""
    if kind not in MODULES:
        return f"is of library {kind!r}, there are {', '.join(MODULES)}"
    here = str(import_library(kind).__version__)
    compiled = pack.manifest.runtime["version"]
    if here != compiled:
        return f"was compiled by {kind} {compiled}, here is {here}"
    if pack.manifest.sm != f"sm{driver.gpus[0].sm}":
        return f"is for {pack.manifest.sm}, this GPU is {driver.gpus[0].name}, sm{driver.gpus[0].sm}"
    return None


def _built(raw: bytes, name: str, kind: str, driver: Driver, rows: Any) -> bytes:
    profile = Rows(**rows) if isinstance(rows, Mapping) else BUILT_ROWS
    return build_engine(raw, name, kind, driver.gpus[0].sm, profile if name.endswith("head.onnx") else None).engine


class TrtEngine(CheckedEngine):
    """All members of a bundle on one device."""

    def __init__(self, bundle: Bundle, programs: Programs, device: Device, runtime: str, precision: str = FP32) -> None:
        super().__init__(bundle, "trt", runtime, precision)
        manifest = bundle.manifest
        self._encoders: list[_Window | _Stateful] = []
        self._heads: list[_Head] = []
        for index, member in enumerate(manifest.members):
            if manifest.semantics == "stateful":
                file = member_file(member, "step", index)
                self._encoders.append(_Stateful(device, programs[file.name], file))
            else:
                file = member_file(member, "window", index)
                self._encoders.append(_Window(device, programs[file.name], file, self.layout))
            file = member_file(member, "head", index)
            self._heads.append(_Head(device, programs[file.name], file))
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
        out.fill(0.0)
        for head, place in zip(self._heads, self._slices, strict=True):
            head.add_to(out, context[place], contracts)
        out /= out.dtype.type(len(self._heads))


class _Window:
    """window.onnx: rows 0..T-2 are closed steps, the last row is the open one."""

    def __init__(self, device: Device, program: Program, file: MemberFile, layout: Layout) -> None:
        plan = plan_buffers(file, program.tensors(), 1)
        self._device, self._program, self._steps = device, program, layout.window_steps
        self._size = plan.sizes["window"]
        self._row = FLOAT_BYTES * layout.step_features
        self._windows = (device.allocate(self._size), device.allocate(self._size))
        self._context = device.allocate(plan.sizes["context"])
        self._x = device.pinned(layout.step_features)
        self._answer = device.pinned(plan.sizes["context"] // FLOAT_BYTES)
        self._side = 0
        self._graphs = [device.record(self._work(side)) for side in (0, 1)]

    def _work(self, side: int) -> Callable[[], None]:
        def queue() -> None:
            self._device.copy_in(self._windows[side] + self._size - self._row, self._x)
            self._program.place("window", self._windows[side])
            self._program.place("context", self._context)
            self._program.run()
            self._device.copy_out(self._answer, self._context)

        return queue

    def reset(self) -> None:
        for window in self._windows:
            self._device.clear(window, self._size)
        self._device.wait()
        self._side = 0

    def run(self, x: Floats) -> Floats:
        self._x[:] = x
        self._graphs[self._side]()
        self._device.wait()
        return self._answer

    def commit(self, x: Floats) -> None:
        if self._steps < 2:
            return
        here, there = self._windows[self._side], self._windows[1 - self._side]
        self._x[:] = x
        self._device.copy_within(there, here + self._row, self._row * (self._steps - 2))
        self._device.copy_in(there + self._row * (self._steps - 2), self._x)
        self._device.wait()
        self._side = 1 - self._side


class _Stateful:
    """step.onnx: reads the states of one side, writes what a step makes of them to the other."""

    def __init__(self, device: Device, program: Program, file: MemberFile) -> None:
        self._plan = plan = plan_buffers(file, program.tensors(), 1)
        self._device, self._program = device, program
        self._fixed = {name: device.allocate(size) for name, size in plan.sizes.items()}
        sizes = dict(plan.states)
        if plan.memory_row_bytes:
            sizes[MEMORY] = plan.memory_rows * plan.memory_row_bytes
        self._sizes = sizes
        self._states = {name: (device.allocate(size), device.allocate(size)) for name, size in sizes.items()}
        self._x = device.pinned(plan.sizes["x"] // FLOAT_BYTES)
        self._answer = device.pinned(plan.sizes["context"] // FLOAT_BYTES)
        self._side = 0
        self._graphs = [device.record(self._work(side)) for side in (0, 1)]

    def _work(self, side: int) -> Callable[[], None]:
        def queue() -> None:
            self._device.copy_in(self._fixed["x"], self._x)
            for name, address in self._fixed.items():
                self._program.place(name, address)
            for name, sides in self._states.items():
                self._program.place(name, sides[side])
                if name != MEMORY:
                    self._program.place(f"{name}_out", sides[1 - side])
            self._program.run()
            self._device.copy_out(self._answer, self._fixed["context"])

        return queue

    def reset(self) -> None:
        for name, sides in self._states.items():
            for address in sides:
                self._device.clear(address, self._sizes[name])
        self._device.wait()
        self._side = 0

    def run(self, x: Floats) -> Floats:
        self._x[:] = x
        self._graphs[self._side]()
        self._device.wait()
        return self._answer

    def commit(self, x: Floats) -> None:
        self._x[:] = x
        self._graphs[self._side]()
        if self._plan.memory_rows:
            row, rest = self._plan.memory_row_bytes, self._plan.memory_row_bytes * (self._plan.memory_rows - 1)
            here, there = self._states[MEMORY][self._side], self._states[MEMORY][1 - self._side]
            self._device.copy_within(there, here + row, rest)
            self._device.copy_within(there + rest, self._fixed[NEWEST], row)
        self._device.wait()
        self._side = 1 - self._side


class _Head:
    """head.onnx; a chain larger than the engine's profile is answered in parts."""

    def __init__(self, device: Device, program: Program, file: MemberFile) -> None:
        self._device, self._program = device, program
        self._most = program.largest_rows()
        plan = plan_buffers(file, program.tensors(), self._most)
        self._places = {name: device.allocate(size) for name, size in plan.sizes.items()}
        self._columns = plan.sizes["contracts"] // FLOAT_BYTES // self._most
        self._context = device.pinned(plan.sizes["context"] // FLOAT_BYTES)
        self._contracts = device.pinned(plan.sizes["contracts"] // FLOAT_BYTES).reshape(self._most, self._columns)
        self._iv = device.pinned(plan.sizes["iv"] // FLOAT_BYTES)
        self._graphs: dict[int, Callable[[], None]] = {}

    def add_to(self, out: Floats, context: Floats, contracts: Floats) -> None:
        """Add this member's volatilities to `out`."""
        self._context[:] = context
        for part in chunks(len(contracts), self._most):
            count = part.stop - part.start
            self._contracts[:count] = contracts[part]
            self._graph(count)()
            self._device.wait()
            out[part] += self._iv[:count]

    def _graph(self, count: int) -> Callable[[], None]:
        if count not in self._graphs:
            if len(self._graphs) == KEPT_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[count] = self._device.record(self._work(count))
        return self._graphs[count]

    def _work(self, count: int) -> Callable[[], None]:
        def queue() -> None:
            self._device.copy_in(self._places["context"], self._context)
            self._device.copy_in(self._places["contracts"], self._contracts[:count])
            self._program.place("context", self._places["context"])
            self._program.place("contracts", self._places["contracts"], (count, self._columns))
            self._program.place("iv", self._places["iv"])
            self._program.run()
            self._device.copy_out(self._iv[:count], self._places["iv"])

        return queue
