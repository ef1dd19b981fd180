"""The native core: a C++ extension, there where a compiler or a wheel was when strikeforge was installed.

Data out: the module `serving.native._core`, or the reason why it can't be used. Nothing is imported until asked for.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from serving.errors import EngineError

HOW = "install a C++20 compiler, then run `pip install --force-reinstall --no-deps .` in the checkout, or use a wheel"


def why_unavailable() -> str | None:
    """Why the native core can't be used here, or None."""
    try:
        _load()
    except ImportError as error:
        return f"the native core wasn't built when strikeforge was installed ({error}): {HOW}"
    return None


def core() -> ModuleType:
    """The extension module; EngineError where it isn't there."""
    try:
        return _load()
    except ImportError as error:
        raise EngineError(f"engine 'native': the native core isn't here ({error}): {HOW}") from error


def _load() -> ModuleType:
    return importlib.import_module("serving.native._core")
