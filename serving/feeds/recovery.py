"""Recovery: a server that keeps the last records of a stream and sends again what somebody missed; and who asks it.

Over TCP, one question a connection: 32 bytes there, 32 bytes back, then the records, little-endian (docs/feeds.md).
What the server no longer has, or never had, it doesn't send: of what was asked, the answer holds one run of numbers,
maybe none.
Invariants: the server keeps at most `capacity` records and serves at most `MOST_CLIENTS` at once, each for at most
`PATIENCE_S`; neither side believes a length before it was checked; a wrong answer is a HostError.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass

import numpy as np

from serving.errors import HostError
from serving.host.records import RECORD, Records

MESSAGE = struct.Struct("<4sB3xQQQ")  # magic, version, session, first, count
ASK, ANSWER, VERSION = b"SFRQ", b"SFRA", 1
MOST_CLIENTS = 16
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Missing:
    """Numbers `first` ... `first + count - 1` of a session."""

    session: int
    first: int
    count: int


class Kept:
    """The last `capacity` records of one session, by number."""

    def __init__(self, session: int, capacity: int) -> None:
        self.session = session
        self._records = np.zeros(capacity, RECORD)
        self._end = 0  # number of the next record; 0: none yet
        self._held = 0
        self._lock = threading.Lock()

    def add(self, first: int, records: Records) -> None:
        """Keep records that follow on from the last ones."""
        with self._lock:
            if self._held and first != self._end:
                raise ValueError(f"records from {first} on don't follow {self._end - 1}")
            capacity = len(self._records)
            at = (first + np.arange(len(records)))[-capacity:]
            self._records[at % capacity] = records[-capacity:]
            self._end = first + len(records)
            self._held = min(capacity, self._held + len(records))

    def get(self, missing: Missing) -> tuple[int, Records]:
        """Of what is missing, the run that is here: the first number and the records."""
        with self._lock:
            first = max(missing.first, self._end - self._held)
            stop = min(missing.first + missing.count, self._end)
            if missing.session != self.session or stop <= first:
                return missing.first, self._records[:0].copy()
            return first, self._records[np.arange(first, stop) % len(self._records)]


class RecoveryServer:
    """Answers until closed; `port` 0 takes a free one."""

    def __init__(self, kept: Kept, host: str = "127.0.0.1", port: int = 0) -> None:
        self.kept = kept
        self.answered = self.refused = 0
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise HostError(f"recovery server {host}:{port}: can't listen: {error.strerror or error}") from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._slots = threading.BoundedSemaphore(MOST_CLIENTS)
        self._thread = threading.Thread(target=self._accept, name="recovery", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):  # wakes the thread that waits in accept; it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                self.refused += 1
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="recovery client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(PATIENCE_S)
                missing = _parsed(_exactly(client, MESSAGE.size), ASK)
                first, records = self.kept.get(missing)
                client.sendall(MESSAGE.pack(ANSWER, VERSION, missing.session, first, len(records)) + records.tobytes())
                self.answered += 1
        except (HostError, OSError):
            self.refused += 1  # not a question, or its asker went away
        finally:
            self._slots.release()


def ask(address: tuple[str, int], missing: Missing, timeout_s: float) -> tuple[int, Records]:
    """What a server has of what is missing: the first number and the records. HostError without a proper answer."""
    try:
        with socket.create_connection(address, timeout_s) as server:
            server.settimeout(timeout_s)
            server.sendall(MESSAGE.pack(ASK, VERSION, missing.session, missing.first, missing.count))
            found = _parsed(_exactly(server, MESSAGE.size), ANSWER)
            inside = missing.first <= found.first and found.first + found.count <= missing.first + missing.count
            if found.session != missing.session or not inside:
                raise HostError(f"recovery server {address[0]}:{address[1]}: answered {found}, asked for {missing}")
            data = _exactly(server, found.count * RECORD.itemsize)
    except OSError as error:
        raise HostError(f"recovery server {address[0]}:{address[1]}: {error}") from error
    return found.first, np.frombuffer(data, np.uint8).view(RECORD)


def _parsed(message: bytes | bytearray, magic: bytes) -> Missing:
    found, version, session, first, count = MESSAGE.unpack(message)
    if found != magic or version != VERSION:
        raise HostError(f"recovery: found {found!r} version {version}, expected {magic!r} version {VERSION}")
    return Missing(session, first, count)


def _exactly(peer: socket.socket, count: int) -> bytearray:
    """`count` bytes, asked for in pieces: memory grows with what came, not with what was promised."""
    data = bytearray()
    while len(data) < count:
        part = peer.recv(min(count - len(data), 1 << 16))
        if not part:
            raise HostError(f"recovery: the connection ended after {len(data)} of {count} bytes")
        data += part
    return data
