"""A host to run: a pulled release, chain, limits, configuration; the real command in a process; ticks of a test.

The feed is `external`: the test writes the tick ring, so that it decides when what comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving.host.board import Board, open_board
from serving.host.contracts import listed_chain, write_contracts
from serving.host.records import FILL, ORDER, QUOTE, RECORD, TRADE, Kind, OrderFlags, Records
from serving.host.ring import RingReader, RingWriter
from serving.host.status import HostStatus, read_status

COMMAND = (sys.executable, "-c", "from serving.cli import entry; entry()")
ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
MODEL, STEP_NS = "pricing_lstm", 1_000_000_000  # of tick_bundle.py
SPOT, START_NS = 61_500.0, 1_723_107_600_000_000_000
LIMITS: dict[str, Any] = {
    **tomllib.loads((ROOT / "serving" / "host" / "limits.example.toml").read_text()),
    "collar_money": 500.0, "notional_money": 1e12, "delta": 1e9, "gamma": 1e9, "vega": 1e12, "loss_money": 1e12,
    "drawdown_money": 1e12, "clipped_share": 1.0, "order_rate_count": 16384, "market_move_share": 0.5,
    "tick_money": 5.0, "multiplier": 1.0, "position_quantity": 1e6,
}  # fmt: skip


@dataclass
class RunHost:
    """One host's folder and its process."""

    folder: Path
    release: Path  # folder that was pulled into
    directory: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    written: int = 0
    _fills: RingReader | None = None
    _filled: list[Records] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "host.toml"

    def configure(self, limits: dict[str, Any] | None = None, **sections: dict[str, Any]) -> None:
        """Write all the files; `sections` change keys of the configuration, None leaves one out."""
        self.folder.mkdir(exist_ok=True)
        write_contracts(self.folder / "chain.csv", listed_chain(SPOT, quoted=4, expiry_days=(7, 30)))
        self.limit(**(limits or {}))
        values: dict[str, dict[str, Any]] = {
            "model": {"folder": str(self.release), "model": MODEL, "development": True},
            "feed": {"kind": "external", "silence_s": 600.0},  # a loaded machine is no dead line
            "chain": {"file": "chain.csv", "reference_price": SPOT, "quoted": 4},
            "strategy": {"kind": "fixed_width", "half_width_money": 20.0, "quantity": 1.0, "requote_money": 5.0},
            "risk": {"limits": "limits.toml"},
            "loop": {"poll": "sleep"},
            "metrics": {},
        }
        for name, changes in sections.items():
            values[name] = {key: one for key, one in (values[name] | changes).items() if one is not None}
        lines = [f"directory = {json.dumps(str(self.directory))}"]
        for name, table in values.items():
            lines += [f"[{name}]", *(f"{key} = {toml(one)}" for key, one in table.items())]
        self.config.write_text("\n".join(lines) + "\n")

    def limit(self, **changes: Any) -> None:
        """Write the limits file."""
        values = LIMITS | changes
        (self.folder / "limits.toml").write_text("".join(f"{key} = {one}\n" for key, one in values.items()))

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Any of the commands, `run` if none is named."""
        typed = [*COMMAND, *(command or ("run",)), "--config", str(self.config)]
        process = subprocess.Popen(
            typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def running(self) -> subprocess.Popen[str]:
        """The command, once its loop reads."""
        process = self.start()
        self.until(lambda: self.status().running and self.status().process == process.pid, process)
        self.until(lambda: (self.directory / "control.socket").exists(), process)
        return process

    def ask(self, *what: str) -> subprocess.CompletedProcess[str]:
        """`strikeforge-host control`."""
        typed = [*COMMAND, "control", "--config", str(self.config), *what]
        return subprocess.run(typed, capture_output=True, text=True, cwd=ROOT, check=False, timeout=PATIENCE_S)

    def board(self) -> Board:
        return open_board(self.directory / "board")

    def status(self) -> HostStatus:
        return read_status(self.board())

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "host.log").read_text().splitlines()]

    def open_fills(self) -> None:
        """Follow the fill ring from now on."""
        self._fills = RingReader(self.directory / "fills.ring")

    def fills(self) -> Records:
        """All fills since `open_fills`."""
        assert self._fills is not None
        self._filled.append(self._fills.read(65536).view(FILL))
        return np.concatenate(self._filled)

    def tick(self, records: Records) -> None:
        """Write the tick ring, and wait until the loop has read it."""
        with RingWriter(self.directory / "ticks.ring") as ring:
            ring.write(records)
            self.written += len(records)
        self.until(lambda: self.status().counters["records"] >= self.written)

    def until(self, holds: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
        """Wait for a condition; a process that ended meanwhile says why."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if holds():
                    return
            except Exception as error:  # noqa: BLE001  the board isn't there yet
                last = error
            else:
                last = AssertionError("it didn't come to hold")
            if process is not None and process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode}: {process.communicate()[1]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S:g} s") from last
            time.sleep(0.005)

    def close(self) -> None:
        """End whatever a test left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


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


def toml(value: Any) -> str:
    """Texts, lists, numbers and flags as JSON writes them, and inline tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def tick_files(folder: Path, records: Records) -> list[str]:
    """The same ticks as a vendor's files of trades and best quotes, for the layout binance_l2."""
    trades, quotes = (
        records[records["kind"] == Kind.TRADE].view(TRADE),
        records[records["kind"] == Kind.QUOTE].view(QUOTE),
    )
    tables = {
        "spot_btcusdt_20240808_trades.csv": {
            "recv_ns": trades["event_ns"], "price": trades["price"], "qty": trades["size"],
            "aggressor": np.where(trades["flags"] == 1, 1, -1),
        },
        "spot_btcusdt_20240808_bbo.csv": {
            "recv_ns": quotes["event_ns"], "bid_px": quotes["bid"], "bid_sz": quotes["bid_size"],
            "ask_px": quotes["ask"], "ask_sz": quotes["ask_size"],
        },
    }  # fmt: skip
    for name, columns in tables.items():
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        (folder / name).write_text("\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")
    return [str(folder / name) for name in tables]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def ticks(count: int, *, seed: int = 0, first: int = 0) -> Records:
    """Quotes and trades of an underlying that wanders, 10 ms apart; `first`: the number of the first one."""
    random = np.random.default_rng([seed, first])
    records = np.zeros(count, RECORD)
    quotes, trades = records.view(QUOTE), records.view(TRADE)
    mid = np.round(SPOT + np.cumsum(random.normal(0, 2.0, count)), 1)
    is_trade = random.random(count) < 0.3
    is_trade[:1] = False
    places = np.arange(first, first + count)
    records["event_ns"] = START_NS + places * (STEP_NS // 100)
    records["sequence"] = places
    records["kind"] = np.where(is_trade, Kind.TRADE, Kind.QUOTE)
    records["flags"] = np.where(is_trade, 1 + (random.random(count) < 0.5), 3)
    quotes["arrival_ns"] = time.monotonic_ns()
    for name, values in (("bid", mid - 0.5), ("bid_size", 1.0), ("ask", mid + 0.5), ("ask_size", 2.0)):
        quotes[name][~is_trade] = np.broadcast_to(values, count)[~is_trade]
    trades["price"][is_trade] = mid[is_trade] + random.normal(0, 30.0, count)[is_trade]
    trades["size"][is_trade] = 0.1
    return records
