"""A host seen from outside, without a loop: statuses made of numbers that a test chooses."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.host.board import Histogram
from serving.host.facts import HostFacts
from serving.host.status import COUNTERS, GAUGES, HostStatus, Quoted, slot_of

SLOTS = (34 - 11 + 2) * 1024  # histogram.hpp


def hop(latencies_ns: Sequence[int]) -> Histogram:
    counts = np.zeros(SLOTS, np.uint64)
    for latency in latencies_ns:
        counts[slot_of(min(latency, 2**34 - 1))] += 1
    return Histogram(len(latencies_ns), sum(latencies_ns), max(latencies_ns, default=0), counts)


def facts(**changes: Any) -> HostFacts:
    values: dict[str, Any] = {
        "process": os.getpid(), "config": "/host.toml", "model": "pricing_lstm", "channel": "champion",
        "release": "release 4, version 1", "bundle": "ab" * 32, "precision": "fp32",
        "runtime": "strikeforge native, avx2, fp32, 1 thread", "expires_at": "2027-01-01T00:00:00Z",
        "step_ns": 1_000_000_000, "feed": "replay of binance_l2, original pace", "strategy": "fixed_width",
        "poll": "busy", "started_at": "2026-11-22T17:00:00Z", "contracts": ["C 60000", "P 60000"],
        "chain_contracts": 500,
    }  # fmt: skip
    return HostFacts(**{**values, **changes})


def status(**changes: Any) -> HostStatus:
    """Of a loop that runs in this process and has just said so, unless changed; counters are 0 but for those given."""
    counters = dict.fromkeys(COUNTERS, 0) | changes.pop("counters", {})
    gauges = dict.fromkeys(GAUGES, 0.0) | changes.pop("gauges", {})
    values: dict[str, Any] = {
        "read_ns": 10_000_000_000, "counters": counters, "gauges": gauges, "refused_by": {"delta": 0, "order_rate": 0},
        "state": "active", "why": "none", "event_ns": 1_723_107_600_123_000_000, "started_ns": 1_000_000_000,
        "alive_ns": 10_000_000_000, "sweep_age_ns": 2_000_000, "running": True, "halt_file": False,
        "model_expired": False, "process": os.getpid(), "chain": 500,
        "quoted": (Quoted(3.0, 1234.5, 0.55, 1230.0, 1239.0), Quoted(0.0, math.nan, math.nan, 0.0, 0.0)),
        "hops": {"evaluate": hop([1500] * 99 + [900_000]), "tick_to_order": hop([])},
    }  # fmt: skip
    return HostStatus(**{**values, **changes})
