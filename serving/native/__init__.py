"""The native core: a C++ extension, there where a compiler or a wheel was when strikeforge was installed.

Data out: the module `serving.native._core`, or the reason why it can't be used. Nothing is imported until asked for.
Where the installation couldn't build it, it wrote why to absent.txt beside this file (CMakeLists.txt).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from serving.errors import EngineError

HOW = "install GCC 12, Clang 16 or newer, then strikeforge anew (in a checkout: make native), or use a wheel"
ABSENT = Path(__file__).with_name("absent.txt")


def why_unavailable() -> str | None:
    """Why the native core can't be used here, or None."""
    try:
        _load()
    except ImportError as error:
        return _reason(error)
    return None


def core() -> ModuleType:
    """The extension module; EngineError where it isn't there."""
    try:
        return _load()
    except ImportError as error:
        raise EngineError(f"engine 'native': {_reason(error)}") from error


def _reason(error: ImportError) -> str:
    if ABSENT.exists():
        said = f"when strikeforge was installed, {ABSENT.read_text(encoding='utf-8').strip()}"
    else:
        said = str(error)
    return f"the native core isn't here: {said}. Remedy: {HOW}"


def _load() -> ModuleType:
    return importlib.import_module("serving.native._core")
