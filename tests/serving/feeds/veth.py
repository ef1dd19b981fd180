"""Two hosts on one machine: network namespaces joined by two veth pairs, one for each line.

`python -m tests.serving.feeds.veth OUT` is the receiving host: it prints "ready", receives to the session's end and
writes what its ring's reader got.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serving.feeds.multicast import Arbitration, Line, MulticastFeed
from serving.host.ring import RingReader, RingWriter

GROUPS = ("239.83.70.1", "239.83.70.2")
PORT = 31415
SENDER_ADDRESS = "10.83.70.1"


@dataclass(frozen=True)
class Network:
    """Names of the namespaces and of each side's interfaces."""

    sender: str
    receiver: str
    sends: tuple[str, str]
    receives: tuple[str, str]

    def inside(self, namespace: str, *command: str) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", namespace, *command]


def why_impossible() -> str | None:
    """Why there can't be such a network here, or None."""
    if shutil.which("ip") is None:
        return "`ip` isn't here (Debian: iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sf-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        return None
    return f"no network namespace can be made: {tried.stderr.strip()}"


@contextmanager
def network() -> Iterator[Network]:
    """Two namespaces, two veth pairs; the first has addresses, for recovery."""
    reason = why_impossible()
    if reason is not None:
        pytest.skip(reason)
    mark = secrets.token_hex(3)
    made = Network(f"sfs-{mark}", f"sfr-{mark}", (f"sa{mark}", f"sb{mark}"), (f"ra{mark}", f"rb{mark}"))
    try:
        for name in (made.sender, made.receiver):
            _run("ip", "netns", "add", name)
            _run(*made.inside(name, "ip", "link", "set", "lo", "up"))
        for side, (here, there) in enumerate(zip(made.sends, made.receives, strict=True)):
            _run("ip", "link", "add", "name", here, "netns", made.sender, "type", "veth", "peer", "name", there,
                 "netns", made.receiver)  # fmt: skip
            for name, interface, last in ((made.sender, here, 1), (made.receiver, there, 2)):
                address = f"10.83.{70 + side}.{last}/24"
                _run(*made.inside(name, "ip", "address", "add", address, "dev", interface))
                _run(*made.inside(name, "ip", "link", "set", interface, "up"))
        yield made
    finally:
        for name in (made.sender, made.receiver):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no veth network can be made here: {' '.join(command)}: {done.stderr.strip()}")


def main() -> None:
    """Receive to the end."""
    told = json.loads(sys.argv[1])
    lines = [Line(group, PORT, name) for group, name in zip(GROUPS, told["interfaces"], strict=True)]
    recovery = (SENDER_ADDRESS, told["recovery"]) if told["recovery"] else None
    feed = MulticastFeed(
        lines, recovery=recovery, packet_ring=told["packet"], until_end=True,
        arbitration=Arbitration(recovery_ns=2_000_000_000, session=told["session"], first=1),
    )  # fmt: skip
    ring_file = Path(told["ring"])
    with RingWriter(ring_file, 1 << 16, lossless=True) as ring, RingReader(ring_file, lossless=True) as reader:
        summary = []
        worker = threading.Thread(target=lambda: summary.append(feed.run(ring)))
        worker.start()
        print("ready", flush=True)  # noqa: T201
        got = []
        while worker.is_alive() or reader.behind:
            got.append(reader.read())
            if not len(got[-1]):
                reader.wait(10_000)
        worker.join()
        Path(told["out"]).write_bytes(np.concatenate(got).tobytes())
        print(json.dumps(summary[0].counts | {"records": summary[0].records}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
