"""Records that say which one they are in every word, and processes that write and read them until they are killed.

`PATTERN[n % PERIOD]` is what record n of a patterned ring holds; each word is another odd multiple of the place, so
half of one record and half of another is never a third.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from serving.host.records import RECORD, Records
from serving.host.ring import RingReader, RingWriter

PERIOD = 1 << 14
DEADLINE_SECONDS = 20.0


def _pattern() -> Records:
    places = np.arange(1, PERIOD + 1, dtype=np.uint64)[:, None]
    odd = np.arange(1, 8, dtype=np.uint64) * np.uint64(2 * 0x9E3779B97F4A7C15 % 2**64) + np.uint64(1)
    return np.ascontiguousarray(places * odd).view(RECORD)[:, 0]


PATTERN = _pattern()


def words(records: Records) -> np.ndarray:
    """[N, 7] unsigned words of each record, compared as bits (a payload may be NaN)."""
    return np.ascontiguousarray(records).view(np.uint64).reshape(-1, 7)


def assert_pattern(records: Records, first: int) -> None:
    """That `records` [N] are the patterned ring's records first, first + 1, ..."""
    expected = PATTERN[(first + np.arange(len(records))) % PERIOD]
    wrong = np.flatnonzero((words(records) != words(expected)).any(axis=1))
    assert not len(wrong), f"record {first + wrong[0]} is {records[wrong[0]]}, expected {expected[wrong[0]]}"


def write_pattern(writer: RingWriter, count: int) -> None:
    """The next `count` records of the pattern, from where the ring stands."""
    left = count
    while left:
        begin = writer.written % PERIOD
        part = PATTERN[begin : begin + left]
        writer.write(part)
        left -= len(part)


def write_until_killed(path: Path, capacity: int, lossless: bool = False) -> None:
    writer = RingWriter(path, capacity, lossless=lossless)
    while True:
        write_pattern(writer, PERIOD)


def read_in_steps(reader: RingReader, limit: int = 1024) -> tuple[Records, int]:
    """What is there, and the number of its first record (after losses were noticed)."""
    got = reader.read(limit)
    return got, reader.position - len(got)


def forked(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A child process that runs `target`; the caller ends it."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def killed(process: BaseProcess) -> None:
    process.kill()
    process.join()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it, looking often; fails after the deadline."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_SECONDS} s for: {what}"
        time.sleep(0.0005)
