"""`strikeforge-host info` tells what is here, what isn't and why, and never fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving import native
from serving.cli import main
from serving.engine import BACKENDS, PRECISIONS
from serving.errors import EngineError

SETS = ["portable", "avx2", "avx512"]


def core_of(runs: str) -> SimpleNamespace:
    """A compiled core on a CPU of our choice."""
    return SimpleNamespace(isas=lambda: SETS, choose_isa=lambda: runs)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: core_of("avx2"))


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(("info", *options)) == 0
    return capsys.readouterr().out


def test_the_instruction_sets_and_the_one_that_runs(compiled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "native core: avx2, of portable, avx2, avx512; fp32, bf16, int8\n" in told(capsys)


def test_json_holds_the_same(compiled: None, capsys: pytest.CaptureFixture[str]) -> None:
    info = json.loads(told(capsys, "--json"))
    expected = {"reason": None, "instruction_sets": SETS, "runs": "avx2", "precisions": list(PRECISIONS["native"])}
    assert info["native"] == expected
    assert set(info["engines"]) == set(BACKENDS)
    assert info["distributions"]["numpy"]
    assert info["cores"] >= 1
    assert info["cpu"] in told(capsys)


def test_why_there_is_no_core(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'serving.native._core'")

    monkeypatch.setattr(native, "_load", missing)
    monkeypatch.setattr(native, "ABSENT", tmp_path / "absent.txt")
    assert "native core: the native core isn't here: No module named" in told(capsys)
    (tmp_path / "absent.txt").write_text("no working C++ compiler was found\n")
    out = told(capsys)
    assert "when strikeforge was installed, no working C++ compiler was found. Remedy: install GCC" in out
    with pytest.raises(EngineError, match="no working C\\+\\+ compiler"):
        native.core()


def test_an_instruction_set_that_this_cpu_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise ValueError("instruction set 'amx' was asked for, but this CPU goes up to 'avx512'")

    monkeypatch.setattr(native, "_load", lambda: SimpleNamespace(isas=lambda: SETS, choose_isa=refuse))
    shown = told(capsys)
    assert "native core: STRIKEFORGE_ISA: instruction set 'amx' was asked for" in shown
    assert "engine native: STRIKEFORGE_ISA: instruction set 'amx' was asked for" in shown
    assert json.loads(told(capsys, "--json"))["native"]["instruction_sets"] == SETS


def test_the_core_that_is_compiled_here_says_what_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = native.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.delenv("STRIKEFORGE_ISA", raising=False)
    core = json.loads(told(capsys, "--json"))["native"]
    assert core["instruction_sets"][0] == "portable"
    assert core["runs"] == core["instruction_sets"][-1]
    monkeypatch.setenv("STRIKEFORGE_ISA", "portable")
    assert json.loads(told(capsys, "--json"))["native"]["runs"] == "portable"
