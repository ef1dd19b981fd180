"""What a configuration asks of this machine and of its directory, looked at before the release is opened.

In: the configuration. Out: nothing, or one HostError with everything that can't be had: cores this process may not run
on, interfaces that aren't there, rings that a former run left and that can't be taken over (cut short, of another
capacity). Invariant: nothing is changed; whoever uses these later still says so himself, since they may go meanwhile.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from serving.errors import HostError
from serving.host.config_types import HostConfig
from serving.host.ring import RingReader


def refuse_what_cannot_be(config: HostConfig) -> None:
    """HostError with all of it."""
    problems = [*_cores(config), *_interfaces(config), *_rings(config)]
    if problems:
        raise HostError("\n".join(problems))


def _cores(config: HostConfig) -> Iterator[str]:
    asked = {"[loop] core": config.loop.core, "[feed] core": config.feed.core}
    wanted = {key: {core} for key, core in asked.items() if core is not None}
    if config.loop.housekeeping_cores:
        wanted["[loop] housekeeping_cores"] = set(config.loop.housekeeping_cores)
    before = os.sched_getaffinity(0)
    for key, cores in wanted.items():
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            named, there = (", ".join(map(str, sorted(one))) for one in (cores, before))
            yield f"{key} {named}: {error.strerror}; this process may use the cores {there}"
        finally:
            os.sched_setaffinity(0, before)


def _interfaces(config: HostConfig) -> Iterator[str]:
    for name in (config.feed.interface or "").split(","):
        try:
            if name.strip():
                socket.if_nametoindex(name.strip())
        except (OSError, ValueError):
            there = ", ".join(known for _, known in socket.if_nameindex())
            yield f"[feed] interface {name.strip()!r}: there is no such interface; there are {there}"


def _rings(config: HostConfig) -> Iterator[str]:
    ours = [config.order_ring, config.fill_ring, config.signal_ring]
    for path in (config.tick_ring, *ours):
        if not os.path.lexists(path):
            continue
        try:
            with RingReader(path) as ring:
                found = ring.capacity
        except HostError as error:
            yield str(error)
            continue
        expected = config.loop.ring_records
        if found != expected and (path in ours or config.feed.kind != "external"):
            yield (
                f"ring '{path}': found a capacity of {found}, expected {expected} ([loop] ring_records): say "
                f"{found} there, or remove the file when nobody uses it"
            )
