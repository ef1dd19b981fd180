"""`strikeforge-host top`: a running host, live in the terminal, seen from another process.

Data in: the board in shared memory and facts.json of the host's directory (of a configuration that key alone is looked
at). Data out: a screen drawn again and again (plain ANSI; q, Ctrl-C or SIGTERM ends it), or with `--once` one frame as
text. Invariants: the loop isn't touched and doesn't notice; a loop that is gone is said to be gone; the terminal is
left as it was.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from serving.errors import HostError
from serving.host.board import open_board
from serving.host.config import read_directory
from serving.host.config_types import board_in, facts_in
from serving.host.facts import HostFacts, read_facts
from serving.host.screen import Look, Style, frame
from serving.host.status import read_status, resident_bytes

INTERVAL_S = 1.0
UNKNOWN_SIZE = (80, 24)  # columns and lines of a terminal that says 0: a serial line, a container's
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor; back
HOME, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


def add_top(parser: argparse.ArgumentParser) -> None:
    """Options."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--config", type=Path, metavar="FILE", help="the host's configuration")
    place.add_argument("--directory", type=Path, metavar="DIR", help="the directory that it names")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--interval-s", type=float, default=INTERVAL_S, metavar="S", help="between frames (default 1)")


def run_top(arguments: argparse.Namespace) -> int:
    """Look and draw."""
    if not 0.05 <= arguments.interval_s <= 3600:
        raise HostError(f"--interval-s {arguments.interval_s:g}: expected 0.05 to 3600")
    directory = arguments.directory or read_directory(arguments.config)
    watcher = Watcher(directory)
    if arguments.once:
        return _once(watcher, directory, arguments.interval_s)
    if not sys.stdout.isatty():
        raise HostError("top draws on a terminal, and stdout is none; say --once for one frame as text")
    _live(watcher, directory, arguments.interval_s)
    return 0


class Watcher:
    """Looks at a directory's board; knows how long no record has come."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open()

    def _open(self) -> None:
        self._facts = read_facts(facts_in(self._directory))
        self._board = open_board(board_in(self._directory))
        self._records, self._changed_ns = -1, 0

    def look(self) -> tuple[HostFacts, Look]:
        """Now; of the newest run in the directory, once it has begun."""
        status = read_status(self._board)
        if status.gone is not None and read_facts(facts_in(self._directory)) != self._facts:
            self._open()
            status = read_status(self._board)
        if status.counters["records"] != self._records:
            self._records, self._changed_ns = status.counters["records"], status.read_ns
        return self._facts, Look(status, status.read_ns - self._changed_ns, resident_bytes(status.process))


def _once(watcher: Watcher, directory: Path, interval_s: float) -> int:
    _, before = watcher.look()
    if before.status.gone is None:
        time.sleep(interval_s)
    facts, now = watcher.look()
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    columns = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 200
    lines = frame(str(directory), facts, now, before, Style(columns, 0, colours))
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    return 0


def _live(watcher: Watcher, directory: Path, interval_s: float) -> None:
    colours = "NO_COLOR" not in os.environ
    keys = [sys.stdin] if sys.stdin.isatty() else []
    before: Look | None = None
    with _screen() as woken:
        while True:
            facts, now = watcher.look()
            if before is not None and before.status.process != now.status.process:
                before = None
            _draw(str(directory), facts, now, before, colours)
            due = time.monotonic() + interval_s
            while (left := due - time.monotonic()) > 0:
                ready, _, _ = select.select([woken, *keys], [], [], left)
                if sys.stdin in ready and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x04", b""):
                    return
                if woken in ready:  # the terminal has another size
                    os.read(woken, 64)
                    _draw(str(directory), facts, now, before, colours)
            before = now


def _draw(directory: str, facts: HostFacts, now: Look, before: Look | None, colours: bool) -> None:
    size = os.get_terminal_size(sys.stdout.fileno())  # not COLUMNS and LINES, which don't follow it
    style = Style(size.columns or UNKNOWN_SIZE[0], size.lines or UNKNOWN_SIZE[1], colours)
    lines = frame(directory, facts, now, before, style)
    sys.stdout.write(HOME + "\r\n".join(f"{line}{TO_LINE_END}" for line in lines) + TO_SCREEN_END)
    sys.stdout.flush()


@contextmanager
def _screen() -> Iterator[int]:
    """The other screen, keys as they are typed; readable (the number given) when the terminal's size changes."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def resized(number: int, place: FrameType | None) -> None:
        os.write(wake, b"x")

    def ended(number: int, place: FrameType | None) -> None:
        sys.exit(128 + number)

    handlers = {signal.SIGWINCH: resized, signal.SIGTERM: ended, signal.SIGHUP: ended}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    attributes = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if attributes is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(ENTER)
        yield woken
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        if attributes is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)
        for number, former in before.items():
            signal.signal(number, former)
        os.close(woken)
        os.close(wake)
