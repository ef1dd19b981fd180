"""What the `trt` engine asks of a GPU and of a compiled program, and the one implementation on CUDA and TensorRT.

Data in: engine bytes of a verified pack. Data out: `Program`s over device memory of a `Device`. Addresses are plain
integers. Invariants: everything is queued on one stream; what is recorded runs later with the addresses it was recorded
with; every CUDA error is an EngineError with CUDA's own words.

This file alone touches CUDA (package cuda-bindings) and TensorRT's runtime. It is written against their documented
Python interfaces and **was never executed where it was written, which has no GPU**; tests marked `gpu` execute it. All
logic above it runs in tests on a device that is plain memory (tests/serving/trt_memory.py).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from serving.engine import Floats
from serving.engines.trt_buffers import EngineTensor
from serving.engines.trt_builder import collecting_logger
from serving.errors import EngineError


class Device(Protocol):
    """Memory of a GPU and one queue of work."""

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, zeroed."""

    def pinned(self, count: int) -> Floats:
        """Host memory that the GPU reads and writes directly."""

    def copy_in(self, address: int, values: Floats) -> None:
        """Queue: pinned host memory to the device."""

    def copy_out(self, values: Floats, address: int) -> None:
        """Queue: the device to pinned host memory."""

    def copy_within(self, to: int, source: int, size: int) -> None:
        """Queue: bytes from one place of the device to another that doesn't overlap it."""

    def clear(self, address: int, size: int) -> None:
        """Queue: zeros."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` queues, as a graph: each call queues it all at once, with the addresses of now."""

    def wait(self) -> None:
        """Until everything queued is done."""


class Program(Protocol):
    """A compiled file with an address per tensor."""

    def tensors(self) -> list[EngineTensor]:
        """As the engine declares them."""

    def largest_rows(self) -> int:
        """Of a free dimension, by the engine's profile; 1 where it has none."""

    def place(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Where a tensor lies from now on; `shape` for an input with a free dimension."""

    def run(self) -> None:
        """Queue one execution."""


class CudaDevice:
    """`Device` on CUDA's runtime, device 0 of those the process sees."""

    def __init__(self) -> None:
        try:
            self.cuda: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(
                f"engine 'trt': CUDA's Python bindings can't be imported ({error}): pip install cuda-bindings"
            ) from error
        self.stream: Any = self.check(self.cuda.cudaStreamCreateWithFlags(self.cuda.cudaStreamNonBlocking))

    def check(self, answer: Any) -> Any:
        """CUDA functions answer (error, value...); the value, or EngineError."""
        error, *values = answer
        if error != self.cuda.cudaError_t.cudaSuccess:
            _, text = self.cuda.cudaGetErrorString(error)
            raise EngineError(f"engine 'trt': CUDA says {error}: {text.decode() if isinstance(text, bytes) else text}")
        return values[0] if len(values) == 1 else tuple(values)

    def allocate(self, size: int) -> int:
        address = int(self.check(self.cuda.cudaMalloc(max(size, 1))))
        self.clear(address, size)
        return address

    def pinned(self, count: int) -> Floats:
        size = max(count, 1) * 4
        address = int(self.check(self.cuda.cudaHostAlloc(size, self.cuda.cudaHostAllocDefault)))
        floats = (ctypes.c_float * max(count, 1)).from_address(address)
        values: Floats = np.ctypeslib.as_array(floats)[:count]
        values.fill(0.0)
        return values

    def copy_in(self, address: int, values: Floats) -> None:
        self._copy(address, values.ctypes.data, values.nbytes, self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def copy_out(self, values: Floats, address: int) -> None:
        self._copy(values.ctypes.data, address, values.nbytes, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy_within(self, to: int, source: int, size: int) -> None:
        self._copy(to, source, size, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        if size:
            self.check(self.cuda.cudaMemcpyAsync(to, source, size, kind, self.stream))

    def clear(self, address: int, size: int) -> None:
        if size:
            self.check(self.cuda.cudaMemsetAsync(address, 0, size, self.stream))

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # libraries load kernels lazily, which a capture can't hold
        self.wait()
        mode = self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.check(self.cuda.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        finally:
            graph = self.check(self.cuda.cudaStreamEndCapture(self.stream))
        ready = self.check(self.cuda.cudaGraphInstantiate(graph, 0))
        self.check(self.cuda.cudaGraphDestroy(graph))

        def launch() -> None:
            self.check(self.cuda.cudaGraphLaunch(ready, self.stream))

        return launch

    def wait(self) -> None:
        self.check(self.cuda.cudaStreamSynchronize(self.stream))


class TensorRTProgram:
    """`Program` on TensorRT's runtime; a context of its own."""

    def __init__(self, library: Any, raw: bytes, name: str, device: CudaDevice) -> None:
        self._library, self._name, self._device = library, name, device
        self._heard = collecting_logger(library)
        self._runtime = library.Runtime(self._heard)
        self._engine = self._runtime.deserialize_cuda_engine(raw)
        if self._engine is None:
            raise EngineError(f"{name}: {library.__name__} {library.__version__} refuses the engine: {self._said()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{name}: no execution context: {self._said()}")

    def _said(self) -> str:
        return "; ".join(self._heard.errors) or "it says nothing"

    def tensors(self) -> list[EngineTensor]:
        engine, trt = self._engine, self._library
        found = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = tuple(None if size == -1 else int(size) for size in engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
            found.append(EngineTensor(name, shape, dtype, engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT))
        return found

    def largest_rows(self) -> int:
        for one in self.tensors():
            if one.is_input and None in one.shape:
                _, _, most = self._engine.get_tensor_profile_shape(one.name, 0)
                return int(tuple(most)[one.shape.index(None)])
        return 1

    def place(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        if shape is not None and not self._context.set_input_shape(name, shape):
            raise EngineError(f"{self._name}: tensor {name!r}: shape {shape} isn't taken: {self._said()}")
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self._name}: tensor {name!r}: its address isn't taken: {self._said()}")

    def run(self) -> None:
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise EngineError(f"{self._name}: TensorRT failed: {self._said()}")
