"""What every `python -m pipelines.<stage>` shares: help, configuration, errors to exit codes, one line of result.

In: a stage's `run` and its module docstring. Out: the process's exit code (serving/errors.py lists them).
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.config import Config, Operation, load_config, load_operation
from serving.errors import StrikeforgeError, run_command


def stage(help_text: str | None, run: Callable[[Config], Any], argv: Sequence[str] | None = None) -> int:
    """Run one stage with the overrides of the command line."""
    return _command(help_text, lambda overrides: run(load_config(overrides)), argv)


def operation(help_text: str | None, run: Callable[[Operation], Any], argv: Sequence[str] | None = None) -> int:
    """Run one act on the registry with the overrides of the command line."""
    return _command(help_text, lambda overrides: run(load_operation(overrides)), argv)


def with_overrides(
    help_text: str | None, run: Callable[[Sequence[str]], Any], argv: Sequence[str] | None = None
) -> int:
    """Run a command that composes its configuration itself from the overrides of the command line."""
    return _command(help_text, run, argv)


def _command(help_text: str | None, act: Callable[[Sequence[str]], Any], argv: Sequence[str] | None) -> int:
    def main(arguments: Sequence[str]) -> int:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(f"{help_text}\nKeys and their values: conf/. Exit codes: serving/errors.py.\n")
            return 0
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        for talkative in ("azure", "boto3", "botocore", "google", "tuf", "urllib3"):  # every request, with its headers
            logging.getLogger(talkative).setLevel(logging.WARNING)
        try:
            result = act(arguments)
        except OSError as error:
            if error.filename is None:  # not about a file: ours to mend
                raise
            raise StrikeforgeError(f"{error.filename}: {error.strerror}; check the path and its permissions") from error
        if text := describe(result):
            sys.stdout.write(text + "\n")
        return 0

    return run_command(main, argv)


def describe(result: Any) -> str:
    """A result's own message, or its fields as `name=value` words."""
    if not dataclasses.is_dataclass(result):
        return "" if result is None else str(result)
    if message := getattr(result, "message", ""):
        return str(message)
    words = (f"{field.name}={getattr(result, field.name)}" for field in dataclasses.fields(result))
    return f"{type(result).__name__}: " + ", ".join(words)
