"""A proxy between a client and a real server, at which the client can be killed around any request that writes.

In: requests of an HTTP client. Out: the server's own answers; `Trap.writes`, what was asked for. With `kill_at`, the
client's process is killed when request number `kill_at` (from 1, of those that write, over all proxies of the trap) has
arrived and wasn't passed on, or after the server has answered it and before the answer is passed on.
Invariants: one request reaches the server at most once and unchanged; nothing reaches it after the kill.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
SERVER_SECONDS = 60.0
Writes = Callable[[str, str], bool]


class Trap:
    """Counts what passes through any number of proxies, in order of arrival, and kills the client at one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.on_write: Callable[[int, str], object] | None = None
        self.reset()

    def reset(self, kill_at: int = 0, *, after: bool = False) -> None:
        """Count anew and kill there; `client` has to be told before the client writes."""
        with self._lock:
            self.writes: list[str] = []
            self.kill_at, self.after = kill_at, after
            self.client = 0
            self.dead = False

    def arrived(self, what: str) -> int:
        """The number of a request that writes; 0 if it mustn't be passed on."""
        with self._lock:
            if self.dead:
                return 0
            self.writes.append(what)
            number = len(self.writes)
            if number == self.kill_at and not self.after:
                self._kill()
                return 0
        if self.on_write is not None:
            self.on_write(number, what)
        return number

    def answered(self, number: int) -> None:
        """The server has answered request `number`."""
        with self._lock:
            if number == self.kill_at and self.after:
                self._kill()

    def _kill(self) -> None:
        os.kill(self.client, signal.SIGKILL)
        self.dead = True


class Proxy:
    """In front of one server; `url` is where clients go. `writes(method, path)` says what counts."""

    def __init__(self, target: str, writes: Writes, trap: Trap) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self.target = (parts.hostname, parts.port)
        self.writes = writes
        self.trap = trap
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Proxy:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def pass_on(self) -> None:
        body = self._body()
        trap = self.owner.trap
        writes = self.owner.writes(self.command, self.path)
        number = trap.arrived(f"{self.command} {self.path}") if writes else -1
        if number == 0 or trap.dead:
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection(*self.owner.target, timeout=SERVER_SECONDS)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_HEADERS and name.lower() != "content-length":
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST", "PATCH"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:  # the server is away: so is the proxy
            self.close_connection = True
            return
        finally:
            upstream.close()
        if number > 0:
            trap.answered(number)
        if trap.dead:
            self.close_connection = True
            return
        self._answer(answer, content)

    def _answer(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        try:
            self.send_response_only(answer.status, answer.reason)
            bodiless = self.command == "HEAD" or answer.status in (204, 304)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_HEADERS and (name.lower() != "content-length" or self.command == "HEAD"):
                    self.send_header(name, value)
            if not bodiless:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not bodiless:
                self.wfile.write(content)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):  # the client is gone
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def store_writes(method: str, path: str) -> bool:
    """What changes an S3, Google or Azure store; a listing by POST doesn't exist in any of them."""
    return method in ("PUT", "POST", "PATCH", "DELETE")


def mlflow_writes(method: str, path: str) -> bool:
    """What changes MLflow; its searches are POSTs."""
    return method in ("PUT", "POST", "PATCH", "DELETE") and not urlsplit(path).path.endswith(("/search", "-search"))
