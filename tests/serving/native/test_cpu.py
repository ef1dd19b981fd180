"""Which instruction set runs: the best there is, the one asked for, or a refusal that names the choices."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.serving.native.built import built_core

CORE = built_core()
LEVELS = ["portable", "avx2", "avx512", "vnni", "bf16", "amx"]


def chosen(asked: str, told: str | None) -> subprocess.CompletedProcess[str]:
    """`choose_isa(asked)` in a fresh process whose environment says `told`."""
    environment = {name: value for name, value in os.environ.items() if name != "STRIKEFORGE_ISA"}
    code = f"from serving.native import core; print(core().choose_isa({asked!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=environment if told is None else environment | {"STRIKEFORGE_ISA": told},
    )  # fmt: skip


def test_levels_are_nested() -> None:
    assert CORE.isas() == LEVELS[: len(CORE.isas())]
    assert CORE.cpu_name()


def test_the_best_runs_unless_told_otherwise() -> None:
    assert chosen("", None).stdout.split() == [CORE.isas()[-1]]
    assert chosen("", "portable").stdout.split() == ["portable"]
    assert chosen(CORE.isas()[-1], "portable").stdout.split() == [CORE.isas()[-1]]


@pytest.mark.parametrize(("asked", "told"), [("mmx", None), ("", "mmx")])
def test_unknown_sets_are_refused_by_name(asked: str, told: str | None) -> None:
    done = chosen(asked, told)
    assert done.returncode != 0
    assert f"there is no instruction set 'mmx'; there are {', '.join(LEVELS)}" in done.stderr


@pytest.mark.skipif(len(CORE.isas()) == len(LEVELS), reason="this CPU has every set there is")
def test_sets_this_cpu_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=f"'amx' was asked for, but this CPU .* goes up to '{CORE.isas()[-1]}'"):
        CORE.choose_isa("amx")
