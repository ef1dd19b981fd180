"""Sessions of `strikeforge-host run` itself, for `make bench-host`: a real process, a real feed, real ticks.

In: a vendor's tick files. Out: a `Session`: what left (orders, fills, signals), every hop's histogram, what the command
said. Rings are made beforehand and read afterwards, so nothing but the feed and the loop runs meanwhile: the feed's
process on one core, the loop's thread on another. Invariant: a session in which the loop lost a record, or that ended
otherwise than because its feed did, is a HostError.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.host_bundle import STEP_NS, HostFiles, make_host
from serving import native
from serving.engines.native import NativeEngine
from serving.errors import HostError
from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats, Tape
from serving.host.board import open_board
from serving.host.config import read_config
from serving.host.config_types import HostConfig
from serving.host.contracts import read_contracts
from serving.host.feed_process import FeedProcess
from serving.host.limits import read_limits
from serving.host.records import Records
from serving.host.reference.loop import ReferenceLoop
from serving.host.ring import RingReader, RingWriter

FEED_CORE, LOOP_CORE = 0, 1
RING_RECORDS = 1 << 19  # what leaves in a session has room
READER = "bench"
ENTRY = "from serving.cli import entry; entry()"  # strikeforge-host of this checkout
LONGEST_S = 600
PATIENCE_NS = 20_000_000_000  # for the feed's first record, and between two


@dataclass(frozen=True)
class Session:
    """`board`: everything that serving/host/board.py reads, `hops` among it."""

    orders: Records
    fills: Records
    signals: Records
    board: dict[str, Any]
    said: str


@dataclass(frozen=True)
class Bench:
    """A host made of a tape."""

    host: HostFiles
    config: HostConfig  # with rings that hold all that leaves
    tape: Tape
    precision: str


def prepare(folder: Path, directory: Path, layout: str, files: list[Path], pace: str, precision: str) -> Bench:
    """Bundle, release, chain, limits, configuration; `pace` as TOML."""
    tape = read_tape(layout, files, Heartbeats(STEP_NS))
    named = ", ".join(f'"{file.absolute()}"' for file in files)
    feed = f'kind = "replay"\nlayout = "{layout}"\nfiles = [{named}]\npace = {pace}\ncore = {FEED_CORE}'
    host = make_host(folder, tape.records, precision, feed=feed, directory=directory)
    with host.config.open("a", encoding="utf-8") as file:
        file.write(f"core = {LOOP_CORE}\nhousekeeping_cores = [{FEED_CORE}]\n")
    roomy = host.config.with_name("roomy.toml")
    roomy.write_text(f"{host.config.read_text(encoding='utf-8')}ring_records = {RING_RECORDS}\n", encoding="utf-8")
    return Bench(host, read_config(roomy), tape, precision)


def run(bench: Bench) -> Session:
    """One session from an empty directory, which is removed afterwards."""
    config = bench.config
    shutil.rmtree(config.directory, ignore_errors=True)
    config.directory.mkdir(mode=0o700, parents=True)
    rings = (config.order_ring, config.fill_ring, config.signal_ring)
    try:
        for ring in rings:
            RingWriter(ring, RING_RECORDS).close()
            RingReader(ring, READER).close()  # its place: the first record
        said = _host(config.file)
        board = open_board(config.board).read()
        if board["lost"] or board["gaps"]:
            raise HostError(f"the loop lost {board['lost']} records, {board['gaps']} gaps: {said}")
        orders, fills, signals = (_all_of(ring) for ring in rings)
        return Session(orders, fills, signals, board, said)
    finally:
        shutil.rmtree(config.directory, ignore_errors=True)


def fed_idly(bench: Bench, session: Session, core: int) -> NDArray[np.int64]:
    """Nanoseconds [events] from each scheduled arrival to the end of arithmetic as long as our median, in a loop that
    does nothing else, on `core`: the same feed, tape, pace and ring as a session's, without the hot loop."""
    config, hops = bench.config, session.board["hops"]
    busy_ns = int(hops["tick_to_order"].percentile_ns(50.0) - hops["queue"].percentile_ns(50.0))
    shutil.rmtree(config.directory, ignore_errors=True)
    config.directory.mkdir(mode=0o700, parents=True)
    try:
        RingWriter(config.tick_ring, config.loop.ring_records, lossless=config.feed.lossless).close()
        ticks: Any = native.core().RingReader(str(config.tick_ring), "", config.feed.lossless)
        feed = FeedProcess(config, STEP_NS)
        try:
            with pinned(core):
                taken: NDArray[np.int64] = ticks.read_idly(int(session.board["events"]), busy_ns, PATIENCE_NS)
        finally:
            feed.stop()
        return taken
    finally:
        shutil.rmtree(config.directory, ignore_errors=True)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """The calling thread on that core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def resident_mb(bench: Bench) -> float:
    """Most memory (MB) that the process held in a session with rings as they are by default."""
    try:
        said = _host(bench.host.config)
    finally:
        shutil.rmtree(bench.config.directory, ignore_errors=True)
    line = next(line for line in said.splitlines() if line.startswith("memory"))
    return float(line.split()[1])


def _host(config: Path) -> str:
    command = [sys.executable, "-c", ENTRY, "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    if done.returncode:
        raise HostError(f"strikeforge-host run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _all_of(ring: Path) -> Records:
    with RingReader(ring, READER) as reader:
        records = reader.read(reader.behind)
        if reader.lost:
            raise HostError(f"{ring}: {reader.lost} records didn't fit: give the rings more than {RING_RECORDS}")
        return records


def reference(bench: Bench, engine: NativeEngine, *, without: tuple[str, ...] = ()) -> ReferenceLoop:
    """The slow reference of the same host."""
    config = bench.config
    limits = read_limits(config.risk.limits, config.risk.public_key)
    chain = read_contracts(config.chain.file, config.chain.reference_price, quoted=config.chain.quoted)
    return ReferenceLoop(engine, bench.host.spec, chain, limits, config.strategy, without=without)
