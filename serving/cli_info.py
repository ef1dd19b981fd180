"""`strikeforge-host info`: what this host is, and what can run on it.

Data in: installed distributions, the CPU, the engines' own word. Data out: text on stdout, or one JSON object.
Invariants: imports no inference library; exit code 0 whatever is missing, which is told with its reason. Where
STRIKEFORGE_ISA asks for what this CPU can't run, that is the native core's reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from serving import native
from serving.engine import PRECISIONS, unavailable_engines
from serving.machine import cpu_name
from serving.released import write_lines

DISTRIBUTIONS = ("strikeforge", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pyarrow")


@dataclass(frozen=True)
class NativeCore:
    """The compiled core: what this CPU can run of it, or why nothing."""

    reason: str | None  # why it can't be used, or None
    instruction_sets: tuple[str, ...] = ()  # lowest first
    runs: str | None = None  # the one that is taken
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostInfo:
    """Everything `info` tells."""

    python: str
    platform: str
    distributions: dict[str, str | None]  # None: not installed
    cpu: str
    cores: int
    native: NativeCore
    engines: dict[str, str | None]  # why one can't be opened, or None


def run_info(arguments: argparse.Namespace) -> int:
    """Tell it."""
    info = host_info()
    write_lines([json.dumps(asdict(info), indent=2)] if arguments.json else _lines(info))
    return 0


def host_info() -> HostInfo:
    """Look at this host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    core, engines = native_core(), unavailable_engines()
    engines["native"] = engines["native"] or core.reason
    versions = {name: _version(name) for name in DISTRIBUTIONS}
    return HostInfo(
        platform.python_version(),
        platform.platform(),
        versions,
        cpu_name(),
        cores,
        core,
        engines,
    )


def native_core() -> NativeCore:
    """Whether the compiled core is here, and how it would run."""
    reason = native.why_unavailable()
    if reason is not None:
        return NativeCore(reason)
    core = native.core()
    sets = tuple(core.isas())
    try:
        return NativeCore(None, sets, core.choose_isa(), PRECISIONS["native"])
    except ValueError as error:  # STRIKEFORGE_ISA names a set that isn't there, or not on this CPU
        return NativeCore(f"STRIKEFORGE_ISA: {error}", sets)


def _lines(info: HostInfo) -> list[str]:
    core = info.native
    sets = f", of {', '.join(core.instruction_sets)}" if core.instruction_sets else ""
    runs = f"{core.runs}{sets}; {', '.join(core.precisions)}" if core.reason is None else core.reason
    return [
        f"python {info.python} on {info.platform}",
        *(f"{name} {version or 'not installed'}" for name, version in info.distributions.items()),
        f"cpu {info.cpu}, {info.cores} usable core(s)",
        f"native core: {runs}",
        *(f"engine {name}: {'available' if reason is None else reason}" for name, reason in info.engines.items()),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
