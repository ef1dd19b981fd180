"""Vendors' files to tapes: which layouts there are.

Data in: a layout's name, the files of one instrument. Data out: `Tape` (serving/feeds/tape.py). A new vendor is one
function, a file to a `Part`, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import DataError
from serving.feeds.layouts_binance import read_binance
from serving.feeds.layouts_lean import read_lean
from serving.feeds.tape import Heartbeats, Part, Tape, merged

LAYOUTS: dict[str, Callable[[Path], Part]] = {"binance_l2": read_binance, "lean_ticks": read_lean}


def read_tape(layout: str, files: Sequence[Path], heartbeats: Heartbeats | None = None) -> Tape:
    """The files of one instrument as records in the order of a host."""
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r} isn't known: use {', '.join(sorted(LAYOUTS))}")
    if not files:
        raise DataError(f"layout {layout}: no files: name at least one")
    twice = sorted({str(file) for file in files if list(files).count(file) > 1})
    if twice:
        raise DataError(f"{', '.join(twice)}: named twice: name each file once")
    return merged([LAYOUTS[layout](file) for file in files], heartbeats)
