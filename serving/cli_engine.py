"""The engine a command runs: its options, and opening it for a release.

Data in: `--engine`, `--precision`, `--max-step-us`. Data out: a verified engine (serving/warm.py). Invariant: the
engine is the one asked for, native if none was, or the command ends with reason and remedy; nothing falls back.
"""

from __future__ import annotations

import argparse
import math

from serving.engine import BACKENDS, PRECISIONS
from serving.released import Released
from serving.warm import FP32, Warm, open_verified_engine

DEFAULT_ENGINE = "native"


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """`--engine`, `--precision`, `--max-step-us`."""
    command.add_argument("--engine", choices=BACKENDS, default=DEFAULT_ENGINE, help=f"default {DEFAULT_ENGINE}")
    command.add_argument(
        "--precision", choices=PRECISIONS, default=FP32, help="of the weights; others than fp32 need an engine pack"
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
        released.bundle, released.packs, arguments.engine, arguments.precision, max_step_us=arguments.max_step_us,
        probe=False,
    )  # fmt: skip


def _microseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of microseconds above 0")
    return value
