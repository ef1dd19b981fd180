"""A copy of the session's bundle to damage, and the refusal that must follow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Bundle, load_bundle
from serving.errors import BundleError


@pytest.fixture
def copy(pristine: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine.directory, tmp_path / "copy"))


def refuse(directory: Path, why: str, **expected: Any) -> None:
    with pytest.raises(BundleError, match=why):
        load_bundle(directory, **expected)
