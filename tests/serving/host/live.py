"""A loop that runs in a thread of the test, fed and read through real rings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.host.loop import HotLoop, Rings
from serving.host.records import RECORD, Records
from serving.host.reference.compare import without_times
from serving.host.ring import RingReader, RingWriter
from tests.serving.host.chains import table
from tests.serving.host.worlds import QUOTER, engine_of, limits_of, spec_of

PATIENCE_S = 30.0

RING_RECORDS = 1 << 15


def wait_until(true: Callable[[], Any], what: str) -> None:
    """Fails, saying what was awaited, if it doesn't come true in time."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"{what} didn't happen in {PATIENCE_S} s"
        time.sleep(0.0005)


class Live:
    """Rings in a folder and the loop between them."""

    def __init__(self, folder: Path, **changed: Any) -> None:
        self.folder = folder
        self.ticks = RingWriter(folder / "ticks", RING_RECORDS, lossless=True)
        rings = Rings(
            folder / "ticks", folder / "orders", folder / "fills", folder / "signals", RING_RECORDS, lossless_in=True
        )
        settings: dict[str, Any] = {
            "engine": engine_of(), "spec": spec_of(), "contracts": table(), "limits": limits_of(), "strategy": QUOTER,
        } | changed  # fmt: skip
        self.loop = HotLoop(**settings, rings=rings)
        self._out = {name: RingReader(folder / name) for name in ("orders", "fills", "signals")}
        self._left: dict[str, list[Records]] = {name: [] for name in self._out}
        self.ends: list[str] = []

    def write(self, records: Records) -> None:
        self.ticks.write(records)

    @contextmanager
    def running(self, **how: Any) -> Iterator[Live]:
        """`run` in another thread; ended by `stop` if nothing else did."""
        thread = threading.Thread(target=lambda: self.ends.append(self.loop.run(**{"signals": False} | how)))
        thread.start()
        try:
            yield self
        finally:
            if thread.is_alive() and "events" not in how and "idle_exit_s" not in how:
                self.loop.stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the loop didn't end"

    def read_all(self) -> int:
        """Records that the loop has read, whatever came of them, as told on the board."""
        return int(self.loop.board.number("records"))

    def left(self, name: str, *, timed: bool = False) -> Records:
        """All that left into that ring so far; without its monotonic times unless asked for."""
        while len(found := self._out[name].read(4096)):
            self._left[name].append(found)
        assert self._out[name].lost == 0
        whole = np.concatenate([np.zeros(0, RECORD), *self._left[name]])
        return whole if timed else without_times(whole)
