"""The board: what others see of a loop, who may hold it, and percentiles that are HdrHistogram's."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import native
from serving.errors import HostError
from serving.host.board import Board, ChainPage, Histogram, highest_ns, layout, open_board, open_chain
from serving.host.loop import Sweep
from serving.host.records import Kind
from tests.serving.host.chains import table
from tests.serving.host.live import PATIENCE_S, wait_until
from tests.serving.host.test_loop import loop_of, of_kind
from tests.serving.host.worlds import stream

LARGEST = 2**34 - 1
PERCENTILES = (1.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
latencies = st.one_of(st.integers(0, 5000), st.integers(0, LARGEST), st.integers(0, 34).map(lambda power: 2**power - 1))


def both(values: list[int]) -> tuple[Histogram, Any]:
    core, ours = native.core(), np.zeros(layout()["histogram_fields"]["counts"][2], np.uint64)
    theirs = HdrHistogram(1, LARGEST, 3)
    for value in values:
        ours[core.histogram_slot(value)] += 1
        theirs.record_value(value)
    return Histogram(len(values), sum(values), max(values, default=0), ours), theirs


@settings(max_examples=60, deadline=None)
@given(st.lists(latencies, min_size=1, max_size=60))
def test_percentiles_are_hdr_histograms(values: list[int]) -> None:
    ours, theirs = both(values)
    for percent in PERCENTILES:
        assert ours.percentile_ns(percent) == theirs.get_value_at_percentile(percent)


@given(latencies)
def test_a_slots_highest_value_is_within_a_thousandth(value: int) -> None:
    slot = native.core().histogram_slot(value)
    assert value <= highest_ns(slot) <= value * 1.001 + 1
    assert native.core().histogram_slot(highest_ns(slot)) == slot
    assert highest_ns(slot) == LARGEST or native.core().histogram_slot(highest_ns(slot) + 1) == slot + 1


def test_what_is_beyond_the_range_counts_as_its_end() -> None:
    core = native.core()
    assert core.histogram_slot(2**40) == core.histogram_slot(LARGEST) == layout()["histogram_fields"]["counts"][2] - 1


def test_nothing_timed_has_no_percentile() -> None:
    assert math.isnan(both([])[0].percentile_ns(50))
    assert math.isnan(both([])[0].mean_ns)


def test_the_board_counts_what_left() -> None:
    loop = loop_of()
    left = loop.process(stream(30, 1500))
    told = loop.board.read()
    orders = of_kind(left, Kind.ORDER)
    cancels = (orders["flags"] & 8) != 0
    assert told["orders"] == (~cancels).sum()
    assert told["cancels"] == cancels.sum()
    assert told["fills"] == len(of_kind(left, Kind.FILL))
    assert told["signals"] == len(of_kind(left, Kind.SIGNAL))
    assert told["refused"] == sum(told["refused_by"].values()) > 0
    assert len(told["position"]) == told["contracts"] == table().quoted
    assert told["process"] == os.getpid()


def test_positions_are_the_fills_sum() -> None:
    loop = loop_of()
    fills = of_kind(loop.process(stream(31, 1500)), Kind.FILL)
    signed = np.where(fills["flags"] & 1, fills["values"][:, 2], -fills["values"][:, 2])
    expected = np.bincount(fills["instrument"] - 1, signed, table().quoted)
    assert np.array_equal(loop.board.array("position"), expected)


def test_the_page_is_read_only() -> None:
    loop = loop_of()
    assert not loop._loop.board().flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loop._loop.board()[0] = 1


def test_another_process_sees_the_same(tmp_path: Path) -> None:
    loop = loop_of(board=tmp_path / "board", chain=tmp_path / "chain")
    loop.process(stream(32, 300), sweep=True)
    assert (tmp_path / "board").stat().st_mode & 0o7777 == (tmp_path / "chain").stat().st_mode & 0o7777 == 0o600
    asked = (
        "import sys\nfrom pathlib import Path\nfrom serving.host.board import open_board, open_chain\n"
        "board, chain = open_board(Path(sys.argv[1])), open_chain(Path(sys.argv[2]))\n"
        "print(board.number('records'), board.number('spot').hex(), chain.count, chain.array('fair').sum().hex())\n"
    )
    command = [sys.executable, "-c", asked, str(tmp_path / "board"), str(tmp_path / "chain")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout.split()
    spot, total = float(loop.board.number("spot")).hex(), float(loop.chain.array("fair").sum()).hex()
    assert found == [str(loop.board.number("records")), spot, str(len(table())), total]


def test_the_swept_chain_is_what_the_quoted_are_valued_at() -> None:
    """The whole chain in one slice after every event, so all of it under the last one's context."""
    loop = loop_of(None, sweep=Sweep(contracts=len(table())))
    records = stream(33, 400, garbage=0.0, controls=0.0)
    loop.process(records, sweep=True)
    chain = loop.chain
    assert chain.count == len(table())
    assert np.isfinite(chain.array("fair")).all()
    assert (chain.array("event_ns") == loop.board.number("event_ns")).all()
    assert (chain.array("spot") == loop.board.number("spot")).all()
    # Not to the last bit: a volatility's float sums depend on how many contracts are valued at a time.
    assert np.allclose(chain.array("fair")[: table().quoted], loop.board.array("fair"), rtol=1e-6)
    calls = table().right > 0
    assert (chain.array("delta")[calls] >= 0).all()
    assert (chain.array("delta")[~calls] <= 0).all()
    assert (chain.array("gamma") >= 0).all()


def test_a_board_that_a_loop_holds_isnt_taken(tmp_path: Path) -> None:
    holder = loop_of(board=tmp_path / "board")
    with pytest.raises(HostError, match="held by another loop"):
        loop_of(board=tmp_path / "board")
    holder.process(stream(34, 50))
    assert open_board(tmp_path / "board").number("records") > 0


def test_the_board_of_a_killed_loop_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "board"
    holding = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.serving.host.test_loop import loop_of\n"
        "loop = loop_of(board=Path(sys.argv[1]))\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holding, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        former = open_board(path)
        with pytest.raises(HostError, match="held by another loop"):
            loop_of(board=path)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
    loop = loop_of(board=path)
    loop.process(stream(35, 50))
    assert former.number("records") == 0  # who looks at the former one isn't harmed
    assert open_board(path).number("records") > 0
    wait_until(lambda: open_board(path).number("process") == os.getpid(), "the new board")


def test_links_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for opened in (lambda: loop_of(board=tmp_path / "link"), lambda: open_board(tmp_path / "link")):
        with pytest.raises(HostError, match="link"):
            opened()
    assert not (tmp_path / "target").exists()
    (tmp_path / "file").write_bytes(b"x" * 5000)
    for open_page in (open_board, open_chain):
        with pytest.raises(HostError, match="layout"):
            open_page(tmp_path / "file")
    (tmp_path / "empty").touch()
    for wrong in ("empty", "none", "."):
        with pytest.raises(HostError):
            open_board(tmp_path / wrong)


def test_a_page_of_another_layout_is_refused() -> None:
    page = loop_of()._loop.board().copy()
    Board(page)
    page[0] += 1
    with pytest.raises(HostError, match="found layout 2"):
        Board(page)
    with pytest.raises(HostError, match="at least"):
        ChainPage(loop_of()._loop.chain()[:200])
