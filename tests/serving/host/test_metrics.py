"""What Prometheus gets, read back with its own parser."""

from __future__ import annotations

import http.client
import math
import socket
import sys
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


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(HostError, match=r"strikeforge\[metrics\]"):
        MetricsServer(LOCAL, status, facts())
