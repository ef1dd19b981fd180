"""`strikeforge-host run`: the hot loop of a trading host, from a pulled release and a configuration.

Data in: the configuration (serving/host/config.py) and what it names. Data out: orders, fills and signals in rings, a
board for `top` and Prometheus, the log, a summary on stdout when it ends. Exit codes: 0 where it was stopped, or the
replay or the idle time ended; 14 where a ring, the feed or the limits failed; else those of serving/errors.py.
Invariants: nothing leaves before release, engine, contracts and limits were verified; one run to a directory; however
it ends, what still works is cancelled and the feed's process ended (a run that is killed can't cancel: the next one
says what was left).
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.errors import HostError
from serving.host.assembly import Parts, assembled
from serving.host.board import open_board
from serving.host.config import read_config
from serving.host.config_types import HostConfig
from serving.host.control import ControlServer
from serving.host.directory import owned
from serving.host.facts import HostFacts, read_facts, write_facts
from serving.host.feed_process import FeedProcess
from serving.host.host_log import HostLog
from serving.host.loop import HotLoop, Rings, Sweep
from serving.host.metrics import MetricsServer
from serving.host.placement import lock_memory, place_housekeeping
from serving.host.preflight import refuse_what_cannot_be
from serving.host.ring import RingReader, RingWriter
from serving.host.screen import Style, hop_table, refused_line
from serving.host.status import HostStatus, read_status, resident_bytes
from serving.host.supervisor import Ended, Supervisor
from serving.released import write_lines

PLAIN = Style(0, 0, False)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the host's configuration")


def run_host(arguments: argparse.Namespace) -> int:
    """Run until it ends; the summary."""
    config = read_config(arguments.config)
    with ExitStack() as stack:
        stack.enter_context(owned(config))
        log = stack.enter_context(HostLog(config.log))
        refuse_what_cannot_be(config)
        parts = assembled(config, stack)
        if config.loop.lock_memory:
            lock_memory()
        place_housekeeping(config.loop)
        _tell_what_was_left(config, log)
        loop, ticks = loop_of(config, parts)
        ended = _run(config, parts, loop, stack.enter_context(ticks), log)
        status = read_status(loop.board)
        log.say("ended", {"why": ended.error or ended.why, "profit": status.gauges["profit"]} | dict(status.counters))
    write_lines(_summary(ended, status))
    if ended.error is not None:
        raise HostError(ended.error)
    return 0


def _tell_what_was_left(config: HostConfig, log: HostLog) -> None:
    """Of a run that was killed: its orders may still work where they were sent; this one begins without positions."""
    if not config.board.exists():
        return
    try:
        status, facts = read_status(open_board(config.board)), read_facts(config.facts)
    except HostError as error:
        log.say("the board of the run before can't be read", {"error": str(error)})
        return
    if not status.running:
        return
    working = sum((one.bid > 0) + (one.ask > 0) for one in status.quoted)
    held = {name: one.position for name, one in zip(facts.contracts, status.quoted, strict=False) if one.position}
    log.say("the run before was killed", {"process": status.process, "orders_left_working": working, "positions": held})


def loop_of(config: HostConfig, parts: Parts) -> tuple[HotLoop, RingReader]:
    """The loop on its rings, and a reader of the tick ring that stands where the loop begins."""
    feed, settings = config.feed, config.loop
    if feed.kind != "external" or not config.tick_ring.exists():
        with RingWriter(config.tick_ring, settings.ring_records, lossless=feed.lossless):
            pass  # made, or taken over; the feed takes it over in turn
    rings = Rings(
        config.tick_ring, config.order_ring, config.fill_ring, config.signal_ring, settings.ring_records,
        lossless_in=feed.lossless, lossless_out=feed.lossless,
    )  # fmt: skip
    loop = HotLoop(
        parts.engine, parts.spec, parts.contracts, parts.limits, config.strategy, rings=rings, board=config.board,
        chain=config.chain_page, fair_values_every_ns=settings.fair_values_every_ns,
        sweep=Sweep(settings.sweep_contracts, settings.sweep_every_ns),
    )  # fmt: skip
    return loop, RingReader(config.tick_ring)


def _run(config: HostConfig, parts: Parts, loop: HotLoop, ticks: RingReader, log: HostLog) -> Ended:
    facts = _facts(config, parts)
    write_facts(config.facts, facts)
    supervisor = Supervisor(config, loop, log, parts.released.expires_at)
    with ExitStack() as running:
        running.enter_context(ControlServer(config.control_socket, supervisor.commands(), log))
        if config.metrics.port is not None:
            metrics = running.enter_context(MetricsServer(config.metrics, lambda: read_status(loop.board), facts))
            log.say("metrics", {"address": config.metrics.address, "port": metrics.port})
        supervisor.start()
        running.callback(supervisor.close)
        log.say("limits", _limits_in_force(config, parts))
        log.say("running", {"directory": str(config.directory), "release": parts.released.title(), "feed": facts.feed})
        feed = FeedProcess(config, parts.spec.step_ns) if config.feed.kind != "external" else None
        if feed is not None:
            running.callback(feed.stop)
        return supervisor.watch(feed, ticks)


def _limits_in_force(config: HostConfig, parts: Parts) -> dict[str, Any]:
    """What the log's later `old -> new` begin with."""
    risk = config.risk
    signed = "not signed" if risk.public_key is None else f"signed by {risk.public_key}"
    return {"file": str(risk.limits), "serial": parts.limits_serial, "signed": signed} | asdict(parts.limits)


def _facts(config: HostConfig, parts: Parts) -> HostFacts:
    released, info, feed = parts.released, parts.engine.info(), config.feed
    number = f"release {released.release}" if released.release is not None else "not released"
    what = {
        "replay": f"replay of {len(feed.files)} {feed.layout} file{'s' * (len(feed.files) != 1)}, {feed.pace} pace",
        "multicast": f"multicast {', '.join(map(str, feed.lines))}",
        "packet": f"packets of {feed.interface}, {', '.join(map(str, feed.lines))}",
        "external": "external feed",
    }
    strategy, model = "null" if config.strategy is None else "fixed_width", config.model
    return HostFacts(
        os.getpid(), str(config.file), model.model, model.channel, f"{number}, version {released.version}",
        released.bundle.sha256, model.precision, info.runtime, released.expires_at or "", parts.spec.step_ns,
        what[feed.kind], f"strategy {strategy}", config.loop.poll, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        parts.contracts.names[: parts.contracts.quoted], len(parts.contracts),
    )  # fmt: skip


def _summary(ended: Ended, status: HostStatus) -> list[str]:
    counters, gauges = status.counters, status.gauges
    seconds = max(status.alive_ns - status.started_ns, 0) / 1e9
    resident = resident_bytes(status.process)
    state = f"{status.state}{'' if status.why == 'none' else f' ({status.why})'}"
    return [
        f"ended after {seconds:.1f} s: {ended.why}; state {state}",
        f"records   {counters['records']:,}, events {counters['events']:,}, lost {counters['lost']:,}, "
        f"gaps {counters['gaps']:,}, steps {counters['advances']:,}",
        f"orders    {counters['orders']:,}, cancels {counters['cancels']:,}, fills {counters['fills']:,}, "
        f"refused {counters['refused']:,}",
        refused_line(status, PLAIN),
        f"profit    {gauges['profit']:+,.2f}, best {gauges['best_profit']:+,.2f}",
        *hop_table(status, None, PLAIN),
        f"memory    {resident[1] / 1e6:.1f} MB resident at most" if resident else "memory    unknown",
    ]
