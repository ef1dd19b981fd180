"""Reception over a real network: two namespaces, a veth pair for each line, losses chosen by the sender.

The sender's own numbers say what must come out: what one line lost, the other brings; what both lost, recovery brings,
or, where the server no longer has it, is lost and told. The packet ring gives what the sockets give.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.errors import HostError
from serving.feeds.frames import frame
from serving.feeds.multicast import Line, MulticastFeed
from serving.host.records import QUOTE, RECORD, Kind, Records
from tests.serving.feeds.veth import GROUPS, PORT, SENDER_ADDRESS, Network, network

SESSION = 1_700_000_000_000_000_000
PER_FRAME = 10
FRAMES = 400
COUNT = PER_FRAME * FRAMES
HOSTILE_TIMES = 8  # COUNT / 500
ROOT = Path(__file__).parents[3]

SENDER = """
import json, sys, time
import numpy as np
from serving.feeds.frames import frame
from serving.feeds.multicast import Line
from serving.feeds.publisher import Publisher
from serving.feeds.recovery import RecoveryServer
from serving.host.records import RECORD
told = json.loads(sys.argv[1])
records = np.frombuffer(open(told["records"], "rb").read(), np.uint8).view(RECORD)
lines = [Line(group, told["port"], name) for group, name in zip(told["groups"], told["interfaces"])]
publisher = Publisher(lines, session=told["session"], kept_records=told["kept"])
server = RecoveryServer(publisher.kept, told["address"])
print(server.address[1], flush=True)
sys.stdin.readline()
dropped = [set(one) for one in told["dropped"]]
for at in range(0, len(records), told["per_frame"]):
    part = records[at : at + told["per_frame"]]
    first = publisher.number(part)
    for line in (0, 1):
        if at // told["per_frame"] not in dropped[line]:
            publisher.send_frame(line, frame(publisher.session, line, first, part))
    for hostile in told["hostile"] if at % 500 == 0 else []:
        publisher.send_frame(0, bytes.fromhex(hostile))
    if at % 200 == 0:
        time.sleep(0.001)
sys.stdin.readline()
"""
ENDS = """
while True:
    publisher.alive(ends=True)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def veth() -> Iterator[Network]:
    with network() as made:
        yield made


def records() -> Records:
    made = np.zeros(COUNT, QUOTE)
    made["kind"], made["bid"], made["event_ns"] = Kind.QUOTE, np.arange(1, COUNT + 1), SESSION + np.arange(COUNT)
    made["sequence"] = np.arange(1, COUNT + 1)
    return made.view(RECORD)


def received(
    veth: Network, folder: Path, *, packet: bool, dropped: tuple[set[int], set[int]], kept: int = COUNT,
    recovery: bool = True, hostile: tuple[bytes, ...] = (),
) -> tuple[Records, dict[str, int]]:  # fmt: skip
    """Send all records without the dropped frames; what the other host's ring had, and its counts."""
    (folder / "records").write_bytes(records().tobytes())
    told = {
        "records": str(folder / "records"), "groups": GROUPS, "port": PORT, "interfaces": veth.sends,
        "session": SESSION, "kept": kept, "address": SENDER_ADDRESS, "dropped": [sorted(one) for one in dropped],
        "per_frame": PER_FRAME, "hostile": [one.hex() for one in hostile],
    }  # fmt: skip
    code = SENDER + ENDS
    command = veth.inside(veth.sender, sys.executable, "-c", code, json.dumps(told))
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **pipes) as sender:
        try:
            assert sender.stdin is not None
            assert sender.stdout is not None
            port = int(sender.stdout.readline())
            listen = {
                "interfaces": veth.receives, "recovery": port if recovery else 0, "packet": packet,
                "session": SESSION, "ring": str(folder / "ring"), "out": str(folder / "got"),
            }  # fmt: skip
            module = [sys.executable, "-m", "tests.serving.feeds.veth", json.dumps(listen)]
            with subprocess.Popen(veth.inside(veth.receiver, *module), **pipes) as receiver:
                try:
                    assert receiver.stdout is not None
                    assert receiver.stdout.readline() == "ready\n"
                    sender.stdin.write("\n\n")
                    sender.stdin.flush()
                    said, _ = receiver.communicate(timeout=60)
                finally:
                    receiver.kill()
        finally:
            sender.kill()
    got = np.frombuffer((folder / "got").read_bytes(), np.uint8).view(RECORD)
    return got, json.loads(said)


def numbers_of(frames: set[int]) -> set[int]:
    return {one * PER_FRAME + at for one in frames for at in range(1, PER_FRAME + 1)}


A_ALONE, B_ALONE = set(range(3, FRAMES, 7)), set(range(5, FRAMES, 11))
BOTH = {0, 50, 51, 120, FRAMES - 1}  # the first, the last, two in a row
DROPPED = ((A_ALONE - B_ALONE) | BOTH, (B_ALONE - A_ALONE) | BOTH)


@pytest.mark.parametrize("packet", [False, True], ids=["sockets", "packet-ring"])
def test_both_lines_and_recovery_give_the_stream(veth: Network, tmp_path: Path, packet: bool) -> None:
    before_ns = time.monotonic_ns()
    orders = records()[:2].copy()
    orders["kind"] = Kind.ORDER
    future = records()[:2].copy()
    future["event_ns"] = time.time_ns() + 3600 * 10**9
    hostile = (
        b"", b"x", bytes(1472), bytes(24), b"SFED" + bytes(20), b"SFED\1\0\x19\0" + bytes(16),
        frame(SESSION, 0, 5, orders), frame(SESSION - 1, 0, 5), frame(SESSION, 0, 2**40),
        frame(SESSION, 0, 1, future),
    )  # fmt: skip
    got, counts = received(veth, tmp_path, packet=packet, dropped=DROPPED, hostile=hostile)
    sent = records().view(QUOTE)
    found = got.view(QUOTE)
    for field in ("event_ns", "sequence", "kind", "flags", "bid"):
        assert (found[field] == sent[field]).all()
    assert ((before_ns < found["arrival_ns"]) & (found["arrival_ns"] < time.monotonic_ns())).all()
    assert counts["records"] == COUNT
    assert counts["lost"] == counts["late"] == counts["unstamped"] == counts["kernel_dropped"] == 0
    assert counts["recovered"] == len(numbers_of(BOTH))
    assert counts["too_short"] == 2 * HOSTILE_TIMES
    framed = ("too_long", "wrong_magic", "wrong_version", "wrong_length", "wrong_kind")
    for problem in (*framed, "old_session", "jumped", "future_event"):
        assert counts[problem] == HOSTILE_TIMES
    assert counts["sessions"] == 1
    twice = set(range(FRAMES)) - DROPPED[0] - DROPPED[1]
    assert counts["duplicates"] == len(numbers_of(twice))


@pytest.mark.parametrize("packet", [False, True], ids=["sockets", "packet-ring"])
def test_what_nobody_has_is_lost_and_told(veth: Network, tmp_path: Path, packet: bool) -> None:
    got, counts = received(veth, tmp_path, packet=packet, dropped=DROPPED, recovery=False)
    lost = numbers_of(BOTH)
    expected = [number for number in range(1, COUNT + 1) if number not in lost]
    assert got["sequence"].tolist() == expected
    assert got.view(QUOTE)["bid"].tolist() == expected
    assert (counts["lost"], counts["gap_records"], counts["gaps"]) == (len(lost), len(lost), 4)
    assert counts["recovered"] == 0


def test_a_server_that_kept_too_little_recovers_what_it_has(veth: Network, tmp_path: Path) -> None:
    """It keeps 5 records: of the last frame, which both lines lost, half is there when the end tells of it."""
    dropped = ({FRAMES - 1}, {FRAMES - 1})
    got, counts = received(veth, tmp_path, packet=False, dropped=dropped, kept=5)
    assert got["sequence"].tolist() == [*range(1, COUNT - 9), *range(COUNT - 4, COUNT + 1)]
    assert (counts["gaps"], counts["recovered"], counts["lost"]) == (1, 5, 5)


def test_lines_that_cannot_be_are_refused() -> None:
    for line, told in (
        (Line("10.0.0.1", PORT), "expected an IPv4 multicast group"),
        (Line("239.1.1.1", PORT, "none-such"), "there is no interface 'none-such'"),
        (Line("239.1.1.1", 0), "a port is a number from 1 to 65535"),
    ):
        with pytest.raises(HostError, match=told):
            MulticastFeed([line])
    with pytest.raises(HostError, match="has 0 lines"):
        MulticastFeed([])


def test_a_packet_ring_without_the_right_says_which(tmp_path: Path) -> None:
    """In a process that gave the capability away."""
    code = """
import ctypes, sys
from serving.errors import HostError
from serving.feeds.frames import frame
from serving.feeds.multicast import Line, MulticastFeed
NET_RAW = 13
ctypes.CDLL(None).prctl(24, NET_RAW, 0, 0, 0)  # out of the bounding set
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
assert libc.capset(header, data) == 0
try:
    MulticastFeed([Line("239.83.70.9", 31416, "lo")], packet_ring=True)
except HostError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    if "can't join" in done.stdout:
        pytest.skip("this machine's loopback takes no multicast group")
    assert "needs the capability CAP_NET_RAW" in done.stdout
    assert 'kind = "multicast"' in done.stdout
