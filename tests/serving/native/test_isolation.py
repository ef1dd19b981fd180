"""No function compiled for one instruction set can be called by code meant for every CPU.

The linker keeps one copy of a weak symbol (an inline function, a template's instance); were one emitted by a file that
is compiled for AVX-512, everybody might run that copy. So those files define no weak symbol at all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.native.built import built_core

built_core()
NATIVE = Path(__file__).parents[3] / "serving" / "native"
ISAS = ("avx2", "avx512", "vnni", "bf16", "amx")
FILES = sorted(file for isa in ISAS for file in NATIVE.rglob(f"*_{isa}.cpp"))
COMPILER = shutil.which("g++") or shutil.which("clang++")


def flags_of(isa: str) -> list[str]:
    """As CMakeLists.txt sets them."""
    sets = dict(re.findall(r"set\(ISA_(\w+) ([^)]*)\)", (NATIVE / "CMakeLists.txt").read_text()))
    words: list[str] = []
    for word in sets[isa].split():
        inner = re.fullmatch(r"\$\{ISA_(\w+)\}", word)
        words += flags_of(inner[1]) if inner else [word]
    return words


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or not shutil.which("nm"), reason="needs a C++ compiler and nm")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_instruction_set_files_define_no_weak_symbol(file: Path, tmp_path: Path) -> None:
    made = tmp_path / "out.o"
    isa = file.stem.rsplit("_", 1)[1]
    common = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-DSTRIKEFORGE_X86=1", f"-I{NATIVE}"]
    subprocess.run([str(COMPILER), *common, *flags_of(isa), "-c", str(file), "-o", str(made)], check=True)
    lines = subprocess.run(["nm", "-C", str(made)], check=True, capture_output=True, text=True).stdout.splitlines()
    weak = [line for line in lines if re.match(r"[0-9a-f]+ [WVu] ", line)]
    ours = [line for line in lines if re.match(r"[0-9a-f]+ T ", line)]
    assert not weak
    assert all("strikeforge::" in line for line in ours)
    assert ours
