"""What `top` shows: the loop's numbers as they are, that it is gone when it is, and nothing wider than the terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.native.built import built_core

built_core()

from serving.host.board import highest_ns  # noqa: E402
from serving.host.screen import Look, Style, fitted, frame  # noqa: E402
from serving.host.status import GONE_AFTER_NS, STATES, since, slot_of  # noqa: E402
from tests.serving.host.looks import SLOTS, facts, hop, status  # noqa: E402

WIDE = Style(240, 0, False)
LATENCIES = st.lists(st.integers(0, 2**34 - 1), min_size=1, max_size=60)


def text(**changes: Any) -> str:
    return "\n".join(frame("/dev/shm/x", facts(), Look(status(**changes)), None, WIDE))


@given(st.integers(0, 2**34 - 1))
def test_a_latency_lies_in_its_slot_which_is_a_thousandth_wide_at_most(latency: int) -> None:
    slot = slot_of(latency)
    lowest = highest_ns(slot - 1) + 1 if slot else 0
    assert lowest <= latency <= highest_ns(slot)
    assert highest_ns(slot) - lowest <= latency / 1000
    assert slot < SLOTS


@given(LATENCIES, LATENCIES)
def test_what_came_between_two_looks_is_what_came_between(early: list[int], late: list[int]) -> None:
    between = since(hop(early + late), hop(early))
    alone = hop(late)
    assert (between.total, between.sum_ns) == (alone.total, alone.sum_ns)
    assert (between.counts == alone.counts).all()
    assert alone.max_ns <= between.max_ns <= alone.max_ns * 1.001 + 1


def test_numbers_stand_where_they_belong() -> None:
    counters = {"events": 20_000, "orders": 31, "lost": 3, "gaps": 2, "writers": 1}
    shown = text(
        counters=counters, gauges={"profit": -12.5, "spot": 61_500.25}, refused_by={"price_collar": 7, "delta": 0}
    )
    assert re.search(r"^ +events +records +orders +cancels +fills +refused$", shown, re.MULTILINE)
    assert re.search(r"^total +20,000 +0 +31 +0 +0 +0$", shown, re.MULTILINE)
    assert "lost 3, gaps 2, writers 1" in shown
    assert "profit    -12.50" in shown
    assert "spot 61,500.25" in shown
    assert "refused   price collar 7\n" in f"{shown}\n"
    assert re.search(r"C 60000 +\+3 +1,230.00 +1,234.50 +1,239.00 +55.00", shown)
    assert re.search(r"P 60000 +0 +- +- +- +-", shown)
    assert re.search(r"evaluate +100 +1.50 +1.50 +1.50 +\d", shown)
    assert "pricing_lstm champion, release 4, version 1, bundle abababababab" in shown
    assert "2024-08-08 09:00:00.123 UTC" in shown


def test_rates_are_of_the_time_between_two_looks() -> None:
    before = Look(status(counters={"events": 1000, "orders": 5}))
    later = status(counters={"events": 41_000, "orders": 6}, read_ns=12_000_000_000, alive_ns=12_000_000_000)
    shown = "\n".join(frame("x", facts(), Look(later), before, WIDE))
    assert re.search(r"^per s +20,000 +0 +0.5 +0 +0 +0$", shown, re.MULTILINE)


@pytest.mark.parametrize("state", STATES)
def test_state_and_why_are_shown(state: str) -> None:
    assert f" {state.upper()}: loss " in text(state=state, why="loss")


def test_what_keeps_it_from_trading_is_said() -> None:
    shown = text(halt_file=True, model_expired=True)
    assert "HALT file" in shown
    assert "EXPIRED" in shown


def test_a_loop_that_is_gone_is_said_to_be_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for changes, said in (
        ({"running": False}, "the loop has ended"), ({"process": ended.pid}, f"process {ended.pid} is gone"),
        ({"alive_ns": 10_000_000_000 - GONE_AFTER_NS - 1}, "has said nothing for 2.0 s"),
    ):  # fmt: skip
        assert f"GONE: {'the loop' if 'the loop' in said else ''}" in text(**changes)
        assert said in text(**changes)
    assert "GONE" not in text()


def test_a_loop_that_is_gone_was_up_as_long_as_it_ran() -> None:
    times = {"started_ns": 1_000_000_000, "alive_ns": 6_000_000_000, "read_ns": 900_000_000_000}
    assert re.search(r"up 5 s\b", text(running=False, **times))
    assert re.search(r"up 0:14:59\b", text(**times | {"alive_ns": 900_000_000_000}))


def test_a_feed_that_went_quiet_is_said() -> None:
    shown = "\n".join(frame("x", facts(), Look(status(), quiet_ns=90_000_000_000), None, WIDE))
    assert "no record for 0:01:30" in shown


@given(st.integers(1, 120), st.integers(3, 40), st.booleans())
def test_a_frame_fits_the_terminal(columns: int, rows: int, colours: bool) -> None:
    quoted = status().quoted * 10
    look = Look(status(quoted=quoted, counters={"lost": 3}), quiet_ns=5_000_000_000)
    lines = frame("/a/long/directory", facts(), look, look, Style(columns, rows, colours))
    assert len(lines) <= rows
    for line in lines:
        assert len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= columns
        assert line.count("\x1b[0m") * 2 >= line.count("\x1b[")
        assert colours or "\x1b" not in line


@given(st.text("ab\x1b", max_size=3), st.integers(0, 9))
def test_cutting_keeps_what_fits(word: str, columns: int) -> None:
    plain = word.replace("\x1b", "")
    assert fitted(plain, columns) == plain[:columns]
    painted = Style(9, 0, True).paint(plain, "31")
    assert fitted(painted, columns).replace("\x1b[31m", "").replace("\x1b[0m", "") == plain[:columns]


def test_names_from_a_file_cannot_steer_the_terminal() -> None:
    lines = frame("x", replace(facts(), contracts=["\x1b[2Jevil", "a\nb"]), Look(status()), None, WIDE)
    assert not any("\x1b" in line or "\n" in line for line in lines)
    assert os.linesep not in "".join(lines)
