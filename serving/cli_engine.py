"""The engine a command runs: its options, and opening it for a release.

Data in: `--engine`, `--precision`, `--provider`, `--max-step-us`. Data out: a verified engine (serving/warm.py).
Invariant: the engine is the one asked for, native if none was, or the command ends with reason and remedy; nothing
falls back, ONNX Runtime's provider neither. What can't run here is an EngineError, exit code 8.
"""

from __future__ import annotations

import argparse
import math

from serving.engine import BACKENDS, FP32, PROVIDERS, every_precision
from serving.released import Released
from serving.warm import CPU, Warm, open_verified_engine

DEFAULT_ENGINE = "native"


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """`--engine`, `--precision`, `--provider`, `--max-step-us`."""
    command.add_argument("--engine", choices=BACKENDS, default=DEFAULT_ENGINE, help=f"default {DEFAULT_ENGINE}")
    command.add_argument(
        "--precision", choices=every_precision(), default=FP32,
        help=f"of the weights (default {FP32}); others need an engine pack, as the engine trt always does",
    )  # fmt: skip
    command.add_argument(
        "--provider", choices=PROVIDERS, default=CPU, help=f"what --engine ort computes on (default {CPU})"
    )
    command.add_argument(
        "--max-step-us",
        type=_microseconds,
        metavar="US",
        help="refuse if a market step takes longer (p99, from Python)",
    )


def add_target_option(pull: argparse.ArgumentParser) -> None:
    """`--target`, which may be repeated."""
    pull.add_argument(
        "--target", action="append", metavar="TARGET",
        help="whose engine packs to bring along; may be repeated (default native: those of the native engine, if any)",
    )  # fmt: skip


def opened(arguments: argparse.Namespace, released: Released) -> Warm:
    """The engine of these options, held to what it must answer, and timed if a limit was given."""
    return open_verified_engine(
        released.bundle, released.packs, arguments.engine, arguments.precision, provider=arguments.provider,
        max_step_us=arguments.max_step_us, probe=False,
    )  # fmt: skip


def _microseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of microseconds above 0")
    return value
