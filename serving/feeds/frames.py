"""Frames of our multicast lines, as bytes: what serving/native/feed/frame.hpp reads (docs/feeds.md).

Data in: records with the number of the first one. Data out: datagrams of at most 1,424 bytes. Frames are read by the
native core alone; `FrameStream` gives the records of captured datagrams without a network.
"""

from __future__ import annotations

import struct

import numpy as np

from serving import native
from serving.host.records import RECORD, Records

MAGIC = b"SFED"
VERSION = 1
HEADER = struct.Struct("<4sBBHQQ")  # magic, version, line, count, session, number of the first record
END_OF_SESSION = 0xFFFF
MOST_RECORDS = 25


def frame(session: int, line: int, first: int, records: Records | None = None, *, ends: bool = False) -> bytes:
    """One datagram; without records it says that the line lives, or that the session `ends`, before number `first`."""
    count = 0 if records is None else len(records)
    if count > MOST_RECORDS or (ends and count):
        raise ValueError(f"{count} records in a frame: at most {MOST_RECORDS}, none in the last")
    head = HEADER.pack(MAGIC, VERSION, line, END_OF_SESSION if ends else count, session, first)
    return head if records is None else head + np.ascontiguousarray(records).tobytes()


class FrameStream:
    """Datagrams of any number of lines to the records of their stream: the arbiter alone, with time as an argument.

    `options`: as of serving/feeds/multicast.py `Arbitration`, by name.
    """

    def __init__(self, options: dict[str, int]) -> None:
        self.native = native.core().FrameStream(options)

    def take(self) -> Records:
        """Records that left since the last call."""
        return np.frombuffer(self.native.take(), np.uint8).view(RECORD)
