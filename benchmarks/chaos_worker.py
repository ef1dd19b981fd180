"""Processes for acts that may be killed: forked from one that has imported everything, so that each costs milliseconds.

In: a function by its module and name, and its arguments. Out: how the process ended: with a result, an error, or by a
signal. Invariants: every call runs in a process of its own, which no other call shares; a process that outlives its
deadline is killed and reported as such; the server ends with the pipe to it. It is started with chaos_trace.so
preloaded, so a function can arm the tracer (chaos_trace.py).

Run by ForkServer: python -m benchmarks.chaos_worker FD
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.chaos_trace import preloaded
from serving.errors import StrikeforgeError

DEADLINE_SECONDS = 120.0
START_SECONDS = 120.0
PRELOAD = ("benchmarks.chaos_acts", "benchmarks.chaos_checks")


@dataclass(frozen=True)
class Ended:
    """`result` if the function returned; else `error` (its type's name and words) or the signal that ended it."""

    result: Any = None
    error: str | None = None
    exit_code: int | None = None  # of a StrikeforgeError: what a command would have ended with
    killed: bool = False
    late: bool = False

    @property
    def returned(self) -> bool:
        return self.error is None and not self.killed

    def value(self) -> Any:
        """The result; RuntimeError if there is none."""
        if not self.returned:
            raise RuntimeError(self.words())
        return self.result

    def words(self) -> str:
        """How it ended, in one line."""
        if self.late:
            return "did not end before its deadline"
        if self.killed:
            return "was killed"
        return self.error or "returned"


class ForkServer:
    """One such process and the pipe to it; calls are made one at a time."""

    def __init__(self, library: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        with log.open("ab") as errors, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos_worker", str(theirs.fileno())],
                env={**preloaded(library), **(environment or {})},
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
            )
        self.log = log
        self.pipe: Connection = Connection(ours.detach())
        if not self.pipe.poll(START_SECONDS) or self._receive() != "ready":
            raise RuntimeError(f"the fork server didn't start; see {log}")

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.wait(60)

    def call(
        self,
        function: str,
        *arguments: Any,
        deadline_seconds: float = DEADLINE_SECONDS,
        started: Callable[[int], object] | None = None,
    ) -> Ended:
        """Run `module:function` in a new process; `started` is told its id before it does anything."""
        self.pipe.send((function, arguments))
        process_id = self._receive()
        if started is not None:
            started(process_id)
        self.pipe.send("go")
        late = not self.pipe.poll(deadline_seconds)
        if late:
            os.kill(process_id, signal.SIGKILL)
        ended = self._receive()
        assert isinstance(ended, Ended)
        return Ended(killed=True, late=True) if late else ended

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError as error:
            raise RuntimeError(f"the fork server ended: {self.log.read_text()[-4000:]}") from error


def _serve(pipe: Connection) -> None:
    for name in PRELOAD:
        importlib.import_module(name)
        warm = getattr(sys.modules[name], "warm_up", None)
        if warm is not None:
            warm()
    pipe.send("ready")
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        answer, answer_end = os.pipe()
        go, go_end = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            os.close(answer)
            os.close(go_end)
            pipe.close()
            _child(function, arguments, go, answer_end)
        os.close(answer_end)
        os.close(go)
        pipe.send(process_id)
        pipe.recv()
        os.write(go_end, b"!")
        os.close(go_end)
        with os.fdopen(answer, "rb") as stream:
            raw = stream.read()
        _, status = os.waitpid(process_id, 0)
        if os.WIFSIGNALED(status):
            pipe.send(Ended(killed=True))
        elif not raw:
            pipe.send(Ended(error=f"the process ended with {os.waitstatus_to_exitcode(status)} and no answer"))
        else:
            pipe.send(pickle.loads(raw))  # noqa: S301 (written by our own child)


def _child(function: str, arguments: tuple[Any, ...], go: int, answer: int) -> None:
    """Never returns."""
    os.read(go, 1)
    module, _, name = function.partition(":")
    try:
        ended = Ended(getattr(importlib.import_module(module), name)(*arguments))
    except StrikeforgeError as error:
        ended = Ended(error=f"{type(error).__name__}: {error}", exit_code=error.exit_code)
    except BaseException as error:  # noqa: BLE001 (told to the caller, who judges it)
        ended = Ended(error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    with os.fdopen(answer, "wb") as stream:
        pickle.dump(ended, stream)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    from benchmarks import chaos_worker  # so that what is pickled is of this module, not of __main__

    chaos_worker._serve(Connection(int(sys.argv[1])))
