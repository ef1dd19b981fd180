"""HTTP/1.1 messages as they are on the wire: read whole from a socket, told apart, and kept byte for byte.

Data in: a buffered reader of a connection. Data out: `Message`. ClosedError where a peer closed before the end.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class ClosedError(Exception):
    """A peer closed its connection before a message was complete."""


@dataclass(frozen=True)
class Message:
    """A request or an answer as it came: `head` ends with the empty line, `body` keeps its chunks' framing."""

    head: bytes
    body: bytes

    @property
    def first_line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")

    def header(self, name: str) -> str:
        """The value, in lower case; empty if there is none."""
        found = re.search(rb"\r\n" + name.encode() + rb":[ \t]*([^\r\n]*)", self.head, re.IGNORECASE)
        return found.group(1).decode("latin-1").strip().lower() if found else ""

    def whole(self) -> bytes:
        return self.head + self.body


def read_request(reader: Any, client: socket.socket) -> Message | None:
    """The next request of a connection, None at its end; says 100 to a client that waits for it."""
    head = _read_head(reader)
    if not head:
        return None
    request = Message(head, b"")
    if request.header("expect") == "100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Message(head, b"".join(_framed(reader, request)))


def read_answer(reader: Any, method: str) -> Message:
    """The final answer; interim ones (1xx) are dropped."""
    while True:
        head = _read_head(reader)
        if not head:
            raise ClosedError("the server closed without an answer")
        answer = Message(head, b"")
        status = int(answer.first_line.split(" ")[1])
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return answer
    if not answer.header("content-length") and not answer.header("transfer-encoding"):
        return Message(head, reader.read())
    return Message(head, b"".join(_framed(reader, answer)))


def _read_head(reader: Any) -> bytes:
    lines: list[bytes] = []
    while line := reader.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    if lines:
        raise ClosedError("the head ended early")
    return b""


def _framed(reader: Any, message: Message) -> Iterator[bytes]:
    """The body as it is on the wire: by its length, or its chunks with their sizes."""
    if "chunked" in message.header("transfer-encoding"):
        size = -1
        while size != 0:
            line = reader.readline()
            size = int(line.partition(b";")[0], 16)
            yield line
            yield _exactly(reader, size + 2) if size else _trailer(reader)
        return
    yield _exactly(reader, int(message.header("content-length") or 0))


def _trailer(reader: Any) -> bytes:
    lines = []
    while line := reader.readline():
        lines.append(line)
        if line == b"\r\n":
            break
    return b"".join(lines)


def _exactly(reader: Any, count: int) -> bytes:
    data: bytes = reader.read(count)
    if len(data) != count:
        raise ClosedError(f"{len(data)} bytes of {count}")
    return data


def flipped(body: bytes) -> bytes:
    changed = bytearray(body)
    if changed:
        changed[len(changed) // 2] ^= 1
    return bytes(changed)


def plain_answer(status: int, body: bytes, headers: tuple[str, ...]) -> bytes:
    lines = [f"HTTP/1.1 {status} Planted", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
