"""What a loop tells while it runs: its board and its chain, pages of shared memory that the loop alone writes.

Data in: the files a `HotLoop` was given, or its own memory. Data out: `Board`, `ChainPage`: views that cost the loop
nothing, read only. Names, types and places are the compiled core's own (serving/native/host/board.hpp says what each
number means). Invariants: every number is whole; two numbers of one look may be of different events. A page of
another layout is refused, and one that isn't a page at all.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import native
from serving.errors import HostError
from serving.normal import Array

Bytes = npt.NDArray[np.uint8]


@cache
def layout() -> Mapping[str, Any]:
    """Where everything lies; made by the compiled core."""
    found: Mapping[str, Any] = native.core().board_layout()
    return found


@dataclass(frozen=True)
class Histogram:
    """One hop's latencies since the loop began, in nanoseconds; `counts` by slot, as HdrHistogram lays them out."""

    total: int
    sum_ns: int
    max_ns: int
    counts: npt.NDArray[np.uint64]

    def percentile_ns(self, percent: float) -> float:
        """The highest latency that counts in the percentile's slot, 0.1 % above it at most; NaN where none was."""
        below = np.cumsum(self.counts)
        total = int(below[-1])  # not `total`: the two may be of different events
        if total == 0:
            return math.nan
        rank = max(int(min(percent, 100.0) / 100 * total + 0.5), 1)  # HdrHistogram's rounding
        return float(highest_ns(int(np.searchsorted(below, rank))))

    @property
    def mean_ns(self) -> float:
        """NaN where none was timed."""
        return self.sum_ns / self.total if self.total else math.nan


def highest_ns(slot: int) -> int:
    """The highest latency that counts in a slot."""
    half_bits: int = layout()["histogram_sub_bits"] - 1
    bucket = max((slot >> half_bits) - 1, 0)
    return ((slot - (bucket << half_bits) + 1) << bucket) - 1


class Board:
    """Numbers by name as they are now: `board.number("spot")`, `board.array("position")`, `board.hop("evaluate")`."""

    def __init__(self, page: Bytes) -> None:
        self._page = page
        self._fields: Mapping[str, tuple[str, int, int]] = layout()["fields"]
        _check(page, layout()["bytes"], "board")

    def number(self, name: str) -> float | int:
        """A single number."""
        value: float | int = self._view(name)[0].item()
        return value

    def array(self, name: str) -> npt.NDArray[Any]:
        """A copy of several numbers; of the quoted contracts, as many as there are."""
        values = self._view(name).copy()
        return values if name == "refused_by" else values[: int(self.number("contracts"))]

    def refused_by(self) -> dict[str, int]:
        """How many orders were refused, by reason."""
        counts = self._view("refused_by").tolist()
        return {name: count for name, count in zip(layout()["reasons"], counts, strict=True) if name != "none"}

    def hop(self, name: str) -> Histogram:
        """A copy of one hop's histogram."""
        hops: list[str] = layout()["hops"]
        begin = layout()["histograms_at"] + hops.index(name) * layout()["histogram_bytes"]
        part = {
            field: np.frombuffer(self._page, np.dtype(kind), count, begin + offset)
            for field, (kind, offset, count) in layout()["histogram_fields"].items()
        }
        return Histogram(int(part["total"][0]), int(part["sum_ns"][0]), int(part["max_ns"][0]), part["counts"].copy())

    def read(self) -> dict[str, Any]:
        """All of it: numbers, arrays, `refused_by` by reason, `hops` by name; `state` and `why` in words."""
        out: dict[str, Any] = {
            name: self.number(name) if count == 1 else self.array(name) for name, (_, _, count) in self._fields.items()
        }
        out["refused_by"] = self.refused_by()
        out["state"] = native.core().state_name(out["state"]).lower()
        out["why"] = native.core().reason_name(out["why"])
        out["hops"] = {name: self.hop(name) for name in layout()["hops"]}
        return out

    def _view(self, name: str) -> npt.NDArray[Any]:
        kind, offset, count = self._fields[name]
        return np.frombuffer(self._page, np.dtype(kind), count, offset)


class ChainPage:
    """Every contract as last swept: `chain.array("fair")` [N]; NaN and 0 until the first sweep reached it."""

    def __init__(self, page: Bytes) -> None:
        header = layout()["chain_header_bytes"]
        _check(page, header, "chain")
        (self.count,) = np.frombuffer(page, np.uint64, 1, 8).tolist()
        _check(page, header + self.count * layout()["line_bytes"], "chain")
        fields = layout()["line_fields"]
        line = np.dtype(
            {
                "names": list(fields),
                "formats": [kind for kind, _, _ in fields.values()],
                "offsets": [offset for _, offset, _ in fields.values()],
                "itemsize": layout()["line_bytes"],
            }
        )
        self._lines = np.frombuffer(page, line, self.count, header)

    def array(self, name: str) -> Array:
        """A copy of one column: volatility, fair, delta, gamma, vega, theta, spot (under which), event_ns (then)."""
        column: Array = self._lines[name].copy()
        return column


def open_board(path: Path) -> Board:
    """The board of a loop in another process; HostError where there is none."""
    return Board(_mapped(path))


def open_chain(path: Path) -> ChainPage:
    """The chain of a loop in another process; HostError where there is none."""
    return ChainPage(_mapped(path))


def _mapped(path: Path) -> Bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise HostError(f"{path}: can't be opened: {error.strerror}: does a loop run with it?") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            raise HostError(f"{path}: isn't a loop's page, but no regular file or an empty one")
        return np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), np.uint8)
    finally:
        os.close(descriptor)


def _check(page: Bytes, least: int, what: str) -> None:
    expected = layout()["version"]
    version = int(np.frombuffer(page, np.uint64, 1)[0]) if len(page) >= 8 else None
    if version != expected or len(page) < least:
        raise HostError(
            f"{what}: found layout {version} and {len(page)} bytes, expected layout {expected} and at least {least}: "
            "the loop is of another version of strikeforge, or the file isn't a loop's"
        )
