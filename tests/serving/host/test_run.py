"""`strikeforge-host run`, the real command: a pulled release, ticks on a ring, orders read by this other process."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable

import numpy as np
import pytest

from tests.serving.native.built import built_core

built_core()

from serving.host.records import Kind, OrderFlags  # noqa: E402
from serving.host.ring import RingWriter  # noqa: E402
from tests.serving.host.run_host import LIMITS, Orders, RunHost, ended, ticks  # noqa: E402

pytestmark = pytest.mark.slow


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
    (begun,) = [line for line in host.log() if line["event"] == "limits"]
    assert (begun["serial"], begun["order_quantity"], begun["signed"]) == (1, 10.0, "not signed")
    told = [(line["event"], line.get("changed")) for line in host.log() if line.get("command") == "limits_reload"]
    assert told == [
        ("control", {"order_quantity": "10.0 -> 0.5"}), ("control: failed", None), ("control: failed", None)
    ]  # fmt: skip
    process.kill()


def test_an_operator_reduces_and_tells_the_anomaly_score(host: RunHost) -> None:
    host.configure(limits={"anomaly_score": 8.0})
    process = host.running()
    host.tick(ticks(100))
    assert host.ask("anomaly_score", "8.5").returncode == 0
    host.tick(ticks(100, first=100))
    assert host.status().gauges["anomaly_score"] == 8.5
    assert host.status().refused_by["model_guard"] > 0
    assert host.ask("anomaly_score", "nan").returncode == 14
    assert host.ask("reduce").returncode == 0
    host.until(lambda: host.status().state == "reducing")
    assert host.status().why == "operator_asked"
    assert "state: reducing" in host.ask("status").stdout
    process.kill()


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


def test_what_this_machine_or_the_directory_lacks_is_told_at_once_before_the_release_is_opened(host: RunHost) -> None:
    host.configure(model={"folder": "/nowhere"}, loop={"core": 4000, "ring_records": 128})
    host.directory.mkdir(mode=0o700, parents=True)
    for name in ("ticks.ring", "orders.ring", "fills.ring"):
        with RingWriter(host.directory / name, 128 if name != "fills.ring" else 64):
            pass
    for name in ("ticks.ring", "orders.ring"):
        os.truncate(host.directory / name, 9000)
    code, _, err = ended(host.start())
    assert code == 14
    assert "[loop] core 4000" in err
    for name in ("ticks.ring", "orders.ring"):
        assert f"{name}': found 9000 bytes" in err
    assert "fills.ring': found a capacity of 64, expected 128" in err
    host.configure(
        model={"folder": "/nowhere"},
        feed={"kind": "multicast", "silence_s": 5.0, "lines": ["239.1.1.1:30001"], "interface": "eth4000"},
    )
    for file in host.directory.glob("*.ring"):
        file.unlink()
    code, _, err = ended(host.start())
    assert code == 14
    assert "[feed] interface 'eth4000': there is no such interface; there are lo" in err


@pytest.mark.parametrize("name", ["lock", "control.socket", "facts.json", "facts.json.partial", "host.log"])
def test_a_file_that_can_not_be_made_is_told_by_name(host: RunHost, name: str) -> None:
    host.configure()
    (host.directory / name).mkdir(parents=True)
    host.directory.chmod(0o700)
    code, _, err = ended(host.start())
    assert code == 14
    assert str(host.directory / name.removesuffix(".partial")) in err
    assert "Traceback" not in err


def test_a_halt_file_that_is_there_already_lets_nothing_out(host: RunHost) -> None:
    host.configure()
    host.directory.mkdir(mode=0o700, parents=True)
    (host.directory / "HALT").touch()
    process = host.running()
    host.tick(ticks(200))
    assert host.status().counters["orders"] == 0
    assert (host.status().state, host.status().halt_file) == ("halted", True)
    process.kill()
