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


def typed(*beginnings: str) -> list[str]:
    """The README's command lines that begin so, without comments, as they stand there."""
    lines = [line.partition("  #")[0].strip() for line in README.splitlines() if not line.startswith(" ")]
    found = [line for line in lines for beginning in beginnings if line.startswith(beginning)]
    assert len(found) >= len(beginnings)
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.slow
def test_promote_pull_price_verify_roll_back(reproduced: tuple[Path, str]) -> None:
    folder, _ = reproduced
    (pull,) = typed("strikeforge-host pull --model pricing_lstm")
    (price,) = typed("strikeforge-host price --from host --model pricing_lstm --demo")
    (verify,) = typed("python -m pipelines.verify")
    assert "Traceback" not in command(folder, pull, expect=6)  # nothing is champion yet
    for line in typed("python -m pipelines.promote"):
        assert "is champion, release 1" in command(folder, line)
    assert "installed in" in command(folder, pull)
    printed = command(folder, price)
    assert "volatilities as expected" in printed
    assert len((folder / "prices.csv").read_text().splitlines()) > 400
    for line in typed("strikeforge-host pull --model surface_vae", "strikeforge-host inspect --from host"):
        assert "surface_vae" in command(folder, line)
    command(folder, verify)
    (rollback,) = typed("python -m pipelines.rollback")
    rolled = command(folder, rollback, expect=6)  # needs a champion before it
    assert "Traceback" not in rolled


@pytest.mark.slow
def test_what_was_tampered_with_is_refused(reproduced: tuple[Path, str]) -> None:
    folder, _ = reproduced
    (pull,) = typed("strikeforge-host pull --model pricing_lstm")
    (price,) = typed("strikeforge-host price --from host --model pricing_lstm --demo")
    (verify,) = typed("python -m pipelines.verify")
    bundle = json.loads((folder / "artifacts/register/pricing_lstm/version.json").read_text())["bundle_sha256"]
    flip(folder / "store/bundles" / bundle / "member-0/head.onnx")
    for line, code in ((pull.replace("--to host", "--to another"), 10), (verify, 10)):
        refused = command(folder, line, expect=code)
        assert "head.onnx" in refused
        assert "Traceback" not in refused
    assert "volatilities as expected" in command(folder, price)  # what was installed stays
    flip(folder / "host/pricing_lstm/champion/current/bundle/member-0/head.onnx")
    refused = command(folder, price, expect=5)
    assert "head.onnx" in refused
