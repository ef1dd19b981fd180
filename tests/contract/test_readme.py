"""The README's promises, as a reader would run them: make repro in a fresh checkout, again, promote, price, tamper.

The checkout is a copy of the tracked files in a new git repository; the environment is the one the tests run in, so
that nothing is downloaded. `make repro` with its installation is what CI does before it gets here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VENV = Path(sys.prefix)


def command(folder: Path, line: str, expect: int = 0) -> str:
    """Run a line in a shell there; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, f"{line}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files as a repository of its own."""
    folder = tmp_path_factory.mktemp("readme") / "strikeforge"
    tracked = command(ROOT, "git ls-files -z --cached --others --exclude-standard").split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    command(folder, "git init -q && git add -A && git -c user.name=test -c user.email=test@localhost commit -qm copy")
    return folder


@pytest.fixture(scope="module")
def reproduced(checkout: Path) -> tuple[Path, str]:
    """`make repro` done once: the folder and what it printed."""
    printed = command(checkout, f"make -o {VENV}/.installed repro VENV={VENV}")
    return checkout, printed


def test_every_module_and_target_named_there_exists() -> None:
    modules = set(re.findall(r"python -m (pipelines\.\w+)", README))
    assert {"pipelines.run", "pipelines.promote", "pipelines.rollback"} <= modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w[\w-]*)`?", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_named_there_exists() -> None:
    for name in re.findall(r"`((?:pipelines|serving|models|docs|conf|tests)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_repro_ends_with_the_table(reproduced: tuple[Path, str]) -> None:
    folder, printed = reproduced
    for words in ("registered", "pricing_lstm", "test dates", "best baseline", "report.html", "pipelines.promote"):
        assert words in printed
    report = re.search(r"report of pricing_lstm 1: (\S+)", printed)
    assert report is not None
    assert (folder / report[1]).stat().st_size > 100_000


@pytest.mark.slow
def test_a_second_repro_runs_no_stage_and_registers_nothing(reproduced: tuple[Path, str]) -> None:
    folder, _ = reproduced
    events = sorted((folder / "store/ledger/pricing_lstm").iterdir())
    printed = command(folder, f"make -o {VENV}/.installed repro VENV={VENV}")
    assert "Running stage" not in printed
    assert sorted((folder / "store/ledger/pricing_lstm").iterdir()) == events


@pytest.mark.slow
def test_promote_price_tamper_and_roll_back(reproduced: tuple[Path, str]) -> None:
    folder, _ = reproduced
    price = "strikeforge-host price --model pricing_lstm --store store --development --demo --out prices.csv"
    command(folder, price, expect=6)  # nothing is champion yet
    assert "champion" in command(folder, "python -m pipelines.promote model=pricing_lstm version=1")
    printed = command(folder, price)
    assert "volatilities as expected" in printed
    assert len((folder / "prices.csv").read_text().splitlines()) > 400
    rolled = command(folder, "python -m pipelines.rollback model=pricing_lstm reason=test", expect=6)
    assert "Traceback" not in rolled
    bundle = json.loads((folder / "artifacts/register/pricing_lstm/version.json").read_text())["bundle_sha256"]
    head = folder / "store/bundles" / bundle / "member-0/head.onnx"
    content = bytearray(head.read_bytes())
    content[1000] ^= 1
    head.write_bytes(content)
    refused = command(folder, price, expect=5)
    assert "head.onnx" in refused
    assert "Traceback" not in refused
