"""What Prometheus is told of a running host, over HTTP, from the board alone.

In: a look at the board (serving/host/status.py), the facts of the run. Out: text that Prometheus scrapes:
`strikeforge_host_*`, times in seconds, counters since the loop started. Needs the extra [metrics].
Invariants: the numbers are read when Prometheus asks, from memory that the loop writes anyway; the loop's thread takes
no part and waits for nobody. It listens on 127.0.0.1 unless the configuration says otherwise. Whoever connects, however
many and however slow, takes a bounded share of the process (metrics_server.py): the control socket has its own.

A hop's histogram is the HdrHistogram's, counted in fewer buckets, each of whole slots: four to an octave where a loop
spends its time, 256 ns to 65 us, then one to an octave. A bucket's bound is the first value that it doesn't hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import HostError
from serving.host.board import Histogram
from serving.host.config_types import MetricsConfig
from serving.host.facts import HostFacts
from serving.host.status import STATES, HostStatus, resident_bytes, slot_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "strikeforge_host"
FINE, COARSE = range(8, 16), range(16, 34)  # octaves: 2^8 ns to 2^16 ns in quarters, up to 2^34 ns whole
BOUNDS_NS = [quarter << (octave - 2) for octave in FINE for quarter in (4, 5, 6, 7)] + [
    1 << octave for octave in COARSE
]
HELP = {
    "records": "Records read from the tick ring.",
    "events": "Events acted on: trades, quotes, heartbeats, whole pictures of the book.",
    "trades": "Trades of the underlying.",
    "orders": "Orders that left: new and replacing ones.",
    "cancels": "Cancels that left.",
    "fills": "Fills of our orders.",
    "signals": "Records written to the signal ring.",
    "refused": "Orders that a risk check refused; refused_by_reason says which.",
    "skipped": "Records of instruments that aren't the underlying.",
    "unknown": "Records of a kind of no use to the loop.",
    "time_went_back": "Records with an earlier event time than one before.",
    "refused_books": "Pictures of the book that were refused whole.",
    "refused_numbers": "Trades and books with impossible numbers, left out of the features.",
    "unheard": "Intents of the strategy beyond the room that one event has.",
    "lost": "Records overwritten in the tick ring before they were read.",
    "gaps": "Holes in the feed's own numbering.",
    "writers": "Writers that the tick ring has had.",
    "advances": "Market steps closed.",
    "sweeps": "Times that the whole chain was valued.",
    "controls": "Control records acted on.",
    "controls_refused": "Control records refused.",
    "allocations": "Allocations of the native core since the loop began; above 0 is a defect.",
    "spot": "Price of the underlying, money; NaN without a usable book.",
    "profit": "Profit of the session, money.",
    "best_profit": "Best profit of the session, money.",
    "delta": "Portfolio's delta, units of the underlying.",
    "gamma": "Portfolio's gamma, units of the underlying per money.",
    "vega": "Portfolio's vega, money per 1.00 of volatility.",
    "anomaly_score": "Anomaly score as last told.",
    "clipped_share": "Share of the step's columns beyond the range that the model was scaled for.",
}


class HostCollector:
    """What a registry of prometheus_client asks at every scrape."""

    def __init__(self, look: Callable[[], HostStatus], facts: HostFacts) -> None:
        self._look, self._facts = look, facts

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
            StateSetMetricFamily,
        )

        status, facts = self._look(), self._facts
        info = {name: str(getattr(facts, name)) for name in ("model", "channel", "release", "bundle", "precision")}
        yield InfoMetricFamily(PREFIX, "What the loop answers with.", value=info)
        for name, count in status.counters.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", HELP[name], value=count)
        refused = CounterMetricFamily(f"{PREFIX}_refused_by_reason", "Orders refused, by reason.", labels=["reason"])
        for reason, count in status.refused_by.items():
            refused.add_metric([reason], count)
        yield refused
        for name, value in status.gauges.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", HELP[name], value=value)
        states = {state: state == status.state for state in STATES}
        yield StateSetMetricFamily(f"{PREFIX}_state", "The risk gate's state.", value=states)
        why = GaugeMetricFamily(f"{PREFIX}_state_reason", "1 for why the gate is in its state.", labels=["reason"])
        why.add_metric([status.why], 1)
        yield why
        flags = {
            "up": ("1 while the loop runs and says so.", status.gone is None),
            "model_expired": ("1 when the model's release has expired.", status.model_expired),
            "halt_file": ("1 while the HALT file is there.", status.halt_file),
        }
        for name, (text, value) in flags.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
        times = {
            "event_time_seconds": ("Event time of the last event, since 1970 UTC.", status.event_ns),
            "alive_age_seconds": ("Since the loop last said something.", status.read_ns - status.alive_ns),
            "uptime_seconds": ("Since the loop started.", status.read_ns - status.started_ns),
            "sweep_age_seconds": ("Age of the chain as last valued whole.", status.sweep_age_ns),
        }
        for name, (text, nanoseconds) in times.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=nanoseconds / 1e9)
        resident = resident_bytes(status.process)
        if resident is not None:
            yield GaugeMetricFamily(f"{PREFIX}_resident_bytes", "Resident memory of the run.", value=resident[0])
        yield from self._contracts(status)
        histogram = HistogramMetricFamily(f"{PREFIX}_hop_seconds", "Latency of each hop of the loop.", labels=["hop"])
        largest = GaugeMetricFamily(f"{PREFIX}_hop_max_seconds", "Largest latency of each hop.", labels=["hop"])
        for name, hop in status.hops.items():
            histogram.add_metric([name], buckets(hop), hop.sum_ns / 1e9)
            largest.add_metric([name], hop.max_ns / 1e9)
        yield histogram
        yield largest

    def _contracts(self, status: HostStatus) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        texts = {
            "position": "Contracts held.", "fair": "Fair value, money.", "volatility": "Fair volatility.",
            "bid": "Price of our working buy, money; 0: none.", "ask": "Price of our working sell, money; 0: none.",
        }  # fmt: skip
        for name, text in texts.items():
            family = GaugeMetricFamily(f"{PREFIX}_contract_{name}", text, labels=["contract"])
            for contract, quoted in zip(self._facts.contracts, status.quoted, strict=False):
                family.add_metric([contract], getattr(quoted, name))
            yield family


def buckets(hop: Histogram) -> list[tuple[str, float]]:
    """(upper bound in seconds, how many so far) as Prometheus counts: each holds those before it."""
    summed = np.concatenate(([0], np.cumsum(hop.counts, dtype=np.uint64)))
    found = [(repr(bound / 1e9), float(summed[slot_of(bound)])) for bound in BOUNDS_NS]
    return [*found, ("+Inf", float(summed[-1]))]


class MetricsServer:
    """Answers scrapes in threads of its own from `__enter__` to `__exit__`; `port` is the one it listens on."""

    def __init__(self, config: MetricsConfig, look: Callable[[], HostStatus], facts: HostFacts) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError as error:
            raise HostError(
                f"[metrics] port {config.port} needs prometheus-client: pip install 'strikeforge[metrics]', or take "
                "the port out of the config"
            ) from error
        from serving.host.metrics_server import listening

        registry = CollectorRegistry(auto_describe=False)
        registry.register(HostCollector(look, facts))
        try:
            self._server = listening(config.address, config.port or 0, make_wsgi_app(registry))
        except OSError as error:
            raise HostError(
                f"[metrics] {config.address} port {config.port}: can't listen there: {error.strerror}; choose another"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
