"""`strikeforge-host feed` as a process: a replay into a ring, published to another host, stopped by a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serving.errors import ConfigError
from serving.feeds.layouts import read_tape
from serving.feeds.tape import Heartbeats
from serving.host.config import read_config
from serving.host.ring import RingReader, RingWriter
from tests.serving.feeds import tables
from tests.serving.feeds.tables import write

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
CONFIG = """
directory = "host"
[model]
folder = "models"
model = "pricing_lstm"
[feed]
{feed}
[chain]
file = "chain.csv"
reference_price = 100.0
quoted = 1
[strategy]
kind = "null"
[risk]
limits = "limits.toml"
[loop]
poll = "sleep"
"""
REPLAY = """kind = "replay"
layout = "binance_l2"
files = ["trades.csv", "bbo.csv"]
pace = {pace}
heartbeat_ns = 1000"""


def configured(folder: Path, feed: str) -> Path:
    """A host's configuration, and the files it replays: of five trades one is no trade."""
    write(folder / "trades.csv", tables.trades(5, aggressor=[1] * 5, price=[1.0, 2.0, 0.0, 4.0, 5.0]))
    write(folder / "bbo.csv", tables.bbo(5))
    file = folder / "host.toml"
    file.write_text(CONFIG.format(feed=feed))
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", "from serving.cli import entry; entry()", "feed", *map(str, arguments)]


def test_a_replay_fills_the_ring_and_tells_what_became_of_it(tmp_path: Path) -> None:
    file = configured(tmp_path, REPLAY.format(pace='"full"'))
    config = read_config(file)
    config.directory.mkdir()
    RingWriter(config.tick_ring, config.loop.ring_records, lossless=True).close()
    with RingReader(config.tick_ring) as reader:
        done = subprocess.run(command("--config", file), capture_output=True, text=True, cwd=ROOT, check=True)
        got = reader.read(100)
    tape = read_tape("binance_l2", [tmp_path / "trades.csv", tmp_path / "bbo.csv"], Heartbeats(1000))
    for field in ("event_ns", "sequence", "kind", "flags"):
        assert got[field].tolist() == tape.records[field].tolist()
    assert f"{len(tape.records)} records written" in done.stdout
    assert "records: trade 4, quote 5, heartbeat 4" in done.stdout
    assert "quarantined: price isn't positive 1" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_summary(tmp_path: Path, number: signal.Signals) -> None:
    """The second event is due in more than an hour."""
    file = configured(tmp_path, REPLAY.format(pace="{scaled = 1e-10}"))
    config = read_config(file)
    config.directory.mkdir()
    RingWriter(config.tick_ring, config.loop.ring_records).close()
    with (
        RingReader(config.tick_ring) as reader,
        subprocess.Popen(command("--config", file), stdout=subprocess.PIPE, text=True, cwd=ROOT) as feed,
    ):
        deadline = time.monotonic() + DEADLINE_S
        while not reader.behind and time.monotonic() < deadline:
            reader.wait(10_000)
        feed.send_signal(number)
        said, _ = feed.communicate(timeout=DEADLINE_S)
    assert feed.returncode == 0
    assert "records written" in said
    assert "records: trade 1" in said


def test_a_published_replay_reaches_another_hosts_ring(tmp_path: Path) -> None:
    """Over the loopback interface, which takes multicast where it is told which to use."""
    receiving = tmp_path / "receiver"
    receiving.mkdir()
    listen = 'kind = "multicast"\nlines = ["239.83.71.1:31417", "239.83.71.2:31417"]\ninterface = "lo"'
    receiver_config = read_config(configured(receiving, listen))
    receiver_config.directory.mkdir()
    RingWriter(receiver_config.tick_ring, receiver_config.loop.ring_records).close()
    sender = configured(tmp_path, REPLAY.format(pace="{events_per_second = 100}"))
    lines = [f"--publish=239.83.71.{line}:31417@lo" for line in (1, 2)]
    tape = read_tape("binance_l2", [tmp_path / "trades.csv", tmp_path / "bbo.csv"], Heartbeats(1000))
    with (
        RingReader(receiver_config.tick_ring) as reader,
        subprocess.Popen(
            command("--config", receiver_config.file), stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as feed,
    ):
        deadline = time.monotonic() + DEADLINE_S
        while not reader.writer_lives and feed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the lines are joined before the ring is opened
        if feed.poll() is not None:
            pytest.skip("this machine's loopback takes no multicast group")
        published = subprocess.run(
            command("--config", sender, *lines), capture_output=True, text=True, cwd=ROOT, check=True
        )
        got = []
        while sum(map(len, got)) < len(tape.records) and time.monotonic() < deadline:
            got.append(reader.read())
            reader.wait(10_000)
        feed.terminate()
        said, _ = feed.communicate(timeout=DEADLINE_S)
    assert np.concatenate(got)["event_ns"].tolist() == tape.records["event_ns"].tolist()
    assert f"{len(tape.records)} records written" in said
    assert "lost 0" in said
    assert f"{len(tape.records)} records written" in published.stdout


@pytest.mark.parametrize(
    ("feed", "options", "told"),
    [
        ('kind = "external"', [], "there is nothing to run"),
        ('kind = "multicast"\nlines = ["239.1.1.1:3000"]', ["--publish=239.1.1.1:1"], "can't be published"),
        (REPLAY.format(pace='"full"').replace("heartbeat_ns = 1000", ""), [], "a replay needs the market step"),
        (REPLAY.format(pace='"full"'), ["--serve-recovery=127.0.0.1:1"], "needs --publish"),
        (REPLAY.format(pace='"full"'), ["--publish=239.1.1.1"], "found '239.1.1.1', expected an address and a port"),
        (REPLAY.format(pace='"full"'), ["--publish=10.0.0.1:3"], "'10.0.0.1' is no multicast address of IPv4"),
        (REPLAY.format(pace='"full"'), ["--publish=lines:3"], "'lines' is no multicast address of IPv4"),
        ('kind = "multicast"\nlines = ["239.1.1.1:3000"]\ninterface = "a,b"', [], "one for each of 1, with commas"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, feed: str, options: list[str], told: str) -> None:
    file = configured(tmp_path, feed)
    done = subprocess.run(command("--config", file, *options), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == ConfigError.exit_code, json.dumps(done.stderr)
    assert told in done.stderr
