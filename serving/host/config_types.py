"""The shape of a host's configuration: what serving/host/config.py makes of the TOML file.

Data: closed and frozen; units in the names; paths are absolute.

    tick_ring, order_ring, fill_ring, signal_ring   rings in `directory` (serving/host/ring.py)
    board, chain_page, facts                        what `top` and Prometheus look at (board.py, facts.py)
    control_socket, halt_file, lock                 how the loop is told things; that a directory has one loop
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Which pulled release the loop answers with."""

    folder: Path
    model: str
    channel: str
    engine: str
    precision: str
    development: bool  # take a release that nobody's or only a development key vouches for


@dataclass(frozen=True)
class Pace:
    """How fast files are replayed: `original`, `full`, or `value` times as fast, or so many events a second."""

    kind: str
    value: float = 1.0

    def __str__(self) -> str:
        if self.kind == "scaled":
            return f"{self.value:g} times"
        return f"{self.value:g} events/s" if self.kind == "events_per_second" else self.kind


@dataclass(frozen=True)
class Address:
    """An IP address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class FeedConfig:
    """Where ticks come from. `external`: somebody else writes the tick ring, `run` starts no feed.

    Heartbeats come at the ends of the market steps of the bundle; `heartbeat_ns`, where given, stands for them when a
    feed runs without one.
    """

    kind: str
    layout: str | None = None
    files: tuple[Path, ...] = ()
    pace: Pace = Pace("original")
    lines: tuple[Address, ...] = ()
    recovery: Address | None = None
    interface: str | None = None
    heartbeat_ns: int | None = None
    core: int | None = None
    silence_s: float | None = None  # without a record for so long, all that works is cancelled; None: never (replay)
    lag_s: float | None = None  # event time further behind the wall clock kills; None: never

    @property
    def lossless(self) -> bool:
        """Whether the writer waits for the loop: at full pace it would overrun it otherwise."""
        return self.kind == "replay" and self.pace.kind == "full"


@dataclass(frozen=True)
class ChainConfig:
    """The contracts around the underlying; the first `quoted` of the file are quoted, all are swept."""

    file: Path
    reference_price: float  # money: the underlying's price when the chain's volatilities were seen
    quoted: int
    at: datetime | Literal["start"] | None  # from when expiries count; None: the file has times to expiry


@dataclass(frozen=True)
class FixedWidth:
    """The fixed-width quoter's numbers: money per unit of the underlying; `tick_money` is that of the limits.

    `retry_ns`: event time for which it asks no new order on a contract's side where one was refused.
    """

    half_width_money: float
    quantity: float
    requote_money: float
    skew_money_per_unit: float = 0.0
    retry_ns: int = 1_000_000_000


@dataclass(frozen=True)
class RiskConfig:
    """Limits (serving/host/limits.py); with a public key they must be signed by it."""

    limits: Path
    public_key: Path | None


@dataclass(frozen=True)
class LoopConfig:
    """How the loop's thread runs. None: not pinned, no real-time priority, runs until it is stopped."""

    core: int | None
    housekeeping_cores: tuple[int, ...]
    poll: str
    fills: str
    idle_exit_s: float | None
    lock_memory: bool
    priority: int | None  # of SCHED_FIFO
    ring_records: int
    sweep_contracts: int  # valued at a time while no record waits
    sweep_every_ns: int  # between two beginnings of a sweep, at least
    fair_values_every_ns: int  # event time between two signals of fair values; 0: none


@dataclass(frozen=True)
class MetricsConfig:
    """Where Prometheus asks; no port, no metrics."""

    address: str
    port: int | None


@dataclass(frozen=True)
class HostConfig:
    """All of it, and where things lie."""

    file: Path
    directory: Path
    log: Path
    model: ModelConfig
    feed: FeedConfig
    chain: ChainConfig
    strategy: FixedWidth | None  # None: the null strategy, which asks for nothing
    risk: RiskConfig
    loop: LoopConfig
    metrics: MetricsConfig

    @property
    def tick_ring(self) -> Path:
        return self.directory / "ticks.ring"

    @property
    def order_ring(self) -> Path:
        return self.directory / "orders.ring"

    @property
    def fill_ring(self) -> Path:
        return self.directory / "fills.ring"

    @property
    def signal_ring(self) -> Path:
        return self.directory / "signals.ring"

    @property
    def board(self) -> Path:
        return board_in(self.directory)

    @property
    def chain_page(self) -> Path:
        return self.directory / "chain"

    @property
    def facts(self) -> Path:
        return facts_in(self.directory)

    @property
    def control_socket(self) -> Path:
        return control_socket_in(self.directory)

    @property
    def halt_file(self) -> Path:
        return self.directory / "HALT"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"


def board_in(directory: Path) -> Path:
    """Where a host's board is."""
    return directory / "board"


def facts_in(directory: Path) -> Path:
    """Where a host's facts are."""
    return directory / "facts.json"


def control_socket_in(directory: Path) -> Path:
    """Where a host is told things."""
    return directory / "control.socket"
