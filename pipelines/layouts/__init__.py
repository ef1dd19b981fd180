"""Vendor layouts, found by name: the module `pipelines.layouts.<name>` exposes `layout(options) -> Layout`.

Purpose: a new vendor is one new file in this folder and no change elsewhere. Data in: a layout's name and its
options from the configuration. Data out: a checked `Layout`. Invariants: an unknown name, an unknown option
and every other problem is a `ConfigError`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from pipelines.layouts.base import Layout
from serving.errors import ConfigError

__all__ = ["Layout", "known", "load"]

NOT_LAYOUTS = frozenset({"base"})


def known() -> list[str]:
    """Names of the layouts there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_LAYOUTS)


def load(name: str, options: Mapping[str, Any] | None = None) -> Layout:
    """The layout of that name, built with `options`; see each layout's module for those it takes. An option that is
    None or empty counts as not given."""
    if name not in known():
        close = difflib.get_close_matches(name, known(), n=1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        raise ConfigError([f"layout {name!r} is unknown{hint}; known layouts: {', '.join(known())}"])
    module = importlib.import_module(f"{__name__}.{name}")
    build = getattr(module, "layout", None)
    if not callable(build):
        raise ConfigError([f"layout {name!r}: {module.__name__} has no function layout(options) -> Layout"])
    given = {key: value for key, value in (options or {}).items() if value is not None and value != {}}
    built = build(given)
    if not isinstance(built, Layout):
        raise ConfigError([f"layout {name!r}: layout(options) returned {type(built).__name__}, not a Layout"])
    return built
