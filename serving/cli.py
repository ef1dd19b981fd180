"""`strikeforge-host`: what a person types on a trading host.

    strikeforge-host pull     bring a channel's signed release to a folder of this host, verified (serving/pull.py)
    strikeforge-host price    a released model's fair value of every contract of a chain, with Greeks
    strikeforge-host inspect  what is installed, verified, its golden vectors recomputed; a surface model
                              judges and completes a chain
    strikeforge-host info     versions, CPU, instruction sets, and which engines can run here
    strikeforge-host run      the hot loop: ticks in, risk-checked orders out (docs/host-rules.md)
    strikeforge-host feed     what writes the loop's tick ring: replay, multicast, packet; `run` starts it
    strikeforge-host control  tell a running loop to kill, reduce, resume, reload its limits, stop
    strikeforge-host top      a running loop, live in the terminal
    strikeforge-host doctor   what of this machine slows a loop down, and, asked, what may be done about it

Data in: a signed store, a folder of pulled releases, tables of quotes. Data out: that folder, text on stdout, one table
file; errors as one message on stderr. Exit codes: 0, 2 for wrong usage, else those of serving/errors.py.
Invariant: a bundle is used only if a release names it and every byte of it was verified; without signatures only when
--development was said.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.cli_engine import add_engine_options, add_target_option
from serving.cli_info import run_info
from serving.errors import run_command
from serving.ledger import CHANNELS
from serving.release import RELEASED_CHANNELS
from serving.table_files import SUFFIXES

HOST_COMMANDS = {  # module, its functions that add options and run, what it does
    "run": ("serving.cli_run", "add_run", "run_host", "the hot loop: ticks in, risk-checked orders out"),
    "feed": ("serving.cli_feed", "add_feed_options", "run_feed", "write a loop's tick ring (`run` starts it)"),
    "control": ("serving.cli_control", "add_control", "run_control", "tell a running loop to kill, resume, stop..."),
    "top": ("serving.cli_top", "add_top", "run_top", "a running loop, live in the terminal"),
    "doctor": ("serving.cli_doctor", "add_doctor", "run_doctor", "what of this machine slows a loop down"),
}


def entry() -> None:
    """Console script; a reader that stops early (`| head`) is no error, a full disk is."""
    try:
        code = run_command(main)
        sys.stdout.flush()
    except OSError as error:
        if not _stdout_is_broken():
            raise
        code = 0
        if not isinstance(error, BrokenPipeError):
            code = 1
            sys.stderr.write(f"error: stdout: {error.strerror}: not all was written; make room, or write elsewhere\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
    sys.exit(code)


def _stdout_is_broken() -> bool:
    try:
        sys.stdout.flush()  # what couldn't be written is tried again, unless it wasn't buffered
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def main(argv: Sequence[str]) -> int:
    """Parse and run one command."""
    parser = _parser(argv)
    arguments = parser.parse_args(argv)
    if arguments.command == "pull":
        from serving.pull import run_pull

        return run_pull(arguments)
    if arguments.command == "price":
        from serving.cli_price import run_price

        return run_price(parser, arguments)
    if arguments.command == "inspect":
        from serving.cli_inspect import run_inspect

        return run_inspect(parser, arguments)
    if arguments.command in HOST_COMMANDS:
        module, _, run, _ = HOST_COMMANDS[arguments.command]
        return int(getattr(importlib.import_module(module), run)(arguments))
    return run_info(arguments)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Of the commands around the loop only the one that was typed is imported, and has options."""
    parser = argparse.ArgumentParser(prog="strikeforge-host", description="Fair values of option chains on a host.")
    commands = parser.add_subparsers(dest="command", required=True)
    price = commands.add_parser("price", help="price every contract of a chain")
    inspect = commands.add_parser("inspect", help="verify a channel's bundle; a surface model judges a chain")
    _add_pull(commands.add_parser("pull", help="install a channel's signed release, verified, in a folder"))
    info = commands.add_parser("info", help="versions, CPU and engines of this host")
    info.add_argument("--json", action="store_true", help="the same as one JSON object")
    for name, (module, add, _, text) in HOST_COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in argv[:1]:
            getattr(importlib.import_module(module), add)(command)
    for command in (price, inspect):
        command.add_argument("--model", required=True, help="name of the model")
        command.add_argument("--channel", choices=CHANNELS, default="champion")
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="folder that was pulled into")
        source.add_argument("--store", metavar="URL", help="unsigned: what the ledger names; needs --development")
        command.add_argument("--development", action="store_true", help="work with what nobody signed")
        add_engine_options(command)
    kinds = ", ".join(SUFFIXES)
    inspect.add_argument("--demo", action="store_true", help="judge the bundle's own chain and check the answer")
    inspect.add_argument(
        "--chain", type=Path, metavar="FILE", help=f"snapshots of a chain; the last is judged ({kinds})"
    )
    inspect.add_argument("--underlying", help="which one, where the chain holds several")
    inspect.add_argument("--out", type=Path, metavar="FILE", help=f"the completed grid goes here ({kinds})")
    price.add_argument("--demo", action="store_true", help="take the inputs from the bundle and check the answer")
    price.add_argument("--chain", type=Path, metavar="FILE", help=f"past snapshots of the chain ({kinds})")
    price.add_argument("--path", type=Path, metavar="FILE", help="the underlying's past prices")
    price.add_argument("--now", type=Path, metavar="FILE", help="the underlying and the anchors' quotes now")
    price.add_argument("--underlying", help="which one, where the chain holds several")
    price.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"every contract goes here ({kinds})")
    price.add_argument("--rows", type=int, default=20, help="contracts to print, spread over the expiries (default 20)")
    return parser


def _add_pull(pull: argparse.ArgumentParser) -> None:
    pull.add_argument("--model", required=True, help="name of the model")
    pull.add_argument("--channel", choices=RELEASED_CHANNELS, default="champion")
    pull.add_argument("--store", required=True, metavar="URL", help="folder or URL of the store")
    pull.add_argument("--root", type=Path, metavar="FILE", help="root.json to trust, brought here by another way")
    pull.add_argument("--to", type=Path, required=True, metavar="DIR", help="where releases are installed")
    add_target_option(pull)
    pull.add_argument("--keep", type=_at_least_one, default=3, metavar="N", help="releases to keep (default 3)")
    pull.add_argument("--development", action="store_true", help="take a development root, or an unsigned store")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of releases, 1 or more")
    return int(text)
