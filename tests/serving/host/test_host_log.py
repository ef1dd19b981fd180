"""The log beside a stderr that nobody reads: neither the kill switch nor the log waits for it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import threading
import time
from pathlib import Path

import pytest

from serving.host.control import ControlServer, ask
from serving.host.host_log import HostLog
from tests.serving.host.test_control import Host


class Unread:
    """A stderr whose reader went away: a pipe's end, a terminal."""

    def write(self, _text: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_stderr_that_nobody_reads_any_more_takes_neither_the_kill_switch_nor_the_log_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    with HostLog(tmp_path / "host.log") as log, ControlServer(host.path, host.commands(), log):
        monkeypatch.setattr("sys.stderr", Unread())
        assert ask(host.path, "reduce") == {"told": "reduce"}
        assert ask(host.path, "kill") == {"told": "kill"}
    told = [line["command"] if line["event"] == "control" else line["event"] for line in host.log()]
    assert told == ["stderr can't be written any more", "reduce", "kill"]


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_stderr_that_stands_still_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ctrl-S, a pager, a collector or a connection that hangs: it is there, full or nearly so, and nobody reads it."""
    host, (reader, writer) = Host(tmp_path), os.pipe() if kind == "pipe" else pty.openpty()
    with os.fdopen(writer, "w") as stderr, HostLog(tmp_path / "host.log") as log:
        fill(writer)
        os.read(reader, 10)  # a terminal is then ready, for less than a line
        monkeypatch.setattr("sys.stderr", stderr)
        with ControlServer(host.path, host.commands(), log):
            try:
                talking = threading.Thread(target=lambda: list(map(log.say, ["state"] * 500)), daemon=True)
                talking.start()
                talking.join(2.0)
                assert not talking.is_alive()
                assert ask(host.path, "kill", timeout_s=2.0) == {"told": "kill"}
                drain(reader)
                assert ask(host.path, "reduce") == {"told": "reduce"}
                time.sleep(0.05)  # the line is written before it is answered, a terminal passes it on later
                shown = drain(reader).splitlines()
            finally:
                os.close(reader)
    told = [line.get("command", line["event"]) for line in host.log()]
    assert [one for one in told if not one.startswith("stderr")] == [*["state"] * 500, "kill", "reduce"]
    assert set(told) - {"state", "kill", "reduce"} == {"stderr isn't read: what is told is in this file alone"}
    assert f"lines weren't shown here: they are in {tmp_path / 'host.log'}" in shown[-2]
    assert "command reduce" in shown[-1]


def fill(pipe: int) -> None:
    """Until it takes no byte more."""
    os.set_blocking(pipe, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * size)
    os.set_blocking(pipe, True)


def drain(pipe: int) -> str:
    """What is in it now."""
    os.set_blocking(pipe, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            found += os.read(pipe, 65536)
    return found.decode()


def test_a_process_without_stderr_tells_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run 2>&-`."""
    host = Host(tmp_path)
    with HostLog(tmp_path / "host.log") as log, ControlServer(host.path, host.commands(), log):
        monkeypatch.setattr("sys.stderr", None)
        assert ask(host.path, "kill") == {"told": "kill"}
    assert [line["event"] for line in host.log()] == ["stderr can't be written any more", "control"]


def test_a_full_disk_tears_one_line_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.write
    with HostLog(tmp_path / "host.log") as log:
        log.say("before")
        monkeypatch.setattr("os.write", lambda file, data: written(file, data[:10]))
        log.say("torn")
        monkeypatch.setattr("os.write", written)
        log.say("after")
        log.say("later")
    lines = (tmp_path / "host.log").read_text().splitlines()
    assert len(lines) == 4
    assert len(lines[1]) == 10
    assert [json.loads(lines[place])["event"] for place in (0, 2, 3)] == ["before", "after", "later"]
