"""`strikeforge-host control`: tell a running loop to kill, reduce, resume, reload its limits, stop.

Data in: the host's configuration, of which `directory` alone is looked at: the control socket is there; what to do.
Data out: the loop's answer as `name: value` lines on stdout. Invariants: exit code 0 only if the loop itself said that
it was told; a configuration that was broken since the start doesn't keep a kill out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from serving.errors import HostError
from serving.host.config import read_directory
from serving.host.config_types import control_socket_in
from serving.host.control import ask
from serving.released import write_lines

COMMANDS = {
    "kill": "HALTED: cancel all working orders, send none; also SIGUSR1, or a file HALT in the directory",
    "reduce": "REDUCING: only orders that bring a position nearer to nothing",
    "resume": "ACTIVE again",
    "anomaly_score": "the anomaly score now, for the model guard",
    "limits_reload": "read the limits file again; what changed is logged",
    "status": "state, profit, counters",
    "stop": "cancel working orders and end the run",
}
WITH_VALUE = "anomaly_score"


def add_control(parser: argparse.ArgumentParser) -> None:
    """Options and commands."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the host's configuration")
    parser.add_argument("--timeout-s", type=float, default=5.0, metavar="S", help="give up after so long (default 5)")
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == "limits_reload":
            limits = commands.add_parser("limits", help=text).add_subparsers(dest="limits", required=True)
            limits.add_parser("reload", help=text)
            continue
        command = commands.add_parser(name, help=text)
        if name == WITH_VALUE:
            command.add_argument("value", type=float)


def run_control(arguments: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    if not 0 < arguments.timeout_s <= 3600:
        raise HostError(f"--timeout-s {arguments.timeout_s:g}: expected more than 0, at most 3600")
    socket = control_socket_in(read_directory(arguments.config))
    name = "limits_reload" if arguments.what == "limits" else arguments.what
    facts = ask(socket, name, getattr(arguments, "value", None), arguments.timeout_s)
    write_lines(f"{key}: {one if isinstance(one, str) else json.dumps(one)}" for key, one in facts.items())
    return 0
