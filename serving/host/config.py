"""What a trading host runs: one TOML file, read by every command that says `--config C`.

In: the file (serving/host/host.example.toml names every key). Out: `HostConfig` (serving/host/config_types.py).
Invariants: an unknown key, a wrong type, a missing key and a value out of range are all told at once, in one
ConfigError, each with its key and value; nothing is guessed, and reading opens no file but this one.
"""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from serving.canonical import is_model_name
from serving.engine import PRECISIONS
from serving.errors import ConfigError
from serving.feeds.layouts import LAYOUTS
from serving.host.config_table import REQUIRED, Table
from serving.host.config_types import (
    Address,
    ChainConfig,
    FeedConfig,
    FixedWidth,
    HostConfig,
    LoopConfig,
    MetricsConfig,
    ModelConfig,
    Pace,
    RiskConfig,
)
from serving.ledger import CHANNELS

ENGINE = "native"  # the only one that the loop calls without leaving native code
FEED_KINDS = ("replay", "multicast", "packet", "external")
PACES = ("original", "full")
SCALED, BY_RATE = "scaled", "events_per_second"
STRATEGIES = ("null", "fixed_width")
POLLS = ("busy", "sleep")
FILLS = ("simulated",)  # until there are gateways
MOST_QUOTED = 64  # Board::most_contracts
LIVE_SILENCE_S = 5.0  # of every feed but a replay: a line that died must not leave orders working
LARGEST_FILE = 1 << 20
LOG = "host.log"  # in the directory, unless said otherwise


def read_config(file: Path) -> HostConfig:
    """The file's configuration; ConfigError with everything that is wrong."""
    file = file.absolute()
    top = _parsed(file)
    problems: list[str] = []
    table = Table(top, "", problems, file.parent)
    directory = table.path("directory")
    log = table.path("log", None) or directory / LOG
    config = HostConfig(
        file, directory, log, _model(table), _feed(table), _chain(table), _strategy(table), _risk(table), _loop(table),
        _metrics(table),
    )  # fmt: skip
    table.finish()
    if len(str(config.control_socket).encode()) > 107:  # sun_path, with its closing zero
        table.problem("directory", "a path short enough for a Unix socket in it: at most 92 bytes")
    _cores_apart(config, problems)
    if problems:
        raise ConfigError([f"{file.name}: {problem}" for problem in problems])
    return config


def read_directory(file: Path) -> Path:
    """The host's directory alone: who asks a running host for a kill isn't kept out by a mistake in another key."""
    problems: list[str] = []
    directory: Path = Table(_parsed(file.absolute()), "", problems, file.absolute().parent).path("directory")
    if problems:
        raise ConfigError([f"{file.name}: {problem}" for problem in problems])
    return directory


def _parsed(file: Path) -> object:
    try:
        with file.open("rb") as opened:
            raw = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{file}: can't be read: {error.strerror}"]) from error
    if len(raw) > LARGEST_FILE:
        raise ConfigError([f"{file}: is larger than {LARGEST_FILE} bytes; this is no configuration of a host"])
    try:
        return tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"{file}: isn't TOML: {error}"]) from error


def _model(top: Table) -> ModelConfig:
    table = top.table("model", required=True)
    model = table.text("model")
    if model and not is_model_name(model):
        table.problem("model", "lower case letters, digits, '_' and '-', at most 63")
    config = ModelConfig(
        table.path("folder"), model, table.text("channel", "champion", choices=CHANNELS),
        table.text("engine", ENGINE, choices=(ENGINE,)),
        table.text("precision", PRECISIONS[ENGINE][0], choices=PRECISIONS[ENGINE]), table.flag("development", False),
    )  # fmt: skip
    table.finish()
    return config


def _feed(top: Table) -> FeedConfig:
    table = top.table("feed", required=True)
    kind = table.text("kind", choices=FEED_KINDS)
    heartbeat_ns = table.whole("heartbeat_ns", None, least=1, most=10**15)
    core = table.whole("core", None, least=0, most=4095)
    silence_s = table.number("silence_s", None if kind == "replay" else LIVE_SILENCE_S, above=0.0)
    lag_s = table.number("lag_s", None, above=0.0)
    network = kind in ("multicast", "packet")
    layout = recovery = interface = None
    files: tuple[Path, ...] = ()
    lines: tuple[Address, ...] = ()
    pace = Pace("original")
    if kind == "replay":
        layout, files, pace = table.text("layout", choices=tuple(LAYOUTS)), table.paths("files"), _pace(table)
    else:
        table.refuse(("files", "pace"), f"[feed] kind {kind!r} replays no files")
    if network:
        layout, lines = table.text("layout", None, choices=tuple(LAYOUTS)), _lines(table)
        interface = table.text("interface", REQUIRED if kind == "packet" else None)
        names = (interface or "").split(",")
        if interface and lines and (len(names) not in (1, len(lines)) or not all(name.strip() for name in names)):
            table.problem("interface", f"one interface for all lines, or one for each of {len(lines)}, with commas")
    else:
        table.refuse(("lines", "interface"), f"[feed] kind {kind!r} listens to no lines")
    if kind == "replay":
        table.refuse(("lag_s",), "a replay's times are old")
    if network:
        recovery = _address(table, "recovery", table.text("recovery", None))
    else:
        table.refuse(("recovery",), f"[feed] kind {kind!r} recovers nothing; that is for lines")
    if kind == "external":
        table.refuse(("layout", "core"), "an external feed is started and set up elsewhere")
    table.finish()
    return FeedConfig(kind, layout, files, pace, lines, recovery, interface, heartbeat_ns, core, silence_s, lag_s)


def _pace(table: Table) -> Pace:
    said = f"{', '.join(repr(one) for one in PACES)}, {{scaled = x}} or {{events_per_second = n}}, x and n above 0"
    value = table.take("pace", "original", expected=said)
    if isinstance(value, str) and value in PACES:
        return Pace(value)
    if isinstance(value, dict) and len(value) == 1:
        ((kind, number),) = value.items()
        if kind in (SCALED, BY_RATE) and type(number) in (int, float) and 0 < number <= 1e12:
            return Pace(kind, float(number))
    table.problem("pace", said)
    return Pace("original")


def _lines(table: Table) -> tuple[Address, ...]:
    found = [_address(table, "lines", text) for text in table.texts("lines", "a list of ADDRESS:PORT, one or two")]
    lines = tuple(one for one in found if one is not None)
    if len(lines) > 2:
        table.problem("lines", "one line, or two redundant ones")
    for line in lines:
        address = ipaddress.ip_address(line.host)
        if address.version != 4 or not address.is_multicast:
            table.problem("lines", f"multicast addresses of IPv4; {line.host} is none")
    return lines


def _address(table: Table, key: str, text: str | None) -> Address | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isascii() and port.isdecimal() else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        table.problem(key, "ADDRESS:PORT, a numeric IP address and a port from 1 to 65535")
        return None
    return Address(str(address), number)


def _chain(top: Table) -> ChainConfig:
    table = top.table("chain", required=True)
    at = table.take("at", None)
    if at is not None and at != "start" and not (isinstance(at, datetime) and at.tzinfo is not None):
        table.problem("at", '"start" or a date and time with its offset, 2024-08-08T09:00:00Z')
        at = None
    config = ChainConfig(
        table.path("file"), table.number("reference_price", above=0.0),
        table.whole("quoted", least=1, most=MOST_QUOTED), at,
    )  # fmt: skip
    table.finish()
    return config


def _strategy(top: Table) -> FixedWidth | None:
    table = top.table("strategy", required=True)
    kind = table.text("kind", choices=STRATEGIES)
    config = None
    if kind == "fixed_width":
        config = FixedWidth(
            table.number("half_width_money", above=0.0), table.number("quantity", above=0.0),
            table.number("requote_money", least=0.0), table.number("skew_money_per_unit", 0.0, least=0.0),
            table.whole("retry_ns", FixedWidth.retry_ns, least=0, most=10**15),
        )  # fmt: skip
    else:
        table.refuse([field.name for field in fields(FixedWidth)], f"[strategy] kind {kind!r} has no such number")
    table.finish()
    return config


def _risk(top: Table) -> RiskConfig:
    table = top.table("risk", required=True)
    config = RiskConfig(table.path("limits"), table.path("public_key", None))
    table.finish()
    return config


def _loop(top: Table) -> LoopConfig:
    table = top.table("loop", required=False)
    core = table.whole("core", None, least=0, most=4095)
    said = "a list of core numbers, at least one, none twice"
    cores = table.take("housekeeping_cores", None, expected=said)
    if cores is not None:
        fine = isinstance(cores, list) and cores and all(type(one) is int and 0 <= one < 4096 for one in cores)
        if not fine or len(set(cores)) < len(cores):
            table.problem("housekeeping_cores", said)
            cores = None
    ring_records = table.whole("ring_records", 1 << 16, least=1 << 6, most=1 << 26)
    if ring_records & (ring_records - 1):
        table.problem("ring_records", "a power of two")
    priority = table.whole("priority", None, least=1, most=99)
    if priority is not None and core is None:
        table.problem("priority", "`core` beside it: a loop of real-time priority on any core starves the machine")
    config = LoopConfig(
        core, tuple(cores or ()), table.text("poll", "busy", choices=POLLS),
        table.text("fills", FILLS[0], choices=FILLS), table.number("idle_exit_s", None, above=0.0),
        table.flag("lock_memory", False), priority, ring_records,
        table.whole("sweep_contracts", 32, least=1, most=1_000_000),
        table.whole("sweep_every_ns", 5_000_000, least=0, most=10**12),
        table.whole("fair_values_every_ns", 0, least=0, most=10**15),
    )  # fmt: skip
    table.finish()
    return config


def _metrics(top: Table) -> MetricsConfig:
    table = top.table("metrics", required=False)
    address, port = table.text("address", "127.0.0.1"), table.whole("port", None, least=0, most=65535)
    try:
        ipaddress.ip_address(address)
    except ValueError:
        if address:
            table.problem("address", "a numeric IP address to listen on")
    table.finish()
    return MetricsConfig(address, port)


def _cores_apart(config: HostConfig, problems: list[str]) -> None:
    core = config.loop.core
    if core is not None and core in config.loop.housekeeping_cores:
        problems.append(f"[loop] housekeeping_cores: holds core {core}, which is the loop's own")
    if core is not None and core == config.feed.core:
        problems.append(f"[feed] core: {core} is the loop's own")
