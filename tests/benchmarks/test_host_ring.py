"""The ring's bench carries every message between its two processes, and its ratios point the right way."""

from __future__ import annotations

import os

import pytest

from tests.serving.native.built import built_core

built_core()

from benchmarks.host_ring import _ratio, carried  # noqa: E402
from benchmarks.host_ring_ends import Ends, MultiprocessingQueue, NativeRing, PythonRing  # noqa: E402

ENDS: list[Ends] = [NativeRing(), PythonRing(), MultiprocessingQueue("multiprocessing_simple_queue", simple=True)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the ring is timed between two cores")
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends.name)
def test_every_message_is_timed(ends: Ends) -> None:
    elapsed, latencies = carried(ends, 300, 20_000)
    assert latencies is not None
    assert latencies.shape == (300,)
    assert (latencies > 0).all()
    assert elapsed > 0


def test_a_ratio_above_one_means_ours_is_better() -> None:
    """Against the best peer of the metric: most messages, least time."""
    ours, slow, quick = (
        {"throughput": 4.0, "p50": 1.0},
        {"throughput": 1.0, "p50": 3.0},
        {"throughput": 2.0, "p50": 2.0},
    )
    found = {"strikeforge_python": [ours], "slow": [slow], "quick": [quick]}
    for metric in ("throughput", "p50"):
        row = _ratio(metric, found, ["slow", "quick"])
        assert (row["value"], row["of"], row["against"]) == (2.0, "strikeforge_python", "quick")
