"""A real HTTP proxy on a real socket that fails as networks and servers do, by rule.

It stands between a client and one server: the client is given `proxy.url` as its endpoint. Requests and answers are
read whole and passed on byte for byte, so that signatures stay valid; only the server's own address is replaced by the
proxy's in answers (in headers, and in JSON and XML), or clients would go around it. Every request has a connection to
the server of its own; to the client, connections are kept as HTTP/1.1 has it.

    with FaultyProxy("127.0.0.1", 5000) as proxy:
        proxy.add(Rule(lose_answer, method="PUT", path=r"/ledger/", times=2))
        ... proxy.seen ...

A fault is a function of an `Exchange`: it decides what is forwarded and what is answered. The hook
`on_request(method, path, phase)` is called in the connection's thread with phase "before" (the request is here, the
server knows nothing of it) and "after" (the server has answered, the client knows nothing of it), whatever the fault;
it may kill the client, or be another client itself.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.http_wire import ClosedError, Message, flipped, plain_answer, read_answer, read_request

HOST = "127.0.0.1"
SERVER_SECONDS = 60.0  # the longest the real server may take
READ_BYTES = 1 << 16

Hook = Callable[[str, str, str], None]


class Exchange:
    """One request in its connection; what a fault may do with it."""

    def __init__(self, client: socket.socket, request: Message, proxy: FaultyProxy) -> None:
        self.client = client
        self.request = request
        self.method, self.path = request.first_line.split(" ")[:2]
        self.proxy = proxy
        self.open = True  # whether the client's connection may be used for another request

    def forward(self, raw: bytes | None = None) -> Message:
        """The server's answer to the request, or to these bytes instead of it."""
        answer = self.proxy.ask(self.request.whole() if raw is None else raw, self.method)
        self.proxy.tell(self.method, self.path, "after")
        return answer

    def send(self, raw: bytes) -> None:
        self.client.sendall(raw)

    def relay(self, answer: Message) -> None:
        """Pass the answer on, and close where it says so."""
        self.send(answer.whole())
        framed = answer.header("content-length") or answer.header("transfer-encoding") or not answer.body
        if answer.header("connection") == "close" or answer.first_line.startswith("HTTP/1.0") or not framed:
            self.open = False

    def close(self) -> None:
        """End the connection in good order (FIN)."""
        self.open = False

    def reset(self) -> None:
        """End it rudely: the client's system reports `connection reset`."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open = False

    def wait(self, seconds: float) -> bool:
        """False once the client or the proxy is gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.client], [], [], min(left, 0.1))
            if readable or self.proxy.stopped.is_set():
                return False
        return True


Fault = Callable[[Exchange], None]


def pass_on(exchange: Exchange) -> None:
    """No fault."""
    exchange.relay(exchange.forward())


def cut_before(exchange: Exchange) -> None:
    """The server never hears of it."""
    exchange.close()


def reset_before(exchange: Exchange) -> None:
    """The server never hears of it, and the client gets a reset."""
    exchange.reset()


def lose_answer(exchange: Exchange) -> None:
    """The server did it; the client doesn't hear so."""
    exchange.forward()
    exchange.close()


def reset_after(exchange: Exchange) -> None:
    """The server did it; the client gets a reset."""
    exchange.forward()
    exchange.reset()


def truncate_up(exchange: Exchange) -> None:
    """Half the request's body reaches the server, then both connections break."""
    request = exchange.request
    exchange.proxy.send_only(request.head + request.body[: len(request.body) // 2])
    exchange.reset()


def truncate_down(exchange: Exchange) -> None:
    """Half the answer's body reaches the client."""
    answer = exchange.forward()
    exchange.send(answer.head + answer.body[: len(answer.body) // 2])
    exchange.close()


def reset_down(exchange: Exchange) -> None:
    """Half the answer's body reaches the client at most, then a reset."""
    truncate_down(exchange)
    exchange.reset()


def corrupt_up(exchange: Exchange) -> None:
    """One bit in the middle of the request's body is flipped."""
    request = exchange.request
    exchange.relay(exchange.forward(request.head + flipped(request.body)))


def corrupt_down(exchange: Exchange) -> None:
    """One bit in the middle of the answer's body is flipped."""
    answer = exchange.forward()
    exchange.relay(Message(answer.head, flipped(answer.body)))


def never_answer(exchange: Exchange) -> None:
    """The server never hears of it and the connection stays open, until the client goes."""
    while exchange.wait(0.5):
        pass
    exchange.close()


def answer_never_comes(exchange: Exchange) -> None:
    """The server did it; the connection stays open without a word."""
    exchange.forward()
    never_answer(exchange)


def answering(status: int, body: bytes = b"", *headers: str) -> Fault:
    """The proxy answers in the server's place, which never hears of it."""

    def answer(exchange: Exchange) -> None:
        exchange.send(plain_answer(status, b"" if exchange.method == "HEAD" else body, headers))

    return answer


def answering_after(status: int, body: bytes = b"", *headers: str) -> Fault:
    """The server did it, but the client is told something else."""

    def answer(exchange: Exchange) -> None:
        exchange.forward()
        exchange.send(plain_answer(status, b"" if exchange.method == "HEAD" else body, headers))

    return answer


def dripping(pieces: int, pause_seconds: float) -> Fault:
    """A slow server: the answer's body in so many pieces, with pauses between them."""

    def drip(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.send(answer.head)
        size = max(1, -(-len(answer.body) // pieces))
        for start in range(0, len(answer.body), size):
            if not exchange.wait(pause_seconds):
                exchange.close()
                return
            exchange.send(answer.body[start : start + size])

    return drip


@dataclass
class Rule:
    """A fault for matching requests: of those, the first `skip` pass, the next `times` suffer it, the others pass.

    `method` is a regular expression for the whole method, `path` one searched in the request's target as sent (quoted,
    with its query).
    """

    fault: Fault
    method: str = ".*"
    path: str = ""
    skip: int = 0
    times: int = 1
    matched: int = field(default=0, init=False)

    def takes(self, method: str, path: str) -> bool:
        """Counts a match; whether it is one of those meant."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.matched += 1
        return self.skip < self.matched <= self.skip + self.times


@dataclass(frozen=True)
class Seen:
    """A request that came through, and the name of its fault."""

    method: str
    path: str
    fault: str


class FaultyProxy:
    """Listens while its `with` block runs; `seen` is what came, in order."""

    def __init__(self, host: str, port: int, *, on_request: Hook | None = None) -> None:
        self._server_address = (host, port)
        self._on_request = on_request
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.seen: list[Seen] = []
        self._listener = _listening(len(str(port)), self)
        self.port: int = self._listener.server_address[1]
        self.url = f"http://{HOST}:{self.port}"
        self.stopped = threading.Event()

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self.stopped.set()
        self._listener.server_close()

    def add(self, *rules: Rule) -> None:
        """Of several rules that take a request the first counts."""
        with self._lock:
            self._rules.extend(rules)

    def clear(self) -> None:
        """No rules, nothing seen."""
        with self._lock:
            self._rules.clear()
            self.seen.clear()

    def faulted(self) -> int:
        """How many requests suffered a fault."""
        with self._lock:
            return sum(one.fault != pass_on.__name__ for one in self.seen)

    def serve(self, client: socket.socket) -> None:
        """One connection of a client, request after request."""
        client.settimeout(SERVER_SECONDS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client.makefile("rb") as reader:
            while (request := read_request(reader, client)) is not None:
                exchange = Exchange(client, request, self)
                fault = self._fault(exchange.method, exchange.path)
                self.tell(exchange.method, exchange.path, "before")
                fault(exchange)
                if not exchange.open or request.header("connection") == "close":
                    return

    def tell(self, method: str, path: str, phase: str) -> None:
        if self._on_request is not None:
            self._on_request(method, path, phase)

    def ask(self, raw: bytes, method: str) -> Message:
        """The server's answer, its address replaced by ours."""
        with socket.create_connection(self._server_address, SERVER_SECONDS) as server:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may answer, and close, before it has read all
                server.sendall(raw)
            with server.makefile("rb") as reader:
                answer = read_answer(reader, method)
        theirs = f"{self._server_address[0]}:{self._server_address[1]}".encode()
        ours = f"{HOST}:{self.port}".encode()
        if theirs not in answer.head + answer.body:
            return answer
        if len(theirs) != len(ours):
            raise AssertionError(f"{theirs!r} can't become {ours!r}: lengths differ")
        text = re.search(r"json|xml", answer.header("content-type"))
        return Message(answer.head.replace(theirs, ours), answer.body.replace(theirs, ours) if text else answer.body)

    def send_only(self, raw: bytes) -> None:
        """Send, end the sending side, and let the server do with it what it does."""
        with socket.create_connection(self._server_address, SERVER_SECONDS) as server, suppress(OSError):
            server.sendall(raw)
            server.shutdown(socket.SHUT_WR)
            while server.recv(READ_BYTES):
                pass

    def _fault(self, method: str, path: str) -> Fault:
        with self._lock:
            taken = [rule for rule in self._rules if rule.takes(method, path)]
            fault = taken[0].fault if taken else pass_on
            self.seen.append(Seen(method, path, fault.__name__))
        return fault


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128
    proxy: FaultyProxy

    def shutdown_request(self, request: Any) -> None:
        request.close()  # no FIN before it, where a reset is wanted


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        listener: Any = self.server
        # the client, or the test's end, may close at any moment
        with suppress(OSError, ClosedError):
            listener.proxy.serve(self.request)


def _listening(digits: int, proxy: FaultyProxy) -> _Listener:
    """On a free port of as many digits as the server's, so that addresses in bodies keep their length."""
    while True:
        listener = _Listener((HOST, 0), _Connection)
        if len(str(listener.server_address[1])) == digits:
            listener.proxy = proxy
            return listener
        listener.server_close()
