"""A run and its feed's process: a replay's orders, a feed that dies, a run that is killed, a release that expires."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.serving.native.built import built_core

built_core()

from serving.cli_run import loop_of  # noqa: E402
from serving.events import TIME_FORMAT  # noqa: E402
from serving.feeds.layouts import read_tape  # noqa: E402
from serving.feeds.tape import Heartbeats  # noqa: E402
from serving.host.assembly import assembled  # noqa: E402
from serving.host.config import read_config  # noqa: E402
from serving.host.config_types import FixedWidth  # noqa: E402
from serving.host.directory import owned  # noqa: E402
from serving.host.host_log import HostLog  # noqa: E402
from serving.host.loop import ControlCode, HotLoop  # noqa: E402
from serving.host.records import ORDER, SIGNAL, Kind, Records  # noqa: E402
from serving.host.ring import RingReader, RingWriter  # noqa: E402
from serving.host.supervisor import Supervisor  # noqa: E402
from tests.serving.host.run_host import RunHost, ended, tick_files, ticks  # noqa: E402

pytestmark = pytest.mark.slow


SMALL_RING = 256  # a writer that doesn't wait for its readers overtakes them


def test_a_replay_gives_the_orders_of_the_same_records_offline(host: RunHost) -> None:
    """The feed of the run in its own process, full pace, orders read by this one: the bytes that `process` gives."""
    host.configure()
    files = tick_files(host.folder, ticks(3000))
    host.configure(
        feed={"kind": "replay", "layout": "binance_l2", "files": files, "pace": "full"},
        loop={"fair_values_every_ns": 10**9, "ring_records": SMALL_RING},
    )
    config = read_config(host.config)
    host.directory.mkdir(mode=0o700, parents=True)
    for path in (config.order_ring, config.signal_ring):
        RingWriter(path, SMALL_RING, lossless=True).close()  # so that the readers are there before the replay begins
    rings = [RingReader(path, lossless=True) for path in (config.order_ring, config.signal_ring)]
    came: list[list[Records]] = [[], []]
    process = host.start()
    while process.poll() is None:
        for ring, records in zip(rings, came, strict=True):
            ring.wait(1000)
            records.append(ring.read())
    for ring, records in zip(rings, came, strict=True):
        records.append(ring.read())
        assert ring.lost == 0
    code, out, err = ended(process)
    assert code == 0, err
    assert "the replay ended" in out
    assert host.status().counters["lost"] == 0
    orders, signals = (np.concatenate(records) for records in came)
    with ExitStack() as stack:
        parts = assembled(config, stack)
        strategy = config.strategy
        quoter = FixedWidth(strategy.half_width_money, strategy.quantity, strategy.requote_money)
        loop = HotLoop(
            parts.engine, parts.spec, parts.contracts, parts.limits, quoter, fair_values_every_ns=10**9
        )  # fmt: skip
        tape = read_tape("binance_l2", config.feed.files, Heartbeats(parts.spec.step_ns))
        left = loop.process(tape.records)
        loop.ask(ControlCode.CANCEL_ALL)
        left = np.concatenate([left, loop.process(tape.records[:0])])
    for kind, came_live, shape in ((Kind.ORDER, orders, ORDER), (Kind.SIGNAL, signals, SIGNAL)):
        live, offline = came_live.view(shape), left[left["kind"] == kind].view(shape)
        assert len(live) == len(offline) > 50
        for name in set(shape.names or ()) - {"arrival_ns", "sent_ns"}:
            if kind == Kind.SIGNAL and name == "sequence":
                continue
            assert np.array_equal(live[name], offline[name], equal_nan=live[name].dtype.kind == "f"), (kind, name)
    assert host.status().counters["allocations"] == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_feed_that_ends_early_ends_the_run_and_one_that_is_killed_is_an_error(
    host: RunHost, end: signal.Signals
) -> None:
    process = replaying(host)
    os.kill(feed_of(process.pid), end)
    code, out, err = ended(process)
    if end == signal.SIGKILL:
        assert code == 14
        assert "ended after " in out
        assert ": the feed ended; state active" in out
        assert "error: the feed was killed by SIGKILL; the loop was stopped, what worked was cancelled" in err
    else:
        assert code == 0, err
        assert ": the replay ended; state active" in out
    assert host.status().counters["cancels"] > 0
    assert all(one.bid == one.ask == 0 for one in host.status().quoted)


def test_a_run_that_is_stopped_ends_its_feed_first(host: RunHost) -> None:
    process = replaying(host)
    feed = feed_of(process.pid)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0, err
    assert err.index("feed: ended") < err.index(" ended: why a signal asked for it")
    assert not Path(f"/proc/{feed}").exists()


def test_a_run_that_is_killed_takes_its_feed_along(host: RunHost) -> None:
    process = replaying(host)
    feed = feed_of(process.pid)
    process.kill()
    process.wait()
    host.until(lambda: not Path(f"/proc/{feed}").exists() or Path(f"/proc/{feed}/stat").read_text().split()[2] == "Z")
    again = host.running()
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 0
    assert not feeds_of(again.pid)


def test_a_feed_that_cannot_begin_ends_the_run(host: RunHost) -> None:
    host.configure(feed={"kind": "replay", "layout": "binance_l2", "files": ["absent.parquet"]})
    code, _, err = ended(host.start())
    assert code == 14
    assert "absent.parquet" in err
    assert "error: the feed ended with exit code 3" in err


def test_a_release_that_expires_meanwhile_stops_new_orders(host: RunHost) -> None:
    """The supervisor around a real loop of this process."""
    host.configure()
    config = read_config(host.config)
    with ExitStack() as stack:
        stack.enter_context(owned(config))
        parts = assembled(config, stack)
        loop, reader = loop_of(config, parts)
        log = stack.enter_context(HostLog(config.log))
        soon = datetime.now(UTC) + timedelta(seconds=2)
        supervisor = Supervisor(config, loop, log, soon.strftime(TIME_FORMAT))
        supervisor.start()
        watching = threading.Thread(target=supervisor.watch, args=(None, stack.enter_context(reader)))
        watching.start()
        try:
            host.tick(ticks(100))
            if not host.status().model_expired:
                assert host.status().refused_by["model_guard"] == 0
            host.until(lambda: host.status().model_expired)
            host.tick(ticks(200, first=100))
            assert host.status().refused_by["model_guard"] > 0
        finally:
            supervisor.close()
            watching.join()
    assert sum("expired" in line["event"] for line in host.log()) == 1


def replaying(host: RunHost) -> subprocess.Popen[str]:
    """A run whose feed has written something and isn't done for a minute."""
    host.configure()
    files = tick_files(host.folder, ticks(6000))
    host.configure(feed={"kind": "replay", "layout": "binance_l2", "files": files, "pace": "original"})
    process = host.running()
    host.until(lambda: host.status().counters["orders"] > 0, process)
    return process


def feeds_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def feed_of(pid: int) -> int:
    (feed,) = feeds_of(pid)
    return feed
