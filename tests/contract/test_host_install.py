"""The host alone: installed into an empty environment it pulls a release and prices, and nothing heavy came along.

Slow: makes a virtual environment and installs from the package index. The sources are copied first, so that no build
files appear in the work tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import serving
from tests.forged import MODEL, write_store
from tests.serving.test_pull_cli import sealed_demo

ROOT = Path(serving.__file__).parent.parent
FORBIDDEN = (
    "torch", "mlflow", "hydra", "omegaconf", "pandas", "polars", "pytorch_lightning", "pydantic", "scipy", "onnx",
    "pyarrow", "models", "pipelines",
)  # fmt: skip
TOOLS = ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth", "pkg_resources")
TIMEOUT_S = 900
INSTALL_MB = 170  # with the extra `cpu`, byte code (an eighth of it) included


def run(*command: object, where: Path) -> str:
    """Output of a command outside the repository, so that only what is installed can be imported."""
    listed = [str(one) for one in command]
    done = finished(listed, where)
    assert done.returncode == 0, f"{' '.join(listed)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def finished(command: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=where, timeout=TIMEOUT_S, env=environment
    )


def copied_sources(folder: Path) -> Path:
    """What a wheel is built from; a README or LICENSE that isn't written yet is stood in for."""
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "_core.*", "absent.txt", "build")
    shutil.copytree(ROOT / "serving", folder / "serving", ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    for name in ("README.md", "LICENSE"):
        source = ROOT / name
        (folder / name).write_text(source.read_text() if source.exists() else f"{name} comes later\n")
    return folder


def is_tool(path: Path) -> bool:
    return path.name.startswith(tuple(f"{tool}-" for tool in TOOLS)) or path.name in TOOLS


@pytest.mark.slow
def test_host_installs_alone_and_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    venv.create(tmp_path / "host", with_pip=True)
    python = tmp_path / "host" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    constraints = ROOT / "constraints.txt"
    pinned = ("-c", constraints) if constraints.exists() else ()
    run(*pip, "install", "--upgrade", "pip", where=tmp_path)
    run(*pip, "install", *pinned, f"{copied_sources(tmp_path / 'sources')}[cpu]", where=tmp_path)

    files = sealed_demo(tmp_path, 1)
    write_store(tmp_path / "store", files)
    (tmp_path / "root.json").write_bytes(files["channel/1.root.json"])
    host = python.parent / "strikeforge-host"
    told = (host, "pull", "--model", MODEL, "--store", "store", "--root", "root.json", "--to", "releases")
    assert "installed in" in run(*told, where=tmp_path)
    assert "is installed already" in run(*told, where=tmp_path)
    out = run(
        host,
        "price",
        "--engine",
        "ort",
        "--model",
        MODEL,
        "--from",
        "releases",
        "--demo",
        "--out",
        "out.csv",
        where=tmp_path,
    )
    assert "volatilities as expected" in out
    assert (tmp_path / "out.csv").exists()
    info = run(host, "info", where=tmp_path)
    assert "engine ort: available" in info
    if shutil.which("c++"):
        assert "native core: the native core isn't here" not in info
    assert "BROKEN" not in run(
        host, "inspect", "--engine", "ort", "--model", MODEL, "--from", "releases", where=tmp_path
    )

    find = f"import importlib.util as u; print([n for n in {FORBIDDEN!r} if u.find_spec(n)])"
    assert run(python, "-c", find, where=tmp_path).strip() == "[]"
    demo = ["price", "--engine", "ort", "--model", MODEL, "--from", "releases", "--demo", "--out", "out.parquet"]
    asked = finished([str(host), *demo], tmp_path)
    assert asked.returncode == 3
    assert "strikeforge[parquet]" in asked.stderr

    (packages,) = (tmp_path / "host" / "lib").glob("python*/site-packages")
    kept = [path for path in packages.iterdir() if not is_tool(path)]
    files = {path.name: [file for file in (path, *path.rglob("*")) if file.is_file()] for path in kept}
    sizes = {name: sum(file.stat().st_size for file in its_files) for name, its_files in files.items()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    with capsys.disabled():
        shown = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest)
        sys.stdout.write(f"\nhost install: {sum(sizes.values()) / 1e6:.1f} MB without pip and setuptools ({shown})\n")
    assert sum(sizes.values()) / 1e6 <= INSTALL_MB
