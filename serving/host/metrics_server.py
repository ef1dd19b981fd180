"""HTTP for scrapes, of which nobody can take more than a little: a trading process answers here.

In: connections of whoever reaches the port. Out: the WSGI application's answers, a thread to a connection. Invariants:
at most `MOST_CONNECTIONS` at once, of which a new one closes the oldest, so that those who connect and say nothing
neither use up the process's descriptors and threads (the control socket needs one, for a kill) nor keep a scrape out;
none is waited for longer than `PATIENCE_S` in one piece; nothing is written to stderr, whatever comes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MOST_CONNECTIONS = 16
PATIENCE_S = 10.0  # for a piece of a request, or until a piece of the answer is taken
WAITING = 128  # connections that stand in line


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class BoundedServer(ThreadingMixIn, WSGIServer):
    """Threads end with their connection; `shutdown` waits for none of them."""

    daemon_threads = True
    request_queue_size = WAITING

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """As ThreadingMixIn does, with room made before."""
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes, and closes it
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away in the middle is nothing to tell."""


def listening(address: str, port: int, application: Any) -> BoundedServer:
    """A server that listens; OSError where it can't."""

    class OfFamily(BoundedServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def server_bind(self) -> None:
            # Not WSGIServer's, which asks the resolver for this machine's name.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()

    server = OfFamily((address, port), _Handler)
    server.set_app(application)
    return server
