"""Hosts to pull with (tests/pull_host.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pull_host import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def with_5(host: Host) -> Host:
    """Release 5 is installed, release 6 is published."""
    host.publish(1)
    host.publish(2)
    host.pull()
    host.publish(3)
    return host
