"""The least time a tick can take: bytes of weights read on its path over the speed of the memory that holds them.

In: a `Case` and bandwidths measured here. Out: rows `lower_bound` (us) of each precision, `path_bytes` and `all_bytes`,
and the bandwidth itself by size of what is read. Letters: F step features, H hidden, L layers, T window, D context,
E width, W band.

On the tick's path are the weights that the open step's input meets: W of every layer (U times the last output is known
before the tick and computed by `advance`), the pooling's query and the T-1 outputs before (kept as rows of weights, in
the weights' precision), the projection of the newest output (that of the pooled ones is done ahead, per output); of the
transformer everything, and its rings of keys and values in fp32. Vectors, biases and scales are left out: a few
kilobytes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.engines_cases import CONTEXT, Case

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
SIZES_KIB = (24, 256, 1024, 1536, 3072, 6144, 16384)
PASSES, TRIALS = 20, 15


def path_weights(case: Case) -> int:
    """Weights on the tick's path."""
    size = case.sizes
    if case.family == "pricing_lstm":
        features, hidden, layers = size["step_features"], size["hidden"], size["layers"]
        return 4 * hidden * (features + (layers - 1) * hidden) + hidden * hidden + hidden * CONTEXT
    width, layers = size["width"], size["layers"]
    return size["step_features"] * width + layers * (3 + 1 + 2 + 2) * width * width + width * CONTEXT


def memory_bytes(case: Case, precision: str) -> float:
    """What is read of earlier steps."""
    size = case.sizes
    if case.family == "pricing_lstm":
        return float((size["window"] - 1) * (size["hidden"] * BYTES[precision] + CONTEXT * 4))
    return float(size["layers"] * 2 * (size["band"] - 1) * size["width"] * 4)


def all_weights(case: Case) -> int:
    """Weights of the whole step, recurrent ones included: what a library that computes nothing ahead reads."""
    size = case.sizes
    if case.family != "pricing_lstm":
        return path_weights(case)
    return path_weights(case) + 4 * size["hidden"] ** 2 * size["layers"] + size["hidden"] * CONTEXT


def measured_bandwidth() -> dict[int, float]:
    """Bytes per nanosecond (GB/s) read by one core, by KiB read over and over: NumPy's dot product of two halves."""
    overhead = _seconds_of(np.zeros(16, np.float32))
    found = {}
    for kib in SIZES_KIB:
        values = np.ones(kib * 256, np.float32)
        found[kib] = values.nbytes / max(_seconds_of(values) - overhead, 1e-9) / 1e9
    return found


def _seconds_of(values: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Least time over the trials of one pass."""
    half = len(values) // 2
    first, second, best = values[:half], values[half:], np.inf
    for _ in range(TRIALS):
        begin = time.perf_counter()
        for _ in range(PASSES):
            np.dot(first, second)
        best = min(best, (time.perf_counter() - begin) / PASSES)
    return float(best)


def bandwidth_at(bandwidth: dict[int, float], size_bytes: float) -> float:
    """Bandwidth of the smallest measured size that is at least as large, the last one beyond."""
    for kib, speed in sorted(bandwidth.items()):
        if size_bytes <= kib * 1024:
            return speed
    return bandwidth[max(bandwidth)]


def bandwidth_rows(cases: tuple[Case, ...], bandwidth: dict[int, float]) -> list[dict[str, Any]]:
    """The measured bandwidth, and each case's bytes and lower bound by precision."""
    rows: list[dict[str, Any]] = [
        {"case": "bandwidth", "subject": f"read_{kib}_kib", "metric": "bandwidth", "unit": "GB/s", "value": speed}
        for kib, speed in bandwidth.items()
    ]
    for case in cases:
        for precision, width in BYTES.items():
            subject, memory = f"native_{precision}", memory_bytes(case, precision)
            path = path_weights(case) * width + memory
            held = all_weights(case) * width + memory  # what passes through the caches from tick to tick
            bound = path / bandwidth_at(bandwidth, held) / 1000.0
            for metric, unit, value in (("path_bytes", "bytes", path), ("all_bytes", "bytes", held),
                                        ("lower_bound", "us", bound)):  # fmt: skip
                rows.append({"case": case.name, "subject": subject, "metric": metric, "unit": unit, "value": value})
    return rows
