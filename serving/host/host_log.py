"""What a host's loop must be able to account for later: who commanded what, which limits changed, which state and why.

In: an event's name and its facts. Out: one line of JSON for each in the log file, and the same for people on stderr.
Invariants: lines are whole whatever is killed (one write each, appended); a log that can't be written is an error when
it is opened, and afterwards told on stderr, once, without stopping what it reports of.
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
        self._path, self._lock, self._broken = path, threading.Lock(), False
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
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = json.dumps({"at": at, "event": event, **(facts or {})}, ensure_ascii=True) + "\n"
        detail = ", ".join(f"{name} {value}" for name, value in (facts or {}).items())
        with self._lock:
            sys.stderr.write(f"{at} {event}{': ' if detail else ''}{detail}\n")
            sys.stderr.flush()
            try:
                os.write(self._file, line.encode())
            except OSError as error:
                if not self._broken:
                    sys.stderr.write(f"{self._path}: the log can't be written any more: {error.strerror}\n")
                self._broken = True
