"""What machine and installation this is: reports and engine packs say where a figure was measured, and by what.

Data in: the operating system's and the installation's word. Data out: text, never empty.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def library_version() -> str:
    """The version of this installation, which the native engine is a part of."""
    try:
        return metadata.version("strikeforge")
    except metadata.PackageNotFoundError:
        return "not installed"
