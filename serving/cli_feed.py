"""`strikeforge-host feed`: market data into a host's tick ring, or a replay onto multicast lines for other hosts.

Data in: the [feed] section of the host's configuration (serving/host/config.py), files or lines. Data out: records in
the tick ring (with --publish: frames on lines), and at the end a summary on stdout: records by kind, rows quarantined
by reason, gaps, recovered, lost, duplicates.
Invariants: it ends with the data, or at SIGTERM or SIGINT with what was written told; a replay has heartbeats.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from serving.errors import ConfigError, HostError
from serving.feeds.feed import Feed, FeedSummary
from serving.feeds.layouts import read_tape
from serving.feeds.multicast import Line, MulticastFeed
from serving.feeds.publisher import Publisher, Republisher
from serving.feeds.recovery import RecoveryServer
from serving.feeds.replay import Pace, ReplayFeed
from serving.feeds.tape import Heartbeats, Tape
from serving.host.ring import RingWriter

if TYPE_CHECKING:
    from serving.host.config_types import HostConfig


def add_feed_options(feed: argparse.ArgumentParser) -> None:
    """Options of the command."""
    feed.add_argument("--config", type=Path, required=True, metavar="FILE", help="the host's configuration (TOML)")
    feed.add_argument(
        "--heartbeat-ns", type=int, metavar="NS", help="the market step of the bundle; instead of [feed] heartbeat_ns"
    )
    feed.add_argument(
        "--publish", action="append", default=[], metavar="GROUP:PORT[@INTERFACE]",
        help="send the replay on this multicast line instead of into the ring; twice for two lines",
    )  # fmt: skip
    feed.add_argument("--serve-recovery", metavar="ADDRESS:PORT", help="with --publish: answer who missed something")


def run_feed(arguments: argparse.Namespace) -> int:
    """Run the feed that the configuration names."""
    from serving.host.config import read_config

    config = read_config(arguments.config)
    if config.feed.kind == "external":
        raise ConfigError(["[feed] kind: 'external' is fed by somebody else: there is nothing to run"])
    if (arguments.publish or arguments.serve_recovery) and config.feed.kind != "replay":
        raise ConfigError([f"[feed] kind: {config.feed.kind!r} can't be published: --publish replays files"])
    if arguments.serve_recovery and not arguments.publish:
        raise ConfigError(["--serve-recovery: needs --publish: it sends again what was published"])
    summary = _publish(config, arguments) if arguments.publish else _into_ring(config, arguments.heartbeat_ns)
    sys.stdout.write("\n".join(["feed: ended", *summary.lines()]) + "\n")
    return 0


def open_feed(config: HostConfig, heartbeat_ns: int | None = None) -> Feed:
    """The feed that a configuration names; `heartbeat_ns` comes before its own."""
    feed = config.feed
    busy = config.loop.poll == "busy"
    if feed.kind == "replay":
        return ReplayFeed(_tape(config, heartbeat_ns), Pace(feed.pace.kind, feed.pace.value), busy=busy)
    interfaces = (feed.interface or "").split(",")
    if len(interfaces) == 1:
        interfaces *= len(feed.lines)
    lines = [Line(line.host, line.port, name.strip()) for line, name in zip(feed.lines, interfaces, strict=True)]
    recovery = (feed.recovery.host, feed.recovery.port) if feed.recovery else None
    return MulticastFeed(lines, recovery=recovery, packet_ring=feed.kind == "packet", busy=busy)


def _tape(config: HostConfig, heartbeat_ns: int | None) -> Tape:
    feed = config.feed
    step_ns = feed.heartbeat_ns if heartbeat_ns is None else heartbeat_ns
    if step_ns is None:
        raise ConfigError(["[feed] heartbeat_ns: missing: a replay needs the market step, here or as --heartbeat-ns"])
    return read_tape(feed.layout or "", feed.files, Heartbeats(step_ns))


def _into_ring(config: HostConfig, heartbeat_ns: int | None) -> FeedSummary:
    feed = open_feed(config, heartbeat_ns)
    config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RingWriter(config.tick_ring, config.loop.ring_records, lossless=config.feed.lossless) as ring:
        return _until_stopped(lambda: feed.run(ring), feed.stop)


def _publish(config: HostConfig, arguments: argparse.Namespace) -> FeedSummary:
    tape = _tape(config, arguments.heartbeat_ns)
    with contextlib.ExitStack() as stack:
        publisher = stack.enter_context(Publisher([_line(text) for text in arguments.publish]))
        if arguments.serve_recovery:
            host, port = _address("--serve-recovery", arguments.serve_recovery)
            stack.callback(RecoveryServer(publisher.kept, host, port).close)
        pace = Pace(config.feed.pace.kind, config.feed.pace.value)
        republisher = Republisher(tape, pace, publisher)
        return _until_stopped(republisher.run, republisher.stop)


def _line(text: str) -> Line:
    address, _, interface = text.partition("@")
    group, port = _address("--publish", address)
    try:
        multicast = ipaddress.IPv4Address(group).is_multicast
    except ValueError:
        multicast = False
    if not multicast:
        raise ConfigError([f"--publish: {group!r} is no multicast address of IPv4 (224.0.0.0 to 239.255.255.255)"])
    return Line(group, port, interface)


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError([f"{option}: found {text!r}, expected an address and a port from 1 to 65535"])
    return host, int(port)


def _until_stopped(run: Callable[[], FeedSummary], stop: Callable[[], None]) -> FeedSummary:
    """`run` in a thread of its own, so that signals are dealt with while native code works."""
    done: list[FeedSummary] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(run())
        except Exception as error:  # noqa: BLE001 (it is raised again below, in the caller's thread)
            failed.append(error)

    worker = threading.Thread(target=work, name="feed")
    with _on_signals(stop):
        worker.start()
        worker.join()
    if failed:
        raise failed[0]
    if not done:
        raise HostError("the feed's thread ended without a summary")
    return done[0]


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, former in before.items():
        if former is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
