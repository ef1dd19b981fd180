"""Hosts that run: the real command on a release of ticks (tests/serving/host/run_host.py)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serving.host.run_host import RunHost


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it was pulled into."""
    from tests.serving.host.tick_bundle import pulled_release  # torch: only where something runs

    return pulled_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def host(release: Path, tmp_path: Path) -> Iterator[RunHost]:
    from tests.serving.host.run_host import RunHost

    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    directory = Path(tempfile.mkdtemp(prefix="strikeforge-test-", dir=shared))
    host = RunHost(tmp_path / "host", release, directory / "run")
    try:
        yield host
    finally:
        host.close()
        shutil.rmtree(directory)
