"""The feed of a run: `strikeforge-host feed --config C` as a child process.

In: the configuration. Out: a process that writes the tick ring. Invariants: it ends when the run ends, however that
ends (the kernel signals it when its parent is gone); it runs the same code as its parent, from the same place; what
it says on stderr is seen.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import serving
from serving.errors import HostError
from serving.host.config_types import HostConfig

PR_SET_PDEATHSIG = 1
PATIENCE_S = 5.0


class FeedProcess:
    """Start it from the thread that lives longest: the kernel takes that thread for the parent."""

    def __init__(self, config: HostConfig, step_ns: int) -> None:
        command = [sys.executable, "-m", "serving.host.feed_process", str(os.getpid())]
        options = ["feed", "--config", str(config.file), "--heartbeat-ns", str(config.feed.heartbeat_ns or step_ns)]
        code = str(Path(serving.__file__).parents[1])
        path = os.pathsep.join(one for one in (code, os.environ.get("PYTHONPATH")) if one)
        try:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=2, env={**os.environ, "PYTHONPATH": path}
            )
        except OSError as error:
            raise HostError(f"the feed can't be started: {error}") from error
        if config.feed.core is not None:
            try:
                os.sched_setaffinity(self._process.pid, {config.feed.core})
            except OSError as error:
                self.stop()
                raise HostError(f"[feed] core {config.feed.core}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""
        return self._process.poll()

    def stop(self) -> int:
        """End it, by force if need be; its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


def said(code: int) -> str:
    """An exit code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """The child: tied to its parent, then the command itself."""
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before it could be tied to
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the run stops the feed after the loop
    from serving.cli import entry

    entry()


if __name__ == "__main__":
    main()
