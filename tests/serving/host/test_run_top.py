"""`top` and Prometheus of a run, the real commands: as text, on a terminal, over HTTP."""

from __future__ import annotations

import fcntl
import http.client
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pytest

from tests.serving.native.built import built_core

built_core()

from serving import cli_top  # noqa: E402
from serving.cli import main  # noqa: E402
from serving.errors import run_command  # noqa: E402
from tests.serving.host.run_host import COMMAND, PATIENCE_S, ROOT, RunHost, ticks  # noqa: E402

pytestmark = pytest.mark.slow


def test_top_and_metrics_show_it(host: RunHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.configure(metrics={"port": 0})
    process = host.running()
    host.tick(ticks(300))
    assert run_command(main, ["top", "--config", str(host.config), "--once", "--interval-s", "0.05"]) == 0
    shown = capsys.readouterr().out
    status = host.status()
    assert re.search(rf"^total +300 +300 +{status.counters['orders']:,} ", shown, re.MULTILINE)
    assert re.search(r"^tick to order +\d+ ", shown, re.MULTILINE)
    assert "GONE" not in shown
    assert "\x1b" not in shown
    (port,) = [line["port"] for line in host.log() if line["event"] == "metrics"]
    assert f"strikeforge_host_orders_total {float(status.counters['orders'])}" in scraped(port)
    process.kill()
    process.wait()
    assert run_command(main, ["top", "--directory", str(host.directory), "--once"]) == 0
    assert f"GONE: the loop's process {process.pid} is gone" in capsys.readouterr().out


def test_top_draws_on_a_terminal_resizes_and_leaves_it_as_it_was(host: RunHost) -> None:
    host.configure()
    host.running()
    host.tick(ticks(100))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    top = subprocess.Popen(
        [*COMMAND, "top", "--config", str(host.config), "--interval-s", "0.1"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env={**os.environ, "COLUMNS": "33", "LINES": "7"},
    )  # fmt: skip
    drawn = Terminal(ours)
    drawn.until(lambda text: text.startswith(cli_top.ENTER) and text.count(cli_top.HOME) >= 3)
    assert max(map(len, drawn.frame())) == 80
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 10, 40, 0, 0))
    top.send_signal(signal.SIGWINCH)
    drawn.until(lambda _: len(drawn.frame()) == 10 and max(map(len, drawn.frame())) == 40)
    os.write(ours, b"q")
    drawn.until(lambda text: text.endswith(cli_top.LEAVE))
    assert top.wait(PATIENCE_S) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_top_that_is_ended_leaves_the_terminal_as_it_was_too(host: RunHost, ends: signal.Signals) -> None:
    """Of a size that the terminal doesn't know, and a configuration that was broken since the start."""
    host.configure()
    host.running()
    host.config.write_text(f'directory = "{host.directory}"\nfeed = 5\n')
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    before = termios.tcgetattr(theirs)
    top = subprocess.Popen(
        [*COMMAND, "top", "--config", str(host.config), "--interval-s", "0.1"],
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    drawn = Terminal(ours)
    drawn.until(lambda text: text.startswith(cli_top.ENTER) and text.count(cli_top.HOME) >= 2)
    assert max(map(len, drawn.frame())) == 80
    top.send_signal(ends)
    drawn.until(lambda text: text.endswith(cli_top.LEAVE))
    assert top.wait(PATIENCE_S) == 128 + ends
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


class Terminal:
    """What a process wrote on a terminal whose other end is `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.text = descriptor, ""

    def until(self, holds: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(self.text):
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self.text += os.read(self._descriptor, 65536).decode()

    def frame(self) -> list[str]:
        """The last whole frame's lines, as one sees them."""
        whole = [part for part in self.text.split(cli_top.HOME)[1:] if cli_top.TO_SCREEN_END in part]
        if not whole:
            return [""]
        return (
            re.sub(r"\x1b\[[0-9;]*[mKJ]", "", whole[-1].partition(cli_top.TO_SCREEN_END)[0])
            .replace("\r", "")
            .split("\n")
        )


def scraped(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    body = connection.getresponse().read().decode()
    connection.close()
    return body
