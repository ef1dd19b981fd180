"""What `strikeforge-host top` shows: one frame of text from two looks at the board.

In: the facts of the run, the board now and some time before, the terminal's size. Out: lines, no wider and no more
than asked for, with ANSI colours if they are wanted. Invariant: a frame is a function of its arguments; a number that
isn't there is shown as "-", one that can't be trusted (a loop that is gone) under a line that says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.host.board import Histogram
from serving.host.facts import HostFacts, printable
from serving.host.status import PERCENTILES, HostStatus, since

RED, GREEN, YELLOW, BOLD, DIM, REVERSE = "31", "32", "33", "1", "2", "7"
STATE_COLOURS = {"active": GREEN, "reducing": YELLOW, "halted": RED}
NOW_COLUMNS = 105  # a terminal as wide as this also shows percentiles since the last frame
QUIET_NS = 1_000_000_000  # no record for so long: said in colour


@dataclass(frozen=True)
class Look:
    """One look at a host. `quiet_ns`: how long no record has come, as far as whoever looks has seen."""

    status: HostStatus
    quiet_ns: int = 0
    resident: tuple[int, int] | None = None  # bytes now and at most


@dataclass(frozen=True)
class Style:
    """The terminal: columns, rows (0: no end), and whether it shows colours."""

    columns: int
    rows: int
    colours: bool

    def paint(self, text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.colours else text


def frame(directory: str, facts: HostFacts, now: Look, before: Look | None, style: Style) -> list[str]:
    """The screen."""
    status, facts = now.status, printable(facts)
    earlier = before.status if before is not None and style.columns >= NOW_COLUMNS else None
    parts = [
        _head(directory, facts, now, style), _market(facts, now, before, style), hop_table(status, earlier, style),
        _contracts(facts, status, style),
    ]  # fmt: skip
    spaced = [line for part in parts for line in (*part, "")][:-1]
    lines = spaced if not style.rows or len(spaced) <= style.rows else [line for part in parts for line in part]
    if style.rows and len(lines) > style.rows:
        hidden = len(lines) - style.rows + 1
        lines = [*lines[: style.rows - 1], style.paint(f"{hidden} more lines: make the terminal higher", DIM)]
    return [fitted(line, style.columns) for line in lines]


def _head(directory: str, facts: HostFacts, now: Look, style: Style) -> list[str]:
    status = now.status
    until_ns = status.read_ns if status.gone is None else status.alive_ns
    up = _duration(max(until_ns - status.started_ns, 0) / 1e9) if status.started_ns else "-"
    memory = f", {now.resident[0] / 1e6:.0f} MB resident" if now.resident else ""
    lines = [f"{style.paint('strikeforge-host', BOLD)} {directory}   pid {status.process}, up {up}{memory}"]
    if status.gone is not None:
        lines.append(style.paint(f" GONE: {status.gone}; what stands below is the last it said ", RED, REVERSE))
    why = f": {status.why}" if status.why not in ("none", "") else ""
    state = style.paint(f" {status.state.upper()}{why} ", STATE_COLOURS.get(status.state, RED), REVERSE)
    notes = [
        text
        for text, there in (
            ("the HALT file is there: nobody resumes", status.halt_file),
            ("the model's release has EXPIRED", status.model_expired),
        )
        if there
    ]
    lines.append("   ".join([state, *(style.paint(text, RED) for text in notes)]))
    expires = f", expires {facts.expires_at}" if facts.expires_at else ""
    lines += [
        f"model     {facts.model} {facts.channel}, {facts.release}, bundle {facts.bundle[:12]}{expires}",
        f"          {facts.runtime}; {facts.precision}; a step every {_duration(facts.step_ns / 1e9)}",
        f"runs      {facts.feed}; {facts.strategy}; poll {facts.poll}",
    ]
    return lines


def _market(facts: HostFacts, now: Look, before: Look | None, style: Style) -> list[str]:
    status, counters, gauges = now.status, now.status.counters, now.status.gauges
    quiet = f"no record for {_duration(now.quiet_ns / 1e9)}" if now.quiet_ns > QUIET_NS else "records come"
    lost, gaps = counters["lost"], counters["gaps"]
    losses = f"lost {lost:,}, gaps {gaps:,}, writers {counters['writers']:,}"
    others = ", ".join(
        f"{name.replace('_', ' ')} {counters[name]:,}"
        for name in (
            "skipped",
            "unknown",
            "time_went_back",
            "refused_books",
            "refused_numbers",
            "unheard",
            "controls_refused",
            "allocations",
        )
        if counters[name]
    )
    quiet = style.paint(quiet, YELLOW) if now.quiet_ns > QUIET_NS else quiet
    losses = style.paint(losses, RED) if lost or gaps else losses
    names = ("events", "records", "orders", "cancels", "fills", "refused")
    totals = _table([
        ("", *names), ("per s", *(_rate(now, before, name) for name in names)),
        ("total", *(f"{counters[name]:,}" for name in names)),
    ], style, indent=2)  # fmt: skip
    profit = gauges["profit"]
    money = style.paint(f"{profit:+,.2f}", GREEN if profit >= 0 else RED, BOLD)
    swept = f"   chain of {facts.chain_contracts:,} swept {status.sweep_age_ns / 1e6:,.1f} ms ago"
    return [
        f"feed      {_event_time(status.event_ns)}   {quiet}   {losses}{'; ' if others else ''}{others}",
        *totals,
        refused_line(status, style),
        f"profit    {money}   best {gauges['best_profit']:+,.2f}   delta {_number(gauges['delta'])}   "
        f"gamma {_number(gauges['gamma'])}   vega {_number(gauges['vega'])}",
        f"market    spot {_number(gauges['spot'])}   anomaly {_number(gauges['anomaly_score'])}   "
        f"clipped {100 * gauges['clipped_share']:.0f} %   steps {counters['advances']:,}"
        + (swept if status.sweep_age_ns >= 0 else ""),
    ]


def _contracts(facts: HostFacts, status: HostStatus, style: Style) -> list[str]:
    rows = [("contract", "position", "our bid", "fair", "our ask", "iv %")]
    names = [*facts.contracts, *(f"#{index}" for index in range(len(facts.contracts), len(status.quoted)))]
    for name, one in zip(names, status.quoted, strict=False):
        rows.append((
            name, f"{one.position:+g}" if one.position else "0", _price(one.bid), _price(one.fair), _price(one.ask),
            _number(100 * one.volatility),
        ))  # fmt: skip
    return _table(rows, style)


def hop_table(status: HostStatus, before: HostStatus | None, style: Style) -> list[str]:
    """Percentiles since the start and, with an earlier look, since then."""
    names = [f"p{percent:g}" for percent in PERCENTILES] + ["max"]
    rows = [["hop, us", "count", *names, *([" now:", *names] if before else [])]]
    for name, hop in status.hops.items():
        if not hop.total:
            continue
        row = [name.replace("_", " "), f"{hop.total:,}", *_percentiles(hop)]
        if before:
            row += ["", *_percentiles(since(hop, before.hops[name]))]
        rows.append(row)
    return _table(rows, style) if len(rows) > 1 else ["no event was timed yet"]


def _percentiles(hop: Histogram) -> list[str]:
    return [*(_us(hop.percentile_ns(one)) for one in PERCENTILES), _us(hop.max_ns if hop.total else math.nan)]


def refused_line(status: HostStatus, style: Style) -> str:
    """How many orders were refused, by reason."""
    found = [f"{name.replace('_', ' ')} {count:,}" for name, count in status.refused_by.items() if count]
    if not found:
        return "refused   none"
    return f"refused   {style.paint(', '.join(found), YELLOW)}"


def _table(rows: Sequence[Sequence[str]], style: Style, *, indent: int = 0) -> list[str]:
    """The first column to the left, the others to the right; `indent` widens the first."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    widths[0] += indent
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        line = "  ".join(cells)
        lines.append(style.paint(line, BOLD) if number == 0 else line)
    return lines


def _rate(now: Look, before: Look | None, name: str) -> str:
    if before is None or now.status.read_ns <= before.status.read_ns:
        return "-"
    seconds = (now.status.read_ns - before.status.read_ns) / 1e9
    rate = max(now.status.counters[name] - before.status.counters[name], 0) / seconds
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _event_time(event_ns: int) -> str:
    if event_ns <= 0:
        return "no event yet"
    seconds, rest = divmod(event_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d} UTC"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def _price(value: float) -> str:
    return "-" if not value > 0 or math.isinf(value) else f"{value:,.2f}"


def _us(nanoseconds: float) -> str:
    if math.isnan(nanoseconds):
        return "-"
    us = nanoseconds / 1e3
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def fitted(line: str, columns: int) -> str:
    """Cut to so many visible characters; colours that were begun end."""
    shown, place, coloured = 0, 0, False
    while place < len(line):
        if line[place] == "\x1b":
            end = line.index("m", place) + 1
            coloured = line[place:end] != "\x1b[0m"
            place = end
            continue
        if shown == columns:
            return line[:place] + ("\x1b[0m" if coloured else "")
        shown, place = shown + 1, place + 1
    return line
