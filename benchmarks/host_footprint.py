"""How large a trading host is: what its environment weighs, and how much memory its process holds.

In: this checkout, an index that pip can reach. Out: MB (10^6 bytes) of site-packages without pip and setuptools, byte
code included, of the base install (the native engine) and with the extra `cpu`. Memory: `peak_memory_mb` of a process
that has ended, from what it told.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from serving.errors import HostError

ROOT = Path(__file__).parents[1]
TOOLS = ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth", "pkg_resources")
LIMITS_MB = {"base": 100.0, "cpu": 180.0}


def installed_mb(folder: Path) -> dict[str, float]:
    """Of a new environment with the base install (`base`), then with the extra `cpu` added."""
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT))
    (wheel,) = (folder / "dist").glob("strikeforge-*.whl")
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    found = {}
    for name, extra in (("base", ""), ("cpu", "[cpu]")):
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint",
             str(ROOT / "constraints.txt"), f"{wheel}{extra}")  # fmt: skip
        found[name] = _size_mb(folder / "environment")
    return found


def _size_mb(environment: Path) -> float:
    (packages,) = (environment / "lib").glob("python*/site-packages")
    kept = [one for one in packages.iterdir() if one.name not in TOOLS and not one.name.startswith(_DISTRIBUTIONS)]
    files = [file for one in kept for file in (one, *one.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


_DISTRIBUTIONS = tuple(f"{tool}-" for tool in ("pip", "setuptools"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
