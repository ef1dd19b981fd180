"""The sample market on a DVC remote in S3, as docs/storage.md says: pushed, lost, pulled again, the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTLED = 300.0

pytestmark = [pytest.mark.cloud, pytest.mark.slow]


class Repository:
    """A copy of this one as far as DVC cares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".dvc").mkdir(parents=True)
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        shutil.copy(ROOT / "data.dvc", folder)
        shutil.copytree(ROOT / ".dvc-store", folder / ".dvc-store")
        subprocess.run(["git", "init", "--quiet", folder], check=True, timeout=SETTLED)

    def dvc(self, *words: str) -> subprocess.CompletedProcess[str]:
        nothing = self.folder / "empty"  # dvc-s3 wants files where the fixture says os.devnull
        nothing.touch()
        environment = {
            **os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.folder / "site"),
            "AWS_CONFIG_FILE": str(nothing), "AWS_SHARED_CREDENTIALS_FILE": str(nothing),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SETTLED,
        )  # fmt: skip

    def do(self, *words: str) -> None:
        done = self.dvc(*words)
        assert done.returncode == 0, done.stderr

    def lose(self) -> None:
        """Data, cache and the embedded remote are gone."""
        for name in ("data", ".dvc/cache", ".dvc-store"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def data(self) -> dict[str, bytes]:
        folder = self.folder / "data"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pushed_lost_and_pulled_again(s3_store_url: str, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "first")
    repository.do("pull", "data.dvc")
    data = repository.data()
    assert "underlying.csv" in data
    repository.do("remote", "add", "--default", "shared", s3_store_url)
    repository.do("push", "data.dvc")

    repository.lose()
    assert repository.data() == {}
    repository.do("pull", "data.dvc")
    assert repository.data() == data

    another = Repository(tmp_path / "second")  # somebody else's checkout, who knows the URL
    another.lose()
    assert another.dvc("pull", "data.dvc").returncode != 0
    another.do("remote", "add", "--default", "shared", s3_store_url)
    another.do("pull", "data.dvc")
    assert another.data() == data
