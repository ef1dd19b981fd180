"""A "GPU" that is plain memory, and compiled programs that are ONNX Runtime: what the `trt` engine's logic runs on.

Work is queued, and runs only when waited for, with the addresses it was queued with, as on a CUDA stream. New memory is
full of NaN except where the engine asked for zeros, and copies that overlap are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime

from serving.bundle import Bundle
from serving.engine import Floats
from serving.engines.trt_buffers import EngineTensor
from serving.manifest import MemberFile

BYTES = 1 << 22


class MemoryDevice:
    """`Device` of serving/engines/trt_device.py."""

    def __init__(self) -> None:
        self.memory = np.full(BYTES // 4, np.nan, np.float32)
        self.used = 0
        self.queue: list[Callable[[], None]] = []
        self.recording = False
        self.allocations = 0

    def view(self, address: int, size: int) -> Floats:
        assert address % 4 == 0
        assert size % 4 == 0
        assert address >= 0
        assert address + size <= self.used, "outside what was allocated"
        return self.memory[address // 4 : (address + size) // 4]

    def allocate(self, size: int) -> int:
        address, self.used = self.used, self.used + size
        assert self.used <= BYTES
        self.allocations += 1
        self.clear(address, size)
        return address

    def pinned(self, count: int) -> Floats:
        return np.zeros(count, np.float32)

    def copy_in(self, address: int, values: Floats) -> None:
        self._put(lambda: self._fill(address, values))

    def _fill(self, address: int, values: Floats) -> None:
        self.view(address, values.nbytes)[:] = values.reshape(-1)

    def copy_out(self, values: Floats, address: int) -> None:
        def work() -> None:
            values.reshape(-1)[:] = self.view(address, values.nbytes)

        self._put(work)

    def copy_within(self, to: int, source: int, size: int) -> None:
        assert to + size <= source or source + size <= to, "overlapping copies are undefined on a GPU"
        self._put(lambda: np.copyto(self.view(to, size), self.view(source, size)))

    def clear(self, address: int, size: int) -> None:
        self._put(lambda: self.view(address, size).fill(0.0))

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # as CudaDevice warms up
        self.wait()
        assert not self.recording
        self.recording, before = True, self.queue
        self.queue = []
        work()
        recorded, self.queue = self.queue, before
        self.recording = False
        return lambda: self.queue.extend(recorded)

    def wait(self) -> None:
        assert not self.recording, "a capture can't wait"
        work, self.queue = self.queue, []
        for one in work:
            one()

    def _put(self, work: Callable[[], None]) -> None:
        self.queue.append(work)


class OrtProgram:
    """`Program` of serving/engines/trt_device.py."""

    def __init__(self, raw: bytes, file: MemberFile, device: MemoryDevice, most: int = 4) -> None:
        self.session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
        self.file, self.device, self.most = file, device, most
        self.places: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def tensors(self) -> list[EngineTensor]:
        return [EngineTensor(spec.name, spec.shape, spec.dtype, side == 0)
                for side, specs in enumerate((self.file.inputs, self.file.outputs)) for spec in specs]  # fmt: skip

    def largest_rows(self) -> int:
        return self.most

    def place(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        self.places[name] = address
        if shape is not None:
            assert max(shape) <= max(self.most, shape[-1])
            self.shapes[name] = shape

    def run(self) -> None:
        places, shapes = dict(self.places), dict(self.shapes)  # of now
        self.device.queue.append(lambda: self._run(places, shapes))

    def _run(self, places: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {}
        for spec in self.file.inputs:
            shape = shapes.get(spec.name, spec.shape)
            assert None not in shape, f"{spec.name} was given no shape"
            size = 4 * int(np.prod(shape))
            feeds[spec.name] = self.device.view(places[spec.name], size).reshape(shape).copy()
        found = self.session.run([spec.name for spec in self.file.outputs], feeds)
        for spec, values in zip(self.file.outputs, found, strict=True):
            self.device.view(places[spec.name], values.nbytes)[:] = values.reshape(-1)


def programs_of(bundle: Bundle, device: MemoryDevice, most: int = 4) -> dict[str, OrtProgram]:
    """A program per ONNX file of the bundle."""
    files = [file for member in bundle.manifest.members for file in member.files.values()]
    return {file.name: OrtProgram(bundle.read(file.name), file, device, most) for file in files
            if file.name.endswith(".onnx")}  # fmt: skip
