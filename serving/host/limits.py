"""What a trading host may lose, hold and send at most: a TOML file, read whole or refused whole.

Data in: a file with every field of `Limits` and a `serial` (limits.example.toml explains each), and where a public key
is configured its detached signature (limits_signature.py). Data out: `Limits`, as in serving/native/host/limits.hpp.
Invariants: nothing has a default, so what a desk forgot isn't unlimited: `inf` must be written; unknown keys, NaN and
negative numbers are refused; every problem is listed at once; a `Limits` that breaks these rules can't be made.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError, HostError

logger = logging.getLogger(__name__)

FOREVER_NS = 2**63 - 1  # what `inf` means for a time
MOST_ORDER_RATE = 16384  # orders whose times the gate remembers (limits.hpp)
EXACT = 2**53  # whole numbers up to this are doubles
MAX_FILE_BYTES = 1 << 16
SERIAL = "serial"
TERMS = ("multiplier", "tick_money")  # of the contracts: no limits, so they don't change while a host runs


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All in the units of their names; infinity (a time of FOREVER_NS) doesn't limit. Rules: docs/host-rules.md."""

    collar_money: float  # |price - fair| <= collar_money + collar_share * fair
    collar_share: float
    order_quantity: float  # of one order
    position_quantity: float  # of one contract, either way
    notional_money: float  # gross, with what works
    delta: float  # portfolio, absolute, in units of the underlying
    gamma: float
    vega: float
    loss_money: float  # of the session: HALTED
    drawdown_money: float  # from the session's best: REDUCING
    order_rate_count: float  # new orders and replacements accepted in the window
    order_rate_window_ns: int
    stale_book_ns: int  # event time since the underlying's book changed
    anomaly_score: float  # as told by control
    clipped_share: float  # of the step's features that were clipped
    market_move_share: float  # the underlying's move within the window: REDUCING
    market_move_window_ns: int
    market_move_pause_ns: int
    reject_burst_count: float  # refusals in a row: HALTED
    multiplier: float  # of a contract: units of the underlying
    tick_money: float  # of a contract: smallest price step

    def __post_init__(self) -> None:
        if problems := list(_problems(dataclasses.asdict(self))):
            raise ConfigError(problems)


FIELDS = tuple(field.name for field in dataclasses.fields(Limits))
TIMES = tuple(field.name for field in dataclasses.fields(Limits) if field.type == "int")


def read_limits(path: Path, public_key: Path | None = None, state: Path | None = None) -> Limits:
    """The limits of a file; see `read_numbered_limits`."""
    return read_numbered_limits(path, public_key, state)[0]


def read_numbered_limits(
    path: Path, public_key: Path | None = None, state: Path | None = None,
    usable: Callable[[Limits], object] | None = None,
) -> tuple[Limits, int]:  # fmt: skip
    """Limits and serial of a file; with `public_key` only if its owner signed these very bytes, and none newer before.

    `state` keeps the last serial accepted; by default `<path>.accepted`. `usable` raises where the limits are sound and
    still can't be taken: then their serial isn't accepted either. ConfigError lists every problem of the file;
    TrustError says why a signature or a serial is refused.
    """
    data = read_bounded(path)
    if public_key is not None:
        from serving.host.limits_signature import check_signature  # cryptography: only where something is signed

        check_signature(path, data, public_key)
    limits, serial = parse_limits(data, str(path))
    if usable is not None:
        usable(limits)
    if public_key is not None:
        from serving.host.limits_signature import accept_serial

        accept_serial(path, data, serial, state or path.with_name(f"{path.name}.accepted"))
    logger.info("limits %s: serial %d, %s", path, serial, "not signed" if public_key is None else "signed")
    return limits, serial


def parse_limits(data: bytes, source: str) -> tuple[Limits, int]:
    """Limits and the serial of a file's bytes; ConfigError lists every problem, each naming `source` and the key."""
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, absurdly nested
        raise ConfigError([f"{source}: isn't TOML: {error}"]) from error
    known = (*FIELDS, SERIAL)
    problems = [f"{source}: {key}: is no limit; known are {', '.join(known)}" for key in table if key not in known]
    missing = [name for name in known if name not in table]
    problems += [f"{source}: {name}: is missing; nothing has a default, write inf for no limit" for name in missing]
    numbers = {name: _number(name, value) for name, value in table.items() if name in FIELDS}
    problems += [f"{source}: {problem}" for problem in _problems(numbers)]
    serial = table.get(SERIAL, 1)
    if isinstance(serial, bool) or not isinstance(serial, int) or not 0 < serial <= FOREVER_NS:
        problems.append(f"{source}: {SERIAL}: must be a whole number from 1, one more at each change; found {serial!r}")
    if problems:
        raise ConfigError(problems)
    return Limits(**numbers), serial


def changed_limits(old: Limits, new: Limits) -> dict[str, tuple[float, float]]:
    """What differs, old and new, to be logged; HostError if `new` can't take the place of `old` while a host runs."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    changed = {name: (before[name], after[name]) for name in FIELDS if before[name] != after[name]}
    if moved := [f"{name} {before[name]} -> {after[name]}" for name in TERMS if name in changed]:
        raise HostError(f"limits: {', '.join(moved)}: a contract's own terms change with a restart only")
    return changed


def read_bounded(path: Path) -> bytes:
    """A small file's bytes; ConfigError if it can't be read or is too large to be what it should."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_FILE_BYTES} bytes"])
    return data


def _number(name: str, value: Any) -> Any:
    """A TOML value as its field's type where that loses nothing; anything else is left for `_problems`."""
    if name in TIMES:
        return FOREVER_NS if value == math.inf else value
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= EXACT
    return float(value) if is_whole else value


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the limits that are there."""
    for name, value in values.items():
        is_time = name in TIMES
        if isinstance(value, bool) or not isinstance(value, int if is_time else (int, float)):
            yield f"{name}: must be {'whole nanoseconds' if is_time else 'a number'} or inf; found {value!r}"
        elif not is_time and isinstance(value, int) and abs(value) > EXACT:
            yield f"{name}: {value} is too large to be exact; write a smaller number, or inf for no limit"
        elif not value >= 0:
            yield f"{name}: must be a number that isn't negative; found {value!r}"
        elif rule := _broken_rule(name, value):
            yield f"{name}: must be {rule}; found {value!r}"


def _broken_rule(name: str, value: float) -> str | None:
    finite = math.isfinite(value)
    if name in TERMS and not (finite and value > 0):
        return "finite and above 0"
    if name in TIMES and value > FOREVER_NS:
        return f"at most {FOREVER_NS} ns, or inf"
    if name == "order_rate_window_ns" and value == 0:
        return "above 0: a window of no time limits nothing"
    if name == "collar_share" and not finite:
        return "finite (collar_money = inf switches the collar off)"
    if name in ("order_rate_count", "reject_burst_count") and finite and value != int(value):
        return "a whole number, or inf"
    if name == "order_rate_count" and finite and value > MOST_ORDER_RATE:
        return f"at most {MOST_ORDER_RATE}, or inf"
    if name == "reject_burst_count" and value < 1:
        return "at least 1"
    return None
