"""What Prometheus gets, read back with its own parser."""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import HostError
from serving.host.config_types import MetricsConfig
from tests.serving.native.built import built_core

built_core()

from serving.host.metrics import BOUNDS_NS, HELP, MetricsServer, buckets  # noqa: E402
from serving.host.status import COUNTERS, GAUGES, STATES  # noqa: E402
from tests.serving.host.looks import facts, hop, status  # noqa: E402

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the extra [metrics]")
LOCAL = MetricsConfig("127.0.0.1", 0)


def scraped(**changes: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels, as a scrape of a host of this status gives them."""
    with MetricsServer(LOCAL, lambda: status(**changes), facts()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        body = answer.read().decode()
        connection.close()
    samples = [one for family in prometheus.text_string_to_metric_families(body) for one in family.samples]
    found = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}
    assert len(found) == len(samples)
    return found


def test_every_number_of_the_board_is_there_as_it_is() -> None:
    counters = {name: 100 + place for place, name in enumerate(COUNTERS)}
    gauges = {name: -1.5 * place for place, name in enumerate(GAUGES)}
    refused = {"delta": 7, "order_rate": 0}
    found = scraped(counters=counters, gauges=gauges, refused_by=refused, state="reducing", why="drawdown")
    for name, count in counters.items():
        assert found[f"strikeforge_host_{name}_total", ()] == count
    for name, value in gauges.items():
        assert found[f"strikeforge_host_{name}", ()] == value
    for reason, count in refused.items():
        assert found["strikeforge_host_refused_by_reason_total", (("reason", reason),)] == count
    assert [found["strikeforge_host_state", (("strikeforge_host_state", one),)] for one in STATES] == [0, 1, 0]
    assert found["strikeforge_host_state_reason", (("reason", "drawdown"),)] == 1
    assert found["strikeforge_host_up", ()] == 1
    assert found["strikeforge_host_uptime_seconds", ()] == 9
    assert found["strikeforge_host_contract_position", (("contract", "C 60000"),)] == 3
    assert math.isnan(found["strikeforge_host_contract_fair", (("contract", "P 60000"),)])


def test_all_numbers_have_a_text() -> None:
    assert HELP.keys() == {*COUNTERS, *GAUGES}


def test_a_loop_that_is_gone_is_not_up() -> None:
    assert scraped(running=False)["strikeforge_host_up", ()] == 0


@given(st.lists(st.integers(0, 2**34 - 1), max_size=50))
def test_buckets_count_what_is_below_their_bound(latencies: list[int]) -> None:
    found = buckets(hop(latencies))
    for (bound, count), bound_ns in zip(found, BOUNDS_NS, strict=False):
        assert float(bound) == bound_ns / 1e9
        assert count == sum(latency < bound_ns for latency in latencies)
    assert found[-1] == ("+Inf", len(latencies))


def test_a_hop_is_a_histogram() -> None:
    found = scraped()
    labels = (("hop", "evaluate"),)
    assert found["strikeforge_host_hop_seconds_count", labels] == 100
    assert found["strikeforge_host_hop_seconds_sum", labels] == pytest.approx((99 * 1500 + 900_000) / 1e9)
    assert found["strikeforge_host_hop_max_seconds", labels] == 9e-4
    below = found["strikeforge_host_hop_seconds_bucket", (("hop", "evaluate"), ("le", "1.536e-06"))]
    assert below == 99


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"port {port}: can't listen"):
            MetricsServer(MetricsConfig("127.0.0.1", port), status, facts())


def test_whoever_connects_and_says_nothing_takes_little_and_keeps_no_scrape_out() -> None:
    threads, files = threading.active_count(), descriptors()
    with MetricsServer(LOCAL, status, facts()) as server, contextlib.ExitStack() as silent:
        ours = [silent.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(60)]
        for one in ours[::2]:
            with contextlib.suppress(OSError):
                one.sendall(b"GET /metrics HT")
        until(lambda: sum(closed(one) for one in ours) >= 60 - 16)
        until(lambda: threading.active_count() - threads <= 1 + 16)
        assert descriptors() - files <= 60 + 16 + 4
        assert b"strikeforge_host_up 1.0" in asked(server.port, b"GET /metrics HTTP/1.0\r\n\r\n")
    until(lambda: threading.active_count() <= threads)


@pytest.mark.parametrize(
    "garbage",
    [b"\r\n\r\n", b"\x00" * 70_000, b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n",
     b"GET " + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
     b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n",
     b"GET /metrics HTTP/1.1\r\nAccept: \xff\xfe\r\nAccept-Encoding: \x00\r\n\r\n", b"A: b\r\n" * 500],
)  # fmt: skip
def test_garbage_is_answered_or_cut_off_and_told_nobody(garbage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with MetricsServer(LOCAL, status, facts()) as server:
        with contextlib.suppress(OSError):
            asked(server.port, garbage)
        assert b"strikeforge_host_up 1.0" in asked(server.port, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert capfd.readouterr() == ("", "")


def test_it_listens_on_the_address_it_is_given() -> None:
    try:
        server = MetricsServer(MetricsConfig("::1", 0), status, facts())
    except HostError as error:
        pytest.skip(str(error))
    with server, socket.create_connection(("::1", server.port), 10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.0 200"


def asked(port: int, request: bytes) -> bytes:
    """Whatever is answered, until it ends."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def closed(connection: socket.socket) -> bool:
    """Whether the other side closed it."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(HostError, match=r"strikeforge\[metrics\]"):
        MetricsServer(LOCAL, status, facts())
