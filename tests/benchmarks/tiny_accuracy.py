"""The accuracy benchmark on the tiny market: two folds, their rows together, more anchors, and a case of too few dates.

Run: python -m tests.benchmarks.tiny_accuracy --data DIR --work DIR ...        DIR holds what `write_market` wrote
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import accuracy, accuracy_page
from benchmarks.accuracy_cases import CURVE, MAIN, OTHERS, Case, Market, Setup
from serving.errors import run_command
from tests.pipelines import market

SMALL = (  # what is learned is believed: held-out dates of so short a market trust nothing, and seeds would all agree
    "trainer.epochs=2", "trainer.rows_per_snapshot=24", "features.window=5", "features.smallest_rows=5",
    "trainer.trust_share=0", *market.SMALL_SIZES["pricing_lstm"],
)  # fmt: skip
ANCHORS = "data.anchors=[{tenor_days:45},{tenor_days:120}]"
MORE_ANCHORS = "data.anchors=[{tenor_days:45},{tenor_days:120},{tenor_days:45,moneyness:-0.1}]"
MARKETS = {"tiny": Market("tiny", "a tiny made-up market", "tiny.parquet", ("data=generic",))}
SETUPS = {
    setup.name: setup
    for setup in (
        Setup("tiny/a", "tiny", ("split.test_from=2024-01-22", "split.test_to=2024-01-26", ANCHORS)),
        Setup("tiny/b", "tiny", ("split.test_from=2024-01-29", "split.test_to=null", ANCHORS)),
        Setup("tiny/more", "tiny", ("split.test_from=2024-01-29", MORE_ANCHORS)),
        Setup("tiny/early", "tiny", ("split.test_from=2024-01-05", ANCHORS)),
    )
}
CASES = {
    case.name: case
    for case in (
        Case("tiny/a", ("tiny/a",), MAIN, "a"),
        Case("tiny/b", ("tiny/b",), MAIN, "b"),
        Case("tiny/walk_forward", ("tiny/a", "tiny/b"), MAIN, "both"),
        Case("tiny/two_anchors", ("tiny/b",), CURVE, "2", rows_of="tiny/more"),
        Case("tiny/early", ("tiny/early",), OTHERS, "early"),
    )
}


def write_market(folder: Path) -> Path:
    """`folder`, with the market's quotes in it."""
    market.write(market.market(), folder / "tiny.parquet")
    return folder


def put_in(patch: pytest.MonkeyPatch) -> None:
    """The tiny market's cases in place of the real ones, in this process."""
    for name, value in (("MARKETS", MARKETS), ("SETUPS", SETUPS), ("CASES", CASES)):
        patch.setattr(accuracy, name, value)
    for name, value in (("MARKETS", MARKETS), ("SETUPS", SETUPS)):
        patch.setattr(accuracy_page, name, value)


def arguments(data: Path, work: Path, *more: str, seeds: str = "3,4") -> list[str]:
    """A command line."""
    return ["--data", str(data), "--work", str(work), "--models", "pricing_lstm", "--seeds", seeds,
            "--override", *SMALL, *more]  # fmt: skip


if __name__ == "__main__":
    put_in(pytest.MonkeyPatch())
    raise SystemExit(run_command(accuracy.main, sys.argv[1:]))
