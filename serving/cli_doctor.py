"""`strikeforge-host doctor`: what of this host costs a hot loop its microseconds, and what mends it.

    strikeforge-host doctor                          findings for the core that a loop would be given
    strikeforge-host doctor --process PID            for a running loop (a process or thread) and the core it is on
    strikeforge-host doctor --core 3 --apply governor,irqs --undo-script undo.sh

Data in: /proc and /sys, short measurements. Data out: text on stdout, or one JSON object. Invariants: nothing is
changed without --apply, and then only the items named; every change is shown with its value before and after and the
command that undoes it. Exit codes: 0 whatever was found; 14 with --strict if a finding is bad, and where an
item of --apply was refused; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from serving.errors import HostError
from serving.host.config import read_config
from serving.host.doctor import examine, likely_core
from serving.host.doctor_apply import ITEMS, Change, Outcome, apply
from serving.host.doctor_finding import Finding, Host, Verdict
from serving.host.doctor_probes import probe
from serving.host.doctor_process import loops_thread
from serving.host.doctor_tree import Tree
from serving.released import write_lines

LONGEST_PROBE_SECONDS = 60.0
NOT_FIT = HostError.exit_code


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    parser.add_argument(
        "--core", type=_core, metavar="N", help="the loop's core (default: the last isolated, or usable)"
    )
    parser.add_argument("--config", type=Path, metavar="C", help="take the core from this configuration of `run`")
    parser.add_argument("--process", type=_process, metavar="PID", help="a running loop, or its thread")
    parser.add_argument(
        "--seconds", type=_seconds, default=1.0, metavar="S", help="length of the idle probe (default 1, 0: no probes)"
    )
    parser.add_argument(
        "--apply", type=_items, default=[], metavar="ITEMS", help=f"change these, with commas: {', '.join(ITEMS)}"
    )
    parser.add_argument(
        "--undo-script", type=Path, metavar="FILE", help="new file: commands that undo what --apply does"
    )
    parser.add_argument("--strict", action="store_true", help=f"exit code {NOT_FIT} if a finding is bad")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="a copy of a host's proc and sys (no probes)"
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    """Look, change what was asked for, and look again where something was changed."""
    if not arguments.root.is_dir():
        raise HostError(f"--root {arguments.root}: there is no such folder; name one that holds a host's proc and sys")
    tree = Tree(arguments.root)
    process = arguments.process or "self"
    if arguments.process and not tree.has(f"proc/{process}/status"):
        raise HostError(f"--process {process}: there is no such process or thread")
    asked, why = _asked_core(arguments)
    if asked is None:
        core, why = likely_core(tree, process)
        named = Host(tree, core, process)
        host = loops_thread(named) if arguments.process else named
        if host.core != core:
            why = f"where a thread of process {process} is pinned"
    else:
        named = Host(tree, asked, process)
        host = loops_thread(named, asked) if arguments.process else named
    with _undo_script(arguments.undo_script if arguments.apply else None) as keep_undo:
        changes = apply(host, arguments.apply, keep_undo)
    findings = examine(host)
    if arguments.seconds > 0 and arguments.root == Path("/"):
        findings += probe(host.core, arguments.seconds, occupied=arguments.process is not None)
    report = _json(host, changes, findings) if arguments.json else _lines(host, why, changes, findings)
    write_lines(report)
    refused = any(change.outcome is Outcome.REFUSED for change in changes)
    unfit = arguments.strict and any(finding.verdict is Verdict.BAD for finding in findings)
    return NOT_FIT if refused or unfit else 0


def _asked_core(arguments: argparse.Namespace) -> tuple[int | None, str]:
    """The core that the person names, and how; None where nobody does."""
    if arguments.core is not None:
        return arguments.core, "as asked"
    if arguments.config is not None:
        return read_config(arguments.config).loop.core, f"[loop] core of {arguments.config.name}"
    return None, ""


def _json(host: Host, changes: list[Change], findings: list[Finding]) -> list[str]:
    told = {
        "core": host.core,
        "process": host.process,
        "changes": [asdict(change) for change in changes],
        "findings": [asdict(finding) for finding in findings],
        "counts": _counts(findings),
    }
    return [json.dumps(told, indent=2)]


def _lines(host: Host, why: str, changes: list[Change], findings: list[Finding]) -> Iterator[str]:
    yield f"core {host.core} ({why}), {_of(host)}"
    for change in changes:
        yield from _change_lines(change)
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        label = f"{finding.verdict.value:<9}{finding.topic:<{width}}  "
        yield f"{label}{finding.found}"
        indent = " " * len(label)
        if finding.why:
            yield f"{indent}{finding.why}"
        if finding.remedy:
            yield f"{indent}-> {finding.remedy}"
    yield ", ".join(f"{count} {verdict}" for verdict, count in _counts(findings).items())


def _of(host: Host) -> str:
    return "no running loop" if host.process == "self" else f"thread {host.process}"


def _change_lines(change: Change) -> Iterator[str]:
    said = f"{change.item}: {change.target}".rstrip(": ")
    if change.outcome is Outcome.REFUSED:
        yield f"refused  {said}: {change.reason}"
    else:
        value = change.after if change.outcome is Outcome.ALREADY else f"{change.before} -> {change.after}"
        yield f"{change.outcome.value}  {said}: {value}"
    if change.undo:
        yield f"         undo: {change.undo}"


def _counts(findings: list[Finding]) -> dict[str, int]:
    counted = Counter(finding.verdict for finding in findings)
    return {verdict.value: counted[verdict] for verdict in Verdict}


@contextmanager
def _undo_script(file: Path | None) -> Iterator[Callable[[str], None]]:
    """Where undo commands are kept, each written before its change is made."""
    if file is None:
        yield lambda command: None
        return
    try:
        script = file.open("x", encoding="utf-8")
    except OSError as error:
        raise HostError(f"--undo-script {file}: {error.strerror}; nothing was changed: name a new file") from error
    with script:
        script.write("#!/bin/sh\n# Puts back what `strikeforge-host doctor --apply` changed.\n")

        def keep(command: str) -> None:
            script.write(f"{command}\n")
            script.flush()

        yield keep


def _core(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 5:
        raise argparse.ArgumentTypeError(f"{text!r} isn't the number of a core")
    return int(text)


def _process(text: str) -> str:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} isn't the number of a process or thread")
    return str(int(text))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of seconds") from error
    if not 0 <= seconds <= LONGEST_PROBE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} isn't between 0 and {LONGEST_PROBE_SECONDS:g} seconds")
    return seconds


def _items(text: str) -> list[str]:
    items = list(dict.fromkeys(item.strip() for item in text.split(",")))
    wrong = [item for item in items if item not in ITEMS]
    if wrong:
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, wrong))}: the items are {', '.join(ITEMS)}")
    return items
