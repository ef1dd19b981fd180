"""The built native core, or a skip that says why there is none."""

from __future__ import annotations

from types import ModuleType

import pytest

from serving import engine, native

PRECISIONS = engine.PRECISIONS["native"]


def built_core() -> ModuleType:
    """The extension; skips the whole test file where it wasn't built."""
    reason = native.why_unavailable()
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)
    return native.core()
