"""What a host's loop must be able to account for later: who commanded what, which limits changed, which state and why.

In: an event's name and its facts. Out: one line of JSON for each in the log file, and the same for people on stderr.
Invariants: lines are whole whatever is killed (one write each, appended); a log that can't be written is an error when
it is opened, and afterwards told on stderr, once; a stderr whose reader went away (a pipe, a terminal) is told in the
log, once. Neither stops what is reported of: a kill must not depend on who reads along.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.errors import HostError


class HostLog:
    """Callable from any thread."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._broken = self._unread = False  # the file, stderr
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
        try:
            os.write(self._file, line.encode())
        except OSError as error:
            if not self._broken:
                self._show(f"{self._path}: the log can't be written any more: {error.strerror}\n")
            self._broken = True

    def _show(self, text: str) -> None:
        if self._unread:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError) as error:  # nobody reads any more; or it was closed
            self._unread = True
            self._append(
                json.dumps({"at": _now(), "event": "stderr can't be written any more", "error": str(error)}) + "\n"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
