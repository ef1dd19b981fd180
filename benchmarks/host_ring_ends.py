"""Both ends of what carries records from one process to another: our rings, and what else Python has for it.

Each pair of ends moves messages of 56 bytes, a record's size, in which one says when it left (CLOCK_MONOTONIC). `send`
and `receive` run in processes of their own, each on its own core. Data out of `receive`: nanoseconds from the first
message to the last, and, where asked, of each message from its stamp until it is a Python or native value here.

Invariants: nothing is lost, or it raises; senders keep their pace by the clock, not by the receiver; a paced sender
lets other threads of its process run (a queue has one that writes).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.engines_timing import Nanoseconds
from serving import native
from serving.host.records import Kind, new_records
from serving.host.ring import RingReader, RingWriter

SIZE = 56
CAPACITY = 65_536
PATIENCE_NS = 20_000_000_000
CLOCK = time.monotonic_ns

Measured = tuple[int, Nanoseconds | None]
Ready = Callable[[], None]


class Ends(Protocol):
    """One way of carrying; `interval_ns` 0 is as fast as it can, else latencies are wanted."""

    @property
    def name(self) -> str: ...

    @property
    def fastest_count(self) -> int:
        """Messages that take a second or so."""
        ...

    def open(self, context: SpawnContext, folder: Path) -> Any:
        """In the process that starts the others: what both are given."""
        ...

    def send(self, address: Any, count: int, interval_ns: int) -> None: ...

    def receive(self, address: Any, count: int, latencies: bool, ready: Ready) -> Measured: ...


def paced(count: int, interval_ns: int) -> Any:
    """The number of each message when it is due."""
    begin = CLOCK()
    for number in range(count):
        if interval_ns:
            due = begin + number * interval_ns
            while CLOCK() < due:
                time.sleep(0)
        yield number


def received(get: Callable[[], int], count: int, latencies: bool) -> Measured:
    """`get` waits for a message and returns its stamp."""
    found = np.zeros(count, np.int64) if latencies else None
    begin = 0
    for number in range(count):
        stamp = get()
        now = CLOCK()
        begin = begin or now
        if found is not None:
            found[number] = now - stamp
    return CLOCK() - begin, found


def message() -> bytes:
    return CLOCK().to_bytes(8, "little") + bytes(SIZE - 8)


def stamp_of(got: bytes) -> int:
    return int.from_bytes(got[:8], "little")


@dataclass(frozen=True)
class NativeRing:
    """Both loops in C++ (serving/native/transport/ring_timing.hpp), as the hot loop and its feed are."""

    name: str = "strikeforge"
    fastest_count: int = 20_000_000

    def open(self, context: SpawnContext, folder: Path) -> str:
        return _new_ring(folder)

    def send(self, address: str, count: int, interval_ns: int) -> None:
        core: Any = native.core()
        core.RingWriter(address, CAPACITY, interval_ns == 0).send_stamped(count, interval_ns)

    def receive(self, address: str, count: int, latencies: bool, ready: Ready) -> Measured:
        core: Any = native.core()
        reader = core.RingReader(address, "", not latencies)
        ready()
        elapsed, found = reader.receive_stamped(count, latencies, PATIENCE_NS)
        return elapsed, found


@dataclass(frozen=True)
class PythonRing:
    """The same ring, written and read from Python record by record: the caller that its peers here have."""

    name: str = "strikeforge_python"
    fastest_count: int = 500_000

    def open(self, context: SpawnContext, folder: Path) -> str:
        return _new_ring(folder)

    def send(self, address: str, count: int, interval_ns: int) -> None:
        record = new_records(1, Kind.TRADE)
        words = record.view(np.int64)
        with RingWriter(address, CAPACITY, lossless=interval_ns == 0) as writer:
            for _ in paced(count, interval_ns):
                words[6] = CLOCK()
                writer.write(record)

    def receive(self, address: str, count: int, latencies: bool, ready: Ready) -> Measured:
        record = new_records(1)
        words = record.view(np.int64)
        with RingReader(address, lossless=not latencies) as reader:

            def get() -> int:
                while not reader.read_into(record):
                    pass
                return int(words[6])

            ready()
            measured = received(get, count, latencies)
            assert reader.lost == 0
        return measured


def _new_ring(folder: Path) -> str:
    RingWriter(folder / "ring", CAPACITY).close()
    return str(folder / "ring")


@dataclass(frozen=True)
class MultiprocessingQueue:
    """The standard library's queue; `simple` writes to its pipe itself instead of through a thread."""

    name: str
    simple: bool
    fastest_count: int = 100_000

    def open(self, context: SpawnContext, folder: Path) -> Any:
        return context.SimpleQueue() if self.simple else context.Queue()

    def send(self, address: Any, count: int, interval_ns: int) -> None:
        for _ in paced(count, interval_ns):
            address.put(message())

    def receive(self, address: Any, count: int, latencies: bool, ready: Ready) -> Measured:
        ready()
        return received(lambda: stamp_of(address.get()), count, latencies)


@dataclass(frozen=True)
class ZeroMQ:
    """Push and pull over a Unix socket (pyzmq); `polling` asks without waiting, as a loop that spins does."""

    name: str
    polling: bool
    fastest_count: int = 200_000

    def open(self, context: SpawnContext, folder: Path) -> str:
        return f"ipc://{folder / 'zeromq'}"

    def send(self, address: str, count: int, interval_ns: int) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.sndhwm = CAPACITY
            socket.connect(address)
            for _ in paced(count, interval_ns):
                socket.send(message())

    def receive(self, address: str, count: int, latencies: bool, ready: Ready) -> Measured:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.rcvhwm = CAPACITY
            socket.bind(address)

            def poll() -> int:
                while True:
                    try:
                        return stamp_of(socket.recv(zmq.NOBLOCK))
                    except zmq.Again:
                        continue

            ready()
            return received(poll if self.polling else lambda: stamp_of(socket.recv()), count, latencies)


def all_ends() -> list[Ends]:
    """Ours first; pyzmq's only where it is installed."""
    ends: list[Ends] = [
        NativeRing(),
        PythonRing(),
        MultiprocessingQueue("multiprocessing_queue", simple=False),
        MultiprocessingQueue("multiprocessing_simple_queue", simple=True),
    ]
    try:
        import zmq  # noqa: F401
    except ImportError:
        return ends
    return [*ends, ZeroMQ("zeromq", polling=False), ZeroMQ("zeromq_polling", polling=True)]
