"""What a host's loop must be able to account for later: who commanded what, which limits changed, which state and why.

In: an event's name and its facts. Out: one line of JSON for each in the log file, and the same for people on stderr.
Invariants: lines are whole whatever is killed (one write each, appended); a log that can't be written is an error when
it is opened, and afterwards told on stderr, once; a stderr whose reader went away (a pipe, a terminal) is told in the
log, once. One whose reader stands still (Ctrl-S, a pager) is never waited for: lines that it has no room for are in the
log alone, which says so, and so does stderr when it is read again. None of it stops what is reported of: a kill must
not depend on who reads along.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from serving.errors import HostError

LONGEST_SHOWN = 4096  # bytes (PIPE_BUF) of a line: what is ready takes so many without waiting


class HostLog:
    """Callable from any thread."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._broken = self._unread = False  # the file, stderr
        self._unshown = 0  # lines since stderr stands still
        self._torn = False  # the file ends within a line
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"{path}: the log can't be opened: {error.strerror}; set `log` in the config") from error

    def __enter__(self) -> HostLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def say(self, event: str, facts: Mapping[str, Any] | None = None) -> None:
        """Write one line."""
        at = _now()
        line = json.dumps({"at": at, "event": event, **(facts or {})}, ensure_ascii=True) + "\n"
        detail = ", ".join(f"{name} {value}" for name, value in (facts or {}).items())
        with self._lock:
            self._show(f"{at} {event}{': ' if detail else ''}{detail}\n")
            self._append(line)

    def _append(self, line: str) -> None:
        data = (b"\n" if self._torn else b"") + line.encode()  # what stands before keeps its own line
        try:
            written = os.write(self._file, data)
            self._torn = written < len(data)
            problem = "no room" if self._torn else ""
        except OSError as error:
            problem = error.strerror or str(error)
        if problem and not self._broken:
            self._broken = True
            self._show(f"{self._path}: the log can't be written any more: {problem}\n")

    def _show(self, text: str) -> None:
        if self._unread:
            return
        try:
            said = (
                f"{_now()} {self._unshown} lines weren't shown here: they are in {self._path}\n"
                if self._unshown
                else ""
            )
            if _offered(sys.stderr, said + text):
                self._unshown = 0
                return
            if not self._unshown:
                self._note("stderr isn't read: what is told is in this file alone")
            self._unshown += 1
        except (OSError, ValueError, AttributeError) as error:  # nobody reads any more; it was closed; it never was
            self._unread = True
            self._note("stderr can't be written any more", error=str(error))

    def _note(self, event: str, **facts: str) -> None:
        self._append(json.dumps({"at": _now(), "event": event, **facts}) + "\n")


def _offered(stream: TextIO, text: str) -> bool:
    """Write without ever waiting; False where there is no room."""
    data = text.encode(errors="backslashreplace")[:LONGEST_SHOWN]
    try:
        descriptor = stream.fileno()
    except ValueError:  # not of the system's, as in tests; or closed, which the write tells
        descriptor = -1
    if (apart := _opened_apart(descriptor)) is not None:
        try:
            return os.write(apart, data) > 0
        except BlockingIOError:
            return False
        finally:
            os.close(apart)
    ready = select.poll()
    if descriptor >= 0:
        ready.register(descriptor, select.POLLOUT)
    if descriptor >= 0 and not ready.poll(0):
        return False
    stream.write(data.decode(errors="ignore"))
    stream.flush()
    return True


def _opened_apart(descriptor: int) -> int | None:
    """A terminal or pipe once more, so that not waiting is said of our writes alone and not of all who share it."""
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # not ours to open, or nobody is there to read: the write tells
        pass
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
