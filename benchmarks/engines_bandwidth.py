"""The least time a tick can take: bytes of weights read on its path over the speed of the memory that holds them.

In: a `Case` and bandwidths measured here. Out: rows `lower_bound` (us) of each precision, `path_bytes` and `all_bytes`,
and the bandwidth itself by size of what is read. Letters: F step features, H hidden, L layers, T window, D context,
E width, W band.

On the tick's path are the weights that the open step's input meets: W of every layer (U times the last output is known
before the tick and computed by `advance`), the pooling's query and the T-1 outputs before (kept as rows of weights, in
the weights' precision), both halves of the projection for the newest output, and the projections of the T-1 outputs
before, known ahead, in fp32. The projection is bf16 under int8. Of the transformer it is everything, and its rings of
keys and values in fp32; what meets its input and its output is fp32 too. Vectors, biases and scales are left out: a
few kilobytes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.engines_cases import CONTEXT, Case

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
SIZES_KIB = (24, 256, 1024, 1536, 3072, 6144, 16384)
PASSES, TRIALS = 20, 15


def path_weights(case: Case) -> tuple[int, int]:
    """Weights on the tick's path: those in the net's precision, and those that int8 doesn't reach."""
    size = case.sizes
    if case.family == "pricing_lstm":
        features, hidden, layers = size["step_features"], size["hidden"], size["layers"]
        return 4 * hidden * (features + (layers - 1) * hidden) + hidden * hidden, 2 * hidden * CONTEXT
    width, layers = size["width"], size["layers"]
    return layers * (3 + 1 + 2 + 2) * width * width, size["step_features"] * width + width * CONTEXT


def path_bytes(case: Case, precision: str) -> int:
    """Read on the tick's path: weights, and what is kept of earlier steps."""
    size, width = case.sizes, BYTES[precision]
    reduced, fuller = path_weights(case)
    if case.family == "pricing_lstm":
        remembered = (size["window"] - 1) * (size["hidden"] * width + CONTEXT * BYTES["fp32"])
        return reduced * width + fuller * max(width, BYTES["bf16"]) + remembered
    rings = size["layers"] * 2 * (size["band"] - 1) * size["width"] * BYTES["fp32"]
    return reduced * width + fuller * BYTES["fp32"] + rings


def recurrent_weights(case: Case) -> int:
    """U of every layer, which meets nothing that the tick brings."""
    return 4 * case.sizes["hidden"] ** 2 * case.sizes["layers"] if case.family == "pricing_lstm" else 0


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
            subject = f"native_{precision}"
            path = path_bytes(case, precision)
            held = path + recurrent_weights(case) * width  # what passes through the caches from tick to tick
            bound = path / bandwidth_at(bandwidth, held) / 1000.0
            for metric, unit, value in (("path_bytes", "bytes", path), ("all_bytes", "bytes", held),
                                        ("lower_bound", "us", bound)):  # fmt: skip
                rows.append({"case": case.name, "subject": subject, "metric": metric, "unit": unit, "value": value})
    return rows
