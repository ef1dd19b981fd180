"""Nothing but the gate can let an order leave: what tries to is refused by the compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.host.risk_gates import SOURCES

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
HEAD = """
#include "host/risk.hpp"
using namespace strikeforge;
void act(KeptOrders& sink, const ClearedOrder& cleared, const Record& record) {{ {statement} }}
"""


def compiles(folder: Path, statement: str) -> subprocess.CompletedProcess[str]:
    if COMPILER is None:
        pytest.skip("no C++ compiler is here")
    source = folder / "attempt.cpp"
    source.write_text(HEAD.format(statement=statement))
    command = [COMPILER, "-std=c++20", "-fsyntax-only", f"-I{SOURCES}", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_cleared_order_may_leave(tmp_path: Path) -> None:
    assert compiles(tmp_path, "sink.leave(cleared); (void)record;").returncode == 0


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("sink.leave(record);", "no matching|private|invalid initialization|cannot convert|could not convert"),
        ("sink.leave(ClearedOrder(record));", "private"),
        ("ClearedOrder kept(cleared);", "deleted"),
        ("struct Mine : ClearedOrder { Mine(const Record& r) : ClearedOrder(r) {} }; Mine mine(record);", "private"),
    ],
)
def test_nothing_else_leaves(tmp_path: Path, statement: str, why: str) -> None:
    done = compiles(tmp_path, statement)
    assert done.returncode != 0
    assert any(word in done.stderr for word in why.split("|")), done.stderr
