"""Worlds that every gate is asked in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.gates.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def surfaces(tmp_path: Path) -> World:
    return World(tmp_path / "surfaces", "surface_vae")
