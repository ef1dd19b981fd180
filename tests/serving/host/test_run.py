"""`strikeforge-host run`, the real command: a pulled release, ticks on a ring, orders read by this other process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from serving import native
from serving.cli import main
from serving.cli_run import _loop_of
from serving.errors import run_command
from serving.events import TIME_FORMAT
from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats
from serving.host.assembly import assembled
from serving.host.config import read_config
from serving.host.directory import owned
from serving.host.host_log import HostLog
from serving.host.loop import ControlCode, FixedWidth, HotLoop
from serving.host.records import ORDER, SIGNAL, Kind, OrderFlags, Records
from serving.host.ring import RingReader, RingWriter
from serving.host.supervisor import Supervisor
from tests.serving.host.run_host import LIMITS, RunHost, ended, tick_files, ticks
from tests.serving.host.tick_bundle import pulled_release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.why_unavailable() is not None, reason="the native core isn't built"),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pulled_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def host(release: Path, tmp_path: Path) -> Iterator[RunHost]:
    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    directory = Path(tempfile.mkdtemp(prefix="strikeforge-test-", dir=shared))
    host = RunHost(tmp_path / "host", release, directory / "run")
    try:
        yield host
    finally:
        host.close()
        shutil.rmtree(directory)


class Orders:
    """What left, read from the order ring by this process; which orders work."""

    def __init__(self, host: RunHost) -> None:
        self._ring = RingReader(host.directory / "orders.ring")
        self.all: list[Records] = []

    def read(self) -> Records:
        orders = self._ring.read(65536).view(ORDER)
        self.all.append(orders)
        return orders

    def working(self, host: RunHost) -> set[tuple[int, bool]]:
        """(contract, buy) of what works, after all that was read and filled."""
        self.read()
        fills = host.fills()
        filled = set(fills["order_id"].tolist())
        places: dict[tuple[int, bool], int] = {}
        for order in np.concatenate(self.all):
            place = (int(order["instrument"]), bool(order["flags"] & OrderFlags.IS_BUY))
            if order["flags"] & OrderFlags.IS_CANCEL:
                places.pop(place, None)
            else:
                places[place] = int(order["order_id"])
        return {place for place, order_id in places.items() if order_id not in filled}


def kill_by_socket(host: RunHost, pid: int) -> None:
    assert host.ask("kill").returncode == 0


def kill_by_signal(host: RunHost, pid: int) -> None:
    os.kill(pid, signal.SIGUSR1)


def kill_by_file(host: RunHost, pid: int) -> None:
    (host.directory / "HALT").touch()


@pytest.mark.parametrize("kill", [kill_by_socket, kill_by_signal, kill_by_file])
def test_a_kill_cancels_everything_and_nothing_leaves_until_resumed(
    host: RunHost, kill: Callable[[RunHost, int], None]
) -> None:
    host.configure()
    process = host.running()
    host.open_fills()
    orders = Orders(host)
    host.tick(ticks(300))
    assert orders.working(host)
    kill(host, process.pid)
    host.until(lambda: host.status().state == "halted")
    assert host.status().why == "kill_switch"
    assert orders.working(host) == set()
    host.tick(ticks(200, first=300))
    assert len(orders.read()) == 0
    assert host.status().refused_by["halted"] == 0  # the strategy isn't even asked
    if kill is kill_by_file:
        refused = host.ask("resume")
        assert refused.returncode == 14
        assert "HALT is there: remove it" in refused.stderr
        (host.directory / "HALT").unlink()
        host.until(lambda: not host.status().halt_file)
    assert host.ask("resume").returncode == 0
    host.until(lambda: host.status().state == "active")
    host.tick(ticks(100, first=500))
    assert len(orders.read()) > 0
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert code == 0
    assert re.search(r"^ended after .*: a signal asked for it; state active$", out, re.MULTILINE)
    assert orders.working(host) == set()
    total = np.concatenate(orders.all)
    cancels = int((total["flags"] & OrderFlags.IS_CANCEL > 0).sum())
    assert f"orders    {len(total) - cancels:,}, cancels {cancels:,}, fills {len(host.fills()):,}, " in out
    assert (total["kind"] == Kind.ORDER).all()
    assert (total["sequence"] == np.arange(1, len(total) + 1)).all()
    states = [line["state"] for line in host.log() if line["event"] == "state"]
    assert states == ["halted", "active"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_each_way_to_stop_ends_it_well(host: RunHost, how: str) -> None:
    host.configure()
    process = host.running()
    host.open_fills()
    orders = Orders(host)
    host.tick(ticks(100))
    if how == "stop":
        assert host.ask("stop").returncode == 0
    else:
        process.send_signal(getattr(signal, how))
    code, out, err = ended(process)
    assert code == 0, err
    assert "ended after" in out
    memory = re.search(r"^memory +([\d.]+) MB resident at most$", out, re.MULTILINE)
    assert memory is not None
    assert 0 < float(memory[1]) < 100  # the promise of design/numbers.md
    assert orders.working(host) == set()
    assert not (host.directory / "control.socket").exists()
    assert host.ask("status").returncode == 14
    assert host.log()[-1]["event"] == "ended"


def test_its_files_are_private_and_a_second_run_is_refused(host: RunHost) -> None:
    host.configure()
    process = host.running()
    assert stat.S_IMODE(host.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in host.directory.iterdir()} == {0}
    code, _, err = ended(host.start())
    assert code == 14
    assert f"a loop runs here already (process {process.pid})" in err
    assert host.ask("status").returncode == 0


def test_what_a_killed_run_left_is_taken_over_and_told(host: RunHost) -> None:
    host.configure()
    process = host.running()
    host.open_fills()
    orders = Orders(host)
    host.tick(ticks(300))
    left = orders.working(host)
    before = len(np.concatenate(orders.all))
    process.kill()
    process.wait()
    again = host.running()
    (told,) = [line for line in host.log() if line["event"] == "the run before was killed"]
    assert told["process"] == process.pid
    assert told["orders_left_working"] == len(left) > 0
    host.written = 0
    host.tick(ticks(100, first=300))
    assert len(orders.read()) > 0, "the same reader goes on reading the ring that was taken over"
    assert before > 0
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 0


def test_limits_are_reloaded_and_changes_told_or_refused(host: RunHost) -> None:
    host.configure()
    process = host.running()
    host.open_fills()
    orders = Orders(host)
    host.tick(ticks(100))
    assert len(orders.read()) > 0
    host.limit(order_quantity=0.5, serial=2)
    answer = host.ask("limits", "reload")
    assert answer.returncode == 0
    assert '"order_quantity": "10.0 -> 0.5"' in answer.stdout
    host.tick(ticks(100, first=100))
    assert host.status().refused_by["order_size"] > 0
    host.limit(order_quantity=-1, delt=3, serial=3)
    answer = host.ask("limits", "reload")
    assert answer.returncode == 14
    assert "delt" in answer.stderr
    assert "order_quantity" in answer.stderr
    host.limit(tick_money=LIMITS["tick_money"] * 2, serial=3)
    answer = host.ask("limits", "reload")
    assert answer.returncode == 14
    assert "restart" in answer.stderr
    told = [(line["event"], line.get("changed")) for line in host.log() if line.get("command") == "limits_reload"]
    assert told == [
        ("control", {"order_quantity": "10.0 -> 0.5"}), ("control: failed", None), ("control: failed", None)
    ]  # fmt: skip
    process.kill()


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


def scraped(port: int) -> str:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    body = connection.getresponse().read().decode()
    connection.close()
    return body


def test_idle_ends_it(host: RunHost) -> None:
    host.configure(loop={"idle_exit_s": 0.2})
    code, out, _ = ended(host.start())
    assert code == 0
    assert "no record came for 0.2 s" in out


def test_a_silent_feed_leaves_nothing_working(host: RunHost) -> None:
    """Each silence once; what comes after it is quoted again."""
    host.configure(feed={"silence_s": 0.3})
    process = host.running()
    host.open_fills()
    orders = Orders(host)
    for silence in (1, 2):
        host.tick(ticks(200, first=200 * silence))
        host.until(lambda: host.status().counters["controls"] == silence)  # noqa: B023
        assert orders.working(host) == set()
        assert len(orders.all[-1]) > 0
    assert host.status().state == "active"
    assert sum("the feed is silent" in line["event"] for line in host.log()) == 2
    process.kill()


def test_what_it_refuses_to_start_with(host: RunHost) -> None:
    host.configure(model={"development": False})
    code, _, err = ended(host.start())
    assert code == 10
    assert "set [model] development = true" in err
    host.configure(limits={"delta": -1})
    code, _, err = ended(host.start())
    assert code == 2
    assert "delta" in err
    host.configure(strategy={"quantity": -1, "kwantity": 1})
    code, _, err = ended(host.start())
    assert code == 2
    assert "[strategy] quantity" in err
    assert "[strategy] kwantity" in err
    host.configure(loop={"core": 4000})
    code, _, err = ended(host.start())
    assert code == 14
    assert "[loop] core 4000" in err
    host.configure()
    host.directory.chmod(0o755)
    code, _, err = ended(host.start())
    assert code == 14
    assert "chmod 700" in err


def test_a_replay_gives_the_orders_of_the_same_records_offline(host: RunHost) -> None:
    """The feed of the run in its own process, full pace, orders read by this one: the bytes that `process` gives."""
    host.configure()
    files = tick_files(host.folder, ticks(3000))
    host.configure(
        feed={"kind": "replay", "layout": "binance_l2", "files": files, "pace": "full"},
        loop={"fair_values_every_ns": 10**9},
    )
    config = read_config(host.config)
    host.directory.mkdir(mode=0o700, parents=True)
    with RingWriter(config.order_ring), RingWriter(config.signal_ring):
        pass  # so that the readers are there before the replay begins
    orders, signals = RingReader(config.order_ring), RingReader(config.signal_ring)
    code, out, err = ended(host.start())
    assert code == 0, err
    assert "the replay ended" in out
    with ExitStack() as stack:
        parts = assembled(config, stack)
        strategy = config.strategy
        quoter = FixedWidth(strategy.half_width_money, strategy.quantity, strategy.requote_money)
        loop = HotLoop(
            parts.engine, parts.spec, parts.contracts, parts.limits, quoter, fair_values_every_ns=10**9
        )  # fmt: skip
        tape = read_tape("binance_l2", config.feed.files, Heartbeats(parts.spec.step_ns))
        left = loop.process(tape.records)
        loop.ask(ControlCode.CANCEL_ALL)
        left = np.concatenate([left, loop.process(tape.records[:0])])
    for kind, ring, shape in ((Kind.ORDER, orders, ORDER), (Kind.SIGNAL, signals, SIGNAL)):
        live, offline = ring.read(65536).view(shape), left[left["kind"] == kind].view(shape)
        assert len(live) == len(offline) > 50
        for name in set(shape.names or ()) - {"arrival_ns", "sent_ns"}:
            if kind == Kind.SIGNAL and name == "sequence":
                continue
            assert np.array_equal(live[name], offline[name], equal_nan=live[name].dtype.kind == "f"), (kind, name)
    assert host.status().counters["allocations"] == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_feed_that_ends_early_ends_the_run_and_one_that_is_killed_is_an_error(
    host: RunHost, end: signal.Signals
) -> None:
    process = replaying(host)
    os.kill(feed_of(process.pid), end)
    code, out, err = ended(process)
    if end == signal.SIGKILL:
        assert code == 14
        assert "ended after " in out
        assert ": the feed ended; state active" in out
        assert "error: the feed was killed by SIGKILL; the loop was stopped, what worked was cancelled" in err
    else:
        assert code == 0, err
        assert ": the replay ended; state active" in out
    assert host.status().counters["cancels"] > 0
    assert all(one.bid == one.ask == 0 for one in host.status().quoted)


def test_a_run_that_is_killed_takes_its_feed_along(host: RunHost) -> None:
    process = replaying(host)
    feed = feed_of(process.pid)
    process.kill()
    process.wait()
    host.until(lambda: not Path(f"/proc/{feed}").exists() or Path(f"/proc/{feed}/stat").read_text().split()[2] == "Z")
    again = host.running()
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 0
    assert not feeds_of(again.pid)


def test_a_feed_that_cannot_begin_ends_the_run(host: RunHost) -> None:
    host.configure(feed={"kind": "replay", "layout": "binance_l2", "files": ["absent.parquet"]})
    code, _, err = ended(host.start())
    assert code == 14
    assert "absent.parquet" in err
    assert "error: the feed ended with exit code 3" in err


def test_a_halt_file_that_is_there_already_lets_nothing_out(host: RunHost) -> None:
    host.configure()
    host.directory.mkdir(mode=0o700, parents=True)
    (host.directory / "HALT").touch()
    process = host.running()
    host.tick(ticks(200))
    assert host.status().counters["orders"] == 0
    assert (host.status().state, host.status().halt_file) == ("halted", True)
    process.kill()


def test_a_release_that_expires_meanwhile_stops_new_orders(host: RunHost) -> None:
    """The supervisor around a real loop of this process."""
    host.configure()
    config = read_config(host.config)
    with ExitStack() as stack:
        stack.enter_context(owned(config))
        parts = assembled(config, stack)
        loop, reader = _loop_of(config, parts)
        log = stack.enter_context(HostLog(config.log))
        soon = datetime.now(UTC) + timedelta(seconds=2)
        supervisor = Supervisor(config, loop, log, soon.strftime(TIME_FORMAT))
        supervisor.start()
        watching = threading.Thread(target=supervisor.watch, args=(None, stack.enter_context(reader)))
        watching.start()
        try:
            host.tick(ticks(100))
            if not host.status().model_expired:
                assert host.status().refused_by["model_guard"] == 0
            host.until(lambda: host.status().model_expired)
            host.tick(ticks(200, first=100))
            assert host.status().refused_by["model_guard"] > 0
        finally:
            supervisor.close()
            watching.join()
    assert sum("expired" in line["event"] for line in host.log()) == 1


def replaying(host: RunHost) -> subprocess.Popen[str]:
    """A run whose feed has written something and isn't done for a minute."""
    host.configure()
    files = tick_files(host.folder, ticks(6000))
    host.configure(feed={"kind": "replay", "layout": "binance_l2", "files": files, "pace": "original"})
    process = host.running()
    host.until(lambda: host.status().counters["orders"] > 0, process)
    return process


def feeds_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def feed_of(pid: int) -> int:
    (feed,) = feeds_of(pid)
    return feed
